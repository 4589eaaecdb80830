"""A mixture of experts on the device: what `model/experts.py` says, without a look at the numbers from the host.

    score    x Eᵀ                                      logits of all experts, float32     [tokens, experts]
    route    the k experts of each token               chosen, weights                    [tokens, k]
    sort     pairs (token, expert) in order of expert  order, first                       [tokens · k], [experts + 1]
    up       silu(gate) ⊙ up, of each pair             grouped products                   [pairs, width]
    down     back to the width of the model            grouped products                   [pairs, dim]
    join     h + Σ weight · result, of each token      in the order of rank: no atomics

The number of launches and of programs depends on shapes only, so that a CUDA graph can hold them. There are as many
programs as the worst routing needs; a program that finds no work ends at once.

The shared experts take part as further experts that every token is sent to with weight 1: of their one wide SwiGLU, the
columns of each shared expert are a part.

Few tokens (`FEW` or fewer): there is nothing to sort, because hardly two tokens choose the same expert. A program
computes some numbers of one pair, as `fused.project_row` does, and one launch does both down and join.
More tokens: a program computes a tile of up to ROWS pairs of one expert, on the tensor cores. The weights of an expert
are read once for a tile.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor, nn

from inference_opt.kernels.attention import dot
from inference_opt.kernels.fused import normed, project_row
from inference_opt.kernels.pdl import INTERPRETED, launch_options

FEW = 2  # tokens; with more, reading an expert once for all of its tokens pays


@triton.jit
def score_tile(
    x,  # [tokens, K]
    weight,  # [EXPERTS, K]
    logits,  # [tokens, EXPERTS]
    tokens,
    EXPERTS: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,  # tokens of a program
    COLUMNS: tl.constexpr,  # experts of a program
    BLOCK: tl.constexpr,
    WIDEN: tl.constexpr,
    PDL: tl.constexpr,
):
    """x · weightᵀ in float32."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, BLOCK)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, K, BLOCK):
        inside = (start + k < K)[None, :]
        a = tl.load(
            x + t.to(tl.int64)[:, None] * K + start + k[None, :], mask=inside & (t < tokens)[:, None], other=0.0
        )
        b = tl.load(weight + e[:, None] * K + start + k[None, :], mask=inside & (e < EXPERTS)[:, None], other=0.0)
        acc = dot(a, tl.trans(b), acc, WIDEN)
    where = t.to(tl.int64)[:, None] * EXPERTS + e[None, :]
    tl.store(logits + where, acc, mask=(t < tokens)[:, None] & (e < EXPERTS)[None, :])


