"""What the Gluon kernels for Hopper cards have in common: layouts, loads by the tensor memory accelerator, masks.

In Gluon, Triton's lower language, a program itself says where each number lies and which warps do what. The scores of
ROWS queries on BLOCK keys are one instruction of a group of four warps, and lie in its registers:

    S       [ROWS, BLOCK] in float32, 16 rows a warp; S_ROW: one number a row, as a reduction of S leaves it
    SMEM    shared memory as the tensor cores read it: rows of 128 bytes, swizzled
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

ROWS = gl.constexpr(64)
BLOCK = gl.constexpr(64)
LN2 = gl.constexpr(0.6931471805599453)
S = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
S_ROW = gl.constexpr(gl.SliceLayout(1, S))
SMEM = gl.constexpr(gl.NVMMASharedLayout(128, 16))
# These were renamed after triton 3.6.
load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
group_barrier = getattr(gl, "barrier", None) or gl.thread_barrier
_descriptor = gl.shared_memory_descriptor
reinterpret = getattr(_descriptor, "reinterpret", None) or _descriptor._reinterpret  # the same bytes in another shape


@gluon.jit
def fields_of(piece):
    """The fields of a piece (`plan.Piece`); its keys end with the queries, beyond which a plan may reach.

    Such a plan is one for several steps (`engine/step_plans.py`).
    """
    sequence, token0, queries, position0 = gl.load(piece), gl.load(piece + 1), gl.load(piece + 2), gl.load(piece + 3)
    row0, first, end, state = gl.load(piece + 4), gl.load(piece + 5), gl.load(piece + 6), gl.load(piece + 7)
    end = gl.minimum(end, position0 + queries)
    return sequence, token0, queries, position0, row0, first, end, state


@gluon.jit
def row_of(table, n, last_page, PAGE: gl.constexpr):
    """The row of the pool where the block of keys from n on begins. Blocks after the end may lie anywhere."""
    return gl.load(table + gl.minimum(n // PAGE, last_page)) * PAGE + n % PAGE


@gluon.jit
def masked(s, n, end, position):
    """The scores of the keys from n on, −∞ for keys after the end or after a query's own position."""
    key = n + gl.arange(0, s.shape[1], gl.SliceLayout(0, s.type.layout))
    return gl.where((key < end)[None, :] & (key[None, :] <= position[:, None]), s, float("-inf"))


@gluon.jit
def zeroed(values, valid, layout: gl.constexpr):
    """Set the values [BLOCK, columns] of the keys from `valid` on to 0.

    They were never written, so they may be NaN, and a weight of 0 does not help: 0 · NaN is NaN.
    """
    row = gl.arange(0, BLOCK, gl.SliceLayout(1, layout))
    there = values.load(layout)
    values.store(gl.where((row < valid)[:, None], there, gl.zeros_like(there)))


@gluon.jit
def finite(m):
    """The maximum to subtract: 0 for a row that has seen no key, because −∞ − (−∞) is not a number."""
    return gl.where(m == float("-inf"), 0.0, m)
