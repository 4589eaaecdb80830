"""The road to the kernel of `attention.py`, one idea a kernel: chapter 08 walks it, and times each step.

    one_program_a_head   a program walks through all keys of one query head; keys and values lie in one piece
    split_keys           several programs share the keys of one head, and their states are merged
    through_pages        each key is found through the page table
    (attention.py)       the heads that share a key head are rows of one tile: each key is read once, by tensor cores
    (attention.py)       values that are a view of the keys: latent attention

All take one query a sequence and sequences of one length.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels.attention import merge

LOG2E = tl.constexpr(1.4426950408889634)


# [one]
@triton.jit
def one_program_a_head(
    q, k, v, out, length, scale, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """k and v are [batch, length, KV_HEADS, D]. The softmax so far: m the largest score, l the sum, acc the mixture."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    d, kv_head = tl.arange(0, D), head // (HEADS // KV_HEADS)
    query = tl.load(q + (sequence * HEADS + head) * D + d).to(tl.float32)  # [D]
    m, l = tl.full([], float("-inf"), tl.float32), tl.zeros([], tl.float32)  # noqa: E741
    acc = tl.zeros([D], tl.float32)
    for n in range(0, length, BLOCK):
        key = n + tl.arange(0, BLOCK)
        row = (sequence.to(tl.int64) * length + key) * KV_HEADS + kv_head
        keys = tl.load(k + row[:, None] * D + d[None, :], mask=(key < length)[:, None], other=0.0)  # [BLOCK, D]
        values = tl.load(v + row[:, None] * D + d[None, :], mask=(key < length)[:, None], other=0.0)
        s = tl.where(key < length, tl.sum(query[None, :] * keys, 1) * scale * LOG2E, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 0))
        p, shrink = tl.exp2(s - m_new), tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, 0)  # noqa: E741
        acc = acc * shrink + tl.sum(p[:, None] * values, 0)
        m = m_new
    tl.store(out + (sequence * HEADS + head) * D + d, acc / l)


# [/one]


# [split]
@triton.jit
def split_keys(
    q, k, v, table, partial, partial_lse, length, scale, table_width,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    SPLITS: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """A third axis of programs, each with its run of keys; where PAGE > 0, k and v are pages and `table` finds them."""
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d, kv_head = tl.arange(0, D), head // (HEADS // KV_HEADS)
    query = tl.load(q + (sequence * HEADS + head) * D + d).to(tl.float32)
    m, l = tl.full([], float("-inf"), tl.float32), tl.zeros([], tl.float32)  # noqa: E741
    acc = tl.zeros([D], tl.float32)
    run = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    for n in range(part * run, tl.minimum((part + 1) * run, length), BLOCK):
        key = n + tl.arange(0, BLOCK)
        if PAGE > 0:
            page = tl.load(table + sequence * table_width + key // PAGE, mask=key < length, other=0)
            row = (page.to(tl.int64) * PAGE + key % PAGE) * KV_HEADS + kv_head
        else:
            row = (sequence.to(tl.int64) * length + key) * KV_HEADS + kv_head
        keys = tl.load(k + row[:, None] * D + d[None, :], mask=(key < length)[:, None], other=0.0)
        values = tl.load(v + row[:, None] * D + d[None, :], mask=(key < length)[:, None], other=0.0)
        s = tl.where(key < length, tl.sum(query[None, :] * keys, 1) * scale * LOG2E, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 0))
        p, shrink = tl.exp2(s - m_new), tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, 0)  # noqa: E741
        acc = acc * shrink + tl.sum(p[:, None] * values, 0)
        m = m_new
    state = (sequence * SPLITS + part) * HEADS + head
    total = tl.where(l > 0, l, 1.0)  # a part behind the last key has none
    tl.store(partial + state * D + d, acc / total)
    tl.store(partial_lse + state, (m + tl.log2(total)) / LOG2E)


# [/split]


def lesson_one(
    q: Float[Tensor, "batch heads dim"],
    k: Float[Tensor, "batch length kv_heads dim"],
    v: Float[Tensor, "batch length kv_heads dim"],
    scale: float,
) -> Float[Tensor, "batch heads dim"]:
    """One program a query head."""
    out = torch.empty_like(q)
    batch, heads, dim = q.shape
    one_program_a_head[(batch, heads)](q, k, v, out, k.shape[1], scale, heads, k.shape[2], dim, BLOCK=64)
    return out


def lesson_split(
    q: Float[Tensor, "batch heads dim"],
    k: Float[Tensor, "rows length kv_heads dim"],
    v: Float[Tensor, "rows length kv_heads dim"],
    scale: float,
    splits: int,
    table: Int[Tensor, "batch width"] | None = None,
    length: int = 0,
) -> Float[Tensor, "batch heads dim"]:
    """`splits` programs a query head; with a page table, k and v are pages that hold `length` keys."""
    batch, heads, dim = q.shape
    page = 0 if table is None else k.shape[1]
    length = length if page else k.shape[1]
    partial = q.new_empty(batch * splits, heads, dim, dtype=torch.float32)
    partial_lse = q.new_empty(batch * splits, heads, dtype=torch.float32)
    width = 0 if table is None else table.stride(0)
    split_keys[(batch, heads, splits)](
        q, k, v, q if table is None else table, partial, partial_lse, length, scale, width,
        heads, k.shape[2], dim, 64, splits, page,
    )  # fmt: skip
    states = torch.arange(batch * splits, dtype=torch.int32, device=q.device)
    out, lse = torch.empty_like(q), q.new_empty(batch, heads, dtype=torch.float32)
    merge(partial, partial_lse, torch.arange(batch + 1, dtype=torch.int32, device=q.device) * splits, states, out, lse)
    return out
