"""The attention kernel: a tile of query rows against a range of paged keys; and the merge of its partial results.

One program does one piece (`plan.py`) for one key head. It holds ROWS rows of queries: those of all heads that share
this key head, of one or several tokens. It reads each of its keys and values once. Of the softmax it keeps for each row
only what it needs to go on (Milakov and Gimelshein 2018, 1805.02867; FlashAttention, 2205.14135): the largest score m,
the sum l of exp(s − m), and the sum of exp(s − m) · v.

    page table of the sequence   3 1 6 …     key n lies in page table[n // PAGE] at n % PAGE
    keys first … end             BLOCK at a time, gathered: [BLOCK, D]
    scores                       rows · keysᵀ, [ROWS, BLOCK]; a query sees no key after its own position, and of a tree
                                 only its ancestors (tree.py)
    values                       [BLOCK, V]: from pages of their own, or the first V columns of the keys (latent
                                 attention), which are then read once for both products

Triton's tiles have widths that are powers of two. So a key of width D is split at SPLIT into two tiles, as 576 =
512 + 64.
"""

import importlib

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels.pdl import INTERPRETED, launch_options
from inference_opt.kernels.plan import GQA_WIDTHS, Piece, TilePlan, padded

FIELDS = tl.constexpr(len(Piece._fields))
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = 1.4426950408889634


