"""Rows of a tree of drafts: the position of each, and the keys that it sees (Miao et al. 2305.09781, SpecInfer, §4.2).

A tree's rows lie in consecutive slots behind the context, each after its parent. A row's position is its depth in the
tree, and it sees the context, its ancestors and itself:

    context ─ a ─┬─ b ─ e      slot       5   6   7   8   9      d sees a, c and d. Its bits, from its own slot back:
                 └─ c ─ d      row        a   b   c   d   e          d  c  b  a  context
                               parent    −1   0   0   2   1          1  1  0  1  1  1  1 …
                               position   5   6   6   7   7

There are 64 bits: bit d tells whether the row sees the key d slots before its own. Keys further away are context. So a
row knows nothing of where its tree begins, and the bits of a chain are all ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Int
from torch import Tensor

WINDOW = 64  # bits
CHAIN = -1  # all bits set: the row sees every key up to its own


class TreeRows(NamedTuple):
    """A tree's rows, in the order of their slots."""

    positions: list[int]
    seen: list[int]  # 64 bits each, as a signed number

    def behind(self, fed: range) -> "TreeRows":
        """With tokens of the text that are fed before them, at these positions."""
        return TreeRows([*fed, *self.positions], [CHAIN] * len(fed) + self.seen)

    def after(self, rows: int) -> "TreeRows":
        """Without the first `rows`."""
        return TreeRows(self.positions[rows:], self.seen[rows:])


def tree_rows(parents: Sequence[int], position: int) -> TreeRows:
    """The rows of a tree. parents[i] < i is the row that row i follows, or −1: the context's last token.

    `position`: that of the rows without a parent. ValueError for a row before its parent, and for more than 63 rows.
    """
    if len(parents) >= WINDOW:
        raise ValueError(f"a tree has at most {WINDOW - 1} drafts, got {len(parents)}")
    positions: list[int] = []
    bits: list[int] = []
    for i, parent in enumerate(parents):
        if not -1 <= parent < i:
            raise ValueError(f"the parent of draft {i} must be an earlier draft or −1 (the text), got {parent}")
        positions.append(position if parent < 0 else positions[parent] + 1)
        # With a parent: what the parent sees, i − parent slots further away from here.
        # Without one: the context, which begins i + 1 slots away.
        above = bits[parent] << (i - parent) if parent >= 0 else CHAIN << (i + 1)
        bits.append(above | 1)
    return TreeRows(positions, [_signed(each) for each in bits])


def _signed(bits: int) -> int:
    """The lowest 64 bits, as a signed number."""
    low = bits & (1 << WINDOW) - 1
    return low - (1 << WINDOW) if low >> (WINDOW - 1) else low


def sees(seen: Int[Tensor, "rows"], slots: Int[Tensor, "rows"], keys: Int[Tensor, "keys"]) -> Bool[Tensor, "rows keys"]:
    """Whether each row, at its slot of the sequence, sees each key."""
    distance = slots[:, None] - keys
    bit = seen[:, None] >> distance.clamp(0, WINDOW - 1) & 1
    return (distance >= 0) & ((distance >= WINDOW) | (bit == 1))
