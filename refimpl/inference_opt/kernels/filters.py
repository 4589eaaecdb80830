"""top-k, top-p and min-p on the card, without sorting: each is a least logit, and a program a row searches for it.

What a filter keeps is everything above some logit and, of the tokens with just this logit, all or (top-p) the first
few. The least logit is found as a number is guessed: a pass over the row counts (top-k) or weighs (top-p) what lies at
or above each of three guesses, and one of the four parts between them remains. Floats, read as integers, are in the
same order (`ordered`), and a guess is such an integer. The first guesses are evenly spread over the logits, which gets
near soonest; later ones over the integers, so that it ends soon wherever it is.

Weights are summed in float32. So top-p's answer is weighed again in float64, and if it was off, so is the search.
"""

import triton
import triton.language as tl

from inference_opt.kernels.race import MIN_P, TEMPERATURE, TOP_K, TOP_P, number


@triton.jit
def ordered(x, SHIFT: tl.constexpr):
    """The integer of a float, in the floats' order. SHIFT: bits of float32 that the logits' own type does not have."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> SHIFT


@triton.jit
def value_of(key, SHIFT: tl.constexpr):
    """The float of such an integer."""
    bits = (key << SHIFT) | tl.where(key < 0, (1 << SHIFT) - 1, 0)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def weight(x, top, temperature, EXACT: tl.constexpr):
    """exp((x − top) / temperature), in float64 or, quicker, in float32."""
    if EXACT:
        return tl.exp((x.to(tl.float64) - top.to(tl.float64)) * (1.0 / temperature))
    else:
        return tl.exp2((x - top) * (1.4426950408889634 / temperature).to(tl.float32))


@triton.jit
def guesses(low, high, by_value, SHIFT: tl.constexpr):
    """Three keys that cut the keys from `low` + 1 to `high` into four parts: evenly, or so that their values do."""
    span = high.to(tl.int64) - low.to(tl.int64)
    a, b, c = (span + 3) // 4, (2 * span + 3) // 4, (3 * span + 3) // 4
    a, b, c = (low + a).to(tl.int32), (low + b).to(tl.int32), (low + c).to(tl.int32)
    if by_value:
        bottom = value_of(low, SHIFT)
        quarter = value_of(high, SHIFT) * 0.25 - bottom * 0.25
        a = tl.minimum(tl.maximum(ordered(bottom + quarter, SHIFT), low + 1), high)
        b = tl.minimum(tl.maximum(ordered(bottom + 2.0 * quarter, SHIFT), a), high)
        c = tl.minimum(tl.maximum(ordered(bottom + 3.0 * quarter, SHIFT), b), high)
    return a, b, c


@triton.jit
def part(low, high, a, b, c, ok_a, ok_b, ok_c):
    """Which part remains, if the tokens at or above these guesses are enough."""
    return (
        tl.where(ok_c, c, tl.where(ok_b, b, tl.where(ok_a, a, low))),
        tl.where(ok_c, high, tl.where(ok_b, c - 1, tl.where(ok_a, b - 1, a - 1))),
    )


@triton.jit
def search_sample(x, low, high, share, top, temperature, COUNT: tl.constexpr, SHIFT: tl.constexpr):
    """The largest key such that this share of a sample's tokens, or of their weight, lies at or above it."""
    w = tl.where(x >= value_of(low, SHIFT), 1.0 if COUNT else weight(x, top, temperature, False), 0.0)
    need = share * tl.sum(w, 0)
    passes = 0
    while low < high:
        a, b, c = guesses(low, high, passes < 5, SHIFT)
        over_a = tl.sum(tl.where(x >= value_of(a, SHIFT), w, 0.0), 0)
        over_b = tl.sum(tl.where(x >= value_of(b, SHIFT), w, 0.0), 0)
        over_c = tl.sum(tl.where(x >= value_of(c, SHIFT), w, 0.0), 0)
        low, high = part(low, high, a, b, c, over_a >= need, over_b >= need, over_c >= need)
        passes += 1
    return low