@triton.jit
def dot(a, b, acc, WIDEN: tl.constexpr):
    """acc + a · b in float32. WIDEN: the interpreter has no products in bfloat16, so there operands are widened."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def attend_piece(
    # What is read.
    q,  # [tokens, HEADS, D]
    k_pages,  # [pages, PAGE, KV_HEADS, D]
    v_pages,  # [pages, PAGE, KV_HEADS, V]; unused with V_IN_K
    table,  # [sequences, table_width]
    pieces,  # [pieces, FIELDS]
    seen_bits,  # [tokens] int64, tree.py; unused without TREE
    # What is written: final results, and partial ones, which are merged.
    out,  # [tokens, HEADS, V]
    lse,  # [tokens, HEADS]
    partial,  # [states, HEADS, V] float32
    partial_lse,  # [states, HEADS] float32
    table_width,
    scale_log2,  # scale · log2(e): the hardware has exponentials in base 2
    # The shapes of the model and of its pages.
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    PAGE: tl.constexpr,
    V_IN_K: tl.constexpr,  # the values are the keys' first V columns
    TREE: tl.constexpr,  # some rows are of a tree: of the last 64 keys a row sees those that its bits name
    # The tile. SPLIT: where a key is split; DA, DB, DV: widths of its parts and of the value, as powers of two.
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    DA: tl.constexpr,
    DB: tl.constexpr,
    DV: tl.constexpr,
    LOOK_AHEAD: tl.constexpr,  # look up the pages of the next block; it takes registers
    WIDEN: tl.constexpr,
    # Programmatic dependent launch (pdl.py). PDL_OVERLAP: it reads nothing that the previous kernel writes.
    PDL: tl.constexpr,
    PDL_OVERLAP: tl.constexpr,
):
    """One piece for one key head."""
    # Which piece, which key head. Programs that run together read the heads of one token: neighbouring bytes.
    GROUP: tl.constexpr = HEADS // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS
    piece = pieces + (tl.program_id(0) // KV_HEADS) * FIELDS
    sequence, token0, queries, position0 = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2), tl.load(piece + 3)
    row0, first, end, state = tl.load(piece + 4), tl.load(piece + 5), tl.load(piece + 6), tl.load(piece + 7)

    # The plan was written before the previous kernel. Queries, keys and values may be written by it.
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if not PDL_OVERLAP:
            tl.extra.cuda.gdc_wait()

    # A plan may reach further than the queries see, for steps to come (engine/step_plans.py).
    end = tl.minimum(end, position0 + queries)

    # [rows]
    # The queries: row r is head r % GROUP of query r // GROUP.
    rows = row0 + tl.arange(0, ROWS)
    query = rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    real = query < queries
    position = position0 + query
    ca, cb, cv = tl.arange(0, DA), tl.arange(0, DB), tl.arange(0, DV)
    q_row = q + ((token0 + query).to(tl.int64) * HEADS + head)[:, None] * D
    qa = tl.load(q_row + ca[None, :], mask=real[:, None] & (ca < SPLIT)[None, :], other=0.0)
    qb = tl.load(q_row + SPLIT + cb[None, :], mask=real[:, None] & (cb < D - SPLIT)[None, :], other=0.0)
    # [/rows]
    if TREE:
        bits = tl.load(seen_bits + token0 + query, mask=real, other=-1)

    # The softmax so far, of no key.
    m = tl.full([ROWS], float("-inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)  # noqa: E741 (the papers' name)
    acc = tl.zeros([ROWS, DV], tl.float32)

    # [look-up]
    listed = table + sequence.to(tl.int64) * table_width
    key = first + tl.arange(0, BLOCK)
    found = tl.load(listed + key // PAGE, mask=key < end, other=0)
    for n in range(first, end, BLOCK):
        # Where the keys of this block lie. A look-up takes as long as a load, so it is best made a block ahead.
        key = n + tl.arange(0, BLOCK)
        inside = key < end
        if LOOK_AHEAD:
            page = found
            found = tl.load(listed + (key + BLOCK) // PAGE, mask=key + BLOCK < end, other=0)
        else:
            page = tl.load(listed + key // PAGE, mask=inside, other=0)
        row = (page.to(tl.int64) * PAGE + key % PAGE) * KV_HEADS + kv_head
        # [/look-up]

        # Scores: s = q · kᵀ, the two parts of the width added; −∞ where a query must not look.
        k_row = k_pages + row[:, None] * D
        ka = tl.load(k_row + ca[None, :], mask=inside[:, None] & (ca < SPLIT)[None, :], other=0.0)
        s = dot(qa, tl.trans(ka), tl.zeros([ROWS, BLOCK], tl.float32), WIDEN)
        if SPLIT < D:
            kb = tl.load(k_row + SPLIT + cb[None, :], mask=inside[:, None] & (cb < D - SPLIT)[None, :], other=0.0)
            s = dot(qb, tl.trans(kb), s, WIDEN)
        seen = inside[None, :] & (key[None, :] <= position[:, None])
        if TREE:
            distance = position[:, None] - key[None, :]
            bit = (bits[:, None] >> tl.minimum(tl.maximum(distance, 0), 63).to(tl.int64)) & 1
            seen = seen & ((distance > 63) | (bit == 1))
        s = tl.where(seen, s * scale_log2, float("-inf"))

        # The softmax so far: when the largest score grows, the older sums shrink by exp(old − new). A row that has seen
        # no key subtracts 0 instead of −∞, because −∞ − (−∞) is not a number.
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - m_safe[:, None])
        shrink = tl.exp2(m - m_safe)
        l = l * shrink + tl.sum(p, 1)  # noqa: E741
        if V_IN_K:
            v = ka
        else:
            v = tl.load(v_pages + row[:, None] * V + cv[None, :], mask=inside[:, None] & (cv < V)[None, :], other=0.0)
        acc = dot(p.to(v.dtype), v, acc * shrink[:, None], WIDEN)
        m = m_new

    # The result, and the log-sum-exp of the scores: −∞ where no key was seen. Final, or a state to be merged.
    acc = acc / tl.where(l > 0, l, 1.0)[:, None]
    log = (m + tl.log2(tl.where(l > 0, l, 1.0))) * LN2
    if state < 0:
        where = (token0 + query).to(tl.int64) * HEADS + head
        tl.store(out + where[:, None] * V + cv[None, :], acc, mask=real[:, None] & (cv < V)[None, :])
        tl.store(lse + where, log, mask=real)
    else:
        where = (state + query).to(tl.int64) * HEADS + head
        tl.store(partial + where[:, None] * V + cv[None, :], acc, mask=real[:, None] & (cv < V)[None, :])
        tl.store(partial_lse + where, log, mask=real)

    # It must not end before the previous kernel: the next one waits for this one only (pdl.py).
    if PDL and PDL_OVERLAP:
        tl.extra.cuda.gdc_wait()


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
    DV: tl.constexpr,  # V, as a power of two
    BLOCK: tl.constexpr,  # states at a time
    PDL: tl.constexpr,
):
    """Join one head's states of one token: a softmax over states."""
    # The lists are part of the plan, which was written before the previous kernel. The states are written by it.
    token, head = tl.program_id(0), tl.program_id(1)
    first, end = tl.load(offsets + token), tl.load(offsets + token + 1)
    i, cv = first + tl.arange(0, BLOCK), tl.arange(0, DV)
    state = tl.load(states + i, mask=i < end, other=0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()

    # As over keys: m the largest log-sum-exp so far, l the sum of exp(lse − m), acc the sum of exp(lse − m) · o. The
    # difference is taken before the exponential: it is nearly exact.
    m = tl.full([], float("-inf"), tl.float32)
    l = tl.zeros([], tl.float32)  # noqa: E741
    acc = tl.zeros([DV], tl.float32)
    for _ in range(first, end, BLOCK):
        row = state.to(tl.int64) * HEADS + head
        log = tl.load(partial_lse + row, mask=i < end, other=float("-inf"))
        o = tl.load(partial + row[:, None] * V + cv[None, :], mask=(i < end)[:, None] & (cv < V)[None, :], other=0.0)
        m_new = tl.maximum(m, tl.max(log, 0))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        weight, shrink = tl.exp(log - m_safe), tl.exp(m - m_safe)
        l = l * shrink + tl.sum(weight, 0)  # noqa: E741
        acc = acc * shrink + tl.sum(o * weight[:, None], 0)
        m = m_new
        i += BLOCK
        state = tl.load(states + i, mask=i < end, other=0)

    # A token without states has its result already.
    where = token.to(tl.int64) * HEADS + head
    if first < end:
        total = tl.where(l > 0, l, 1.0)
        tl.store(out + where * V + cv, acc / total, mask=cv < V)
        tl.store(lse + where, m + tl.log(total))


def attend(
    q: Float[Tensor, "tokens heads dim"],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"] | None,
    page_table: Int[Tensor, "sequences width"],
    plan: TilePlan,
    scale: float,
    value_dim: int,
    pdl: bool = False,
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "tokens heads"]]:
    """All pieces of a plan, then the merge. Without values, they are the first `value_dim` columns of the keys.

    `pdl`: the plan was on the device before the last ordinary launch before this call (`pdl.py`).
    """
    tokens, heads, dim = q.shape
    _, page, kv_heads, _ = k_pages.shape
    v_in_k = v_pages is None
    split, *widths = padded(dim, value_dim, v_in_k)
    out = q.new_empty(tokens, heads, value_dim)
    lse = q.new_empty(tokens, heads, dtype=torch.float32)
    partial = q.new_empty(plan.num_states, heads, value_dim, dtype=torch.float32)
    partial_lse = q.new_empty(plan.num_states, heads, dtype=torch.float32)

    in_front = ""  # the Gluon kernel that was launched before this one
    for launch in plan.launches:
        tile = launch.tile
        if tile.hopper == "mla" or (tile.hopper == "gqa" and (dim, value_dim) in GQA_WIDTHS):
            in_front = tile.hopper
            gluon = importlib.import_module(f"inference_opt.kernels.hopper.{tile.hopper}")  # only such cards have it
            gluon.attend_pieces(q, k_pages, v_pages, page_table, launch, scale * LOG2E, out, lse, partial, partial_lse)
            continue
        # The kernel for many rows leaves some registers and shared memory free, so this one may run at the same time.
        # That kernel had an ordinary launch, so everything that either of them reads has been written.
        attend_piece[(len(launch.pieces) * kv_heads,)](
            q, k_pages, k_pages if v_in_k else v_pages, page_table, launch.pieces,
            launch.pieces if launch.seen is None else launch.seen, out, lse, partial, partial_lse,
            page_table.stride(0), scale * LOG2E,
            heads, kv_heads, dim, value_dim, page, v_in_k, launch.seen is not None,
            tile.rows, tile.block, split, *widths, tile.looks_ahead, INTERPRETED and q.dtype == torch.bfloat16,
            PDL_OVERLAP=pdl and in_front == "gqa", num_warps=tile.warps, num_stages=tile.stages, **launch_options(pdl),
        )  # fmt: skip
    if plan.num_states:
        merge(partial, partial_lse, plan.offsets, plan.states, out, lse, pdl)
    return out, lse


def merge(
    partial: Float[Tensor, "states heads value_dim"],
    partial_lse: Float[Tensor, "states heads"],
    offsets: Int[Tensor, "tokens_and_1"],
    states: Int[Tensor, "listed"],
    out: Float[Tensor, "tokens heads value_dim"],
    lse: Float[Tensor, "tokens heads"],
    pdl: bool = False,
) -> None:
    """Join states[offsets[t] : offsets[t + 1]] into out[t] and lse[t], for the tokens that have any.

    `pdl`: offsets and states were on the device before the last ordinary launch before this call (`pdl.py`).
    """
    tokens, heads, value_dim = out.shape
    merge_token[(tokens, heads)](
        partial, partial_lse, offsets, states, out, lse,
        heads, value_dim, triton.next_power_of_2(value_dim), BLOCK=16, **launch_options(pdl),
    )  # fmt: skip
