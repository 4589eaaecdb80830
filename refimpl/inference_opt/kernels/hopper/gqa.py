"""Many query rows on the same keys, on Hopper: prompts, and prefixes that many requests share. In Gluon.

With many rows attention multiplies more than it reads, so the tensor cores must never wait. The warps of a program
have different tasks (warp specialisation, FlashAttention-3, 2407.08608). One warp loads blocks of keys and values
through the tensor memory accelerator into STAGES buffers. Two groups of four warps have 64 query rows each. A group
starts the products of the next scores, and of the last weights with their values. It computes the softmax of the
former while the latter are under way, and while the other group multiplies.

    loader     Kₙ Kₙ₋₁ Vₙ Kₙ₋₂ Vₙ₋₁ …     a buffer is filled again when both groups have released it
    a group    QKₙ  softmaxₙ | QKₙ₋₁ PₙVₙ  softmaxₙ₋₁ | QKₙ₋₂ Pₙ₋₁Vₙ₋₁ …

Blocks are read from the last to the first: those that need a mask come first, and the others need no check.
A block's keys lie in several pages. Each page, or each part of it of BOX tokens, is a load of its own.

Keys may be E = 64 columns wider than values, as those that are made of latents: 128 + 64 (`cache/explicit.py`). Shared
memory has widths that are powers of two, so the other columns have buffers of their own.

Pieces, masks and states are those of `attention.py`. Pages hold a multiple of 8 tokens.
"""

from jaxtyping import Float, Int
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from inference_opt.kernels.attention import FIELDS
from inference_opt.kernels.hopper.tiles import (
    LN2,
    ROWS,
    SMEM,
    fields_of,
    finite,
    load_tile,
    masked,
    reinterpret,
    row_of,
)
from inference_opt.kernels.plan import Launch

BLOCK = gl.constexpr(128)
HALF = gl.constexpr(64)  # columns of a load: 128 bytes, as wide as shared memory is swizzled
S = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
S_ROW = gl.constexpr(gl.SliceLayout(1, S))


@gluon.jit
def load_block(
    tiles, table, n, last_page, column, full, buffers, more, stage,
    PAGE: gl.constexpr, BOX: gl.constexpr, D: gl.constexpr, E: gl.constexpr,
):  # fmt: skip
    """Load the keys (or values) from n on: each part of BOX tokens lies in one page, and each half of columns apart."""
    BOXES: gl.constexpr = BLOCK // BOX
    HALVES: gl.constexpr = D // HALF
    mbarrier.expect(full, BLOCK * (D + E) * 2)
    for b in gl.static_range(BOXES):
        row = row_of(table, n + b * BOX, last_page, PAGE)
        for h in gl.static_range(HALVES):
            load_tile(tiles, [row, column + h * HALF], full, buffers.index((stage * HALVES + h) * BOXES + b))
        if E > 0:
            load_tile(tiles, [row, column + D], full, more.index(stage * BOXES + b))


