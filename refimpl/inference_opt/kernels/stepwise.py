"""The kernel in six versions, one idea each. Read them in order; `diff` of two neighbours shows the idea.

    decode_0   the reference: plain PyTorch, one query head at a time
    decode_1   one program a query head walks through its keys, and keeps a running softmax
    decode_2   the keys are split over several programs, whose states are merged (Flash-Decoding)
    decode_3   each key is found through the page table
    decode_4   the keys of a shared prefix are read once for the queries of many sequences: rows of a tile
    decode_5   ours (attention.py): the heads that share a key head are rows, too; a plan says which program reads what

Each version decodes one query for each sequence of a batch. To keep things simple all sequences have one length,
widths are powers of two, and values are as wide as keys. A version takes the arguments of the one before, then its own.
Chapter 08 explains the versions one by one, and says how long they take.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels.attention import dot, merge
from inference_opt.kernels.batch import SharedPrefix, plan_batch
from inference_opt.kernels.paged import paged_attention
from inference_opt.kernels.pdl import INTERPRETED

LOG2E = tl.constexpr(1.4426950408889634)
BLOCK = 64  # keys at a time
ROWS = 16  # queries at a time: what tensor cores multiply at the least


# [0]
def decode_0(
    q: Float[Tensor, "batch heads dim"],
    k: Float[Tensor, "batch length kv_heads dim"],
    v: Float[Tensor, "batch length kv_heads dim"],
    scale: float,
) -> Float[Tensor, "batch heads dim"]:
    """softmax(q · kᵀ · scale) · v for each sequence and head. The query heads h · group … share key head h."""
    out = torch.empty_like(q)
    group = q.shape[1] // k.shape[2]
    for sequence in range(q.shape[0]):
        for head in range(q.shape[1]):
            keys, values = k[sequence, :, head // group], v[sequence, :, head // group]  # [length, dim]
            p = torch.softmax(keys @ q[sequence, head] * scale, dim=0)
            out[sequence, head] = p @ values
    return out


# [/0]


# [1]
@triton.jit
def attend_1(
    q,  # [batch, HEADS, D]
    k,  # [batch, length, KV_HEADS, D]
    v,  # [batch, length, KV_HEADS, D]
    out,  # [batch, HEADS, D]
    length,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All keys of one sequence for one query head."""
    # The query.
    sequence, head = tl.program_id(0), tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)
    d = tl.arange(0, D)
    query = tl.load(q + (sequence * HEADS + head) * D + d).to(tl.float32)  # [D]

    # [loop]
    # The softmax so far: m the largest score, l the sum of exp(s − m), acc the sum of exp(s − m) · v.
    m = tl.full([], float("-inf"), tl.float32)
    l = tl.zeros([], tl.float32)  # noqa: E741
    acc = tl.zeros([D], tl.float32)
    for n in range(0, length, BLOCK):
        # Where the keys of this block lie.
        key = n + tl.arange(0, BLOCK)
        inside = key < length
        row = (sequence.to(tl.int64) * length + key) * KV_HEADS + kv_head

        # Scores.
        keys = tl.load(k + row[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)  # [BLOCK, D]
        s = tl.sum(query[None, :] * keys, 1)
        s = tl.where(inside, s * scale * LOG2E, float("-inf"))

        # When the largest score grows, the older sums shrink.
        m_new = tl.maximum(m, tl.max(s, 0))
        p = tl.exp2(s - m_new)
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, 0)  # noqa: E741
        values = tl.load(v + row[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        acc = acc * shrink + tl.sum(p[:, None] * values, 0)
        m = m_new
    # [/loop]

    # The result.
    tl.store(out + (sequence * HEADS + head) * D + d, acc / l)


def decode_1(
    q: Float[Tensor, "batch heads dim"],
    k: Float[Tensor, "batch length kv_heads dim"],
    v: Float[Tensor, "batch length kv_heads dim"],
    scale: float,
) -> Float[Tensor, "batch heads dim"]:
    """One program a query head."""
    batch, heads, dim = q.shape
    _, length, kv_heads, _ = k.shape
    out = torch.empty_like(q)
    attend_1[(batch, heads)](q, k, v, out, length, scale, heads, kv_heads, dim, BLOCK)
    return out


# [/1]


# [2]
@triton.jit
def attend_2(
    q,  # [batch, HEADS, D]
    k,  # [batch, length, KV_HEADS, D]
    v,  # [batch, length, KV_HEADS, D]
    partial,  # [batch · SPLITS, HEADS, D] float32
    partial_lse,  # [batch · SPLITS, HEADS] float32
    length,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One of SPLITS parts of the keys of one sequence for one query head."""
    # The query, and which keys are this program's part.
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_head = head // (HEADS // KV_HEADS)
    d = tl.arange(0, D)
    query = tl.load(q + (sequence * HEADS + head) * D + d).to(tl.float32)  # [D]
    size = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    first, end = part * size, tl.minimum((part + 1) * size, length)

    # The softmax so far: m the largest score, l the sum of exp(s − m), acc the sum of exp(s − m) · v.
    m = tl.full([], float("-inf"), tl.float32)
    l = tl.zeros([], tl.float32)  # noqa: E741
    acc = tl.zeros([D], tl.float32)
    for n in range(first, end, BLOCK):
        # Where the keys of this block lie.
        key = n + tl.arange(0, BLOCK)
        inside = key < end
        row = (sequence.to(tl.int64) * length + key) * KV_HEADS + kv_head

        # Scores.
        keys = tl.load(k + row[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)  # [BLOCK, D]
        s = tl.sum(query[None, :] * keys, 1)
        s = tl.where(inside, s * scale * LOG2E, float("-inf"))

        # When the largest score grows, the older sums shrink.
        m_new = tl.maximum(m, tl.max(s, 0))
        p = tl.exp2(s - m_new)
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, 0)  # noqa: E741
        values = tl.load(v + row[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        acc = acc * shrink + tl.sum(p[:, None] * values, 0)
        m = m_new

    # The result is a state: it goes with its log-sum-exp. A part after the last key has the state of no key, 0 and −∞.
    total = tl.where(l > 0, l, 1.0)
    state = sequence * SPLITS + part
    tl.store(partial + (state * HEADS + head) * D + d, acc / total)
    tl.store(partial_lse + state * HEADS + head, (m + tl.log2(total)) / LOG2E)


def decode_2(
    q: Float[Tensor, "batch heads dim"],
    k: Float[Tensor, "batch length kv_heads dim"],
    v: Float[Tensor, "batch length kv_heads dim"],
    scale: float,
    splits: int,
) -> Float[Tensor, "batch heads dim"]:
    """`splits` programs a query head, and a merge."""
    batch, heads, dim = q.shape
    _, length, kv_heads, _ = k.shape
    out, partial, partial_lse = buffers(q, states=splits)
    attend_2[(batch, heads, splits)](q, k, v, partial, partial_lse, length, scale, heads, kv_heads, dim, BLOCK, splits)
    return merged(out, partial, partial_lse, states=splits)


# [/2]


# [3]
@triton.jit
def attend_3(
    q,  # [batch, HEADS, D]
    k,  # [pages, PAGE, KV_HEADS, D]
    v,  # [pages, PAGE, KV_HEADS, D]
    table,  # [batch, table_width]
    partial,  # [batch · SPLITS, HEADS, D] float32
    partial_lse,  # [batch · SPLITS, HEADS] float32
    length,
    scale,
    table_width,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One of SPLITS parts of the keys of one sequence for one query head, found through the page table."""
    # The query, and which keys are this program's part.
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_head = head // (HEADS // KV_HEADS)
    d = tl.arange(0, D)
    query = tl.load(q + (sequence * HEADS + head) * D + d).to(tl.float32)  # [D]
    size = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    first, end = part * size, tl.minimum((part + 1) * size, length)

    # The softmax so far: m the largest score, l the sum of exp(s − m), acc the sum of exp(s − m) · v.
    m = tl.full([], float("-inf"), tl.float32)
    l = tl.zeros([], tl.float32)  # noqa: E741
    acc = tl.zeros([D], tl.float32)
    for n in range(first, end, BLOCK):
        # Where the keys of this block lie: key n in page table[n // PAGE], at n % PAGE.
        key = n + tl.arange(0, BLOCK)
        inside = key < end
        page = tl.load(table + sequence * table_width + key // PAGE, mask=inside, other=0)
        row = (page.to(tl.int64) * PAGE + key % PAGE) * KV_HEADS + kv_head

        # Scores.
        keys = tl.load(k + row[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)  # [BLOCK, D]
        s = tl.sum(query[None, :] * keys, 1)
        s = tl.where(inside, s * scale * LOG2E, float("-inf"))

        # When the largest score grows, the older sums shrink.
        m_new = tl.maximum(m, tl.max(s, 0))
        p = tl.exp2(s - m_new)
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, 0)  # noqa: E741
        values = tl.load(v + row[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        acc = acc * shrink + tl.sum(p[:, None] * values, 0)
        m = m_new

    # The result is a state: it goes with its log-sum-exp. A part after the last key has the state of no key, 0 and −∞.
    total = tl.where(l > 0, l, 1.0)
    state = sequence * SPLITS + part
    tl.store(partial + (state * HEADS + head) * D + d, acc / total)
    tl.store(partial_lse + state * HEADS + head, (m + tl.log2(total)) / LOG2E)


def decode_3(
    q: Float[Tensor, "batch heads dim"],
    k: Float[Tensor, "pages page_size kv_heads dim"],
    v: Float[Tensor, "pages page_size kv_heads dim"],
    scale: float,
    splits: int,
    table: Int[Tensor, "batch width"],
    length: int,
) -> Float[Tensor, "batch heads dim"]:
    """`splits` programs a query head, and a merge; keys and values lie in pages."""
    batch, heads, dim = q.shape
    _, page, kv_heads, _ = k.shape
    out, partial, partial_lse = buffers(q, states=splits)
    attend_3[(batch, heads, splits)](
        q, k, v, table, partial, partial_lse, length, scale, table.stride(0), heads, kv_heads, dim, BLOCK, splits, page
    )
    return merged(out, partial, partial_lse, states=splits)


# [/3]


# [4]
@triton.jit
def attend_4(
    q,  # [batch, HEADS, D]
    k,  # [pages, PAGE, KV_HEADS, D]
    v,  # [pages, PAGE, KV_HEADS, D]
    table,  # [batch, table_width]
    partial,  # [batch · STATES, HEADS, D] float32
    partial_lse,  # [batch · STATES, HEADS] float32
    batch,
    start,
    stop,
    state0,
    scale,
    table_width,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    MEMBERS: tl.constexpr,
    STATES: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One of SPLITS parts of the keys start … stop − 1, which MEMBERS sequences share, for one query head of each."""
    # The queries, a row each, and which keys are this program's part. Rows after the last member are idle.
    group, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_head = head // (HEADS // KV_HEADS)
    d = tl.arange(0, D)
    sequence = group * MEMBERS + tl.arange(0, ROWS)
    real = (tl.arange(0, ROWS) < MEMBERS) & (sequence < batch)
    q_row = q + ((sequence * HEADS + head) * D)[:, None]
    query = tl.load(q_row + d[None, :], mask=real[:, None], other=0.0)  # [ROWS, D]
    size = tl.cdiv(tl.cdiv(stop - start, SPLITS), BLOCK) * BLOCK
    first, end = start + part * size, tl.minimum(start + (part + 1) * size, stop)

    # The softmax so far: m the largest score, l the sum of exp(s − m), acc the sum of exp(s − m) · v.
    m = tl.full([ROWS], float("-inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)  # noqa: E741
    acc = tl.zeros([ROWS, D], tl.float32)
    for n in range(first, end, BLOCK):
        # Where the keys of this block lie: key n in page table[n // PAGE], at n % PAGE, the same for all members.
        key = n + tl.arange(0, BLOCK)
        inside = key < end
        page = tl.load(table + group * MEMBERS * table_width + key // PAGE, mask=inside, other=0)
        row = (page.to(tl.int64) * PAGE + key % PAGE) * KV_HEADS + kv_head

        # Scores: a product of matrices, which tensor cores do.
        keys = tl.load(k + row[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)  # [BLOCK, D]
        s = dot(query, tl.trans(keys), tl.zeros([ROWS, BLOCK], tl.float32), WIDEN)
        s = tl.where(inside[None, :], s * scale * LOG2E, float("-inf"))

        # When the largest score grows, the older sums shrink.
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, 1)  # noqa: E741
        values = tl.load(v + row[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        acc = dot(p.to(values.dtype), values, acc * shrink[:, None], WIDEN)
        m = m_new

    # The result is a state: it goes with its log-sum-exp. A part after the last key has the state of no key, 0 and −∞.
    total = tl.where(l > 0, l, 1.0)
    state = sequence * STATES + state0 + part
    tl.store(partial + ((state * HEADS + head) * D)[:, None] + d[None, :], acc / total[:, None], mask=real[:, None])
    tl.store(partial_lse + state * HEADS + head, (m + tl.log2(total)) / LOG2E, mask=real)


def decode_4(
    q: Float[Tensor, "batch heads dim"],
    k: Float[Tensor, "pages page_size kv_heads dim"],
    v: Float[Tensor, "pages page_size kv_heads dim"],
    scale: float,
    splits: int,
    table: Int[Tensor, "batch width"],
    length: int,
    prefix: int,
) -> Float[Tensor, "batch heads dim"]:
    """The first `prefix` keys lie in the same pages for all sequences: each program reads them for ROWS sequences.

    The other keys are each sequence's own: there a tile has one row in use. Version 5 fills it with heads.
    """
    batch, heads, dim = q.shape
    _, page, kv_heads, _ = k.shape
    widen = INTERPRETED and q.dtype == torch.bfloat16
    out, partial, partial_lse = buffers(q, states=2 * splits)
    for state0, start, stop, members in ((0, 0, prefix, ROWS), (splits, prefix, length, 1)):
        attend_4[(triton.cdiv(batch, members), heads, splits)](
            q, k, v, table, partial, partial_lse, batch, start, stop, state0, scale, table.stride(0),
            heads, kv_heads, dim, BLOCK, splits, page, ROWS, members, 2 * splits, widen,
        )  # fmt: skip
    return merged(out, partial, partial_lse, states=2 * splits)


# [/4]


# [5]
def decode_5(
    q: Float[Tensor, "batch heads dim"],
    k: Float[Tensor, "pages page_size kv_heads dim"],
    v: Float[Tensor, "pages page_size kv_heads dim"],
    scale: float,
    splits: int,
    table: Int[Tensor, "batch width"],
    length: int,
    prefix: int,
) -> Float[Tensor, "batch heads dim"]:
    """Ours. The plan (plan.py) chooses the number of splits itself; `splits` is not used."""
    batch, heads, _ = q.shape
    prefixes = [SharedPrefix(0, batch, prefix)] if prefix else []
    planned = plan_batch(table, [length] * batch, [1] * batch, k, heads, prefixes=prefixes)
    return paged_attention(q, k, v, planned, scale)[0]


# [/5]


def buffers(q: Float[Tensor, "batch heads dim"], states: int) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and room for `states` states of each sequence and their log-sum-exps."""
    batch, heads, dim = q.shape
    partial = q.new_empty(batch * states, heads, dim, dtype=torch.float32)
    return torch.empty_like(q), partial, q.new_empty(batch * states, heads, dtype=torch.float32)


def merged(out: Tensor, partial: Tensor, partial_lse: Tensor, states: int) -> Float[Tensor, "batch heads dim"]:
    """The states of each sequence joined: sequence i's are i · states … (i + 1) · states − 1.

    The lists are made here, right before the merge that reads them, so the merge must not start early (`pdl.py`).
    """
    listed = torch.arange(len(partial), dtype=torch.int32, device=out.device)
    offsets = torch.arange(len(out) + 1, dtype=torch.int32, device=out.device) * states
    merge(partial, partial_lse, offsets, listed, out, out.new_empty(out.shape[:2], dtype=torch.float32))
    return out
