"""The draw of `sampling/distribution.py` on the card: a race of all tokens of a row, in two launches for all rows.

    race_of_block   each block's largest logit, as in `greedy.py`, and its first to arrive: many programs a row
    end_of_race     the first of those, or the largest logit for a greedy row; its log-probability; the row moves on

A token arrives at E / w, where E = −log(1 − u) is its noise and w = exp((logit − largest logit) / temperature) ≤ 1 its
weight. These are float64 as on the CPU, but a card is slow at float64. So a block bounds them in float32, from
u ≤ E ≤ u / (1 − u). Nearly always one token is first within these bounds. Only if two may be, their arrivals are
computed. The arrivals of the blocks' first ones, which are few, are computed at the end.
"""

import triton
import triton.language as tl

from inference_opt.kernels.greedy import move_on
from inference_opt.kernels.philox import exponential, uniform_of, word, words

# How a row samples, 64 bits each (`steps.py` writes them).
TEMPERATURE, TOP_K, TOP_P, MIN_P, SEED, LOGPROBS = (tl.constexpr(i) for i in range(6))


@triton.jit
def number(how, which, row, max_rows):
    """One of a row's parameters, as a float64."""
    return tl.load(how + which * max_rows + row).to(tl.float64, bitcast=True)


@triton.jit
def race_of_block(
    logits,  # [rows, N]
    how,  # [6, max_rows]
    place,  # [2, max_rows]: the position that each row has read, and its slot
    least,  # [max_rows], with FILTERED: the least logit that a row keeps
    last,  # [max_rows], with FILTERED: of the tokens with just this logit, the last one that it keeps
    tops,  # [rows, blocks]
    tokens,  # [rows, blocks]: the largest logit's, or who arrives first
    levels,  # [rows, blocks]: this token's logit; −∞ if no token arrives
    sums,  # [rows, blocks]: of exp(logit − top), if asked for
    N,
    max_rows,
    BLOCK: tl.constexpr,
    FILTERED: tl.constexpr,
    PDL: tl.constexpr,
):
    """The largest logit of BLOCK tokens of one row, and which of them has it, or arrives first."""
    row = tl.program_id(0).to(tl.int64)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    # Everything is asked for at once, before any of it is used.
    out, begin = row * blocks + block, block * BLOCK
    n = begin + tl.arange(0, BLOCK)
    x = tl.load(logits + row * N + n, mask=n < N, other=float("-inf")).to(tl.float32)
    temperature, seed = number(how, TEMPERATURE, row, max_rows), tl.load(how + SEED * max_rows + row)
    scored, position = tl.load(how + LOGPROBS * max_rows + row), tl.load(place + row) + 1
    lowest, final = float("-inf"), N
    if FILTERED:
        lowest, final = tl.load(least + row), tl.load(last + row)

    top = tl.max(tl.where(x == x, x, float("inf")), 0)  # NaN is as broken as infinity
    token, level = begin, float("-inf")
    if scored > 0:
        tl.store(sums + out, tl.where(top == float("-inf"), 0.0, tl.sum(tl.exp(x - top), 0)))
    if temperature == 0:
        token, level = begin + tl.argmax(tl.where(x == x, x, float("-inf")), 0), top
    else:
        if FILTERED:
            x = tl.where((x > lowest) | ((x == lowest) & (n <= final)), x, float("-inf"))
        # [bounds]
        # The earliest time at which each token can arrive, from the upper 32 bits of its word. For a very small u these
        # bits are too few, and the bound is 0.
        bits = words(seed, position, begin, BLOCK)
        u = ((bits >> 32).to(tl.uint32).to(tl.float32) + 0.5) * 2.3283064365386963e-10
        inverse = (1.4426950408889634 / temperature).to(tl.float32)
        w = tl.exp2((top - x) * inverse)  # 1 / weight
        earliest = tl.where(x > float("-inf"), tl.where(u < 9.5367431640625e-7, 0.0, u * w * 0.9995), float("inf"))
        first, i = tl.min(earliest, 0, return_indices=True)
        if first < float("inf"):
            own = n == begin + i
            second = tl.min(tl.where(own, float("inf"), earliest), 0)
            token, level = begin + i, tl.load(logits + row * N + begin + i).to(tl.float32)
            # The first arrives no later than first · 1.002 / (1 − u). If another may be earlier, look exactly.
            u_own = first / (tl.exp2((top - level) * inverse) * 0.9995)
            if (first == 0) | (second <= first * 1.002 / (1.0 - u_own)) | (u_own > 0.5):
                # [/bounds]
                # Exact arrivals, until no other token can be earlier. Of equal arrivals the lowest id wins.
                arrival = float("inf") + temperature
                while (first <= arrival) & (first < float("inf")):
                    i = tl.argmin(earliest, 0)
                    own = n == begin + i
                    logit = tl.load(logits + row * N + begin + i).to(tl.float32)
                    e = exponential(uniform_of(tl.sum(tl.where(own, bits, 0), 0)))
                    exact = e * tl.exp((top.to(tl.float64) - logit.to(tl.float64)) / temperature)
                    sooner = (exact < arrival) | ((exact == arrival) & (begin + i < token))
                    token, level = tl.where(sooner, begin + i, token), tl.where(sooner, logit, level)
                    arrival = tl.where(sooner, exact, arrival)
                    earliest = tl.where(own, float("inf"), earliest)
                    first = tl.min(earliest, 0)
    tl.store(tops + out, top)
    tl.store(tokens + out, token)
    tl.store(levels + out, level)


@triton.jit
def end_of_race(
    how,  # [6, max_rows]
    tops,  # [rows, blocks], and so on, as above
    tokens,
    levels,
    sums,
    step,  # [max_rows]: each row counts its own steps
    all_tops,  # [STEPS, max_rows]
    all_tokens,  # [STEPS, max_rows]
    all_scores,  # [STEPS, max_rows]
    read,  # [max_rows]
    places,  # [STEPS, 2, max_rows]
    place,  # [2, max_rows]
    max_rows,
    blocks,
    STEPS: tl.constexpr,
    BLOCKS: tl.constexpr,  # blocks, as a power of two
    PDL: tl.constexpr,
):
    """Choose the token of one row, write it down with its log-probability, and move the row to its next place."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    inside, own = block < blocks, row * blocks + block
    top_of = tl.load(tops + own, mask=inside, other=float("-inf"))
    token_of = tl.load(tokens + own, mask=inside, other=0)
    level_of = tl.load(levels + own, mask=inside, other=float("-inf"))
    temperature, now = number(how, TEMPERATURE, row, max_rows), tl.load(step + row)
    seed, position = tl.load(how + SEED * max_rows + row), tl.load(place + row) + 1
    top = tl.max(top_of, 0)
    if temperature == 0:
        where = tl.argmax(top_of, 0)
    else:
        noise = exponential(uniform_of(word(seed, position, token_of)))
        arrival = noise * tl.exp((top.to(tl.float64) - level_of.to(tl.float64)) / temperature)
        where = tl.argmin(tl.where(arrival == arrival, arrival, float("inf")), 0)
    token = tl.load(tokens + row * blocks + where)
    if tl.load(how + LOGPROBS * max_rows + row) > 0:
        total = tl.sum(tl.load(sums + own, mask=inside, other=0.0) * tl.exp(top_of - top), 0)
        tl.store(all_scores + now * max_rows + row, tl.load(levels + row * blocks + where) - top - tl.log(total))
    move_on(row, token, top, now, step, all_tops, all_tokens, read, places, place, max_rows, STEPS)