@triton.jit
def route_token(
    logits,  # [tokens, GROUPS · SIZE]
    correction,  # [GROUPS · SIZE], with CORRECTED
    chosen,  # [tokens, CHOSEN]
    weights,  # [tokens, CHOSEN]
    factor,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,  # experts of a group
    KEPT: tl.constexpr,  # groups that a token may go to
    CHOSEN: tl.constexpr,
    CORRECTED: tl.constexpr,  # V3: sigmoid, and a correction of the choice; else V2: softmax
    NORMALISED: tl.constexpr,
    WIDE_GROUPS: tl.constexpr,  # GROUPS, SIZE and CHOSEN as powers of two
    WIDE_SIZE: tl.constexpr,
    WIDE_CHOSEN: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token's experts and their weights. Where two are equal, the first is chosen."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, WIDE_GROUPS), tl.arange(0, WIDE_SIZE)
    real = (group < GROUPS)[:, None] & (member < SIZE)[None, :]
    expert = group[:, None] * SIZE + member[None, :]
    x = tl.load(logits + token * GROUPS * SIZE + expert, mask=real, other=float("-inf"))

    # Scores s of all experts, and what the choice is made by.
    if CORRECTED:
        score = 1.0 / (1.0 + tl.exp(-x))
        choice = score + tl.load(correction + expert, mask=real, other=0.0).to(tl.float32)
    else:
        e = tl.exp(x - tl.max(tl.max(x, 1), 0))
        score = e / tl.sum(tl.sum(e, 1), 0)
        choice = score
    # A broken token is sent somewhere, with weights of NaN: so it alone becomes NaN, and every index is one.
    broken = tl.max(tl.max((real & (choice != choice)).to(tl.int32), 1), 0) > 0
    choice = tl.where(broken, 0.0, choice)
    choice = tl.where(real, choice, float("-inf"))

    # Experts outside of the best groups get −∞. A group is worth its best expert, or (V3) its two best.
    if GROUPS > 1:
        worth = tl.max(choice, 1)
        if CORRECTED:
            best = tl.min(tl.where(choice == worth[:, None], member[None, :], WIDE_SIZE), 1)
            worth += tl.max(tl.where(member[None, :] == best[:, None], float("-inf"), choice), 1)
        kept = group < 0
        for _ in tl.static_range(KEPT):
            left = tl.where(kept | (group >= GROUPS), float("-inf"), worth)
            found = tl.min(tl.where((left == tl.max(left, 0)) & (kept == 0) & (group < GROUPS), group, GROUPS), 0)
            kept = kept | (group == found)
        choice = tl.where(kept[:, None], choice, float("-inf"))

    # The best of those left, one after the other.
    rank = tl.arange(0, WIDE_CHOSEN)
    index, weight = tl.zeros([WIDE_CHOSEN], tl.int32), tl.zeros([WIDE_CHOSEN], tl.float32)
    for i in tl.static_range(CHOSEN):
        best = tl.max(tl.max(choice, 1), 0)
        found = tl.min(tl.min(tl.where((choice == best) & real, expert, GROUPS * SIZE - 1), 1), 0)
        mine = expert == found
        worth_of_it = tl.sum(tl.sum(tl.where(mine & real, score, 0.0), 1), 0)
        index = tl.where(rank == i, found, index)
        weight = tl.where(rank == i, worth_of_it, weight)
        choice = tl.where(mine, float("-inf"), choice)
    if NORMALISED:
        weight = weight / (tl.sum(weight, 0) + 1e-20)
    weight = tl.where(broken, float("nan"), weight * factor)
    tl.store(chosen + token * CHOSEN + rank, index, mask=rank < CHOSEN)
    tl.store(weights + token * CHOSEN + rank, weight, mask=rank < CHOSEN)


@triton.jit
def sort_expert(
    chosen,
    order,  # [pairs]: all pairs, in order of expert
    first,  # [EXPERTS + 1]: where each expert's pairs begin
    pairs,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """List one expert's pairs, behind those of all experts before it."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    expert = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    before = tl.zeros([BLOCK], tl.int32)
    for start in range(0, pairs, BLOCK):
        before += (tl.load(chosen + start + i, mask=start + i < pairs, other=EXPERTS) < expert).to(tl.int32)
    place = tl.sum(before, 0)
    tl.store(first + expert, place)
    if expert == EXPERTS - 1:
        tl.store(first + EXPERTS, pairs)
    for start in range(0, pairs, BLOCK):
        mine = (tl.load(chosen + start + i, mask=start + i < pairs, other=EXPERTS) == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(mine, 0) - 1, start + i, mask=mine > 0)
        place += tl.sum(mine, 0)


@triton.jit
def rows_of_tile(
    tile,
    order,
    first,
    tokens,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    SHARED: tl.constexpr,
    WIDE: tl.constexpr,  # EXPERTS, as a power of two
    ROWS: tl.constexpr,
):
    """A tile's expert and its rows: (expert, is there a row, which row of x, which pair, which row of the sorted ones).

    First come the tiles of the shared experts EXPERTS, EXPERTS + 1, …, which hold all tokens. Their pairs and their
    sorted rows are numbered before the others. Of a tile without work, no row is there.
    """
    of_shared = (tokens + ROWS - 1) // ROWS
    routed = tile - SHARED * of_shared
    # [tile]
    # An expert of n pairs has ⌈n / ROWS⌉ tiles: a sum over experts finds whose this is.
    e = tl.arange(0, WIDE)
    begin = tl.load(first + e, mask=e < EXPERTS, other=0)
    end = tl.load(first + e + 1, mask=e < EXPERTS, other=0)
    tiles = (end - begin + ROWS - 1) // ROWS
    ends = tl.cumsum(tiles, 0)
    mine = (e < EXPERTS) & (ends - tiles <= routed) & (routed < ends)
    last = tl.sum(tl.where(mine, end, 0), 0)
    row = tl.sum(tl.where(mine, begin + (routed - ends + tiles) * ROWS, 0), 0) + tl.arange(0, ROWS)
    there = row < last
    pair = tl.load(order + row, mask=there, other=0)
    expert = tl.sum(tl.where(mine, e, 0), 0)
    # [/tile]

    # Or it is a shared expert's.
    shared = routed < 0
    part, token = tile // of_shared, (tile % of_shared) * ROWS + tl.arange(0, ROWS)
    expert = tl.where(shared, EXPERTS + part, expert)
    there = tl.where(shared, token < tokens, there)
    source = tl.where(shared, token, pair // CHOSEN)
    numbered = tl.where(shared, part * tokens + token, SHARED * tokens + pair)
    sorted_row = tl.where(shared, part * tokens + token, SHARED * tokens + row)
    return expert, there, source, numbered, sorted_row


@triton.jit
def up_tile(
    x,  # [tokens, K]
    gate_up,  # [EXPERTS, 2 N, K]
    shared,  # [2 SHARED N, K]
    order,
    first,
    inner,  # [SHARED · tokens + pairs, N]
    tokens,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    SHARED: tl.constexpr,
    N: tl.constexpr,  # width of an expert
    K: tl.constexpr,  # width of the model
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDEN: tl.constexpr,
    PDL: tl.constexpr,
):
    """COLUMNS numbers of silu(gate) · up, of a tile's rows."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    blocks: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    found = rows_of_tile(tl.program_id(0) // blocks, order, first, tokens, EXPERTS, CHOSEN, SHARED, WIDE, ROWS)
    expert, there, source, _, target = found
    if tl.max(there.to(tl.int32), 0) > 0:
        n, k = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, BLOCK)
        routed = gate_up + expert.to(tl.int64) * (2 * N * K)
        weight = tl.where(expert < EXPERTS, routed, shared + (expert - EXPERTS).to(tl.int64) * (N * K))
        apart = tl.where(expert < EXPERTS, N * K, SHARED * N * K)  # from a gate to what it is multiplied with
        row = x + source.to(tl.int64)[:, None] * K
        gate_row = weight + n.to(tl.int64)[:, None] * K
        gate = tl.zeros([ROWS, COLUMNS], tl.float32)
        up = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, K, BLOCK):
            inside, at = (start + k < K)[None, :], start + k[None, :]
            a = tl.load(row + at, mask=inside & there[:, None], other=0.0)
            b = tl.load(gate_row + at, mask=inside & (n < N)[:, None], other=0.0)
            c = tl.load(gate_row + apart + at, mask=inside & (n < N)[:, None], other=0.0)
            gate = dot(a, tl.trans(b), gate, WIDEN)
            up = dot(a, tl.trans(c), up, WIDEN)
        made = gate / (1.0 + tl.exp(-gate)) * up
        tl.store(inner + target.to(tl.int64)[:, None] * N + n[None, :], made, mask=there[:, None] & (n < N)[None, :])


