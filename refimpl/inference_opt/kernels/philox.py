"""The noise of `sampling/noise.py` on the card, bit for bit the same.

The generator is Philox4x64-10 (Salmon et al. 2011), as NumPy has it. Triton's own asks for the upper and for the lower
half of each product, which are seven multiplications of the card; here both come from four. The exponential is made of
the same single steps as NumPy's, each rounded as IEEE 754 says. So a kernel that calls it is launched with EXACT: no
product and sum are fused into one rounding.
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
def product(a, b: tl.constexpr):
    """The upper and the lower 64 bits of a · b, from products of 32 bits."""
    HALF: tl.constexpr = 0xFFFFFFFF
    low, a1 = (a & HALF) * (b & HALF), a >> 32
    middle = (a & HALF) * (b >> 32) + (low >> 32)
    other = a1 * (b & HALF) + (middle & HALF)
    return a1 * (b >> 32) + (middle >> 32) + (other >> 32), (other << 32) | (low & HALF)


@triton.jit
def four_words(seed, start, group):
    """The random bits of tokens 4 · group … 4 · group + 3, for the target's draw 0 of a step."""
    c0 = (group + 1).to(tl.uint64)
    c1, c2, c3 = c0 * 0, c0 * 0, c0 * 0
    key0, key1 = seed.to(tl.uint64, bitcast=True), start.to(tl.uint64)
    for _ in tl.static_range(10):
        high0, low0 = product(c0, 0xD2E7470EE14C6C93)
        high1, low1 = product(c2, 0xCA5A826395121157)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 += 0x9E3779B97F4A7C15
        key1 += 0xBB67AE8584CAA73B
    return c0, c1, c2, c3


@triton.jit
def words(seed, start, first, COUNT: tl.constexpr):
    """The random bits of tokens `first` (a multiple of 4) and following."""
    w0, w1, w2, w3 = four_words(seed, start, first // 4 + tl.arange(0, COUNT // 4))
    return tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(COUNT)


@triton.jit
def word(seed, start, token):
    """The random bits of each of some tokens."""
    w0, w1, w2, w3 = four_words(seed, start, token // 4)
    place = token % 4
    return tl.where(place < 2, tl.where(place == 0, w0, w1), tl.where(place == 2, w2, w3))


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
