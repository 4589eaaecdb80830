"""The attention kernel: a tile of query rows against a run of paged keys; and the merge of its partial results.

One program does one piece (`plan.py`) for one key head. It owns ROWS rows of queries: the heads that share this key
head, of one or several query tokens. It reads each of its keys and values once, and keeps of the softmax only what is
needed to go on (Milakov and Gimelshein 2018, 1805.02867; FlashAttention, 2205.14135): for each row the largest score m,
the sum l of exp(s − m), and the weighted sum of values.

    page table of the sequence   3 1 6 …     key n lies in page table[n // PAGE] at n % PAGE
    keys first … end             BLOCK at a time, gathered: [BLOCK, D]
    scores                       rows · keysᵀ, [ROWS, BLOCK]; a query sees no key behind its own position
    values                       [BLOCK, V]: pages of their own, or the first V columns of the keys (latent attention),
                                 which are then read once for both products

The width D is split at SPLIT into two tiles of powers of two, as 576 = 512 + 64: Triton's tiles know no other sizes.
"""

import importlib
import os

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels.plan import PIECE, Work, padded

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LN2 = tl.constexpr(0.6931471805599453)


def early() -> dict[str, bool]:
    """Options of a launch that may begin before the one before it has ended (programmatic dependent launch).

    The kernel waits (`gdc_wait`) before it reads what others wrote, and says at its start that the next may begin.
    """
    allowed = not INTERPRETED and torch.cuda.get_device_capability() >= (9, 0)
    return {"EARLY": allowed} | ({"launch_pdl": True} if allowed else {})


