"""A rule's own code, run on symbols: the solver z3 decides whether it is exact for all real p and q.

Enumeration (`enumerate.py`) follows every path for one pair of distributions. Here their entries are unknowns
p_0 … p_{V−1} and q_0 … q_{V−1}. Where the code compares two of them, both answers are followed, each under its
condition. A region is a set of conditions. The result is a formula for each region,

    P(first token = x) = Σ over the region's paths of their probability,

and the solver looks for p and q in the region for which it is not p_x. If there are none, the rule is exact for this V
and every pair of distributions. Otherwise the solver returns such a pair. (De Moura & Bjørner 2008. z3 comes with the
`test` extra.)
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import z3

from inference_opt.lab.exactness.enumerate import Branching, every_path
from inference_opt.lab.exactness.proposals import Rule
from inference_opt.speculative.rules import Probs


class Number:
    """A real number known only by its name. A comparison with it has both answers, in turn."""

    def __init__(self, world: "World", formula: Any) -> None:
        self.world = world
        self.formula = formula

    def _with(self, other: Any, make: Callable[[Any, Any], Any]) -> Any:
        if isinstance(other, np.ndarray):
            return NotImplemented  # numpy goes through its elements
        return Number(self.world, make(self.formula, value(other)))

    def __add__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a - b)

    def __rsub__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: b - a)

    def __mul__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a * b)

    def __truediv__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a / b)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: b / a)

    __radd__ = __add__
    __rmul__ = __mul__

    def __lt__(self, other: Any) -> bool:
        return self.world.decide(self.formula < value(other))

    def __ge__(self, other: Any) -> bool:
        return not self < other

    def __gt__(self, other: Any) -> bool:
        return self.world.decide(self.formula > value(other))

    def __le__(self, other: Any) -> bool:
        return not self > other

    def __bool__(self) -> bool:
        return self.world.decide(self.formula != 0)


def value(x: Any) -> Any:
    """The formula of a number, for z3."""
    return x.formula if isinstance(x, Number) else z3.RealVal(str(Fraction(x)))


class World:
    """One path: the answers given so far, and the probability of the turns taken, both as formulas."""

    def __init__(self, turns: Branching, known: list[Any], asked: dict[tuple[int, ...], list[bool]]) -> None:
        self.turns = turns
        self.known = known
        self.asked = asked
        self.conditions: list[Any] = []
        self.probability: Any = z3.RealVal(1)

    def decide(self, condition: Any) -> bool:
        """Both answers, in turn, where both are possible: earlier answers may leave only one."""
        so_far = tuple(self.turns.script[: len(self.turns.widths)])
        if so_far not in self.asked:  # paths with the same turns so far ask the same question
            sides = ((True, condition), (False, z3.Not(condition)))
            self.asked[so_far] = [
                answer for answer, side in sides if solve(*self.known, *self.conditions, side) is not None
            ]
        possible = self.asked[so_far]
        answer = self.turns._turn([(answer, 1) for answer in possible])
        if len(possible) > 1:
            self.conditions.append(condition if answer else z3.Not(condition))
        return answer

    def choose(self, weights: Probs, i: int) -> int:
        """Every token that can have a weight."""
        token = self.turns._turn([(x, 1) for x, w in enumerate(weights) if w > 0])
        self.probability = self.probability * value(weights[token]) / value(sum(weights))
        return token

    def uniform(self, i: int) -> "Below":
        """To be compared once."""
        return Below(self)


class Below:
    """A uniform number: less than t with probability t, if that lies between 0 and 1."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __lt__(self, threshold: Any) -> bool:
        if not threshold < 1:
            return True
        if not threshold > 0:
            return False
        below = self.world.turns._turn([(True, 1), (False, 1)])
        self.world.probability = self.world.probability * value(threshold if below else 1 - threshold)
        return below

    __le__ = __lt__


def solve(*formulas: Any, seconds: float = 60) -> z3.ModelRef | None:
    """Numbers for which all of them hold, None if there are none. RuntimeError where the solver gives up."""
    solver = z3.Solver()
    solver.set("timeout", int(1000 * seconds))
    solver.add(*formulas)
    found = solver.check()
    if found == z3.unknown:
        raise RuntimeError(f"the solver gives up: {solver.reason_unknown()}")
    return solver.model() if found == z3.sat else None


Drafting = Callable[[Probs, World], tuple[list[Probs], list[int]]]


def counterexample(
    rule: Rule, vocab: int, draft: Drafting | None = None
) -> tuple[list[Fraction], list[Fraction]] | None:
    """A pair (p, q) over `vocab` tokens for which the first token that a step emits is not drawn from p, or None.

    `draft` says what is drawn from q and how it is reported: by default one token, with q. RuntimeError where the
    solver gives up.
    """
    names = [[z3.Real(f"{letter}_{x}") for x in range(vocab)] for letter in "pq"]
    valid = [condition for probs in names for condition in [z3.Sum(probs) == 1, *(w >= 0 for w in probs)]]
    for paths in _regions(rule, names, valid, draft):
        conditions = paths[0][0].conditions  # all paths of a region have the same
        for x in range(vocab):
            emitted = z3.Sum([world.probability for world, token in paths if token == x] or [z3.RealVal(0)])
            found = solve(*valid, *conditions, emitted != names[0][x])
            if found is not None:
                p, q = ([found.eval(w, model_completion=True).as_fraction() for w in probs] for probs in names)
                return p, q
    return None


def _regions(
    rule: Rule, names: list[list[Any]], valid: list[Any], draft: Drafting | None
) -> Iterable[list[tuple[World, int]]]:
    """The paths of a step, each with the first token that it emits, in lists of those with the same conditions."""
    vocab, asked = len(names[0]), dict[tuple[int, ...], list[bool]]()

    def step(turns: Branching) -> tuple[World, int]:
        world = World(turns, valid, asked)
        p, q = (np.array([Number(world, w) for w in probs], dtype=object) for probs in names)
        for x in range(vocab):  # the questions that every path would ask, before any turn: then all paths share them
            _ = q[x] > 0, p[x] > 0, p[x] < q[x], p[x] > q[x]
        guesses, tokens = draft(q, world) if draft else ([q], [world.choose(q, 0)])
        certain = np.array([1] + [0] * (vocab - 1), dtype=object)  # what comes after the first token does not matter
        return world, rule([p] + [certain] * len(tokens), guesses, tokens, world)[0]

    regions: dict[str, list[tuple[World, int]]] = defaultdict(list)
    for (world, token), _ in every_path(step):
        regions[str(world.conditions)].append((world, token))
    return regions.values()
