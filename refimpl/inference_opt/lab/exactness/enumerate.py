"""Randomness that takes every possible turn: draws, comparisons with a uniform number, and races by shared noise."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from inference_opt.speculative.rules import Probs


# [branching]
class Branching:
    """Randomness that follows a script of outcomes, and then takes the first outcome. It counts all outcomes."""

    def __init__(self, script: Sequence[int]) -> None:
        self.script = list(script)
        self.widths: list[int] = []  # how many outcomes each turn had
        self.turns: list[tuple[Any, Fraction]] = []  # its outcome, and the probability of this
        self.probability = Fraction(1)
        self.won: dict[int, tuple[Probs, int]] = {}  # races that were run, by place: the weights, and the winner

    def _turn(self, outcomes: Sequence[tuple[Any, Any]]) -> Any:
        possible = [(value, weight) for value, weight in outcomes if weight > 0]
        depth = len(self.widths)
        if depth == len(self.script):
            self.script.append(0)
        self.widths.append(len(possible))
        value, weight = possible[self.script[depth]]
        self.turns.append((value, Fraction(weight) / sum(weight for _, weight in possible)))
        self.probability *= self.turns[-1][1]
        return value

    def choose(self, weights: Probs, i: int) -> int:
        """Every token that has a weight, in turn."""
        return self._turn(list(enumerate(weights)))

    def race(self, weights: Probs, i: int) -> int:
        """The same, by the noise of place i: a second race there shares it with the first."""
        if i in self.won:
            return self.choose(second_winner(*self.won[i], weights), i)
        self.won[i] = weights, self.choose(weights, i)
        return self.won[i][1]

    def uniform(self, i: int) -> "Uniform":
        """A number known only by the comparisons made with it."""
        return Uniform(self)


class Uniform:
    """A uniform number in [low, high), which every comparison narrows."""

    def __init__(self, rng: Branching) -> None:
        self.rng = rng
        self.low = Fraction(0)
        self.high = Fraction(1)

    def __lt__(self, threshold: Any) -> bool:
        middle = min(max(Fraction(threshold), self.low), self.high)
        below = self.rng._turn([(True, middle - self.low), (False, self.high - middle)])
        self.low, self.high = (self.low, middle) if below else (middle, self.high)
        return below

    __le__ = __lt__  # a single point has no probability


def every_path(program: Callable[[Branching], Any]) -> Iterator[tuple[Any, Fraction]]:
    """Run a program once for each path of random outcomes: (its result, the probability of that path)."""
    scripts: list[list[int]] = [[]]
    while scripts:
        start = scripts.pop()
        rng = Branching(start)
        yield program(rng), rng.probability
        # After its script, a run took the first outcome of each turn. The others are still to do.
        for depth in range(len(start), len(rng.script)):
            scripts.extend([*rng.script[:depth], outcome] for outcome in range(1, rng.widths[depth]))


# [/branching]


class Racing:
    """Randomness as the coupled rule gets it: its draws are races."""

    def __init__(self, rng: Branching) -> None:
        self.uniform = rng.uniform
        self.choose = rng.race


def second_winner(q: Probs, i: int, p: Probs) -> Probs:
    """Weights of who wins a race under p, where the same noise made i the winner under q.

    E_k ~ Exp(1), independent. i wins under q and j under p if E_k ≥ max(E_i q_k / q_i, E_j p_k / p_j) for all k.
    For j = i that has probability 1 / Σ_k max(q_k / q_i, p_k / p_i). For j ≠ i let r = E_j / E_i, which must lie
    between q_j / q_i and p_j / p_i; then it is ∫ dr / S(r)² with S(r) = Σ_k max(q_k / q_i, r p_k / p_j), piecewise
    linear, so that each piece from a to b gives (b − a) / (S(a) S(b)): a rational number.
    """
    weights = np.array([Fraction(0)] * len(p), dtype=object)
    for j in np.flatnonzero(p):
        if j == i:
            weights[j] = 1 / sum(max(q[k] / q[i], p[k] / p[i]) for k in range(len(p)))
            continue
        low = q[j] / q[i]
        high = p[j] / p[i] if p[i] > 0 else None

        def total(r: Any, j: Any = j) -> Any:
            return sum((max(q[k] / q[i], r * p[k] / p[j]) for k in range(len(p))), Fraction(0))

        bends = {q[k] / q[i] * p[j] / p[k] for k in np.flatnonzero(p)}
        cuts = [low, *sorted(b for b in bends if b > low and (high is None or b < high))]
        if high is None:  # beyond the last bend S(r) grows by Σ p_k / p_j = 1 / p_j for each unit of r
            weights[j] += p[j] / sum(p) / total(cuts[-1])
        elif high > low:
            cuts.append(high)
        weights[j] += sum((b - a) / (total(a) * total(b)) for a, b in pairwise(cuts))
    return weights