@triton.jit
def down_tile(
    inner,  # [SHARED · tokens + pairs, K]
    down,  # [EXPERTS, N, K]
    shared,  # [N, SHARED K]
    order,
    first,
    results,  # [SHARED · tokens + pairs, N], in the order of tokens
    tokens,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    SHARED: tl.constexpr,
    N: tl.constexpr,  # width of the model
    K: tl.constexpr,  # width of an expert
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDEN: tl.constexpr,
    PDL: tl.constexpr,
):
    """COLUMNS numbers of each of a tile's rows, before they are weighted."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    blocks: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    found = rows_of_tile(tl.program_id(0) // blocks, order, first, tokens, EXPERTS, CHOSEN, SHARED, WIDE, ROWS)
    expert, there, _, target, source = found
    if tl.max(there.to(tl.int32), 0) > 0:
        n, k = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, BLOCK)
        weight = tl.where(expert < EXPERTS, down + expert.to(tl.int64) * (N * K), shared + (expert - EXPERTS) * K)
        stride = tl.where(expert < EXPERTS, K, SHARED * K)
        row = inner + source.to(tl.int64)[:, None] * K
        column = weight + n.to(tl.int64)[:, None] * stride
        acc = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, K, BLOCK):
            inside, at = (start + k < K)[None, :], start + k[None, :]
            a = tl.load(row + at, mask=inside & there[:, None], other=0.0)
            b = tl.load(column + at, mask=inside & (n < N)[:, None], other=0.0)
            acc = dot(a, tl.trans(b), acc, WIDEN)
        tl.store(results + target.to(tl.int64)[:, None] * N + n[None, :], acc, mask=there[:, None] & (n < N)[None, :])


@triton.jit
def join_token(
    results,  # [SHARED · tokens + tokens · CHOSEN, N]
    weights,  # [tokens, CHOSEN]
    h,  # [tokens, N]: the sum is added to it
    tokens,
    CHOSEN: tl.constexpr,
    SHARED: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK numbers of one token: what its experts give, each times its weight."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.load(h + token * N + n, mask=n < N, other=0.0).to(tl.float32)
    for i in tl.static_range(SHARED):
        acc += tl.load(results + (i * tokens + token) * N + n, mask=n < N, other=0.0).to(tl.float32)
    for i in tl.static_range(CHOSEN):
        row = SHARED * tokens + token * CHOSEN + i
        part = tl.load(results + row * N + n, mask=n < N, other=0.0).to(tl.float32)
        acc += part * tl.load(weights + token * CHOSEN + i)
    tl.store(h + token * N + n, acc, mask=n < N)


@triton.jit
def up_row(
    x,  # [tokens, K]
    norm,  # [K], with NORM
    chosen,  # [tokens, CHOSEN]
    gate_up,  # [EXPERTS, 2 N, K]
    shared,  # [2 SHARED N, K]
    inner,  # [tokens, CHOSEN + SHARED, N]
    eps,
    CHOSEN: tl.constexpr,
    SHARED: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """ROWS numbers of silu(gate) · up of one token's expert. The squares of the norm are summed along the way."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    pair = tl.program_id(0).to(tl.int64)
    token, rank = pair // (CHOSEN + SHARED), pair % (CHOSEN + SHARED)
    n, k = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    expert = tl.load(chosen + token * CHOSEN + rank, mask=rank < CHOSEN, other=0).to(tl.int64)
    weight = tl.where(rank < CHOSEN, gate_up + expert * (2 * N * K), shared + (rank - CHOSEN) * (N * K))
    apart = tl.where(rank < CHOSEN, N * K, SHARED * N * K)
    row = weight + n.to(tl.int64)[:, None] * K + k[None, :]
    gate = tl.zeros([ROWS, BLOCK], tl.float32)
    up = tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for outer in range(0, K, 4 * BLOCK):  # four blocks are loaded at once: more take too many registers
        for inner_block in tl.static_range(4):
            start = outer + inner_block * BLOCK
            inside = (n < N)[:, None] & (start + k < K)[None, :]
            a = tl.load(row + start, mask=inside, other=0.0)
            b = tl.load(row + apart + start, mask=inside, other=0.0)
            part = tl.load(x + token * K + start + k, mask=start + k < K, other=0.0).to(tl.float32)
            if NORM:
                squares += part * part
                part *= tl.load(norm + start + k, mask=start + k < K, other=0.0).to(tl.float32)
            gate += a.to(tl.float32) * part[None, :]
            up += b.to(tl.float32) * part[None, :]
    scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / K + eps) if NORM else 1.0
    y = tl.sum(gate, 1) * scale
    tl.store(inner + pair * N + n, y / (1.0 + tl.exp(-y)) * (tl.sum(up, 1) * scale), mask=n < N)


