"""Latent attention with many heads on Hopper: warps with different tasks, so the tensor cores rarely wait. In Gluon.

One vector of 512 + 64 numbers a token is key and value for every head (`model/mla.py`). So with 128 heads a step
multiplies more than it reads: 242 operations a byte. In the kernel of `attention.py` the tensor cores then idle half of
the time: Triton has both groups of warps compute the same scores, and nothing multiplies during the softmax. Here a
program says which warps do what (warp specialisation, as in FlashAttention-3, 2407.08608). It has 64 query rows:

    loader   blocks of 64 keys ─▶ two buffers, in chunks of 128 columns      1 warp: the tensor memory accelerator
    scores   queries · keysᵀ, softmax ─▶ P and the factor by which sums shrink      4 warps
    sums     O[:, :256] · factor + P · values, and O[:, 256:] likewise      2 · 4 warps, each with 128 numbers a thread

The scores of a block are computed during the sums of the block before. A chunk of a buffer is loaded again as soon as
the one group that sums it has released it. The scores are done with it by then: their weights came first.
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
    group_barrier,
    load_tile,
    masked,
    row_of,
    zeroed,
)
from inference_opt.kernels.plan import Launch

CHUNK = gl.constexpr(128)  # columns that are loaded, multiplied and released together
KEY_DIM = gl.constexpr(576)
VALUE_DIM = gl.constexpr(512)
ROPE_DIM = gl.constexpr(64)
O = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))  # noqa: E741 (sums)
O_ROW = gl.constexpr(gl.SliceLayout(1, O))
FLAT = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
WIDE = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))  # a chunk, 16 bytes a thread


@gluon.jit
def load_block(wide, narrow, row, keys, rope, full, empty, b: gl.constexpr, phase):
    """Load the chunks of a block into buffer b, each as soon as its reader is done with the block before.

    Chunk c holds the columns from c % 2 · 256 + c // 2 · 128 on, so each group of the sums reads adjacent columns.
    """
    for c in gl.static_range(4):
        mbarrier.wait(empty.index(4 * b + c), phase)
        if c == 0:
            mbarrier.expect(full.index(4 * b), BLOCK * (CHUNK + ROPE_DIM) * 2)
            load_tile(narrow, [row, VALUE_DIM], full.index(4 * b), rope.index(b))
        else:
            mbarrier.expect(full.index(4 * b + c), BLOCK * CHUNK * 2)
        load_tile(wide, [row, c % 2 * 256 + c // 2 * CHUNK], full.index(4 * b + c), keys.index(4 * b + c))


@gluon.jit
def load_keys(wide, narrow, table, first, pairs, last_page, PAGE: gl.constexpr, buffers, barriers):
    """The loader: blocks in pairs, one for each buffer. Pages are looked up a pair ahead."""
    keys, rope = buffers
    full, empty, _, _ = barriers
    row0 = row_of(table, first, last_page, PAGE)
    row1 = row_of(table, first + BLOCK, last_page, PAGE)
    for pair in range(pairs):
        n = first + 2 * (pair + 1) * BLOCK
        next0 = row_of(table, n, last_page, PAGE)
        next1 = row_of(table, n + BLOCK, last_page, PAGE)
        load_block(wide, narrow, row0, keys, rope, full, empty, 0, (pair & 1) ^ 1)
        load_block(wide, narrow, row1, keys, rope, full, empty, 1, (pair & 1) ^ 1)
        row0 = next0
        row1 = next1


@gluon.jit
def rotated_queries(q, row0, end):
    """The rotated part of the queries, [ROWS, ROPE_DIM], in registers: shared memory has no room left for it.

    The piece has the rows before `end`.
    """
    layout: gl.constexpr = gl.DotOperandLayout(0, S, 2)
    row = row0 + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    column = VALUE_DIM + gl.arange(0, ROPE_DIM, gl.SliceLayout(0, layout))
    at = q + row.to(gl.int64)[:, None] * KEY_DIM + column[None, :]
    return gl.load(at, mask=(row < end)[:, None], other=0.0)


@gluon.jit
def score_group(
    q_rows, row_in, q, q_full, piece, pairs, scale_log2, buffers, handed, barriers, outputs, row_out, last,
    HEADS: gl.constexpr,
):  # fmt: skip
    """Scores and softmax of every block."""
    _, token0, queries, position0, row0, first, end, state = piece
    keys, rope = buffers
    weights, factors, total = handed
    full, _, weights_full, total_full = barriers
    _, lse, _, partial_lse = outputs
    # Every row sees all keys before `unmasked`: blocks before it need no mask.
    position = position0 + (row0 + gl.arange(0, ROWS, S_ROW)) // HEADS
    unmasked = gl.minimum(end, position0 + row0 // HEADS + 1)
    q_rope = rotated_queries(q_rows, row_in, (token0 + queries) * HEADS)
    m = gl.full([ROWS], float("-inf"), gl.float32, S_ROW)
    l = gl.zeros([ROWS], gl.float32, S_ROW)  # noqa: E741
    mbarrier.wait(q_full.index(0), 0)
    for pair in range(pairs):
        for b in gl.static_range(2):
            n = first + (2 * pair + b) * BLOCK
            phase = pair & 1

            # Scores: the chunks' products added, each as soon as its chunk is there; the rotated part comes with the
            # first.
            s = gl.zeros([ROWS, BLOCK], gl.float32, S)
            for c in gl.static_range(4):
                mbarrier.wait(full.index(4 * b + c), phase)
                if c == 0:
                    s = warpgroup_mma(q_rope, rope.index(b).permute((1, 0)), s, is_async=True)
                s = warpgroup_mma(q.index(c), keys.index(4 * b + c).permute((1, 0)), s, is_async=True)
            s = warpgroup_mma_wait(0, [s]) * scale_log2
            if n + BLOCK > unmasked:
                s = masked(s, n, end, position)
                group_barrier()  # all warps have read the keys
                for c in gl.static_range(4):
                    zeroed(keys.index(4 * b + c), end - n, WIDE)

            # The softmax so far, as in attention.py; weights and factors go to the groups of the sums.
            m_new = gl.maximum(m, gl.max(s, 1))
            p = gl.exp2(s - finite(m_new)[:, None])
            shrink = gl.exp2(m - finite(m_new))
            m = m_new
            weights.index(b).store(p.to(keys.dtype))
            factors.index(b).store(shrink)
            fence_async_shared()
            mbarrier.arrive(weights_full.index(b), count=1)
            l = l * shrink + gl.sum(p, 1)  # noqa: E741

    # The denominators for the groups of the sums, and the log-sum-exp.
    l_safe = gl.where(l > 0, l, 1.0)
    total.store(l_safe)
    mbarrier.arrive(total_full.index(0), count=1)
    log = (m + gl.log2(l_safe)) * LN2
    row = row_out + gl.arange(0, ROWS, S_ROW)
    if state < 0:
        gl.store(lse + row, log, mask=row < last)
    else:
        gl.store(partial_lse + row, log, mask=row < last)


@gluon.jit
def sum_group(HALF: gl.constexpr, pairs, buffers, handed, barriers, outputs, state, row_out, last):
    """Half of the columns of the sums: chunks HALF and HALF + 2 of every block."""
    keys, _ = buffers
    weights, factors, total = handed
    _, empty, weights_full, total_full = barriers
    out, _, partial, _ = outputs
    # [sums]
    acc0 = gl.zeros([ROWS, CHUNK], gl.float32, O)
    acc1 = gl.zeros([ROWS, CHUNK], gl.float32, O)
    for pair in range(pairs):
        for b in gl.static_range(2):
            mbarrier.wait(weights_full.index(b), pair & 1)
            shrink = factors.index(b).load(O_ROW)[:, None]
            # Both shrink before the first product: while a product is under way its group must not touch its sums.
            acc0 = acc0 * shrink
            acc1 = acc1 * shrink
            acc0 = warpgroup_mma(weights.index(b), keys.index(4 * b + HALF), acc0, is_async=True)
            acc1 = warpgroup_mma(weights.index(b), keys.index(4 * b + HALF + 2), acc1, is_async=True)
            acc0 = warpgroup_mma_wait(1, [acc0])
            mbarrier.arrive(empty.index(4 * b + HALF), count=1)
            acc1 = warpgroup_mma_wait(0, [acc1])
            mbarrier.arrive(empty.index(4 * b + HALF + 2), count=1)
    # [/sums]
    mbarrier.wait(total_full.index(0), 0)
    l = total.load(O_ROW)[:, None]  # noqa: E741
    if state < 0:
        write(acc0 / l, acc1 / l, out, row_out, last, HALF * 256)
    else:
        write(acc0 / l, acc1 / l, partial, row_out, last, HALF * 256)


@gluon.jit
def write(acc0, acc1, out, row0, last, FROM: gl.constexpr):
    """Write one group's half of the outputs, columns FROM … FROM + 255, of the rows before `last`."""
    row = row0 + gl.arange(0, ROWS, O_ROW)
    column = FROM + gl.arange(0, CHUNK, gl.SliceLayout(0, O))
    to = out + row.to(gl.int64)[:, None] * VALUE_DIM + column[None, :]
    gl.store(to, acc0.to(out.dtype.element_ty), mask=(row < last)[:, None])
    gl.store(to + CHUNK, acc1.to(out.dtype.element_ty), mask=(row < last)[:, None])


