"""Many query rows on the same keys, on Hopper: prompts, and prefixes that many requests share. In Gluon.

With many rows attention multiplies more than it reads, so the tensor cores must never wait. The warps of a program
have different tasks (warp specialisation, FlashAttention-3, 2407.08608). One warp loads blocks of keys and values
through the tensor memory accelerator into STAGES buffers. Two groups of four warps have 64 query rows each: while one
group does its softmax, the other multiplies. Neither waits for loads or spends registers on addresses.

    loader   K₀ V₀ K₁ V₁ K₂ V₂ …      a buffer is filled again when both groups have released it
    groups   rows 0 … 63 and 64 … 127: scores of a block, softmax, sums; queries and sums stay in registers

Pieces, masks and states are those of `attention.py`. Pages hold a multiple of BLOCK tokens.
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
    BLOCK,
    LN2,
    ROWS,
    S_ROW,
    SMEM,
    S,
    fields_of,
    finite,
    load_tile,
    masked,
    row_of,
    zeroed,
)
from inference_opt.kernels.plan import Launch

STAGES = gl.constexpr(4)


@gluon.jit
def load_blocks(
    k_tiles, v_tiles, table, first, blocks, last_page, column, buffers, barriers, PAGE: gl.constexpr, D: gl.constexpr
):
    """The loader: keys and values of every block, each into the next buffer as soon as both groups have released it."""
    k, v = buffers
    k_full, v_full, k_empty, v_empty, _ = barriers
    row = row_of(table, first, last_page, PAGE)
    for i in range(blocks):
        stage, phase = i % STAGES, (i // STAGES & 1) ^ 1
        next_row = row_of(table, first + (i + 1) * BLOCK, last_page, PAGE)
        mbarrier.wait(k_empty.index(stage), phase)
        mbarrier.expect(k_full.index(stage), BLOCK * D * 2)
        load_tile(k_tiles, [row, column], k_full.index(stage), k.index(stage))
        mbarrier.wait(v_empty.index(stage), phase)
        mbarrier.expect(v_full.index(stage), BLOCK * D * 2)
        load_tile(v_tiles, [row, column], v_full.index(stage), v.index(stage))
        row = next_row


@gluon.jit
def attend_rows(
    q, piece, row0, kv_head, blocks, scale_log2, buffers, barriers, outputs,
    HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, FIRST: gl.constexpr,
):  # fmt: skip
    """One group: ROWS rows from row0 on. The FIRST group zeroes the values after the end, for both."""
    _, token0, queries, position0, _, first, end, state = piece
    k, v = buffers
    k_full, v_full, k_empty, v_empty, cut = barriers
    out, lse, partial, partial_lse = outputs
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])  # noqa: E741
    O_ROW: gl.constexpr = gl.SliceLayout(1, O)
    operand: gl.constexpr = gl.DotOperandLayout(0, S, 2)

    # The queries, as the left operand of a product, in registers.
    rows = row0 + gl.arange(0, ROWS, gl.SliceLayout(1, operand))
    where = (token0 + rows // GROUP).to(gl.int64) * HEADS + kv_head * GROUP + rows % GROUP
    column = gl.arange(0, D, gl.SliceLayout(0, operand))
    queried = gl.load(q + where[:, None] * D + column[None, :], mask=(rows // GROUP < queries)[:, None], other=0.0)

    # Every row sees all keys before `unmasked`: blocks before it need no mask.
    position = position0 + (row0 + gl.arange(0, ROWS, S_ROW)) // GROUP
    unmasked = gl.minimum(end, position0 + row0 // GROUP + 1)
    acc = gl.zeros([ROWS, D], gl.float32, O)
    m = gl.full([ROWS], float("-inf"), gl.float32, S_ROW)
    l = gl.zeros([ROWS], gl.float32, S_ROW)  # noqa: E741
    for i in range(blocks):
        stage, phase = i % STAGES, i // STAGES & 1
        n = first + i * BLOCK

        # Scores; the keys' buffer is free then.
        mbarrier.wait(k_full.index(stage), phase)
        s = gl.zeros([ROWS, BLOCK], gl.float32, S)
        s = warpgroup_mma(queried, k.index(stage).permute((1, 0)), s, is_async=True)
        s = warpgroup_mma_wait(0, [s]) * scale_log2
        mbarrier.arrive(k_empty.index(stage), count=1)
        if n + BLOCK > unmasked:
            s = masked(s, n, end, position)

        # The softmax so far, as in attention.py.
        m_new = gl.maximum(m, gl.max(s, 1))
        p = gl.exp2(s - finite(m_new)[:, None])
        shrink = gl.exp2(m - finite(m_new))
        m = m_new
        l = l * shrink + gl.sum(p, 1)  # noqa: E741
        acc = acc * gl.convert_layout(shrink, O_ROW)[:, None]
        weights = gl.convert_layout(p.to(k.dtype), gl.DotOperandLayout(0, O, 2))

        # The sums. In the last block, values after the end are zeroed first.
        mbarrier.wait(v_full.index(stage), phase)
        if n + BLOCK > end:
            if FIRST:
                zeroed(v.index(stage), end - n, gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0]))
                fence_async_shared()
                mbarrier.arrive(cut.index(0), count=1)
            else:
                mbarrier.wait(cut.index(0), 0)
        acc = warpgroup_mma(weights, v.index(stage), acc, is_async=True)
        acc = warpgroup_mma_wait(0, [acc])
        mbarrier.arrive(v_empty.index(stage), count=1)

    # The result: final, or a state to be merged.
    l_safe = gl.where(l > 0, l, 1.0)
    total = (m + gl.log2(l_safe)) * LN2
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
def launch_dependents(anything):
    """The next kernel may start beside this one (`pdl.py`)."""
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; mov.u32 $0, $1;", "=r,r", [anything], gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def gqa_piece(
    k_tiles, v_tiles, q, table, pieces, out, lse, partial, partial_lse, table_width, scale_log2,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, D: gl.constexpr, PAGE: gl.constexpr,
):  # fmt: skip
    """One piece for one key head."""
    launch_dependents(table_width)
    GROUP: gl.constexpr = HEADS // KV_HEADS
    kv_head = gl.program_id(0) % KV_HEADS
    piece = pieces + gl.program_id(0) // KV_HEADS * FIELDS
    fields = fields_of(piece)
    sequence, _, _, _, row0, first, end, _ = fields
    blocks = gl.maximum(gl.cdiv(end - first, BLOCK), 0)
    last_page = gl.maximum(gl.cdiv(end, PAGE) - 1, 0)
    table += sequence.to(gl.int64) * table_width

    # Buffers for keys and values, each with two barriers: it is full, it is empty.
    k = gl.allocate_shared_memory(k_tiles.dtype, [STAGES, BLOCK, D], SMEM)
    v = gl.allocate_shared_memory(k_tiles.dtype, [STAGES, BLOCK, D], SMEM)
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
    buffers = (k, v)
    barriers = (k_full, v_full, k_empty, v_empty, cut)
    outputs = (out, lse, partial, partial_lse)
    gl.warp_specialize(
        [
            (attend_rows, (
                q, fields, row0, kv_head, blocks, scale_log2, buffers, barriers, outputs, HEADS, GROUP, D, True,
            )),
            (attend_rows, (
                q, fields, row0 + ROWS, kv_head, blocks, scale_log2, buffers, barriers, outputs, HEADS, GROUP, D, False,
            )),
            (load_blocks, (
                k_tiles, v_tiles, table, first, blocks, last_page, kv_head * D, buffers, barriers, PAGE, D,
            )),
        ],
        [4, 1],
        [176, 24],
    )  # fmt: skip


def attend_pieces(
    q: Float[Tensor, "tokens heads dim"],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads dim"],
    page_table: Int[Tensor, "sequences width"],
    launch: Launch,
    scale_log2: float,
    out: Float[Tensor, "tokens heads dim"],
    lse: Float[Tensor, "tokens heads"],
    partial: Float[Tensor, "states heads dim"],
    partial_lse: Float[Tensor, "states heads"],
) -> None:
    """The pieces of a launch whose tile says "gqa" (`plan.choose_tile`)."""
    (_, page, kv_heads, dim), heads = k_pages.shape, q.shape[1]

    def tiles(pages: Tensor) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(pages.flatten(0, 1).flatten(1), [64, dim], SMEM.value)

    gqa_piece[(len(launch.pieces) * kv_heads,)](
        tiles(k_pages), tiles(v_pages), q, page_table, launch.pieces, out, lse, partial, partial_lse,
        page_table.stride(0), scale_log2, heads, kv_heads, dim, page, num_warps=4, maxnreg=128,
    )  # fmt: skip