@triton.jit
def down_row(
    inner,  # [tokens, CHOSEN + SHARED, K]
    chosen,  # [tokens, CHOSEN]
    weights,  # [tokens, CHOSEN]
    down,  # [EXPERTS, N, K]
    shared,  # [N, SHARED K]
    h,  # [tokens, N]: the sum is added to it
    CHOSEN: tl.constexpr,
    SHARED: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """ROWS numbers of one token: the weighted sum over its experts, before the sum over their columns."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    n, k = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    row = n.to(tl.int64)[:, None] * K + k[None, :]
    rows = inner + token * (CHOSEN + SHARED) * K + k
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.static_range(CHOSEN):
        expert = tl.load(chosen + token * CHOSEN + i).to(tl.int64)
        g = tl.load(weights + token * CHOSEN + i)
        for start in tl.static_range(0, K, BLOCK):
            inside = (n < N)[:, None] & (start + k < K)[None, :]
            w = tl.load(down + expert * (N * K) + row + start, mask=inside, other=0.0).to(tl.float32)
            part = tl.load(rows + i * K + start, mask=start + k < K, other=0.0).to(tl.float32)
            acc += w * (part * g)[None, :]
    wide = n.to(tl.int64)[:, None] * (SHARED * K) + k[None, :]
    for start in tl.static_range(0, SHARED * K, BLOCK):
        inside = (n < N)[:, None] & (start + k < SHARED * K)[None, :]
        w = tl.load(shared + wide + start, mask=inside, other=0.0).to(tl.float32)
        part = tl.load(rows + CHOSEN * K + start, mask=start + k < SHARED * K, other=0.0).to(tl.float32)
        acc += w * part[None, :]
    before = tl.load(h + token * N + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(h + token * N + n, before + tl.sum(acc, 1), mask=n < N)


class Routing(NamedTuple):
    """How a router chooses; the names are those of DeepSeek's configurations."""

    num_experts_per_tok: int
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0


class Weights(NamedTuple):
    """The experts' weights, all in one dtype; of the shared experts None where there are none."""

    gate_up: Float[Tensor, "experts both dim"]
    down: Float[Tensor, "experts dim width"]
    shared_gate_up: Float[Tensor, "shared_both dim"] | None = None
    shared_down: Float[Tensor, "dim shared_width"] | None = None


def score(
    x: Float[Tensor, "tokens dim"],
    weight: Float[Tensor, "experts dim"],
    norm: nn.RMSNorm | None = None,
    pdl: bool = False,
) -> Float[Tensor, "tokens experts"]:
    """norm(x) · weightᵀ in float32. The norm is only for one token. `pdl`: as in `fused.project`."""
    (tokens, dim), experts = x.shape, len(weight)
    logits = x.new_empty(tokens, experts, dtype=torch.float32)
    if tokens == 1:
        project_row[(triton.cdiv(experts, 2),)](
            x, weight, x if norm is None else norm.weight, logits, logits, 0.0 if norm is None else norm.eps,
            experts, dim, norm is not None, False, False, 2, 1024, num_warps=4, **launch_options(pdl),
        )  # fmt: skip
        return logits
    assert norm is None
    rows, columns = (16, 16) if tokens <= 64 or x.dtype == torch.float32 else (64, 64)
    score_tile[(triton.cdiv(tokens, rows), triton.cdiv(experts, columns))](
        x, weight, logits, tokens, experts, dim, rows, columns, 128,
        INTERPRETED and x.dtype == torch.bfloat16, num_warps=4, num_stages=4, **launch_options(pdl=True),
    )  # fmt: skip
    return logits


def route(
    logits: Float[Tensor, "tokens experts"], correction: Float[Tensor, "experts"] | None, how: Routing
) -> tuple[Int[Tensor, "tokens chosen"], Float[Tensor, "tokens chosen"]]:
    """The experts of each token, and their weights. With a correction, scores are sigmoids (V3), else a softmax (V2).

    A token with NaN among its scores gets experts that exist, and weights of NaN.
    """
    tokens, experts = logits.shape
    k, size = how.num_experts_per_tok, experts // how.n_group
    chosen = logits.new_empty(tokens, k, dtype=torch.int32)
    weights = logits.new_empty(tokens, k)
    route_token[(tokens,)](
        logits, logits if correction is None else correction, chosen, weights, how.routed_scaling_factor,
        how.n_group, size, how.topk_group, k, correction is not None, how.norm_topk_prob,
        *map(triton.next_power_of_2, (how.n_group, size, k)), num_warps=1 if experts <= 64 else 4,
        **launch_options(pdl=True),
    )  # fmt: skip
    return chosen, weights


def mix(
    h: Float[Tensor, "tokens dim"],
    x: Float[Tensor, "tokens dim"],
    chosen: Int[Tensor, "tokens chosen"],
    weights: Float[Tensor, "tokens chosen"],
    experts: Weights,
    norm: nn.RMSNorm | None = None,
) -> Float[Tensor, "tokens dim"]:
    """h + Σ weight · expert(norm(x)) + shared(norm(x)), written into h. The norm is only for few tokens."""
    (tokens, dim), k = x.shape, chosen.shape[1]
    width = experts.down.shape[2]
    shared = 0 if experts.shared_down is None else experts.shared_down.shape[1] // width
    pairs = tokens * k
    shared_up = experts.gate_up if experts.shared_gate_up is None else experts.shared_gate_up
    shared_down = experts.down if experts.shared_down is None else experts.shared_down
    options = launch_options(pdl=True)
    inner = x.new_empty(tokens * (k + shared), width)
    if tokens <= FEW:
        up_row[(tokens * (k + shared), triton.cdiv(width, 4))](
            x, x if norm is None else norm.weight, chosen, experts.gate_up, shared_up, inner,
            0.0 if norm is None else norm.eps, k, shared, width, dim, norm is not None, 4, 512, num_warps=2, **options,
        )  # fmt: skip
        down_row[(tokens, triton.cdiv(dim, 4))](
            inner, chosen, weights, experts.down, shared_down, h, k, shared, dim, width, 4, 512,
            num_warps=2, **options,
        )  # fmt: skip
        return h

    assert norm is None
    number = len(experts.down)
    order, first = chosen.new_empty(pairs), chosen.new_empty(number + 1)
    sort_expert[(number,)](chosen, order, first, pairs, number, min(1024, triton.next_power_of_2(pairs)), **options)

    # At most one tile of each expert that is chosen is not full.
    tile = tile_for(pairs, number, x.dtype)
    tiles = pairs // tile.rows + min(number, pairs) + shared * triton.cdiv(tokens, tile.rows)
    sizes = (tokens, number, k, shared)
    how = {"WIDE": triton.next_power_of_2(number), "ROWS": tile.rows, "num_warps": tile.warps, **options}
    how |= {"WIDEN": INTERPRETED and x.dtype == torch.bfloat16, "BLOCK": tile.block, "num_stages": tile.stages}
    up_tile[(tiles * triton.cdiv(width, tile.columns),)](
        x, experts.gate_up, shared_up, order, first, inner, *sizes, width, dim, COLUMNS=tile.columns, **how
    )
    results = x.new_empty(len(inner), dim)
    down_tile[(tiles * triton.cdiv(dim, tile.down_columns),)](
        inner, experts.down, shared_down, order, first, results, *sizes, dim, width, COLUMNS=tile.down_columns, **how
    )
    join_token[(tokens, triton.cdiv(dim, 1024))](results, weights, h, tokens, k, shared, dim, 1024, **options)
    return h


class Tile(NamedTuple):
    """Rows (pairs), columns of up and of down, and how much of a row or column is loaded at once."""

    rows: int
    columns: int
    down_columns: int
    block: int
    warps: int
    stages: int


def tile_for(pairs: int, experts: int, dtype: torch.dtype) -> Tile:
    """The tile that holds an expert's pairs, if all have as many: small ones read weights, large ones compute.

    Float32 takes twice the shared memory, and no tensor cores: there large ones do not pay.
    """
    most = 32 if dtype == torch.float32 else 128
    rows = min(max(16, triton.next_power_of_2(triton.cdiv(pairs, experts))), most)
    return {
        16: Tile(16, 64, 128, 128, 8, 3),
        32: Tile(32, 32, 64, 128, 4, 4),
        64: Tile(64, 64, 128, 64, 4, 4),
        128: Tile(128, 128, 256, 64, 8, 3),
    }[rows]


def mixture(
    h: Float[Tensor, "tokens dim"],
    norm: nn.RMSNorm,
    router: Float[Tensor, "experts dim"],
    correction: Float[Tensor, "experts"] | None,
    how: Routing,
    experts: Weights,
    pdl: bool = False,
) -> Float[Tensor, "tokens dim"]:
    """h + mixture(norm(h)), written into h. `pdl`: as in `fused.normed`."""
    if not len(h):
        return h
    if len(h) == 1:
        return mix(h, h, *route(score(h, router, norm, pdl), correction, how), experts, norm)
    x = normed(h, norm, pdl)
    return mix(h, x, *route(score(x, router), correction, how), experts)
