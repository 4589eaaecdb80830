"""The noise of `sampling/noise.py` on the card, bit for bit the same.

The generator is Triton's own Philox4x64-10. The exponential is made of the same single steps as NumPy's, each rounded
as IEEE 754 says. So a kernel that calls it is launched with EXACT: no product and sum are fused into one rounding.
"""

import triton
import triton.language as tl

from inference_opt.sampling import noise

EXACT = {"enable_fp_fusion": False}

ONE_BITS = tl.constexpr(noise.ONE_BITS)
SQRT_HALF_BITS = tl.constexpr(noise.SQRT_HALF_BITS)
LN2 = tl.constexpr(noise.LN2)
ALMOST_ONE = tl.constexpr(1 - 2.0**-53)
ATANH = tl.constexpr(noise.ATANH)


@triton.jit
def uniform_of(word):
    """(k + ½) / 2⁵², where k is a word's upper 52 bits."""
    return ((word >> 12) | ONE_BITS).to(tl.float64, bitcast=True) - ALMOST_ONE


@triton.jit
def words(seed, start, first, COUNT: tl.constexpr):
    """The random bits of tokens `first` (a multiple of 4) and following, for the target's draw 0 of a step."""
    counter = (first // 4 + 1 + tl.arange(0, COUNT // 4)).to(tl.uint64)
    zero = counter * 0
    key0, key1 = seed.to(tl.uint64, bitcast=True) + zero, start.to(tl.uint64) + zero
    w0, w1, w2, w3 = tl.philox_impl(counter, zero, zero, zero, key0, key1)
    return tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(COUNT)


@triton.jit
def exponential(u):
    """−log(1 − u), exactly as `sampling.noise.exponential` computes it."""
    bits = (1.0 - u).to(tl.int64, bitcast=True)
    e = (bits - SQRT_HALF_BITS) >> 52
    m = (bits - (e << 52)).to(tl.float64, bitcast=True)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = square * ATANH[9] + ATANH[8]
    for i in tl.static_range(8):
        series = series * square + ATANH[7 - i]
    return -(e.to(tl.float64) * LN2) - 2.0 * s * (series * square + 1.0)
