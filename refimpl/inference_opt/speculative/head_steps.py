"""The trained drafter (`eagle.py`) in captured steps: it guesses and reads on the device, without the host.

    guess   γ times: score the state, draw a token with the noise of the target's own draw there; and but for the last
            time, read the slot behind it, with the state in the feature's place
            … the target reads and judges the drafts …
    read    the slots behind the tokens that were kept, with the target's features. Of these only the last one attends,
            which gives the state that the next guess begins with; the others only write their keys and values

So a step begins and ends with the head having read all that is known. Plain steps only note the features; `follow`
reads those of many steps at once.

How sure the head is plays no part here (`confidence`, of `eagle.py`): every step has the same launches.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels import Batch, paged_attention
from inference_opt.kernels.batch import cut
from inference_opt.kernels.draft_head import enter, spread, take
from inference_opt.kernels.draft_steps import DraftSteps, move_pieces
from inference_opt.kernels.fused import project, rotate_write
from inference_opt.kernels.letter import Letter
from inference_opt.kernels.pdl import launch_options
from inference_opt.kernels.plan import TilePlan
from inference_opt.kernels.plan import spread as spread_counts
from inference_opt.kernels.steps import Kind, Steps
from inference_opt.kernels.transfer import sent
from inference_opt.model.experts import SwiGLU
from inference_opt.model.gqa import GroupedQueryAttention
from inference_opt.speculative.drafter import RequestView

if TYPE_CHECKING:
    from inference_opt.speculative.eagle import Eagle


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
        # Draws from the head's scores, spread over all tokens.
        self.draws = Steps(1, max_rows, target.device)
        self.logits = buffer(max_rows, target.config.vocab_size, dtype=dtype).fill_(-torch.inf)

    def plan(self, ends: Sequence[int]) -> TilePlan:
        """The plan of one query a text, for texts of up to `ends` slots, on the host."""
        return cut(ends, [1] * len(ends), (), self.cache.keys[0], self.attention.heads)

    def start(self, letter: Letter, texts: Sequence[RequestView]) -> None:
        """Speculative steps of these texts follow."""
        self.draws.sample(letter, [text.params for text in texts])
        if texts:
            self.state[: len(texts)] = self.eagle.states(texts)

    def stop(self, texts: Sequence[RequestView], known: Sequence[int]) -> None:
        """They have run; of each text so many tokens are known now."""
        self.eagle.resume(texts, [count - 1 for count in known], self.state[: len(texts)].clone())

    @torch.inference_mode()
    def follow(
        self,
        texts: Sequence[RequestView],
        starts: list[int],
        counts: list[int],
        chosen: Int[Tensor, "steps max_rows"],
    ) -> None:
        """Read what `counts` plain steps of each text have noted, from slot `starts` on. The host waits for nothing."""
        row, step = (sent(torch.from_numpy(each), chosen.device) for each in spread_counts(np.array(counts)))
        features = self.head.fuse_taps(self.noted[step, row].flatten(1).to(self.head.dtype))
        self.eagle.follow(texts, starts, counts, features, chosen[step, row])

    @torch.inference_mode()
    def guess(self, rows: int, gamma: int, kind: Kind, plan: TilePlan) -> None:
        """A draft of `gamma` tokens for each text."""
        h, drawn = self.state[:rows], self.draws.tokens[:rows]
        for ahead in range(gamma):
            if ahead:
                h = self._read(h, plan, ahead, 1, gamma)
            scores = project(h, self.head.head.weight, norm=self.head.norm, pdl=True)
            logits = spread(scores, self.head.token_ids, self.logits, self.steps, self.draws, ahead)
            self.draws.end(logits, kind)
        self.steps.draft.view(-1)[: rows * gamma].view(rows, gamma)[:, -1] = drawn

    @torch.inference_mode()
    def read(self, rows: int, gamma: int, plan: TilePlan) -> None:
        """Read the slots behind the tokens that were kept."""
        slots = gamma + 1
        tapped = self.tapped[0, : rows * slots].flatten(1).to(self.head.dtype)
        h = self._read(project(tapped, self.head.fuse_taps.weight, pdl=True), plan, 0, slots, gamma)
        take(h, self.last[2], 1, out=self.state[:rows])

    def _read(
        self, features: Float[Tensor, "slots dim"], plan: TilePlan, ahead: int, slots: int, gamma: int
    ) -> Float[Tensor, "rows dim"]:
        """The states behind the last of each text's slots that counts. Where none does, they mean nothing."""
        head, page_size, rows = self.head, self.cache.page_size, len(features) // slots
        positions, places = self.place[:, : len(features)]
        norms = head.embed_norm, head.feature_norm
        x = enter(
            self.steps, self.table, page_size, self.draws.tokens, self.eagle.target.embed, features, norms,
            self.place, self.last, ahead, slots, gamma,
        )  # fmt: skip
        for launch in plan.launches:
            count, ends, queries = len(launch.pieces), self.last[1], self.last[2]
            move_pieces[(-(-count // 256),)](launch.pieces, ends, queries, count, 256, **launch_options(pdl=True))
        # An ordinary launch: places and pieces are written before it ends, so what follows it may start early (pdl.py).
        h = project(x, head.join.weight)
        qkv = project(h, self.attention.qkv.weight, norm=head.layer.attention_norm, pdl=True)
        keys, values = self.cache.keys[0], self.cache.values_of(0)
        q = rotate_write(qkv, self.rope.cos, self.rope.sin, positions, places, keys, values, pdl=True)
        if slots > 1:
            h, q = (take(each, self.last[0], slots, out=each.new_empty(rows, *each.shape[1:])) for each in (h, q))
        batch = Batch(self.table, [0] * rows, [1] * rows, plan)
        mixed, _ = paged_attention(q, keys, values, batch, self.attention.scale, pdl=True)
        h = project(mixed.flatten(1), self.attention.out.weight, residual=h, pdl=True)
        gated = project(h, self.mlp.gate_up.weight, norm=head.layer.mlp_norm, gated=True, pdl=True)
        return project(gated, self.mlp.down.weight, residual=h, pdl=True)
