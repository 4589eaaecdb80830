"""The end of a greedy step on the card: each row's token and the input of its next step, without asking the host.

    best_of_block   the largest logit of each block of a row's logits: many programs a row
    end_of_step     the largest of those: it is written down and becomes the next input; the row moves to its next place

In PyTorch's own operations this takes five launches more: 5 µs of a step of 935, for a model of a billion weights.
Both kernels wait before they read anything, so they may always start early (`pdl.py`).
"""

import triton
import triton.language as tl


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
def move_on(row, token, top, now, step, all_tops, all_tokens, read, places, place, max_rows, STEPS: tl.constexpr):
    """Write a row's token down under the step `now`, for the host, and as what it reads next; move it on."""
    tl.store(all_tops + now * max_rows + row, top)
    tl.store(all_tokens + now * max_rows + row, token)
    tl.store(read + row, token)

    # The next step's position and slot.
    tl.store(step + row, now + 1)
    if now + 1 < STEPS:
        for i in tl.static_range(2):
            tl.store(place + i * max_rows + row, tl.load(places + ((now + 1) * 2 + i) * max_rows + row))


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

    now = tl.load(step + row)
    move_on(row, token, top, now, step, all_tops, all_tokens, read, places, place, max_rows, STEPS)