@triton.jit
def search(
    row, N, low, high, guess, need, share, top, temperature,
    COUNT: tl.constexpr, EXACT: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest key from `low` to `high` such that the tokens at or above it count, or weigh, at least `need`.

    A `need` below 0 stands for this share of what the tokens at or above `low` weigh. The first pass tries keys around
    `guess`.
    """
    i = tl.arange(0, BLOCK)
    dtype: tl.constexpr = tl.float64 if EXACT else tl.float32
    bottom = value_of(low, SHIFT)
    passes = 0
    while low < high:
        a, b, c = guesses(low, high, passes < 5, SHIFT)
        if passes == 0:
            # The sample is off by some hundredths of the range of the logits.
            b = tl.minimum(tl.maximum(guess, low + 1), high)
            near = (value_of(high, SHIFT) - bottom) * 0.0078125
            a = tl.minimum(tl.maximum(ordered(value_of(b, SHIFT) - near, SHIFT), low + 1), b)
            c = tl.minimum(tl.maximum(ordered(value_of(b, SHIFT) + near, SHIFT), b), high)
        at_a, at_b, at_c = value_of(a, SHIFT), value_of(b, SHIFT), value_of(c, SHIFT)
        over_a, over_b, over_c = tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype)
        whole = tl.zeros([BLOCK], dtype)
        for begin in range(0, N, BLOCK):
            x = tl.load(row + begin + i, mask=begin + i < N, other=float("-inf")).to(tl.float32)
            w = 1.0 if COUNT else weight(x, top, temperature, EXACT)
            over_a += tl.where(x >= at_a, w, 0.0)
            over_b += tl.where(x >= at_b, w, 0.0)
            over_c += tl.where(x >= at_c, w, 0.0)
            if not COUNT and not EXACT:
                whole += tl.where(x >= bottom, w, 0.0)
        if need < 0:
            need = share * tl.sum(whole, 0)
        ok_a, ok_b, ok_c = tl.sum(over_a, 0) >= need, tl.sum(over_b, 0) >= need, tl.sum(over_c, 0) >= need
        low, high = part(low, high, a, b, c, ok_a, ok_b, ok_c)
        passes += 1
    return low


@triton.jit
def weigh(row, N, least, top, temperature, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    """What the tokens above a logit weigh, and how many have just this logit."""
    i = tl.arange(0, BLOCK)
    above = tl.zeros([BLOCK], tl.float64 if EXACT else tl.float32)
    same = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, N, BLOCK):
        x = tl.load(row + begin + i, mask=begin + i < N, other=float("-inf")).to(tl.float32)
        above += tl.where(x > least, weight(x, top, temperature, EXACT), 0.0)
        same += (x == least).to(tl.int32)
    return tl.sum(above, 0), tl.sum(same, 0)


@triton.jit
def nucleus(row, N, sample, low, high, top_p, top, temperature, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """The key of the last token in the nucleus of the tokens at or above `low`, and this token."""
    FEW: tl.constexpr = BLOCK // 2 if BLOCK >= 64 else BLOCK  # float64 takes many registers
    bottom = value_of(low, SHIFT)
    share = top_p.to(tl.float32)
    guess = search_sample(sample, low, high, share, top, temperature, False, SHIFT)
    least = search(row, N, low, high, guess, share * 0.0 - 1.0, share, top, temperature, False, False, SHIFT, BLOCK)

    # All of it, and what is above the answer, exactly.
    i = tl.arange(0, FEW)
    whole_of, above_of, same_of = tl.zeros([FEW], tl.float64), tl.zeros([FEW], tl.float64), tl.zeros([FEW], tl.int32)
    at = value_of(least, SHIFT)
    for begin in range(0, N, FEW):
        x = tl.load(row + begin + i, mask=begin + i < N, other=float("-inf")).to(tl.float32)
        w = weight(x, top, temperature, True)
        whole_of += tl.where(x >= bottom, w, 0.0)
        above_of += tl.where(x > at, w, 0.0)
        same_of += (x == at).to(tl.int32)
    exact, over, same = tl.sum(whole_of, 0) * top_p, tl.sum(above_of, 0), tl.sum(same_of, 0)
    each = weight(at, top, temperature, True)
    if (over >= exact) | (over + same * each < exact):  # float32 was not enough
        least = search(row, N, low, high, least, exact, share, top, temperature, False, True, SHIFT, FEW)
        at = value_of(least, SHIFT)
        over, same = weigh(row, N, at, top, temperature, True, FEW)
        each = weight(at, top, temperature, True)

    # A token is kept if those before it weigh less than the need: of equal ones, the first `few`.
    few = tl.maximum(tl.ceil((exact - over) / each), 1.0)
    last, seen = N, 0
    if few < same:
        j, begin = tl.arange(0, BLOCK), 0
        while seen < few:
            x = tl.load(row + begin + j, mask=begin + j < N, other=float("-inf")).to(tl.float32)
            equal = ((x == at) & (begin + j < N)).to(tl.int32)
            here = tl.sum(equal, 0)
            if seen + here >= few:
                last = tl.min(tl.where((equal > 0) & (seen + tl.cumsum(equal, 0) >= few), begin + j, N), 0)
            seen += here
            begin += BLOCK
    return least, last


@triton.jit
def lightest(low, high, min_p, top, temperature, SHIFT: tl.constexpr):
    """The least key from `low` to `high` that weighs min_p or more."""
    while low < high:
        middle = ((low.to(tl.int64) + high.to(tl.int64)) >> 1).to(tl.int32)
        enough = weight(value_of(middle, SHIFT), top, temperature, True) >= min_p
        low, high = tl.where(enough, low, middle + 1), tl.where(enough, middle, high)
    return low


@triton.jit(do_not_specialize=["times"])
def filter_row(
    logits,  # [rows, N]
    how,  # [6, max_rows]: of `times` rows each
    least,  # [rows]: the least logit that a row keeps
    last,  # [rows]: of the tokens with just this logit, the last one that it keeps
    N,
    max_rows,
    times,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """What a row's top-k, top-p and min-p keep, one after another."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    own = row // times
    temperature = number(how, TEMPERATURE, own, max_rows)
    top_k, top_p = tl.load(how + TOP_K * max_rows + own), number(how, TOP_P, own, max_rows)
    min_p = number(how, MIN_P, own, max_rows)
    counts = (top_k > 0) & (top_k < N)
    logit, token = float("-inf"), N
    if (temperature > 0) & (counts | (top_p < 1) | (min_p > 0)):
        logits += row * N
        tops, bottoms = tl.full([BLOCK], float("-inf"), tl.float32), tl.full([BLOCK], float("inf"), tl.float32)
        for begin in range(0, N, BLOCK):
            x = tl.load(logits + begin + i, mask=begin + i < N, other=float("-inf")).to(tl.float32)
            tops = tl.maximum(tops, tl.where(x == x, x, float("inf")))
            bottoms = tl.minimum(bottoms, tl.where(x > float("-inf"), x, float("inf")))
        top = tl.max(tops, 0)
        if tl.abs(top) < float("inf"):  # else its owner learns that the row is broken
            low, high = ordered(tl.min(bottoms, 0), SHIFT), ordered(top, SHIFT)
            # A sample of the row: every so many-th token.
            sample = tl.load(logits + i * tl.maximum(N // BLOCK, 1), mask=i < N, other=float("-inf")).to(tl.float32)
            if counts:
                need = top_k.to(tl.float32)
                guess = search_sample(sample, low, high, need / N, top, temperature, True, SHIFT)
                low = search(logits, N, low, high, guess, need, 0.0, top, temperature, True, False, SHIFT, BLOCK)
            if top_p < 1:
                low, token = nucleus(logits, N, sample, low, high, top_p, top, temperature, SHIFT, BLOCK)
            if min_p > 0:
                bound = lightest(low, high, min_p, top, temperature, SHIFT)
                token = tl.where(bound > low, N, token)
                low = bound
            logit = value_of(low, SHIFT)
    tl.store(least + row, logit)
    tl.store(last + row, token)