@triton.jit
def dot(a, b, acc, WIDEN: tl.constexpr):
    """acc + a · b in float32; the interpreter has no products in bfloat16, so there operands are widened first."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


# [kernel]
@triton.jit
def attend_piece(
    q,  # [tokens, HEADS, D]
    k_pages,  # [pages, PAGE, KV_HEADS, D]
    v_pages,  # [pages, PAGE, KV_HEADS, V], unused where SHARED
    table,  # [sequences, table_width]
    pieces,  # [pieces, FIELDS]
    out,  # [tokens, HEADS, V]
    lse,  # [tokens, HEADS]
    partial,  # [states, HEADS, V] float32
    partial_lse,  # [states, HEADS] float32
    table_width,
    scale_log2,  # scale · log2(e): exponentials in base 2 are what the hardware has
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    PAGE: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    FIELDS: tl.constexpr,
    LOOK_AHEAD: tl.constexpr,  # which takes registers
    WIDEN: tl.constexpr,
    DA: tl.constexpr,  # SPLIT, D − SPLIT and V, as powers of two
    DB: tl.constexpr,
    DV: tl.constexpr,
    EARLY: tl.constexpr,
    BESIDE: tl.constexpr,
):
    """One piece for one key head. BESIDE: it may run beside the launch in front, which reads what this one reads."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS  # programs of neighbouring heads read neighbouring bytes: run them together
    piece = pieces + (tl.program_id(0) // KV_HEADS) * FIELDS
    sequence, token0, queries, position0 = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2), tl.load(piece + 3)
    row0, first, end, state = tl.load(piece + 4), tl.load(piece + 5), tl.load(piece + 6), tl.load(piece + 7)

    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        if not BESIDE:
            tl.extra.cuda.gdc_wait()  # plans were there before; queries, keys and values may be a moment old
    end = tl.minimum(end, position0 + queries)  # a plan may reach further, for steps to come (engine/graph_runner.py)

    rows = row0 + tl.arange(0, ROWS)
    query = rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    real = query < queries
    position = position0 + query
    ca, cb, cv = tl.arange(0, DA), tl.arange(0, DB), tl.arange(0, DV)
    q_row = q + ((token0 + query).to(tl.int64) * HEADS + head)[:, None] * D
    qa = tl.load(q_row + ca[None, :], mask=real[:, None] & (ca < SPLIT)[None, :], other=0.0)
    qb = tl.load(q_row + SPLIT + cb[None, :], mask=real[:, None] & (cb < D - SPLIT)[None, :], other=0.0)

    m = tl.full([ROWS], float("-inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)  # noqa: E741 (the papers' name)
    acc = tl.zeros([ROWS, DV], tl.float32)
    listed = table + sequence.to(tl.int64) * table_width
    key = first + tl.arange(0, BLOCK)
    found = tl.load(listed + key // PAGE, mask=key < end, other=0)
    for n in range(first, end, BLOCK):
        key = n + tl.arange(0, BLOCK)
        inside = key < end
        if LOOK_AHEAD:  # for the next block's pages: a look-up takes as long as a block
            page = found
            found = tl.load(listed + (key + BLOCK) // PAGE, mask=key + BLOCK < end, other=0)
        else:
            page = tl.load(listed + key // PAGE, mask=inside, other=0)
        row = (page.to(tl.int64) * PAGE + key % PAGE) * KV_HEADS + kv_head
        k_row = k_pages + row[:, None] * D
        ka = tl.load(k_row + ca[None, :], mask=inside[:, None] & (ca < SPLIT)[None, :], other=0.0)
        s = dot(qa, tl.trans(ka), tl.zeros([ROWS, BLOCK], tl.float32), WIDEN)
        if SPLIT < D:
            kb = tl.load(k_row + SPLIT + cb[None, :], mask=inside[:, None] & (cb < D - SPLIT)[None, :], other=0.0)
            s = dot(qb, tl.trans(kb), s, WIDEN)
        seen = inside[None, :] & (key[None, :] <= position[:, None])
        s = tl.where(seen, s * scale_log2, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # a row that has seen no key: exp2(−∞ − 0), not −∞ + ∞
        p = tl.exp2(s - m_safe[:, None])
        shrink = tl.exp2(m - m_safe)  # what was summed against the old maximum, against the new one
        l = l * shrink + tl.sum(p, 1)  # noqa: E741
        if SHARED:
            v = ka
        else:
            v = tl.load(v_pages + row[:, None] * V + cv[None, :], mask=inside[:, None] & (cv < V)[None, :], other=0.0)
        acc = dot(p.to(v.dtype), v, acc * shrink[:, None], WIDEN)
        m = m_new

    acc = acc / tl.where(l > 0, l, 1.0)[:, None]
    log = (m + tl.log2(tl.where(l > 0, l, 1.0))) * LN2  # −∞ where no key was seen
    if state < 0:
        where = (token0 + query).to(tl.int64) * HEADS + head
        tl.store(out + where[:, None] * V + cv[None, :], acc, mask=real[:, None] & (cv < V)[None, :])
        tl.store(lse + where, log, mask=real)
    else:
        where = (state + query).to(tl.int64) * HEADS + head
        tl.store(partial + where[:, None] * V + cv[None, :], acc, mask=real[:, None] & (cv < V)[None, :])
        tl.store(partial_lse + where, log, mask=real)
    if EARLY and BESIDE:  # whoever waits for this launch waits for the one in front, too
        tl.extra.cuda.gdc_wait()


# [/kernel]


# [merge]
@triton.jit
def merge_token(
    partial,  # [states, HEADS, V]
    partial_lse,  # [states, HEADS]
    offsets,  # [tokens + 1]
    states,  # [listed]
    out,  # [tokens, HEADS, V]
    lse,  # [tokens, HEADS]
    HEADS: tl.constexpr,
    V: tl.constexpr,
    DV: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Join one head's states of one token: a softmax over states, BLOCK of them at a time."""
    token, head = tl.program_id(0), tl.program_id(1)
    first, end = tl.load(offsets + token), tl.load(offsets + token + 1)
    i, cv = first + tl.arange(0, BLOCK), tl.arange(0, DV)
    state = tl.load(states + i, mask=i < end, other=0)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()  # the plan was there before; what the pieces write may still be on its way
    m = tl.full([], float("-inf"), tl.float32)
    l = tl.zeros([], tl.float32)  # noqa: E741
    acc = tl.zeros([DV], tl.float32)
    for _ in range(first, end, BLOCK):
        row = state.to(tl.int64) * HEADS + head
        log = tl.load(partial_lse + row, mask=i < end, other=float("-inf"))
        o = tl.load(partial + row[:, None] * V + cv[None, :], mask=(i < end)[:, None] & (cv < V)[None, :], other=0.0)
        m_new = tl.maximum(m, tl.max(log, 0))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        weight, shrink = tl.exp(log - m_safe), tl.exp(m - m_safe)  # the difference first: it is nearly exact
        l = l * shrink + tl.sum(weight, 0)  # noqa: E741
        acc = acc * shrink + tl.sum(o * weight[:, None], 0)
        m = m_new
        i += BLOCK
        state = tl.load(states + i, mask=i < end, other=0)
    where = token.to(tl.int64) * HEADS + head
    if first < end:  # a token without states was written where it belongs
        total = tl.where(l > 0, l, 1.0)
        tl.store(out + where * V + cv, acc / total, mask=cv < V)
        tl.store(lse + where, m + tl.log(total))


# [/merge]


def attend(
    q: Float[Tensor, "tokens heads dim"],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"] | None,
    page_table: Int[Tensor, "sequences width"],
    work: Work,
    scale: float,
    value_dim: int,
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "tokens heads"]]:
    """All pieces, then the merge. Where there are no values, they are the first `value_dim` columns of the keys."""
    (tokens, heads, dim), (_, page, kv_heads, _) = q.shape, k_pages.shape
    shared = v_pages is None
    split, *sizes = padded(dim, value_dim, shared)
    out, lse = q.new_empty(tokens, heads, value_dim), q.new_empty(tokens, heads, dtype=torch.float32)
    partial = q.new_empty(work.num_states, heads, value_dim, dtype=torch.float32)
    partial_lse = q.new_empty(work.num_states, heads, dtype=torch.float32)
    scale_log2 = scale * 1.4426950408889634
    front = ""  # the kernel in front
    for launch in work.launches:
        tile = launch.tile
        if tile.hopper == "mla" or (tile.hopper == "gqa" and value_dim == dim):
            front = tile.hopper
            ours = importlib.import_module(f"inference_opt.kernels.hopper.{front}")  # Gluon: where there is such a card
            ours.attend_pieces(q, k_pages, v_pages, page_table, launch, scale_log2, out, lse, partial, partial_lse)
            continue
        attend_piece[(len(launch.pieces) * kv_heads,)](
            q, k_pages, k_pages if shared else v_pages, page_table, launch.pieces, out, lse, partial, partial_lse,
            page_table.stride(0), scale_log2,
            heads, kv_heads, dim, value_dim, split, page, shared, tile.rows, tile.block, len(PIECE), tile.looks_ahead,
            INTERPRETED and q.dtype == torch.bfloat16, *sizes, BESIDE=front == "gqa",
            num_warps=tile.warps, num_stages=tile.stages, **early(),
        )  # fmt: skip
    if work.num_states:
        merge(partial, partial_lse, work.offsets, work.states, out, lse)
    return out, lse


def merge(
    partial: Float[Tensor, "states heads value_dim"],
    partial_lse: Float[Tensor, "states heads"],
    offsets: Int[Tensor, "tokens_and_1"],
    states: Int[Tensor, "listed"],
    out: Float[Tensor, "tokens heads value_dim"],
    lse: Float[Tensor, "tokens heads"],
    planned: bool = True,
) -> None:
    """Join states[offsets[t] : offsets[t + 1]] into out[t] and lse[t], for the tokens that have any.

    `planned`: offsets and states were there before the last launch, so this one may begin early and read them.
    """
    tokens, heads, value_dim = out.shape
    merge_token[(tokens, heads)](
        partial, partial_lse, offsets, states, out, lse,
        heads, value_dim, triton.next_power_of_2(value_dim), 16, **(early() if planned else {"EARLY": False}),
    )  # fmt: skip
