"""The shape of the drafts in captured steps: a chain, or a tree that is the same in every step.

A captured step has the same launches each time. So its tree cannot follow from what the drafter holds probable, as
`best_first.py` grows it. Its shape is chosen beforehand (Cai et al. 2401.10774, Medusa, §2.3; Chen et al. 2402.12374,
Sequoia, §3.1), and each step fills in the tokens: the children of a node are the best ones that the drafter has there.

    pass of the drafter    scores              the drafts that it gives
    0                      the text            its children: the best, the second best, …
    1                      drafts of depth 1   theirs, for those that have any in this shape
    …

A smaller tree is the first drafts of a larger one. So a step with many drafts also shows what fewer would have given.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from inference_opt.kernels.tree import CHAIN, WINDOW, tree_rows

# The parent of each draft: of those that the trained head drafts for SmolLM2 (chat, T = 0 and 0.8), the most often kept
# come first, each with its rank among its siblings. Behind these the best chain goes on.
PARENTS = (-1, 0, -1, 1, -1, 0, 2, 3, 7, 8, 1, 0)


class Pass(NamedTuple):
    """One pass of the drafter: it reads drafts of one depth, all that have children, and scores what follows them."""

    read: list[int]  # these drafts; −1: the text
    above: list[int]  # for each, which of those read in the pass before is its parent
    before: int  # drafts read in earlier passes: so many slots of the drafter are taken
    seen: list[int]  # for each, the slots that it sees (`kernels/tree.py`)
    children: list[list[int]]  # for each, its drafts, from the best on

    @property
    def most(self) -> int:
        """Children of one draft, at most."""
        return max(map(len, self.children))

    @property
    def branches(self) -> bool:
        """Whether not all see all that is in front of them."""
        return any(bits != CHAIN for bits in self.seen)


@dataclass(frozen=True)
class Shape:
    """`gamma` drafts: a tree if it `branches`, else a chain. A tree of more drafts than a mask has bits is a chain."""

    gamma: int
    branches: bool = False

    @cached_property
    def parents(self) -> list[int]:
        """Of each draft; −1: the text."""
        chain = list(range(-1, self.gamma - 1))
        if not self.branches or self.gamma >= WINDOW:
            return chain
        parents = list(PARENTS[: self.gamma])
        best = [-1]  # the chain of best children
        for i, parent in enumerate(parents):
            if parent == best[-1]:
                best.append(i)
        while len(parents) < self.gamma:
            parents.append(best[-1])
            best.append(len(parents) - 1)
        return parents

    @cached_property
    def depths(self) -> list[int]:
        """Of each row that the target reads: the text's last token, and the drafts."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent + 1] + 1)
        return depths

    @property
    def depth(self) -> int:
        """Of the deepest draft."""
        return max(self.depths)

    @cached_property
    def seen(self) -> list[int] | None:
        """What each row of the target sees (`kernels/tree.py`); None for a chain: all that is in front of it."""
        if self.parents == list(range(-1, self.gamma - 1)):
            return None
        return tree_rows(self.parents, 0).behind(range(1)).seen

    @cached_property
    def passes(self) -> list[Pass]:
        """Those of the drafter."""
        children = [[i for i, parent in enumerate(self.parents) if parent == node] for node in range(-1, self.gamma)]
        passes, read, order = [Pass([-1], [0], 0, [CHAIN], children[:1])], [-1], list[int]()
        for depth in range(1, self.depth):
            inner = [i for i in range(self.gamma) if self.depths[i + 1] == depth and children[i + 1]]
            above, before = [read.index(self.parents[i]) for i in inner], len(order)
            order += inner
            parents = [order.index(self.parents[i]) if self.parents[i] >= 0 else -1 for i in order]
            # More than a mask has bits are a chain's.
            seen = tree_rows(parents, 0).seen[before:] if self.seen else [CHAIN]
            passes.append(Pass(inner, above, before, seen, [children[i + 1] for i in inner]))
            read = inner
        return passes
