"""What the Gluon kernels for Hopper cards share: layouts, loads by the tensor memory engine, masks.

In Gluon (Triton's lower language) a program says itself where each number lies and which warps do what. Scores of ROWS
queries on BLOCK keys are one instruction wide for a group of four warps, and lie in its registers:

    S        [ROWS, BLOCK] in float32, 16 rows a warp; S_ROW: one number a row, as its reduction leaves it
    SHARED   shared memory as the tensor cores read it: rows of 128 bytes, swizzled
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

ROWS = gl.constexpr(64)
BLOCK = gl.constexpr(64)
LN2 = gl.constexpr(0.6931471805599453)
S = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
S_ROW = gl.constexpr(gl.SliceLayout(1, S))
SHARED = gl.constexpr(gl.NVMMASharedLayout(128, 16))
# Renamed after triton 3.6, as they are.
load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
group_barrier = getattr(gl, "barrier", None) or gl.thread_barrier


@gluon.jit
def fields_of(piece):
    """What a piece says (`plan.PIECE`), cut at its queries: a plan may reach further (`engine/graph_runner.py`)."""
    sequence, token0, queries, position0 = gl.load(piece), gl.load(piece + 1), gl.load(piece + 2), gl.load(piece + 3)
    row0, first, end, state = gl.load(piece + 4), gl.load(piece + 5), gl.load(piece + 6), gl.load(piece + 7)
    end = gl.minimum(end, position0 + queries)
    return sequence, token0, queries, position0, row0, first, end, state


@gluon.jit
def row_of(table, n, last_page, PAGE: gl.constexpr):
    """Where the block that begins with key n lies; one behind the end is anywhere: its values will be zeroed."""
    return gl.load(table + gl.minimum(n // PAGE, last_page)) * PAGE + n % PAGE


@gluon.jit
def masked(s, n, end, position):
    """−∞ for keys behind the end, or behind a query's own position; n: the block's first key."""
    key = n + gl.arange(0, BLOCK, gl.SliceLayout(0, S))
    return gl.where((key < end)[None, :] & (key[None, :] <= position[:, None]), s, float("-inf"))


@gluon.jit
def zeroed(values, valid, layout: gl.constexpr):
    """What nobody wrote is anything, and 0 · NaN is NaN: values [BLOCK, columns] of keys from `valid` on are made 0."""
    row = gl.arange(0, BLOCK, gl.SliceLayout(1, layout))
    there = values.load(layout)
    values.store(gl.where((row < valid)[:, None], there, gl.zeros_like(there)))


@gluon.jit
def finite(m):
    """−∞ − (−∞) is not a number: a row that has seen no key subtracts 0."""
    return gl.where(m == float("-inf"), 0.0, m)
