"""A tree of drafts as the rules see it: by paths, each a node's tokens from the root on (`rules.tree`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inference_opt.speculative.drafter import Draft, one_hot
from inference_opt.speculative.rules import Path, Probs


@dataclass(frozen=True)
class DraftTree:
    """A draft and the target's distributions behind the text and behind each node."""

    nodes: dict[Path, int]  # −1: the text
    target: dict[Path, Probs]
    draft: dict[Path, list[Probs]]
    tokens: dict[Path, list[int]]
    broken: set[Path]  # nodes behind which the target's numbers are broken, or were not computed

    @classmethod
    def of(cls, draft: Draft, target: Sequence[Probs | None]) -> "DraftTree":
        """target[0]: behind the text; target[i + 1]: behind draft i, None where it is not known.

        Behind such a node nothing can be judged: it is a leaf here.
        """
        root = target[0]
        assert root is not None
        tree = cls({(): -1}, {(): root}, {(): []}, {(): []}, set())
        paths: dict[int, Path] = {-1: ()}
        for i, (x, parent) in enumerate(zip(draft.tokens, draft.rising)):
            if parent not in paths or paths[parent] in tree.broken:
                continue
            above = paths[parent]
            paths[i] = path = (*above, x)
            behind = target[i + 1]
            if behind is None:
                tree.broken.add(path)
            tree.nodes[path], tree.target[path] = i, root if behind is None else behind
            tree.draft[above].append(one_hot(x, len(root)) if draft.probs is None else draft.probs[i])
            tree.tokens[above].append(x)
            tree.draft[path], tree.tokens[path] = [], []
        return tree

    @property
    def by_path(self) -> tuple[Any, Any, Any]:
        """What `rules.tree` asks for."""
        return self.target, self.draft, self.tokens

    @property
    def candidates(self) -> tuple[Any, Any, Any]:
        """What `rules.multi_draft` asks for, of a tree of one level."""
        tokens = self.tokens[()]
        return [self.target[()], *(self.target[x,] for x in tokens)], self.draft[()], tokens

    def kept(self, emitted: list[int]) -> tuple[list[int], list[int]]:
        """What is emitted, and the drafts that were accepted. What was drawn behind broken numbers means nothing."""
        path = tuple(emitted[:-1])
        accepted = [self.nodes[path[: i + 1]] for i in range(len(path))]
        return (emitted[:-1] if path in self.broken else emitted), accepted