@gluon.jit
def load_blocks(
    k_tiles, v_tiles, table, first, blocks, last_page, kv_head, k, more, v, barriers,
    PAGE: gl.constexpr, BOX: gl.constexpr, D: gl.constexpr, E: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The loader: each block's keys, then the values of the block before, as soon as both groups released a buffer."""
    k_full, v_full, k_empty, v_empty, _ = barriers
    for i in range(blocks + 1):
        if i < blocks:
            stage = i % STAGES
            mbarrier.wait(k_empty.index(stage), (i // STAGES & 1) ^ 1)
            n = first + (blocks - 1 - i) * BLOCK
            column = kv_head * (D + E)
            load_block(k_tiles, table, n, last_page, column, k_full.index(stage), k, more, stage, PAGE, BOX, D, E)
        if i > 0:
            stage = (i - 1) % STAGES
            mbarrier.wait(v_empty.index(stage), ((i - 1) // STAGES & 1) ^ 1)
            n = first + (blocks - i) * BLOCK
            load_block(v_tiles, table, n, last_page, kv_head * D, v_full.index(stage), v, v, stage, PAGE, BOX, D, 0)


@gluon.jit
def softmax(s, m, l, scale_log2, MASKED: gl.constexpr):  # noqa: E741
    """One block's weights, the new maximum and sum, and the factor by which earlier sums shrink."""
    m_new = gl.maximum(m, gl.max(s, 1))
    # A row that has seen no key yet subtracts 0. Without a mask there is no such row.
    shift = (finite(m_new) if MASKED else m_new) * scale_log2
    p = gl.exp2(s * scale_log2 - shift[:, None])
    shrink = gl.exp2(m * scale_log2 - shift)
    return p, m_new, l * shrink + gl.sum(p, 1), shrink


@gluon.jit
def scores(q, k, i, barriers, E: gl.constexpr, STAGES: gl.constexpr):
    """The product of the queries with block i of the keys, under way."""
    k_full, _, _, _, _ = barriers
    stage = i % STAGES
    mbarrier.wait(k_full.index(stage), i // STAGES & 1)
    s = gl.zeros([ROWS, BLOCK], gl.float32, S)
    s = warpgroup_mma(q[0], k[0].index(stage).permute((1, 0)), s, use_acc=False, is_async=True)
    if E > 0:
        s = warpgroup_mma(q[1], k[1].index(stage).permute((1, 0)), s, is_async=True)
    return s


@gluon.jit
def add_values(weights, v, acc, i, barriers, STAGES: gl.constexpr):
    """acc + weights · values of block i, under way."""
    _, v_full, _, _, _ = barriers
    stage = i % STAGES
    mbarrier.wait(v_full.index(stage), i // STAGES & 1)
    return warpgroup_mma(weights, v.index(stage), acc, is_async=True)


@gluon.jit
def attend_rows(
    q, q_rows, piece, row0, kv_head, blocks, scale_log2, k, v, boxes, barriers, outputs,
    HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, STAGES: gl.constexpr,
    WHO: gl.constexpr,
):  # fmt: skip
    """One group: ROWS rows from row0 on. Group 0 zeroes the values after the end, for both."""
    _, token0, queries, position0, _, first, end, state = piece
    _, v_full, k_empty, _, cut = barriers
    out, lse, partial, partial_lse = outputs
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])  # noqa: E741
    O_ROW: gl.constexpr = gl.SliceLayout(1, O)

    # The queries, in shared memory as the tensor cores read them.
    store_queries(q, q_rows[0], token0, queries, row0, kv_head, 0, HEADS, GROUP, D, D + E)
    if E > 0:
        store_queries(q, q_rows[1], token0, queries, row0, kv_head, D, HEADS, GROUP, E, D + E)
    fence_async_shared()

    # The first block from the end: it is always masked, and its values after the end are zeroed.
    position = position0 + (row0 + gl.arange(0, ROWS, S_ROW)) // GROUP
    n = first + (blocks - 1) * BLOCK
    m = gl.full([ROWS], float("-inf"), gl.float32, S_ROW)
    l = gl.zeros([ROWS], gl.float32, S_ROW)  # noqa: E741
    acc = gl.zeros([ROWS, D], gl.float32, O)
    s = warpgroup_mma_wait(0, [scores(q_rows, k, 0, barriers, E, STAGES)])
    mbarrier.arrive(k_empty.index(0), count=1)
    p, m, l, _ = softmax(masked(s, n, end, position), m, l, scale_log2, True)  # noqa: E741
    weights = gl.convert_layout(p.to(v.dtype), gl.DotOperandLayout(0, O, 2))
    if n + BLOCK > end:
        if WHO == 0:
            mbarrier.wait(v_full.index(0), 0)
            zero_after(boxes, gl.maximum(end - n, 0), D)
            fence_async_shared()
            mbarrier.arrive(cut.index(0), count=1)
        else:
            mbarrier.wait(cut.index(0), 0)

    # Every row sees all keys before `unmasked`: the blocks before it need no mask.
    unmasked = gl.minimum(end, position0 + row0 // GROUP + 1)
    whole = gl.maximum(unmasked - first, 0) // BLOCK
    split = gl.maximum(blocks - whole, 1)
    for i in range(1, split):
        weights, acc, m, l = step(  # noqa: E741
            i, q_rows, k, v, weights, acc, m, l, n, end, position, scale_log2, barriers, E, STAGES, True, O
        )
    for i in range(split, blocks):
        weights, acc, m, l = step(  # noqa: E741
            i, q_rows, k, v, weights, acc, m, l, n, end, position, scale_log2, barriers, E, STAGES, False, O
        )
    acc = warpgroup_mma_wait(0, [add_values(weights, v, acc, blocks - 1, barriers, STAGES)])

    # The result: final, or a state to be merged.
    l_safe = gl.where(l > 0, l, 1.0)
    total = (m * scale_log2 + gl.log2(l_safe)) * LN2
    acc = acc / gl.convert_layout(l_safe, O_ROW)[:, None]
    base = gl.where(state < 0, token0, state)
    rows = row0 + gl.arange(0, ROWS, S_ROW)
    to = (base + rows // GROUP) * HEADS + kv_head * GROUP + rows % GROUP
    real = rows // GROUP < queries
    wide = gl.convert_layout(to, O_ROW).to(gl.int64)[:, None] * D + gl.arange(0, D, gl.SliceLayout(0, O))[None, :]
    keep = gl.convert_layout(real, O_ROW)[:, None]
    if state < 0:
        gl.store(lse + to, total, mask=real)
        gl.store(out + wide, acc.to(out.dtype.element_ty), mask=keep)
    else:
        gl.store(partial_lse + to, total, mask=real)
        gl.store(partial + wide, acc, mask=keep)


@gluon.jit
def store_queries(
    q, to, token0, queries, row0, kv_head, column0,
    HEADS: gl.constexpr, GROUP: gl.constexpr, WIDTH: gl.constexpr, STRIDE: gl.constexpr,
):  # fmt: skip
    """WIDTH columns of a group's queries, from `column0` on; a query has STRIDE."""
    Q: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    rows = row0 + gl.arange(0, ROWS, gl.SliceLayout(1, Q))
    where = (token0 + rows // GROUP).to(gl.int64) * HEADS + kv_head * GROUP + rows % GROUP
    column = column0 + gl.arange(0, WIDTH, gl.SliceLayout(0, Q))
    real = (rows // GROUP < queries)[:, None]
    to.store(gl.load(q + where[:, None] * STRIDE + column[None, :], mask=real, other=0.0))


@gluon.jit
def zero_after(boxes, valid, D: gl.constexpr):
    """Set the values of the keys from `valid` on to 0, in buffer 0: slices of 8 tokens, each half of columns apart.

    They were never written, so they may be NaN, and a weight of 0 does not help: 0 · NaN is NaN.
    """
    L: gl.constexpr = gl.BlockedLayout([1, 4], [2, 16], [4, 1], [1, 0])
    row = gl.arange(0, 8, gl.SliceLayout(1, L))
    for h in range(D // HALF):
        for b in range(valid // 8, BLOCK // 8):
            box = boxes.index(h * (BLOCK // 8) + b)
            there = box.load(L)
            box.store(gl.where((b * 8 + row < valid)[:, None], there, gl.zeros_like(there)))


@gluon.jit
def step(
    i, q_rows, k, v, weights, acc, m, l, last, end, position, scale_log2, barriers,  # noqa: E741
    E: gl.constexpr, STAGES: gl.constexpr, MASKED: gl.constexpr, O: gl.constexpr,  # noqa: E741
):  # fmt: skip
    """The softmax of block i, while the weights of the block before meet their values."""
    _, _, k_empty, v_empty, _ = barriers
    s = scores(q_rows, k, i, barriers, E, STAGES)
    acc = add_values(weights, v, acc, i - 1, barriers, STAGES)
    s = warpgroup_mma_wait(1, [s])
    mbarrier.arrive(k_empty.index(i % STAGES), count=1)
    if MASKED:
        s = masked(s, last - i * BLOCK, end, position)
    p, m, l, shrink = softmax(s, m, l, scale_log2, MASKED)  # noqa: E741
    acc = warpgroup_mma_wait(0, [acc])
    mbarrier.arrive(v_empty.index((i - 1) % STAGES), count=1)
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, O))[:, None]
    return gl.convert_layout(p.to(v.dtype), gl.DotOperandLayout(0, O, 2)), acc, m, l


@gluon.jit
def launch_dependents(anything):
    """The next kernel may start while this one runs (`pdl.py`)."""
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; mov.u32 $0, $1;", "=r,r", [anything], gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def gqa_piece(
    k_tiles, v_tiles, q, table, pieces, out, lse, partial, partial_lse, table_width, scale_log2,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, D: gl.constexpr, E: gl.constexpr, PAGE: gl.constexpr,
    BOX: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One piece for one key head."""
    launch_dependents(table_width)
    GROUP: gl.constexpr = HEADS // KV_HEADS
    kv_head = gl.program_id(0) % KV_HEADS
    piece = pieces + gl.program_id(0) // KV_HEADS * FIELDS
    fields = fields_of(piece)
    sequence, _, _, _, row0, first, end, _ = fields
    blocks = gl.maximum(gl.cdiv(end - first, BLOCK), 1)
    last_page = gl.maximum(gl.cdiv(end, PAGE) - 1, 0)
    table += sequence.to(gl.int64) * table_width

    # Buffers for keys and values, each with two barriers: it is full, it is empty. As the loader sees them, tiles of
    # BOX tokens and HALF columns; as the tensor cores do, BLOCK tokens and D columns: the same bytes.
    PARTS: gl.constexpr = STAGES * (D // HALF) * (BLOCK // BOX)
    k_parts = gl.allocate_shared_memory(k_tiles.dtype, [PARTS, BOX, HALF], SMEM)
    v_parts = gl.allocate_shared_memory(k_tiles.dtype, [PARTS, BOX, HALF], SMEM)
    k = reinterpret(k_parts, k_tiles.dtype, [STAGES, BLOCK, D], SMEM)
    v = reinterpret(v_parts, k_tiles.dtype, [STAGES, BLOCK, D], SMEM)
    boxes = reinterpret(v_parts, k_tiles.dtype, [STAGES * D * BLOCK // (8 * HALF), 8, HALF], SMEM)
    q_rows = gl.allocate_shared_memory(k_tiles.dtype, [2, ROWS, D], SMEM)
    more_parts, more, q_more = k_parts, k, q_rows  # without further columns there is nothing to hold
    if E > 0:
        more_parts = gl.allocate_shared_memory(k_tiles.dtype, [STAGES * (BLOCK // BOX), BOX, E], SMEM)
        more = reinterpret(more_parts, k_tiles.dtype, [STAGES, BLOCK, E], SMEM)
        q_more = gl.allocate_shared_memory(k_tiles.dtype, [2, ROWS, E], SMEM)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    cut = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())  # the last block's values are zeroed
    mbarrier.init(cut.index(0), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)  # both groups
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()

    # Two groups of four warps, and the loader.
    barriers = (k_full, v_full, k_empty, v_empty, cut)
    outputs = (out, lse, partial, partial_lse)
    gl.warp_specialize(
        [
            (attend_rows, (
                q, (q_rows.index(0), q_more.index(0)), fields, row0, kv_head, blocks, scale_log2, (k, more), v,
                boxes, barriers, outputs, HEADS, GROUP, D, E, STAGES, 0,
            )),
            (attend_rows, (
                q, (q_rows.index(1), q_more.index(1)), fields, row0 + ROWS, kv_head, blocks, scale_log2, (k, more), v,
                boxes, barriers, outputs, HEADS, GROUP, D, E, STAGES, 1,
            )),
            (load_blocks, (
                k_tiles, v_tiles, table, first, blocks, last_page, kv_head, k_parts, more_parts, v_parts, barriers,
                PAGE, BOX, D, E, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def attend_pieces(
    q: Float[Tensor, "tokens heads dim"],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"],
    page_table: Int[Tensor, "sequences width"],
    launch: Launch,
    scale_log2: float,
    out: Float[Tensor, "tokens heads value_dim"],
    lse: Float[Tensor, "tokens heads"],
    partial: Float[Tensor, "states heads value_dim"],
    partial_lse: Float[Tensor, "states heads"],
) -> None:
    """The pieces of a launch whose tile says "gqa" (`plan.choose_tile`)."""
    (_, page, kv_heads, dim), heads, value_dim = k_pages.shape, q.shape[1], v_pages.shape[3]
    box = min(page & -page, BLOCK.value)  # the largest power of two that divides a page

    def tiles(pages: Tensor) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(pages.flatten(0, 1).flatten(1), [box, HALF.value], SMEM.value)

    gqa_piece[(len(launch.pieces) * kv_heads,)](
        tiles(k_pages), tiles(v_pages), q, page_table, launch.pieces, out, lse, partial, partial_lse,
        page_table.stride(0), scale_log2, heads, kv_heads, value_dim, dim - value_dim, page, box, 256 // value_dim,
        num_warps=4, maxnreg=168,
    )  # fmt: skip
