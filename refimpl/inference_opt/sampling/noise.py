"""Draws that can be repeated: a counter-based generator, and the race that chooses a token.

The generator is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", the Random123
library), which has no state: ten rounds of multiplications turn a counter of 256 bits, under a key of 128, into four
words of 64 random bits. So every token's noise is a function of where it is drawn, and can be computed anywhere, in any
order: here by NumPy's generator in C, on the card by `kernels/philox.py`, bit for bit the same.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt64

ARRIVAL, UNIFORM = 0, 1  # what a draw is for

# 1 / 3, 1 / 5, …: the series of atanh.
ATANH = tuple(1 / n for n in range(3, 23, 2))
ONE_BITS, SQRT_HALF_BITS = 0x3FF0000000000000, 0x3FE6A09E667F3BCD  # of the float64s 1 and √½
LN2 = 0.6931471805599453

LIGHT = 2.0**-13  # of the largest weight


@dataclass(frozen=True)
class Noise:
    """All the randomness of one step of one text: a function of its seed and the position where the step begins.

    What a seed promises: one seed gives one text, whatever the rest of the batch, the runner and the device, up to
    ties, where rounding decides which of two tokens is first.

    `i` counts the step's draws: a plain step has one, i = 0; a speculative step has several. Draws of different `lane`s
    are independent (0: the target's, 1: those of a drafter, which must not know the target's draws).
    """

    seed: int
    start: int
    lane: int = 0

    def words(self, i: int, kind: int, n: int) -> UInt64[np.ndarray, "n"]:
        """Draw i's bits. Token x has word x mod 4 of the four under counter (1 + x div 4, 0, i, 2 · lane + kind)."""
        # Arrays of uint64: a list would pass through floats, and different large seeds would become equal.
        key = np.array([self.seed, self.start], dtype=np.uint64)
        counter = np.array([0, 0, i, 2 * self.lane + kind], dtype=np.uint64)  # NumPy adds 1 before every four words
        words: np.ndarray = np.random.Philox(key=key, counter=counter).random_raw(n)
        return words

    def uniform(self, i: int) -> float:
        """A number in [0, 1)."""
        return float((self.words(i, UNIFORM, 1)[0] >> np.uint64(11)) * 2.0**-53)

    def choose(self, weights: Float[np.ndarray, "vocab"], i: int) -> int:
        """A token, with probability in proportion to its weight: the winner of a race.

        E_x ~ Exp(1) for every token x; the smallest E_x / w_x wins, which is x with probability w_x / Σ w. (−log E is
        Gumbel noise, so this is the argmax of log w + Gumbel: Maddison et al. 2014, 1411.0030.) Two similar
        distributions that race with the same noise mostly choose the same token: coupled speculation relies on it.
        A token of weight zero never runs.
        """
        largest = weights.max()
        if largest == 0:
            raise ValueError("there is no token to choose: all weights are zero")
        if largest < 2.0**-900:  # E divided by 2⁻¹⁰⁷⁴, the smallest float, would overflow
            weights, largest = weights * 2.0**900, largest * 2.0**900
        heavy = np.flatnonzero(weights >= LIGHT * largest)
        if len(heavy) == 1 and np.count_nonzero(weights) == 1:
            return int(heavy[0])  # who runs alone wins
        words = self.words(i, ARRIVAL, len(weights))
        near = contenders(words, heavy, weights[heavy], LIGHT * largest)
        with np.errstate(divide="ignore", over="ignore"):
            return int(near[np.argmin(exponential(uniforms(words[near])) / weights[near])])

    def gumbel(self, i: int, tokens: Int[np.ndarray, "tokens"]) -> Float[np.ndarray, "tokens"]:
        """G = −log E of some tokens: draw i chooses the token of the largest log w + G (but for rounding)."""
        words = self.words(i, ARRIVAL, int(tokens.max()) + 1)  # a token's word does not depend on how many there are
        noise: np.ndarray = -np.log(exponential(uniforms(words[tokens])))
        return noise


@dataclass(frozen=True)
class CommonNoise(Noise):
    """`Noise` where draw i of a step from `start` is draw 0 of a step from `start + i`: steps may be cut anywhere."""

    def words(self, i: int, kind: int, n: int) -> UInt64[np.ndarray, "n"]:
        """Draw i's random bits."""
        return Noise(self.seed, self.start + i, self.lane).words(0, kind, n)


def contenders(
    words: UInt64[np.ndarray, "n"], heavy: Int[np.ndarray, "heavy"], weights: Float[np.ndarray, "heavy"], light: float
) -> Int[np.ndarray, "near"]:
    """The tokens that can win a race: few, in order. `weights` are those of the `heavy`; the others' are ≤ `light`."""
    # E = −log(1 − u) ≥ u. So u / w says when a token arrives at the earliest, and few need the logarithm.
    u = uniforms(words[heavy])
    earliest = u / weights
    first = int(np.argmin(earliest))
    bound = -math.log1p(-u[first]) / float(weights[first]) * (1 + 2.0**-40)  # more than rounding
    # A light token is as early only if u ≤ bound · light. u is its word / 2⁶⁴, rounded.
    limit = min(int(bound * light * 2.0**64) + 2**13, 2**64 - 1)  # 2¹³: more than that rounding
    return np.union1d(heavy[earliest <= bound], np.flatnonzero(words <= np.uint64(limit)))


def uniforms(words: UInt64[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """(k + ½) / 2⁵², where k is a word's upper 52 bits: in (0, 1), and exact. In the words' place."""
    words >>= np.uint64(12)
    words |= np.uint64(ONE_BITS)
    u: np.ndarray = words.view(np.float64)  # from 1 to 2
    u -= 1 - 2.0**-53
    return u


def exponential(u: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """−log(1 − u): exponential noise where u is uniform.

    Libraries' logarithms differ in the last bit. This one is made of single steps that IEEE 754 rounds exactly, so it
    is the same on every device: 1 − u = m · 2ᵉ with m in [√½, √2), and log m = 2 atanh s with s = (m − 1) / (m + 1).
    """
    bits = (1 - u).view(np.int64)
    e = (bits - SQRT_HALF_BITS) >> 52
    m = (bits - (e << 52)).view(np.float64)
    s = (m - 1) / (m + 1)
    square, series = s * s, np.full_like(s, ATANH[-1])
    for factor in ATANH[-2::-1]:
        series = series * square + factor
    arrivals: np.ndarray = -(e * LN2) - 2 * s * (series * square + 1)
    return arrivals
