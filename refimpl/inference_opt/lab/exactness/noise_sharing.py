"""Noise that is wrongly shared: with it, a right rule and a right drafter are biased.

In `Branching` every draw of a step is independent of all others, the drafter's included. Here it is not: the rule, or
the next step, uses the drafter's noise again. Or uniform numbers have a fixed number of bits, as on every machine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from inference_opt.lab.exactness.enumerate import Branching, Uniform
from inference_opt.speculative.rules import Probs, Randomness

StepNoise = Callable[[int], tuple[Randomness, Randomness]]  # where a step begins → the drafter's noise, the rule's
Sharing = Callable[[Branching], StepNoise]  # which draws share noise


def independent(rng: Branching) -> StepNoise:
    """As it should be: every draw is independent of all others."""
    return lambda start: (rng, rng)


@dataclass
class Raced:
    """Draws are races by the noise of a place: all draws at that place share it."""

    rng: Branching
    origin: int

    def choose(self, weights: Probs, i: int) -> int:
        """By the noise of place origin + i."""
        return self.rng.race(weights, self.origin + i)

    def uniform(self, i: int) -> Uniform:
        """A new number."""
        return self.rng.uniform(i)


def same_stream(rng: Branching) -> StepNoise:
    """The race that replaces a rejected draft is run with the noise that drew the draft."""
    return lambda start: (Raced(rng, 1000 * start), Raced(rng, 1000 * start))  # ✗ one of them should be apart


@dataclass
class Kept:
    """Uniform numbers that stay what they are, position by position."""

    rng: Branching
    start: int
    numbers: dict[int, Uniform]

    def choose(self, weights: Probs, i: int) -> int:
        """A fresh draw: it ends the step, so that no later step draws at its position."""
        return self.rng.choose(weights, i)

    def uniform(self, i: int) -> Uniform:
        """The number of position start + i."""
        return self.numbers.setdefault(self.start + i, self.rng.uniform(i))


def by_position(rng: Branching) -> StepNoise:
    """Noise is a function of the position alone: after a rejection the next step draws with the rest of it again.

    With two drafts a step no position's noise is raced for more than twice, which is as far as `race` goes.
    """
    numbers: dict[int, Uniform] = {}
    return lambda start: (Raced(rng, start), Kept(rng, start, numbers))  # ✗ start should be part of the key


BITS = 24  # of a uniform number in float32


class Grid:
    """A uniform number as machines have it: one of 0, 2⁻²⁴, …, 1 − 2⁻²⁴. It is compared once."""

    def __init__(self, rng: Branching) -> None:
        self.rng = rng

    def _below(self, count: int) -> bool:
        count = min(max(count, 0), 2**BITS)
        return self.rng._turn([(True, Fraction(count)), (False, Fraction(2**BITS - count))])

    def __lt__(self, threshold: Fraction | int) -> bool:
        return self._below(math.ceil(threshold * 2**BITS))

    def __le__(self, threshold: Fraction | int) -> bool:
        return self._below(math.floor(threshold * 2**BITS) + 1)


@dataclass
class OnAGrid:
    """Randomness whose uniform numbers have 24 bits."""

    rng: Branching

    def choose(self, weights: Probs, i: int) -> int:
        """A token, drawn as `Branching` draws."""
        return self.rng.choose(weights, i)

    def uniform(self, i: int) -> Grid:
        """One of the 2²⁴ numbers."""
        return Grid(self.rng)


def on_a_grid(rng: Branching) -> StepNoise:
    """Uniform numbers have 24 bits: right with rules that compare u < t, wrong with those that compare u ≤ t."""
    return lambda start: (rng, OnAGrid(rng))
