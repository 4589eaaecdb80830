"""A tree of drafts as the rules see it: by paths, each a node's tokens from the root on (`rules.tree`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inference_opt.speculative.drafter import Draft, one_hot
from inference_opt.speculative.rules import Path, Probs


class Behind(dict[Path, Probs]):
    """Distributions behind nodes, each computed when a rule first asks for it: most are behind nodes that drop out."""

    def __init__(self, compute: Callable[[Path], Probs]) -> None:
        super().__init__()
        self.compute = compute

    def __missing__(self, path: Path) -> Probs:
        self[path] = p = self.compute(path)
        return p


@dataclass(frozen=True)
class DraftTree:
    """A draft by paths, as far as the target's numbers are known."""

    made: Draft
    nodes: dict[Path, int]  # −1: the text
    tokens: dict[Path, list[int]]  # the candidates behind each
    broken: set[Path]  # nodes behind which the target's numbers are broken, or were not computed

    @classmethod
    def of(cls, draft: Draft, sound: Sequence[int | bool]) -> "DraftTree":
        """sound[0]: whether the numbers behind the text are; sound[i + 1]: those behind draft i.

        A draft with broken numbers is a leaf here: nothing behind it can be judged.
        """
        tree = cls(draft, {(): -1}, {(): []}, set())
        paths: dict[int, Path] = {-1: ()}
        for i, (x, parent) in enumerate(zip(draft.tokens, draft.rising)):
            if parent not in paths or paths[parent] in tree.broken:
                continue
            above = paths[parent]
            paths[i] = path = (*above, x)
            if not sound[i + 1]:
                tree.broken.add(path)
            tree.nodes[path], tree.tokens[path] = i, []
            tree.tokens[above].append(x)
        return tree

    def target(self, behind: Callable[[int], Probs]) -> Behind:
        """The target's distributions. behind(0): behind the text; behind(i + 1): behind draft i."""
        return Behind(lambda path: behind(0 if path in self.broken else self.nodes[path] + 1))

    def draft(self, vocab_size: int) -> dict[Path, list[Probs]]:
        """What the candidates behind each node were drawn from."""
        probs = self.made.probs
        return {
            path: [one_hot(x, vocab_size) if probs is None else probs[self.nodes[*path, x]] for x in tokens]
            for path, tokens in self.tokens.items()
        }

    def kept(self, emitted: list[int]) -> tuple[list[int], list[int]]:
        """What is emitted, and the drafts that were accepted. What was drawn behind broken numbers means nothing."""
        path = tuple(emitted[:-1])
        accepted = [self.nodes[path[: i + 1]] for i in range(len(path))]
        return (emitted[:-1] if path in self.broken else emitted), accepted
