"""The trained drafter (`eagle.py`) in captured steps: it guesses and reads on the device, without the host.

    guess   as often as the drafts are deep (`kernels/shape.py`): score what follows each draft that was read, and take
            the best tokens, with the noise of the target's own draw there; and but for the last time, read those of
            them that have drafts behind them, with the state in the feature's place
            … the target reads and judges the drafts …
    read    the slots behind the tokens that were kept, with the target's features. Of these only the last one attends,
            which gives the state that the next guess begins with; the others only write their keys and values

So a step begins and ends with the head having read all that is known. Plain steps only note the features; `follow`
reads those of many steps at once.

How sure the head is plays no part here (`confidence`, of `eagle.py`): every step has the same launches.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels import Batch, paged_attention
from inference_opt.kernels.batch import cut
from inference_opt.kernels.draft_head import enter, place_best, take
from inference_opt.kernels.draft_steps import DraftSteps, move_pieces
from inference_opt.kernels.fused import project, rotate_write
from inference_opt.kernels.letter import Letter
from inference_opt.kernels.pdl import launch_options
from inference_opt.kernels.plan import TilePlan
from inference_opt.kernels.plan import spread as spread_counts
from inference_opt.kernels.shape import Pass, Shape
from inference_opt.kernels.steps import Kind, Steps
from inference_opt.kernels.transfer import sent
from inference_opt.model.experts import SwiGLU
from inference_opt.model.gqa import GroupedQueryAttention
from inference_opt.speculative.drafter import RequestView

if TYPE_CHECKING:
    from inference_opt.speculative.eagle import Eagle


class Tables(NamedTuple):
    """A pass of the head, as kernels read it."""

    read: Int[Tensor, "2 slots"]  # of each draft that is read its number, and which state it follows
    children: Int[Tensor, "slots few"]  # the numbers of its own drafts, from the best on; −1: none

    @classmethod
    def of(cls, each: Pass, device: torch.device) -> "Tables":
        """On a device."""
        children = torch.full((len(each.children), each.most), -1)
        for row, own in zip(children, each.children):
            row[: len(own)] = torch.tensor(own)
        return cls(torch.tensor([each.read, each.above], device=device), children.to(device))


class HeadSteps:
    """The head of a bound `Eagle`, its buffers for `max_steps` steps, and what captured steps ask of it.

    `steps` are the speculative steps that it drafts for, `table` the page table that both models share.
    """

    def __init__(self, eagle: "Eagle", steps: DraftSteps, table: Int[Tensor, "max_rows pages"], max_steps: int) -> None:
        layer = eagle.head.layer
        assert isinstance(layer.attention, GroupedQueryAttention)
        assert isinstance(layer.mlp, SwiGLU)
        self.eagle, self.head, self.steps, self.table = eagle, eagle.head, steps, table
        self.attention, self.mlp = layer.attention, layer.mlp
        self.cache, target, dtype = eagle.cache, eagle.target, eagle.head.dtype
        (max_rows, _), fed = table.shape, steps.rows.place.shape[1]

        def buffer(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=target.device)

        # What the target knew: of each row of a speculative step, and of each row of many plain steps.
        taps = (len(self.head.taps), target.config.dim)
        self.tapped = buffer(1, fed, *taps, dtype=target.dtype)
        self.noted = buffer(max_steps, max_rows, *taps, dtype=target.dtype)
        # The state behind the last slot read of each text, places of slots, and what `enter` says of each text.
        self.state = buffer(max_rows, target.config.dim, dtype=dtype)
        self.place, self.last = buffer(2, fed), buffer(3, max_rows)
        self.rope = eagle.head.rope(self.state)
        self.sampling = Steps(1, max_rows, target.device)  # how each text samples
        self.tables: dict[Shape, list[Tables]] = {}

    def plan(self, each: Pass, ends: Sequence[int]) -> TilePlan:
        """The plan of a pass, for texts of up to `ends` slots, on the host."""
        seen = torch.tensor(each.seen * len(ends)) if each.branches else None
        counts = [len(each.read)] * len(ends)
        ends = [max(end, count) for end, count in zip(ends, counts)]
        return cut(ends, counts, (), self.cache.keys[0], self.attention.heads, seen=seen)

    def start(self, letter: Letter, texts: Sequence[RequestView]) -> None:
        """Speculative steps of these texts follow."""
        self.sampling.sample(letter, [text.params for text in texts])
        if texts:
            self.state[: len(texts)] = self.eagle.states(texts)

    def go_on(self, letter: Letter, texts: Sequence[RequestView], rows: Int[Tensor, "texts"] | None) -> None:
        """The same, of texts that are in these rows (None: in the first ones), wherever the last steps left them."""
        self.sampling.sample(letter, [text.params for text in texts])
        if rows is not None:
            self.state[: len(rows)] = self.state[rows]

    def stop(self, texts: Sequence[RequestView], known: Sequence[int], states: Float[Tensor, "texts dim"]) -> None:
        """They have run; of each text so many tokens are known now, and this is the state behind the last one read."""
        self.eagle.resume(texts, [count - 1 for count in known], states)

    @torch.inference_mode()
    def follow(
        self,
        texts: Sequence[RequestView],
        starts: list[int],
        counts: list[int],
        chosen: Int[Tensor, "steps max_rows"],
        rows: list[int],
    ) -> None:
        """Read what `counts` plain steps of each text have noted, from slot `starts` on. The host waits for nothing.

        `rows`: where each text was in these steps.
        """
        each, steps = spread_counts(np.array(counts))
        row, step = (sent(torch.from_numpy(one), chosen.device) for one in (np.array(rows)[each], steps))
        features = self.head.fuse_taps(self.noted[step, row].flatten(1).to(self.head.dtype))
        self.eagle.follow(texts, starts, counts, features, chosen[step, row])

    @torch.inference_mode()
    def guess(self, rows: int, shape: Shape, kind: Kind, plans: Sequence[TilePlan]) -> None:
        """Drafts of this shape for each text. `plans`: one for each pass."""
        h = self.state[:rows]
        for depth, (each, tables, plan) in enumerate(zip(shape.passes, self._tables(shape), plans)):
            if depth:
                h = self._read(h, rows, shape.gamma, plan, tables.read, depth, each.before)
            scores = project(h, self.head.head.weight, norm=self.head.norm, pdl=True)
            ids, children = self.head.token_ids, tables.children
            place_best(scores, ids, children, self.steps, self.sampling, kind, shape.gamma, depth)

    @torch.inference_mode()
    def read(self, rows: int, gamma: int, plan: TilePlan) -> None:
        """Read the slots behind the tokens that were kept."""
        tapped = self.tapped[0, : rows * (gamma + 1)].flatten(1).to(self.head.dtype)
        h = self._read(project(tapped, self.head.fuse_taps.weight, pdl=True), rows, gamma, plan)
        take(h, self.last[2], 1, out=self.state[:rows])

    def _tables(self, shape: Shape) -> list[Tables]:
        """What passes read, on the device."""
        if shape not in self.tables:
            self.tables[shape] = [Tables.of(each, self.state.device) for each in shape.passes]
        return self.tables[shape]

    def _read(
        self,
        features: Float[Tensor, "features dim"],
        rows: int,
        gamma: int,
        plan: TilePlan,
        read: Int[Tensor, "2 slots"] | None = None,
        depth: int = 0,
        before: int = 0,
    ) -> Float[Tensor, "attending dim"]:
        """The states behind drafts that are read, or behind the last of each text's tokens that were kept.

        Where none counts, they mean nothing.
        """
        head, page_size, kept = self.head, self.cache.page_size, read is None
        norms, embed = (head.embed_norm, head.feature_norm), self.eagle.target.embed
        x = enter(
            self.steps, self.table, page_size, embed, features, norms, self.place, self.last, gamma, rows,
            read, depth, before,
        )  # fmt: skip
        for launch in plan.launches:
            count, ends, queries = len(launch.pieces), self.last[1], self.last[2]
            move_pieces[(-(-count // 256),)](launch.pieces, ends, queries, count, 256, **launch_options(pdl=True))
        # An ordinary launch: places and pieces are written before it ends, so what follows it may start early (pdl.py).
        h = project(x, head.join.weight)
        qkv = project(h, self.attention.qkv.weight, norm=head.layer.attention_norm, pdl=True)
        keys, values = self.cache.keys[0], self.cache.values_of(0)
        (positions, places), angles = self.place[:, : len(x)], (self.rope.cos, self.rope.sin)
        q = rotate_write(qkv, *angles, positions, places, keys, values, pdl=True)
        slots = len(x) // rows
        if kept and slots > 1:
            h, q = (take(each, self.last[0], slots, out=each.new_empty(rows, *each.shape[1:])) for each in (h, q))
        batch = Batch(self.table, [0] * rows, [len(q) // rows] * rows, plan)
        mixed, _ = paged_attention(q, keys, values, batch, self.attention.scale, pdl=True)
        h = project(mixed.flatten(1), self.attention.out.weight, residual=h, pdl=True)
        gated = project(h, self.mlp.gate_up.weight, norm=head.layer.mlp_norm, gated=True, pdl=True)
        return project(gated, self.mlp.down.weight, residual=h, pdl=True)
