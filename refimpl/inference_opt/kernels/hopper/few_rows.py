"""The product of few rows with a matrix, on Hopper: a small batch, or one text and its drafts. In Gluon.

A few rows read the same weights as one. They should take the same time, if the arithmetic keeps out of the
way. Tensor cores multiply 16 × 16 weights by 16 × 8 numbers of x, and a warp reads its weights straight into the
registers where they are multiplied: nothing passes through shared memory, and no warp waits for another.

    warps        each has its own columns of K, and a sum of its own; the sums are added at the end
    registers    a thread loads 8 neighbouring weights at once. The tensor cores expect pairs; but a sum over k may
                 take its terms in any order, if it is the same for weights and x
    before x     the first weights are loaded while the previous kernel still runs (`pdl.py`)
    parts        a program has sixteen rows at most; neighbouring programs read the same weights for other rows

Norm, gate and residual are joined as in `fused.project_row`. x · norm is rounded before the product.
"""

import triton
from jaxtyping import Float
from torch import Tensor, nn
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from inference_opt.kernels.pdl import launch_options


@gluon.jit
def begin_early(anything):
    """Let the next kernel start; wait until the previous one has ended (`pdl.py`)."""
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; griddepcontrol.wait; mov.u32 $0, $1;", "=r,r", [anything], gl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def project_few(
    x,  # [tokens, K], a token each `stride`
    weight,  # [N, K]; with GATED [2 N, K]: the gates, then what they are multiplied with
    norm,  # [K], with NORM
    residual,  # [tokens, N], with RESIDUAL: the result is added to it
    out,  # [tokens, N]; may be the residual
    eps,
    tokens,
    stride,
    N: gl.constexpr,
    K: gl.constexpr,
    NORM: gl.constexpr,
    RESIDUAL: gl.constexpr,
    GATED: gl.constexpr,
    ROWS: gl.constexpr,  # tokens of a program, a power of two from 8 on
    BLOCK: gl.constexpr,  # columns of a warp, at a time
    PDL: gl.constexpr,
):
    """16 numbers of ROWS tokens' weight · (x / rms(x) · norm); with GATED, 8 gates and the 8 that they open."""
    WARPS: gl.constexpr = gl.num_warps()
    SUM: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])  # [WARPS, 16, ROWS]
    W: gl.constexpr = gl.DotOperandLayout(0, SUM, 8)  # [WARPS, 16, BLOCK]
    X: gl.constexpr = gl.DotOperandLayout(1, SUM, 8)  # [WARPS, BLOCK, ROWS]
    COLUMNS: gl.constexpr = 8 if GATED else 16
    STEP: gl.constexpr = WARPS * BLOCK
    parts = (tokens + ROWS - 1) // ROWS
    begin, first = gl.program_id(0) // parts * COLUMNS, gl.program_id(0) % parts * ROWS

    i = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, W)))[None, :, None]
    part = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, W)))[:, None, None]
    k = part * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(0, gl.SliceLayout(1, W)))[None, None, :]
    there = begin + i % COLUMNS < N
    row = weight + (begin + i % COLUMNS + i // COLUMNS * N).to(gl.int64) * K + k
    w = gl.load(row, mask=there & (k < K), other=0.0)
    if PDL:
        begin_early(tokens)

    # Rows without a token repeat the last one, and are not stored.
    t = gl.minimum(first + gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(1, X)))[None, None, :], tokens - 1)
    part = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, X)))[:, None, None]
    column = part * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(0, gl.SliceLayout(2, X)))[None, :, None]
    # [products]
    acc = gl.zeros([WARPS, 16, ROWS], gl.float32, SUM)
    squares = gl.zeros([WARPS, ROWS], gl.float32, gl.SliceLayout(1, X))
    for start in range(0, K, STEP):
        now = w
        a = gl.load(x + t * stride + start + column, mask=start + column + 0 * t < K, other=0.0)
        if K > STEP:
            w = gl.load(row + start + STEP, mask=there & (start + STEP + k < K), other=0.0)
        if NORM:
            wide = a.to(gl.float32)
            squares += gl.sum(wide * wide, 1)
            scaled = wide * gl.load(norm + start + column, mask=start + column < K, other=0.0).to(gl.float32)
            a = scaled.to(a.dtype)
        acc = mma_v2(now, a, acc)
    # [/products]

    # The sums of all warps; then norm, gate and residual.
    y = gl.sum(acc, 0)
    if NORM:
        scale = 1.0 / gl.sqrt(gl.sum(squares, 0) / K + eps)
        y = y * gl.convert_layout(scale, gl.SliceLayout(0, y.type.layout))[None, :]
    if GATED:
        gate, through = y.reshape([2, 8, ROWS]).permute((1, 2, 0)).split()
        y = gate / (1.0 + gl.exp(-gate)) * through
    n = begin + gl.arange(0, COLUMNS, gl.SliceLayout(1, y.type.layout))[:, None]
    token = first + gl.arange(0, ROWS, gl.SliceLayout(0, y.type.layout))[None, :]
    if RESIDUAL:
        y += gl.load(residual + token * N + n, mask=(token < tokens) & (n < N), other=0.0).to(gl.float32)
    gl.store(out + token * N + n, y.to(out.dtype.element_ty), mask=(token < tokens) & (n < N))


def project(
    x: Float[Tensor, "tokens in_features"],
    weight: Float[Tensor, "rows in_features"],
    norm: nn.RMSNorm | None,
    residual: Float[Tensor, "tokens rows"] | None,
    gated: bool,
    out: Float[Tensor, "tokens rows"] | None,
    pdl: bool,
) -> Float[Tensor, "tokens out_features"]:
    """`fused.project` of two rows or more in bfloat16. The sizes were found by trying, on an H100 and an H200."""
    (tokens, k), n = x.shape, len(weight) // (1 + gated)
    out = x.new_empty(tokens, n) if out is None else out
    warps, block = (8, 256) if k > 4096 else (4, 512) if 1024 < k <= 2048 else (4, 256)
    rows = min(max(8, triton.next_power_of_2(tokens)), 16)
    project_few[(triton.cdiv(n, 8 if gated else 16) * triton.cdiv(tokens, rows),)](
        x, weight, x if norm is None else norm.weight, out if residual is None else residual, out,
        0.0 if norm is None else norm.eps, tokens, x.stride(0), n, k, norm is not None,
        residual is not None, gated, rows, block, num_warps=warps, **launch_options(pdl),
    )  # fmt: skip
    return out
