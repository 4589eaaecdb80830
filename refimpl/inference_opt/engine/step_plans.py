"""The plan of who reads what (`kernels/plan.py`) in captured steps: made for several runs, in lists at fixed places.

reach   A piece may reach further than its query can see; it stops at the query's position
        (`kernels/attention.py`). So one plan serves texts until they are as long as it was made for
lists   A graph has lists of its own, with room for more pieces and states than a plan has. Programs of pieces of
        nobody, on processors that are free, and a merge of no states cost little; a capture costs much. So a graph
        serves all plans that its lists can hold. Where several graphs could, the one with the shortest lists does
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference_opt.kernels import SharedPrefix
from inference_opt.kernels.plan import Launch, Piece, TilePlan
from inference_opt.kernels.shape import Shape

if TYPE_CHECKING:
    from inference_opt.kernels.letter import Letter

AHEAD = 4  # runs of plain steps that one plan serves
PIECES = 16  # of a launch, at least: a few programs a head, at most one for each processor of a card

Size = tuple[int, ...]  # states; and for each launch its pieces


class StepPlans:
    """The plans of one attention, of up to `rows` rows, in runs of up to `max_steps` plain steps."""

    def __init__(self, rows: int, max_steps: int, device: torch.device) -> None:
        self.offsets = torch.zeros(rows + 1, dtype=torch.int32, device=device)  # where each row's states begin
        self.ahead, self.device = AHEAD * max_steps, device
        self.least = PIECES if device.type == "cuda" else 1
        # The last plan with such drafts: how far it reaches, the prefixes that it shares, and itself.
        self.last: dict[Shape, tuple[list[int], list[SharedPrefix], TilePlan]] = {}

    def plan(
        self, shape: Shape, ends: list[int], prefixes: list[SharedPrefix], make: Callable[[list[int]], TilePlan]
    ) -> TilePlan:
        """A plan for texts of up to `ends` tokens: the last one if it serves, else what `make` makes."""
        reach, shared, plan = self.last.get(shape, ([], [], None))
        serves = all(0 <= far - end <= self.ahead for far, end in zip(reach, ends))
        if plan is None or not serves or len(reach) != len(ends) or shared != prefixes:
            reach = [end + self.ahead for end in ends]
            plan = make(reach)
            self.last[shape] = reach, prefixes, plan
        return plan

    def size(self, plan: TilePlan) -> Size:
        """The size of lists for a plan: states to a power of four, pieces to a power of two."""
        pieces = (rounded_up(max(len(each.pieces), self.least)) for each in plan.launches)
        return rounded_up(plan.num_states, 4), *pieces

    def lists(self, plan: TilePlan, size: Size, rows: int, seen: list[int] | None) -> TilePlan:
        """Lists of this size for a graph of so many rows, with the launches of a plan. No row has states to merge.

        `seen`: what each row of a tree sees of its text's own keys.
        """
        num_states, *counts = size
        self.offsets.zero_()
        launches = [
            Launch(torch.zeros(n, len(Piece._fields), dtype=torch.int32, device=self.device), each.tile)
            for n, each in zip(counts, plan.launches)
        ]
        if seen:
            mask = torch.tensor(seen * (rows // len(seen)), device=self.device)
            launches[-1] = replace(launches[-1], seen=mask)
        states = torch.zeros(num_states, dtype=torch.int32, device=self.device)
        return TilePlan(tuple(launches), self.offsets[: rows + 1], states, num_states)

    def put(self, letter: "Letter", plan: TilePlan, lists: TilePlan) -> None:
        """Write a plan into the lists of a graph, which may be longer."""
        ends = np.full(len(self.offsets), plan.num_states)  # rows without a request have no states
        ends[: len(plan.offsets)] = plan.offsets.numpy()
        letter.put(self.offsets, ends)
        letter.put(lists.states[: len(plan.states)], plan.states.numpy())
        for mine, its in zip(lists.launches, plan.launches):
            pieces = np.zeros(mine.pieces.shape)  # of no query
            pieces[: len(its.pieces)] = its.pieces.numpy()
            letter.put(mine.pieces, pieces)


def rounded_up(n: int, base: int = 2) -> int:
    """To the next power of `base`, which is one of two; 0 stays."""
    bits = base.bit_length() - 1
    return 1 << bits * -(-(n - 1).bit_length() // bits) if n else 0
