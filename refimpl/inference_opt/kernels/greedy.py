"""The end of a greedy step: each row's token and the input of its next step, without asking the host.

    best_of_block   the largest logit of each block of a row's logits: many programs a row
    end_of_step     the largest of those: it is written down and becomes the next input; the row moves to its next place

In PyTorch's own operations this takes five launches more: 5 µs of a step of 935, for a model of a billion weights.
Both kernels wait before they read anything, so they may always start early (`pdl.py`).
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels.pdl import launch_options


@triton.jit
def first_of_largest(x):
    """The largest value and its index; ties go to the lowest index. NaN if any value is NaN."""
    broken = tl.max((x != x).to(tl.int32), 0)
    top, where = tl.max(tl.where(x != x, float("-inf"), x), 0, return_indices=True)
    return tl.where(broken > 0, float("nan"), top), where


@triton.jit
def best_of_block(
    logits,  # [rows, N]
    tops,  # [rows, blocks]
    tokens,  # [rows, blocks]
    N,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The best of BLOCK tokens of one row, and its logit."""
    row = tl.program_id(0).to(tl.int64)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    n = block * BLOCK + tl.arange(0, BLOCK)
    top, where = first_of_largest(tl.load(logits + row * N + n, mask=n < N, other=float("-inf")).to(tl.float32))
    tl.store(tops + row * blocks + block, top)
    tl.store(tokens + row * blocks + block, block * BLOCK + where)


@triton.jit
def end_of_step(
    tops,  # [rows, blocks]
    tokens,  # [rows, blocks]
    step,  # [max_rows]: each row counts its own steps
    all_tops,  # [STEPS, max_rows]
    all_tokens,  # [STEPS, max_rows]
    read,  # [max_rows]
    places,  # [STEPS, 2, max_rows]
    place,  # [2, max_rows]
    max_rows,
    blocks,
    STEPS: tl.constexpr,
    BLOCKS: tl.constexpr,  # blocks, as a power of two
    PDL: tl.constexpr,
):
    """Choose the token of one row, write it down, make it the next input, and move the row to its next place."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()

    # The best of the blocks' best.
    top, where = first_of_largest(tl.load(tops + row * blocks + block, mask=block < blocks, other=float("-inf")))
    token = tl.load(tokens + row * blocks + where)

    # Write it down under this step, for the host, and as what the row reads next.
    now = tl.load(step + row)
    tl.store(all_tops + now * max_rows + row, top)
    tl.store(all_tokens + now * max_rows + row, token)
    tl.store(read + row, token)

    # The next step's position and slot.
    tl.store(step + row, now + 1)
    if now + 1 < STEPS:
        for i in tl.static_range(2):
            tl.store(place + i * max_rows + row, tl.load(places + ((now + 1) * 2 + i) * max_rows + row))


class Greedy:
    """Up to `steps` greedy steps one after another, of up to `max_rows` rows: buffers at fixed places on the device.

    `tokens` [max_rows] is the input of the current step, `place` [2, max_rows] the position and the slot of each row.
    `chosen` and `tops` [steps, max_rows] are the tokens that the steps so far have chosen, and their logits.
    """

    def __init__(self, steps: int, max_rows: int, device: torch.device) -> None:
        def buffer(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.step = buffer(max_rows)
        self.tokens = buffer(max_rows)
        self.place = buffer(2, max_rows)
        self.places = buffer(steps, 2, max_rows)
        self.chosen = buffer(steps, max_rows)
        self.tops = buffer(steps, max_rows, dtype=torch.float32)

    def begin(self, tokens: Int[Tensor, "rows"], places: Int[Tensor, "steps 2 rows"]) -> None:
        """Set the input of the first step and the places of all steps. The other rows write nowhere: slot −1."""
        self.step.zero_()
        self.tokens[: len(tokens)] = tokens.to(self.tokens.device)
        self.places[:, 0], self.places[:, 1] = 0, -1
        self.places[:, :, : len(tokens)] = places.to(self.places.device)
        self.place.copy_(self.places[0])

    def end(self, logits: Float[Tensor, "rows vocab"]) -> None:
        """Give each row the token of its largest logit. Ties go to the lowest id.

        Where a row holds NaN, its noted logit is NaN, too.

        The caller calls it at most `steps` times after `begin`.
        """
        rows, vocab = logits.shape
        steps, max_rows = self.chosen.shape
        block = 4096
        blocks = triton.cdiv(vocab, block)
        tops = logits.new_empty(rows, blocks, dtype=torch.float32)
        tokens = logits.new_empty(rows, blocks, dtype=torch.int64)
        best_of_block[(rows, blocks)](logits, tops, tokens, vocab, block, **launch_options(pdl=True))
        end_of_step[(rows,)](
            tops, tokens, self.step, self.tops, self.chosen, self.tokens, self.places, self.place,
            max_rows, blocks, steps, triton.next_power_of_2(blocks), **launch_options(pdl=True),
        )  # fmt: skip
