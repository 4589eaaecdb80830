"""Prompt lookup on the device (`speculative/lookup.py`): drafts, and what drafts would have given.

    look_up   guess: what followed the latest earlier occurrence of the text's end
    match     afterwards, for each beginning of a text: how much of the draft behind it is what came
    walk      so for each length: how many steps of drafts so long lead over the same tokens

The last two cost nothing that can be seen, and need no draft to be read by the model: what a length would have given is
known exactly before it is tried.
"""

import triton
import triton.language as tl

REVIEWED = 64  # tokens of a text, the latest, over which `walk` goes


@triton.jit
def find(own, length, MIN_N: tl.constexpr, MAX_N: tl.constexpr, BLOCK: tl.constexpr):
    """Where the copy begins for a text of `length` tokens at `own`; 0 if its end did not occur before."""
    # alike(i): how many tokens up to i are those at the text's end. The most decide, then the latest.
    best = tl.full([], -1, tl.int64)
    for begin in range(0, length - 1, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        same, alike = i < length - 1, tl.zeros([BLOCK], tl.int64)
        for n in tl.static_range(MAX_N):
            last = tl.load(own + tl.maximum(length - 1 - n, 0))
            same &= tl.load(own + i - n, mask=(i >= n) & (i < length - 1), other=-1) == last
            alike += same.to(tl.int64)
        best = tl.maximum(best, tl.max(tl.where(alike >= MIN_N, alike << 32 | i, -1), 0))
    return tl.where(best >= 0, (best & 0xFFFFFFFF).to(tl.int32) + 1, 0)


@triton.jit(do_not_specialize=["gamma"])
def look_up(
    text,  # [max_rows, WIDTH]
    known,  # [max_rows]: how many tokens of each text are known
    draft,  # [max_rows, gamma]
    drafted,  # [max_rows]
    gamma,
    WIDTH: tl.constexpr,
    SPAN: tl.constexpr,  # a power of two ≥ gamma
    MIN_N: tl.constexpr,
    MAX_N: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """A draft of `gamma` tokens for one text, or none: as `PromptLookup` finds it."""
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    length, own = tl.load(known + row).to(tl.int32), text + row * WIDTH
    start = find(own, length, MIN_N, MAX_N, BLOCK)
    count = tl.where(start > 0, gamma, 0)
    # Where the copy has caught up with the text, it goes on copying itself.
    j = tl.arange(0, SPAN)
    copied = tl.load(own + start + j % tl.maximum(length - start, 1), mask=j < count, other=0)
    tl.store(draft + row * gamma + j, copied, mask=j < gamma)
    tl.store(drafted + row, count)


@triton.jit
def match(
    text,  # [max_rows, WIDTH]
    known,  # [max_rows]
    began,  # [max_rows]: how many tokens were known before those that are reviewed
    matched,  # [max_rows, MOST]
    WIDTH: tl.constexpr,
    MOST: tl.constexpr,
    SPAN: tl.constexpr,  # a power of two > LONGEST
    LONGEST: tl.constexpr,
    MIN_N: tl.constexpr,
    MAX_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How many tokens of the draft behind one beginning of a text are right, of those that the text has."""
    row, place = tl.program_id(0).to(tl.int64), tl.program_id(1)
    end, own = tl.load(known + row).to(tl.int32), text + row * WIDTH
    length = tl.maximum(tl.load(began + row).to(tl.int32), end - MOST) + place
    if length < end:
        start, j = find(own, length, MIN_N, MAX_N, BLOCK), tl.arange(0, SPAN)
        there = j < tl.where(start > 0, tl.minimum(end - length, LONGEST), 0)
        # Where a copy has caught up with the text, it copies itself: that is what came, as long as it is right.
        copied = tl.load(own + start + j, mask=there, other=-1)
        right = there & (copied == tl.load(own + length + j, mask=there, other=-1))
        tl.store(matched + row * MOST + place, tl.min(tl.where(right, SPAN, j), 0))


@triton.jit
def walk(
    known,  # [max_rows]
    began,  # [max_rows]
    matched,  # [max_rows, MOST]
    lengths,  # [COUNT]
    taken,  # [max_rows, COUNT]
    MOST: tl.constexpr,
    COUNT: tl.constexpr,
):
    """How many steps lead over the tokens of one text, for each length of draft.

    A step whose drafts are right as far as the text goes counts in part: by its tokens, of those that it may give.
    """
    row, each = tl.program_id(0).to(tl.int64), tl.arange(0, COUNT)
    count = tl.minimum(tl.load(known + row) - tl.load(began + row), MOST).to(tl.int32)
    length, at = tl.load(lengths + each), tl.zeros([COUNT], tl.int32)
    steps = tl.zeros([COUNT], tl.float32)
    for _ in range(count):
        going, left = at < count, count - at
        right = tl.minimum(tl.load(matched + row * MOST + at, mask=going, other=0), length)
        part = left.to(tl.float32) / (length + 1).to(tl.float32)
        steps += tl.where(going, tl.where(right < left, 1.0, part), 0.0)
        at += right + 1
    tl.store(taken + row * COUNT + each, steps)
