"""Latent attention under many heads on Hopper: warps with parts, so that the tensor cores rarely wait. In Gluon.

One vector of 512 + 64 numbers a token is key and value for every head (`model/mla.py`), so with 128 heads a step
multiplies more than it reads: 242 operations a byte. The kernel of `attention.py` then waits for its tensor cores half
of the time: Triton gives both groups of warps the same scores, and nothing multiplies during the softmax. Here a
program says which warps do what (warp specialisation, as in FlashAttention-3, 2407.08608). It has 64 rows of queries:

    loader   blocks of 64 keys ─▶ two buffers, in chunks of 128 columns      1 warp: the tensor memory engine
    scores   queries · keysᵀ, softmax ─▶ P and the factor by which sums shrink      4 warps
    sums     O[:, :256] · factor + P · values, and O[:, 256:] likewise      2 · 4 warps, each with 128 numbers a thread

While the sums of a block are made, the scores of the next one are. A buffer's chunk is loaded anew as soon as the one
group that sums it has given it back; that the scores are done with it follows, since their weights came first.
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

from inference_opt.kernels.hopper.tiles import (
    BLOCK,
    LN2,
    ROWS,
    S_ROW,
    SHARED,
    S,
    fields_of,
    finite,
    group_barrier,
    load_tile,
    masked,
    row_of,
    zeroed,
)
from inference_opt.kernels.plan import PIECE, Launch

CHUNK = gl.constexpr(128)  # columns that are loaded, multiplied and given back together
ROPE = gl.constexpr(64)
VALUES = gl.constexpr(512)
WIDTH = gl.constexpr(576)
O = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))  # noqa: E741 (sums)
O_ROW = gl.constexpr(gl.SliceLayout(1, O))
FLAT = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
WIDE = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))  # a chunk, 16 bytes a thread


@gluon.jit
def load_block(wide, narrow, row, keys, rope, full, empty, b: gl.constexpr, phase):
    """Chunks of a block into buffer b, each as soon as its reader is done with the block before.

    Chunk c holds the columns from c % 2 · 256 + c // 2 · 128 on: the two groups of the sums read theirs side by side.
    """
    for c in gl.static_range(4):
        mbarrier.wait(empty.index(4 * b + c), phase)
        if c == 0:
            mbarrier.expect(full.index(4 * b), BLOCK * (CHUNK + ROPE) * 2)
            load_tile(narrow, [row, VALUES], full.index(4 * b), rope.index(b))
        else:
            mbarrier.expect(full.index(4 * b + c), BLOCK * CHUNK * 2)
        load_tile(wide, [row, c % 2 * 256 + c // 2 * CHUNK], full.index(4 * b + c), keys.index(4 * b + c))


@gluon.jit
def load_keys(wide, narrow, table, first, pairs, last_page, PAGE: gl.constexpr, keys, rope, full, empty):
    """The loader."""
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
def rotated_queries(q, row0):
    """The rotated part of the queries, [ROWS, ROPE], in registers: shared memory has no room left for it."""
    layout: gl.constexpr = gl.DotOperandLayout(0, S, 2)
    row = row0 + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    column = VALUES + gl.arange(0, ROPE, gl.SliceLayout(0, layout))
    return gl.load(q + row.to(gl.int64)[:, None] * WIDTH + column[None, :])


# [parts]
@gluon.jit
def score_group(
    q_rows, row_in, q, pairs, first, end, position0, row0, HEADS: gl.constexpr, scale_log2,
    keys, rope, weights, factors, total, full, said, done, asked, lse, partial_lse, state, row_out, last,
):  # fmt: skip
    """Scores and softmax of every block."""
    position = position0 + (row0 + gl.arange(0, ROWS, S_ROW)) // HEADS
    whole = gl.minimum(end, position0 + row0 // HEADS + 1)  # every row sees all keys before it
    q_rope = rotated_queries(q_rows, row_in)
    m = gl.full([ROWS], float("-inf"), gl.float32, S_ROW)
    l = gl.zeros([ROWS], gl.float32, S_ROW)  # noqa: E741
    mbarrier.wait(asked.index(0), 0)
    for pair in range(pairs):
        for b in gl.static_range(2):
            n = first + (2 * pair + b) * BLOCK
            phase = pair & 1
            s = gl.zeros([ROWS, BLOCK], gl.float32, S)
            for c in gl.static_range(4):
                mbarrier.wait(full.index(4 * b + c), phase)
                if c == 0:
                    s = warpgroup_mma(q_rope, rope.index(b).permute((1, 0)), s, is_async=True)
                s = warpgroup_mma(q.index(c), keys.index(4 * b + c).permute((1, 0)), s, is_async=True)
            s = warpgroup_mma_wait(0, [s]) * scale_log2
            if n + BLOCK > whole:
                s = masked(s, n, end, position)
                group_barrier()  # all warps have read the keys
                for c in gl.static_range(4):
                    zeroed(keys.index(4 * b + c), end - n, WIDE)
            m_new = gl.maximum(m, gl.max(s, 1))
            p = gl.exp2(s - finite(m_new)[:, None])
            shrink = gl.exp2(m - finite(m_new))
            m = m_new
            weights.index(b).store(p.to(keys.dtype))
            factors.index(b).store(shrink)
            fence_async_shared()
            mbarrier.arrive(said.index(b), count=1)
            l = l * shrink + gl.sum(p, 1)  # noqa: E741
    l_safe = gl.where(l > 0, l, 1.0)
    total.store(l_safe)
    mbarrier.arrive(done.index(0), count=1)
    log = (m + gl.log2(l_safe)) * LN2
    row = row_out + gl.arange(0, ROWS, S_ROW)
    if state < 0:
        gl.store(lse + row, log, mask=row < last)
    else:
        gl.store(partial_lse + row, log, mask=row < last)


@gluon.jit
def sum_group(
    HALF: gl.constexpr, pairs, keys, weights, factors, total, empty, said, done, out, partial, state, row_out, last
):
    """Half of the columns of the sums: chunks HALF and HALF + 2 of every block."""
    acc0 = gl.zeros([ROWS, CHUNK], gl.float32, O)
    acc1 = gl.zeros([ROWS, CHUNK], gl.float32, O)
    for pair in range(pairs):
        for b in gl.static_range(2):
            mbarrier.wait(said.index(b), pair & 1)
            shrink = factors.index(b).load(O_ROW)[:, None]
            acc0 = acc0 * shrink
            acc1 = acc1 * shrink  # before the first product: a group that multiplies must not touch its sums
            acc0 = warpgroup_mma(weights.index(b), keys.index(4 * b + HALF), acc0, is_async=True)
            acc1 = warpgroup_mma(weights.index(b), keys.index(4 * b + HALF + 2), acc1, is_async=True)
            acc0 = warpgroup_mma_wait(1, [acc0])
            mbarrier.arrive(empty.index(4 * b + HALF), count=1)
            acc1 = warpgroup_mma_wait(0, [acc1])
            mbarrier.arrive(empty.index(4 * b + HALF + 2), count=1)
    mbarrier.wait(done.index(0), 0)
    l = total.load(O_ROW)[:, None]  # noqa: E741
    if state < 0:
        write(acc0 / l, acc1 / l, out, row_out, last, HALF * 256)
    else:
        write(acc0 / l, acc1 / l, partial, row_out, last, HALF * 256)


# [/parts]


@gluon.jit
def write(acc0, acc1, out, row0, last, FROM: gl.constexpr):
    """A group's half of the outputs, of the rows before `last`."""
    row = row0 + gl.arange(0, ROWS, O_ROW)
    column = FROM + gl.arange(0, CHUNK, gl.SliceLayout(0, O))
    to = out + row.to(gl.int64)[:, None] * VALUES + column[None, :]
    gl.store(to, acc0.to(out.dtype.element_ty), mask=(row < last)[:, None])
    gl.store(to + CHUNK, acc1.to(out.dtype.element_ty), mask=(row < last)[:, None])


