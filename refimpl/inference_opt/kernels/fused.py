"""The small operations of a decoding step, joined to the large ones: fewer launches between two weight matrices.

A model of a billion weights decodes a token on an H100 in under a millisecond if it does nothing but read its weights.
One operation at a time, a layer takes about sixteen launches, and the card idles between any two. Here it takes seven:

    project       norm → product → (silu(gate) · up) → + residual, of one row. Each of these is one pass over the row or
                  the result, and takes almost no time compared with reading the weight. The first weights are loaded
                  while the previous kernel still runs (`pdl.py`): no kernel writes them.
    rotate_write  RoPE of queries and keys, and writing keys and values into their pages: q, k and v are read once.

Few rows have a kernel of their own on Hopper (`hopper/few_rows.py`). The product of many rows with a matrix is best
left to the library; there only what surrounds it is joined.
`cache/fused_forward.py` makes a whole forward pass of these.
"""

import importlib

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor, nn

from inference_opt.kernels.pdl import launch_options


@triton.jit
def project_row(
    x,  # [K]
    weight,  # [N, K]; with GATED [2 N, K]: the gates, then what they are multiplied with
    norm,  # [K], with NORM
    residual,  # [N], with RESIDUAL: the result is added to it
    out,  # [N]; may be the residual
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,  # rows of the weight, a program
    BLOCK: tl.constexpr,  # columns of the weight, at a time
    PDL: tl.constexpr,
):
    """ROWS numbers of weight · (x / rms(x) · norm). The squares are summed along the way, and divided by at the end."""
    # [early]
    # The first block of the weight does not depend on the previous kernel; x does.
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    row = weight + n.to(tl.int64)[:, None] * K + k[None, :]
    first = (n < N)[:, None] & (k < K)[None, :]
    w = tl.load(row, mask=first, other=0.0)
    gate = tl.load(row + N * K, mask=first, other=0.0) if GATED else w
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    added = tl.load(residual + n, mask=n < N).to(tl.float32) if RESIDUAL else 0.0
    # [/early]

    # Products and squares, block by block; the sums over a block's columns are left for the end.
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    through = tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in tl.static_range(0, K, BLOCK):
        if start > 0:
            inside = (n < N)[:, None] & (start + k < K)[None, :]
            w = tl.load(row + start, mask=inside, other=0.0)
            gate = tl.load(row + N * K + start, mask=inside, other=0.0) if GATED else w
        part = tl.load(x + start + k, mask=start + k < K, other=0.0).to(tl.float32)
        if NORM:
            squares += part * part
            part *= tl.load(norm + start + k, mask=start + k < K, other=0.0).to(tl.float32)
        acc += w.to(tl.float32) * part[None, :]
        if GATED:
            through += gate.to(tl.float32) * part[None, :]

    # Norm, gate and residual of the result.
    y = tl.sum(acc, 1)
    scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / K + eps) if NORM else 1.0
    y *= scale
    if GATED:
        y = y / (1.0 + tl.exp(-y)) * (tl.sum(through, 1) * scale)
    tl.store(out + n, y + added, mask=n < N)


def project(
    x: Float[Tensor, "tokens in_features"],
    weight: Float[Tensor, "rows in_features"],
    norm: nn.RMSNorm | None = None,
    residual: Float[Tensor, "tokens rows"] | None = None,
    gated: bool = False,
    out: Float[Tensor, "tokens rows"] | None = None,
    pdl: bool = False,
) -> Float[Tensor, "tokens out_features"]:
    """norm(x) · weightᵀ. With `gated`, silu of its first half times the second half. Added to `residual`.

    The sum is written to `out`; None: to the residual itself.
    The norm and the gate of few rows are not rounded on the way. `pdl`: the weight was there before the last
    ordinary launch before this call (`pdl.py`).
    """
    assert out is None or residual is not None
    out = residual if out is None else out
    if few(x, weight):
        own = importlib.import_module("inference_opt.kernels.hopper.few_rows")  # only such cards have it
        result: Tensor = own.project(x, weight, norm, residual, gated, out, pdl)
        return result
    if len(x) > 1:
        x = x if norm is None else normed(x, norm, pdl)
        if residual is not None:
            return torch.addmm(residual, x, weight.T, out=out)
        y = nn.functional.linear(x, weight)
        return swiglu(y) if gated else y

    # One row: our own kernel. The sizes were found by trying, on an H100.
    n, k = len(weight) // (1 + gated), x.shape[1]
    out = x.new_empty(1, n) if out is None else out
    if gated:
        rows, block = (2, 1024) if k <= 1024 else (4, 512)
    else:
        rows, block = 8, 1024 if residual is None or k < 2048 else 2048
    project_row[(triton.cdiv(n, rows),)](
        x, weight, x if norm is None else norm.weight, out if residual is None else residual, out,
        0.0 if norm is None else norm.eps, n, k,
        norm is not None, residual is not None, gated, rows, block, num_warps=block // 256, **launch_options(pdl),
    )  # fmt: skip
    return out


def few(x: Float[Tensor, "tokens width"], weight: Float[Tensor, "rows width"]) -> bool:
    """Whether so many rows have a kernel of their own for this matrix."""
    # The library is faster for matrices of more than 2²⁵ numbers; for those of more than 2²² where several programs
    # read the same weights, with more than sixteen rows; and where more than eight rows need more than two programs for
    # each processor. Found on an H100 and an H200.
    parts = triton.cdiv(len(x), 16)
    programs, most = triton.cdiv(len(weight), 16) * parts, 1 << (25 if parts == 1 else 22)
    fits = 1 < len(x) <= 64 and weight.numel() <= most and (len(x) <= 8 or programs <= 256)
    return fits and x.dtype == torch.bfloat16 and x.is_cuda and torch.cuda.get_device_capability() >= (9, 0)


