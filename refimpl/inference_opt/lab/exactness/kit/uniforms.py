"""The randomness that a judged sampler gets: numbers that it may use in any way, and draws."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from inference_opt.lab.exactness.enumerate import second_winner

Races = Mapping[Hashable, tuple[np.ndarray, int]]  # place: (weights, winner)
NO_RACES: Races = {}
# Where in its interval a number is first tried: no threshold that people write is here.
INSIDE = 0.3819660112501051
LARGEST = 1 - 2.0**-24  # uniform number of a float32: what is above would be rounded to 1


class Uniforms:
    """Independent numbers, uniform in [0, 1), and draws, for one run of a sampler.

    `uniforms()` is the next number, `uniforms.take(n)` an array of the next n, and `uniforms[key]` the number of a key:
    always the same within a run. A sampler may compare numbers, search them in cumulative sums, or hand them on; the
    kit finds out where its output changes. What draws a token in some other way (`torch.multinomial`, an argmax over
    exponential noise) is replaced by `choose`, or by `race` where draws share their noise on purpose.

    This class is also a `Randomness` of `speculative.rules`, so these rules can be handed in as they are.
    """

    def __init__(
        self, numbers: Mapping[Hashable, float], choices: Mapping[Hashable, int], races: Races = NO_RACES
    ) -> None:
        self.numbers = numbers  # what this run is to find; where it has nothing, INSIDE and the first token
        self.choices = choices
        self.trace: list[tuple[Any, ...]] = []  # what was read: ("number", key) or ("choice", key, weights, token)
        self.read: dict[Hashable, float] = {}
        self.races = dict(races)
        self._taken = self._chosen = 0

    def __getitem__(self, key: Hashable) -> float:
        """The number of a key, the same whenever it is asked for."""
        if key not in self.read:
            self.read[key] = min(self.numbers.get(key, INSIDE), LARGEST)
            self.trace.append(("number", key))
        return self.read[key]

    def __call__(self) -> float:
        """The next number."""
        self._taken += 1
        return self[self._taken - 1]

    def take(self, n: int) -> Float[np.ndarray, "n"]:
        """The next n numbers."""
        return np.array([self() for _ in range(n)])

    def uniform(self, i: int) -> float:
        """The next number, whatever i: for rules that name their numbers."""
        return self()

    def choose(self, weights: Any, i: Any = None) -> int:
        """A token, with probability in proportion to its weight, independent of everything else.

        ValueError where no weight is positive.
        """
        weights = np.array(weights, dtype=float)
        if not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
            raise ValueError(f"choose wants weights ≥ 0, one of them positive and all finite, got {weights.tolist()}")
        key = self._chosen
        self._chosen += 1
        token = int(self.choices.get(key, np.flatnonzero(weights)[0]))
        self.trace.append(("choice", key, tuple((weights / weights.sum()).tolist()), token))
        return token

    def race(self, weights: Any, place: Hashable) -> int:
        """argmax of log weights + Gumbel noise, where all races of one place share their noise (two, at the most).

        In `judge` the i-th draft was drawn by a race at place i: a sampler that races there shares the drafter's noise.
        """
        weights = np.array(weights, dtype=float)
        if place in self.races:
            # Weights that rounding left on what cannot win are dropped with the sign that rounding gave them.
            return self.choose(np.maximum(second_winner(*self.races[place], weights).astype(float), 0))
        token = self.choose(weights)
        self.races[place] = weights, token
        return token
