"""A tree of drafts judged by the target's own draws: `rules.coupled`, and as pure as the rules there."""

from collections.abc import Mapping, Sequence
from typing import Any

from inference_opt.speculative.rules import Path, Probs, Randomness


def coupled_tree(
    target: Mapping[Path, Probs], draft: Any, tokens: Mapping[Path, Sequence[int]], rng: Randomness
) -> list[int]:
    """Draw the target's own token at a node, and go on there if it is one of the candidates; else the step ends.

    What is emitted never depends on the candidates, nor on `draft`, their distributions. With one candidate at every
    node this is `coupled`. (For the arguments see `rules.tree`.)
    """
    path: Path = ()
    while True:
        candidates, x = tokens[path], rng.choose(target[path], len(path))
        path = (*path, x)
        if x not in candidates:
            return list(path)
