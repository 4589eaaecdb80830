"""Who shares chance with whom, wrongly: a rule and a drafter that are right can be made wrong by their noise alone.

`Branching` gives every draw of a step its own chance, and the drafter its own. Here that is withheld: the drafter's
noise is used again by the rule, or by the next step; or uniform numbers are not a continuum, as in every machine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from inference_opt.lab.exactness.enumerate import Branching, Uniform
from inference_opt.speculative.rules import Probs, Randomness

Stage = Callable[[int], tuple[Randomness, Randomness]]  # where a step starts → the drafter's chance and the rule's


def independent(chance: Branching) -> Stage:
    """As it should be: every draw apart from all others."""
    return lambda start: (chance, chance)


# [stages]
@dataclass
class Raced:
    """Draws are races by the noise of a place, which all that race there share."""

    chance: Branching
    origin: int

    def choose(self, weights: Probs, i: int) -> int:
        """By the noise of place origin + i."""
        return self.chance.race(weights, self.origin + i)

    def uniform(self, i: int) -> Uniform:
        """A fresh one."""
        return self.chance.uniform(i)


def same_stream(chance: Branching) -> Stage:
    """The race that replaces a rejected draft is run with the noise that drew the draft."""
    return lambda start: (Raced(chance, 1000 * start), Raced(chance, 1000 * start))  # ✗ one of them should be apart


@dataclass
class Kept:
    """Uniform numbers that stay what they are, position by position."""

    chance: Branching
    start: int
    numbers: dict[int, Uniform]

    def choose(self, weights: Probs, i: int) -> int:
        """A fresh draw: it ends the step, so that no later step draws at its position."""
        return self.chance.choose(weights, i)

    def uniform(self, i: int) -> Uniform:
        """The number of position start + i."""
        return self.numbers.setdefault(self.start + i, self.chance.uniform(i))


def by_position(chance: Branching) -> Stage:
    """Noise is a function of the position alone: after a rejection the next step draws with the rest of it again.

    With two drafts a step no position's noise is raced for more than twice, which is as far as `race` goes.
    """
    numbers: dict[int, Uniform] = {}
    return lambda start: (Raced(chance, start), Kept(chance, start, numbers))  # ✗ start should be part of the key


# [/stages]
BITS = 24  # of a uniform number in float32


class Grid:
    """A uniform number as machines have it: one of 0, 2⁻²⁴, …, 1 − 2⁻²⁴. It is compared once."""

    def __init__(self, chance: Branching) -> None:
        self.chance = chance

    def _below(self, count: int) -> bool:
        count = min(max(count, 0), 2**BITS)
        return self.chance._turn([(True, Fraction(count)), (False, Fraction(2**BITS - count))])

    def __lt__(self, threshold: Fraction | int) -> bool:
        return self._below(math.ceil(threshold * 2**BITS))

    def __le__(self, threshold: Fraction | int) -> bool:
        return self._below(math.floor(threshold * 2**BITS) + 1)


@dataclass
class OnAGrid:
    """Randomness whose uniform numbers have 24 bits."""

    chance: Branching

    def choose(self, weights: Probs, i: int) -> int:
        """As ever."""
        return self.chance.choose(weights, i)

    def uniform(self, i: int) -> Grid:
        """On the grid."""
        return Grid(self.chance)


def on_a_grid(chance: Branching) -> Stage:
    """Right or wrong as the rule compares."""
    return lambda start: (chance, OnAGrid(chance))
