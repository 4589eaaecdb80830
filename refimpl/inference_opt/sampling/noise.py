"""Draws that can be repeated: a counter-based generator, and the race that chooses a token."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


# [noise]
@dataclass(frozen=True)
class Noise:
    """All the randomness of one step of one text: a function of its seed and the position where the step begins.

    `i` counts the step's draws: a plain step has one, i = 0; a speculative step has several. Draws of different `lane`s
    are independent (0: the target's, 1: those of a drafter, which must not know the target's draws).
    """

    seed: int
    start: int
    lane: int = 0

    def _generator(self, i: int, kind: int) -> np.random.Generator:
        # Arrays of uint64: a list would pass through floats, and different large seeds would become equal.
        key = np.array([self.seed, self.start], dtype=np.uint64)
        counter = np.array([0, 0, i, 2 * self.lane + kind], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def uniform(self, i: int) -> float:
        """A number in [0, 1)."""
        return float(self._generator(i, 1).random())

    def choose(self, weights: Float[np.ndarray, "vocab"], i: int) -> int:
        """A token, with probability in proportion to its weight: the winner of a race.

        E_x ~ Exp(1) for every token x; the smallest E_x / w_x wins, which is x with probability w_x / Σ w. (−log E is
        Gumbel noise, so this is the argmax of log w + Gumbel: Maddison et al. 2014, 1411.0030.) Two similar
        distributions that race with the same noise mostly choose the same token: coupled speculation relies on it.
        A token of weight zero never runs.
        """
        runners = np.flatnonzero(weights)
        if len(runners) == 0:
            raise ValueError("there is no token to choose: all weights are zero")
        if len(runners) == 1:
            return int(runners[0])
        # Scaled by a power of two, which keeps the order: E over the smallest weight, 2⁻¹⁰⁷⁴, would overflow a float.
        noise = self._generator(i, 0).standard_exponential(len(weights)) * 2.0**-64
        return int(runners[np.argmin(noise[runners] / weights[runners])])


@dataclass(frozen=True)
class CommonNoise(Noise):
    """`Noise` where draw i of a step from `start` is draw 0 of a step from `start + i`: steps may be cut anywhere."""

    def _generator(self, i: int, kind: int) -> np.random.Generator:
        return Noise(self.seed, self.start + i, self.lane)._generator(0, kind)


# [/noise]
