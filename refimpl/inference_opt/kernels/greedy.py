"""The end of a greedy step: each row's token, and what its next step needs to know, without a look from the host.

    best_of_block   the largest of a block of logits, many programs a row
    end_of_step     the largest of those: it is noted, and read next; and the row moves to its next place

Written out in PyTorch's operations the end is five launches more, which take a step of a billion weights 5 µs of 935.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels.attention import early


# [greedy]
@triton.jit
def first_of_largest(x):
    """The largest of some values, NaN where one is NaN, and where it stands: of equals the first."""
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
    EARLY: tl.constexpr,
):
    """The best of BLOCK tokens of one row, and its logit."""
    row, block, blocks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    if EARLY:
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
    step,  # [most]: every row counts for itself
    all_tops,  # [STEPS, most]
    all_tokens,  # [STEPS, most]
    read,  # [most]
    places,  # [STEPS, 2, most]
    place,  # [2, most]
    most,
    blocks,
    STEPS: tl.constexpr,
    BLOCKS: tl.constexpr,  # at least blocks, a power of two
    EARLY: tl.constexpr,
):
    """The best of one row: noted, what the row reads next; and the row moves to its next place."""
    row, block = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCKS)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    top, where = first_of_largest(tl.load(tops + row * blocks + block, mask=block < blocks, other=float("-inf")))
    token = tl.load(tokens + row * blocks + where)
    now = tl.load(step + row)
    tl.store(all_tops + now * most + row, top)
    tl.store(all_tokens + now * most + row, token)
    tl.store(read + row, token)
    tl.store(step + row, now + 1)
    if now + 1 < STEPS:
        for i in tl.static_range(2):
            tl.store(place + i * most + row, tl.load(places + ((now + 1) * 2 + i) * most + row))


# [/greedy]


class Greedy:
    """Up to `steps` greedy steps in a row of up to `most` rows: buffers on the device, which stay where they are.

    `tokens` [most] is what the step under way reads, `place` [2, most] the position and slot where each row writes.
    `chosen` and `tops` [steps, most] are what the steps so far have chosen, and the logits of that.
    """

    def __init__(self, steps: int, most: int, device: torch.device) -> None:
        def buffer(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.step, self.tokens, self.place, self.places = (buffer(*n, most) for n in ((), (), (2,), (steps, 2)))
        self.chosen, self.tops = buffer(steps, most), buffer(steps, most, dtype=torch.float32)

    def begin(self, tokens: Int[Tensor, "rows"], places: Int[Tensor, "steps 2 rows"]) -> None:
        """What the first step reads, and where all of them write. Rows behind those given write nowhere."""
        self.step.zero_()
        self.tokens[: len(tokens)] = tokens.to(self.tokens.device)
        self.places[:, 0], self.places[:, 1] = 0, -1
        self.places[:, :, : len(tokens)] = places.to(self.places.device)
        self.place.copy_(self.places[0])

    def end(self, logits: Float[Tensor, "rows vocab"]) -> None:
        """Each row's token is that of its largest logit, of equals the first; its logit is NaN where a row holds one.

        The caller sees to it that no more steps end than there are.
        """
        (rows, n), block, (steps, most) = logits.shape, 4096, self.chosen.shape
        blocks = triton.cdiv(n, block)
        tops, tokens = (logits.new_empty(rows, blocks, dtype=kind) for kind in (torch.float32, torch.int64))
        best_of_block[(rows, blocks)](logits, tops, tokens, n, block, **early())
        end_of_step[(rows,)](
            tops, tokens, self.step, self.tops, self.chosen, self.tokens, self.places, self.place,
            most, blocks, steps, triton.next_power_of_2(blocks), **early(),
        )  # fmt: skip