@triton.jit
def norm_token(x, weight, out, eps, stride, K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """x / rms(x) · weight, of one token; x has one each `stride`. The weight was written before the previous kernel."""
    token = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    w = tl.load(weight + k, mask=k < K, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    part = tl.load(x + token * stride + k, mask=k < K, other=0.0).to(tl.float32)
    tl.store(out + token * K + k, part / tl.sqrt(tl.sum(part * part, 0) / K + eps) * w, mask=k < K)


def normed(x: Float[Tensor, "tokens width"], norm: nn.RMSNorm, pdl: bool = False) -> Float[Tensor, "tokens width"]:
    """`norm(x)`. `pdl`: the norm's weight was there before the last ordinary launch before this call."""
    tokens, k = x.shape
    out, block = x.new_empty(tokens, k), triton.next_power_of_2(k)
    norm_token[(tokens,)](
        x, norm.weight, out, norm.eps, x.stride(0), k, block, num_warps=max(1, min(8, block // 256)),
        **launch_options(pdl),
    )  # fmt: skip
    return out


@triton.jit
def gate_token(y, out, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """BLOCK numbers of one token: silu(y[:N]) · y[N:]."""
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    gate = tl.load(y + token * 2 * N + n, mask=n < N).to(tl.float32)
    through = tl.load(y + token * 2 * N + N + n, mask=n < N)
    silu = (gate / (1.0 + tl.exp(-gate))).to(through.dtype)
    tl.store(out + token * N + n, silu * through, mask=n < N)


def swiglu(y: Float[Tensor, "tokens both"]) -> Float[Tensor, "tokens half"]:
    """silu of each token's first half times its second half. It waits before it reads, so it may always start early."""
    n = y.shape[1] // 2
    out = y.new_empty(len(y), n)
    gate_token[(len(y), triton.cdiv(n, 1024))](y, out, n, 1024, **launch_options(pdl=True))
    return out


@triton.jit
def rotate_token(
    qkv,  # [tokens, HEADS + 2 KV_HEADS, D]
    cos,  # [positions, D]
    sin,  # [positions, D], its first half negative
    positions,  # [tokens]
    slots,  # [tokens]
    q,  # [tokens, HEADS, D]
    k_pages,  # [slots, KV_HEADS, D]
    v_pages,  # [slots, KV_HEADS, D]
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,  # HEADS + 2 KV_HEADS, as a power of two
    WIDE: tl.constexpr,  # D, as a power of two
    PDL: tl.constexpr,
):
    """Rotate one token's queries and keys; write its keys and values into its slot. A slot below 0: write nowhere."""
    # Positions and slots, which are part of the plan, and the angles were written before the previous kernel.
    token = tl.program_id(0).to(tl.int64)
    h, d = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDE)[None, :]
    position, slot = tl.load(positions + token), tl.load(slots + token).to(tl.int64)
    c = tl.load(cos + position * D + d, mask=d < D).to(tl.float32)
    s = tl.load(sin + position * D + d, mask=d < D).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()

    # RoPE: x · cos + (x with its halves exchanged) · (∓ sin), rounded where `model.rope.rotate` rounds. Values are
    # rotated too, which costs nothing, and the result is not used.
    inside = (h < HEADS + 2 * KV_HEADS) & (d < D)
    row = qkv + token * (HEADS + 2 * KV_HEADS) * D + h * D
    x = tl.load(row + d, mask=inside)
    other = tl.load(row + (d + D // 2) % D, mask=inside).to(tl.float32)
    rotated = (x.to(tl.float32) * c).to(x.dtype).to(tl.float32) + other * s

    # Heads 0 … HEADS − 1 are queries, then come the key heads, then the value heads.
    tl.store(q + (token * HEADS + h) * D + d, rotated, mask=inside & (h < HEADS))
    if slot >= 0:
        k, v = h - HEADS, h - HEADS - KV_HEADS
        tl.store(k_pages + (slot * KV_HEADS + k) * D + d, rotated, mask=inside & (k >= 0) & (v < 0))
        tl.store(v_pages + (slot * KV_HEADS + v) * D + d, x, mask=inside & (v >= 0))


def rotate_write(
    qkv: Float[Tensor, "tokens width"],
    cos: Float[Tensor, "positions dim"],
    sin: Float[Tensor, "positions dim"],
    positions: Int[Tensor, "tokens"],
    slots: Int[Tensor, "tokens"],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads dim"],
    pdl: bool = False,
) -> Float[Tensor, "tokens heads dim"]:
    """The rotated queries. The rotated keys and the values are written into their slots.

    The caller has checked positions and slots. `pdl`: they and the angles were there before the last ordinary launch in
    front of this call (`pdl.py`).
    """
    kv_heads, dim = k_pages.shape[2:]
    rows = qkv.shape[1] // dim  # queries, keys and values
    heads = rows - 2 * kv_heads
    q = qkv.new_empty(len(qkv), heads, dim)
    rotate_token[(len(qkv),)](
        qkv, cos, sin, positions, slots, q, k_pages, v_pages, heads, kv_heads, dim,
        triton.next_power_of_2(rows), triton.next_power_of_2(dim), **launch_options(pdl),
    )  # fmt: skip
    return q