@gluon.jit
def mla_piece(
    q_tiles, wide, narrow, q_rows, table, pieces, out, lse, partial, partial_lse, table_width, scale_log2,
    HEADS: gl.constexpr, PAGE: gl.constexpr,
):  # fmt: skip
    """One piece (`plan.py`), as `attention.attend_piece` does it. BLOCK must divide the page size."""
    piece = pieces + gl.program_id(0) * FIELDS
    fields = fields_of(piece)
    sequence, token0, queries, _, row0, first, end, state = fields
    pairs = gl.maximum(gl.cdiv(end - first, 2 * BLOCK), 0)
    row_in = token0 * HEADS + row0
    row_out = gl.where(state < 0, token0, state) * HEADS + row0
    last = row_out - row0 + queries * HEADS

    # Two buffers for keys, the queries, and what the scores hand to the sums; a barrier for each hand-over.
    keys = gl.allocate_shared_memory(wide.dtype, [8, BLOCK, CHUNK], SMEM)  # four chunks of buffer 0, four of 1
    rope = gl.allocate_shared_memory(wide.dtype, [2, BLOCK, ROPE_DIM], SMEM)
    q = gl.allocate_shared_memory(wide.dtype, [4, ROWS, CHUNK], SMEM)
    weights = gl.allocate_shared_memory(wide.dtype, [2, ROWS, BLOCK], SMEM)
    factors = gl.allocate_shared_memory(gl.float32, [2, ROWS], FLAT)
    total = gl.allocate_shared_memory(gl.float32, [ROWS], FLAT)
    full = gl.allocate_shared_memory(gl.int64, [8, 1], mbarrier.MBarrierLayout())  # a chunk is there
    empty = gl.allocate_shared_memory(gl.int64, [8, 1], mbarrier.MBarrierLayout())  # a chunk is done with
    weights_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())  # a block's weights are there
    total_full = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())  # the denominators are there
    q_full = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())  # the queries are there
    for i in gl.static_range(8):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    for i in gl.static_range(2):
        mbarrier.init(weights_full.index(i), count=1)
    mbarrier.init(total_full.index(0), count=1)
    mbarrier.init(q_full.index(0), count=1)
    fence_async_shared()

    # Load the queries: all groups wait for them at their first block.
    mbarrier.expect(q_full.index(0), ROWS * VALUE_DIM * 2)
    for c in gl.static_range(4):
        load_tile(q_tiles, [row_in, c % 2 * 256 + c // 2 * CHUNK], q_full.index(0), q.index(c))
    last_page = gl.maximum(gl.cdiv(end, PAGE) - 1, 0)
    table += sequence.to(gl.int64) * table_width

    # Four warps for the scores, twice four for the sums, and the loader.
    buffers = (keys, rope)
    handed = (weights, factors, total)
    barriers = (full, empty, weights_full, total_full)
    outputs = (out, lse, partial, partial_lse)
    gl.warp_specialize(
        [
            (score_group, (
                q_rows, row_in, q, q_full, fields, pairs, scale_log2, buffers, handed, barriers, outputs, row_out, last,
                HEADS,
            )),
            (sum_group, (0, pairs, buffers, handed, barriers, outputs, state, row_out, last)),
            (sum_group, (1, pairs, buffers, handed, barriers, outputs, state, row_out, last)),
            (load_keys, (wide, narrow, table, first, pairs, last_page, PAGE, buffers, barriers)),
        ],
        [4, 4, 1],
        [160, 160, 24],
    )  # fmt: skip


def attend_pieces(
    q: Float[Tensor, "tokens heads 576"],
    k_pages: Float[Tensor, "pages page_size 1 576"],
    v_pages: None,
    page_table: Int[Tensor, "sequences width"],
    launch: Launch,
    scale_log2: float,
    out: Float[Tensor, "tokens heads 512"],
    lse: Float[Tensor, "tokens heads"],
    partial: Float[Tensor, "states heads 512"],
    partial_lse: Float[Tensor, "states heads"],
) -> None:
    """The pieces of a launch whose tile says "mla" (`plan.choose_tile`)."""

    def tiles(matrix: Tensor, width: int) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(matrix, [64, width], SMEM.value)

    rows, keys = q.flatten(0, 1), k_pages.flatten(0, 2)
    mla_piece[(len(launch.pieces),)](
        tiles(rows, 128), tiles(keys, 128), tiles(keys, 64), q, page_table, launch.pieces,
        out, lse, partial, partial_lse, page_table.stride(0), scale_log2, q.shape[1], k_pages.shape[1],
        num_warps=4,
    )  # fmt: skip