@gluon.jit
def latent_piece(
    q_tiles, wide, narrow, q_rows, table, pieces, out, lse, partial, partial_lse, table_width, scale_log2,
    HEADS: gl.constexpr, PAGE: gl.constexpr, FIELDS: gl.constexpr,
):  # fmt: skip
    """One piece (`plan.py`), as `attention.attend_piece` does it, of any page size that BLOCK divides."""
    piece = pieces + gl.program_id(0) * FIELDS
    sequence, token0, queries, position0, row0, first, end, state = fields_of(piece)
    pairs = gl.maximum(gl.cdiv(end - first, 2 * BLOCK), 0)
    row_in = token0 * HEADS + row0
    row_out = gl.where(state < 0, token0, state) * HEADS + row0
    last = row_out - row0 + queries * HEADS

    keys = gl.allocate_shared_memory(wide.dtype, [8, BLOCK, CHUNK], SHARED)  # four chunks of buffer 0, four of 1
    rope = gl.allocate_shared_memory(wide.dtype, [2, BLOCK, ROPE], SHARED)
    q = gl.allocate_shared_memory(wide.dtype, [4, ROWS, CHUNK], SHARED)
    weights = gl.allocate_shared_memory(wide.dtype, [2, ROWS, BLOCK], SHARED)
    factors = gl.allocate_shared_memory(gl.float32, [2, ROWS], FLAT)
    total = gl.allocate_shared_memory(gl.float32, [ROWS], FLAT)
    full = gl.allocate_shared_memory(gl.int64, [8, 1], mbarrier.MBarrierLayout())  # a chunk is there
    empty = gl.allocate_shared_memory(gl.int64, [8, 1], mbarrier.MBarrierLayout())  # a chunk is done with
    said = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())  # a block's weights are there
    done = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())  # the denominators are there
    asked = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())  # the queries are there
    for i in gl.static_range(8):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    for i in gl.static_range(2):
        mbarrier.init(said.index(i), count=1)
    mbarrier.init(done.index(0), count=1)
    mbarrier.init(asked.index(0), count=1)
    fence_async_shared()
    mbarrier.expect(asked.index(0), ROWS * VALUES * 2)
    for c in gl.static_range(4):
        load_tile(q_tiles, [row_in, c % 2 * 256 + c // 2 * CHUNK], asked.index(0), q.index(c))
    last_page = gl.maximum(gl.cdiv(end, PAGE) - 1, 0)
    table += sequence.to(gl.int64) * table_width
    gl.warp_specialize(
        [
            (score_group, (
                q_rows, row_in, q, pairs, first, end, position0, row0, HEADS, scale_log2,
                keys, rope, weights, factors, total, full, said, done, asked, lse, partial_lse, state, row_out, last,
            )),
            (sum_group, (
                0, pairs, keys, weights, factors, total, empty, said, done, out, partial, state, row_out, last,
            )),
            (sum_group, (
                1, pairs, keys, weights, factors, total, empty, said, done, out, partial, state, row_out, last,
            )),
            (load_keys, (wide, narrow, table, first, pairs, last_page, PAGE, keys, rope, full, empty)),
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
        return TensorDescriptor.from_tensor(matrix, [64, width], SHARED.value)

    rows, keys = q.flatten(0, 1), k_pages.flatten(0, 2)
    latent_piece[(len(launch.pieces),)](
        tiles(rows, 128), tiles(keys, 128), tiles(keys, 64), q, page_table, launch.pieces,
        out, lse, partial, partial_lse, page_table.stride(0), scale_log2, q.shape[1], k_pages.shape[1], len(PIECE),
        num_warps=4,
    )  # fmt: skip
