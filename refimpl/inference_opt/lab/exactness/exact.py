"""The exact law of speculative decoding, by taking every turn that chance can take, in rational numbers.

A rule (`rules.py`, or a wrong one of `zoo.py`) is run as it is, on `Fraction`s. Where it asks for a draw, `Branching`
gives one outcome after the other and keeps the probability of each; where it compares a uniform number with a
threshold, the comparison comes out both ways, and the number is known, from then on, to lie on that side. So the law
of a step comes out as a sum over all its paths, with no sampling, no tolerance and no second version of the rule.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from inference_opt.lab.exactness.lazy import Lazy
from inference_opt.speculative import rules
from inference_opt.speculative.rules import Chance, Law
from inference_opt.speculative.verdicts import PATH, TEXT, path_state, text_state
from inference_opt.trace import step

Prefix = tuple[int, ...]
Model = Callable[[Prefix], Sequence[Fraction]]  # the law of the token behind a prefix
ByStart = Callable[[Prefix], Model]  # a drafter's model, by the text that a step begins behind
Rule = Callable[[Any, Any, Any, Chance], list[int]]
# (target, draft, prefix, gamma, choose) → what a rule takes: target's laws, draft's laws, tokens
Propose = Callable[[Model, Any, Prefix, int, Callable[[Law, int], int]], tuple[Any, Any, Any]]


# [branching]
class Branching:
    """Chance that follows a script of outcomes, takes the first where the script ends, and counts them all."""

    def __init__(self, script: Sequence[int]) -> None:
        self.script = list(script)
        self.widths: list[int] = []  # how many outcomes each turn had
        self.turns: list[tuple[Any, Fraction]] = []  # what came of it, and how likely that was
        self.probability = Fraction(1)
        self.won: dict[int, tuple[Law, int]] = {}  # races that were run: whose, and who won

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

    def choose(self, weights: Law, i: int) -> int:
        """Every token that has a weight."""
        return self._turn(list(enumerate(weights)))

    def race(self, weights: Law, i: int) -> int:
        """The same by the noise of place i, which a second law that races there shares with the first."""
        if i in self.won:
            return self.choose(second_winner(*self.won[i], weights), i)
        self.won[i] = weights, self.choose(weights, i)
        return self.won[i][1]

    def uniform(self, i: int) -> "Uniform":
        """A number that is known only by the comparisons made with it."""
        return Uniform(self)


class Uniform:
    """A uniform number in [low, high), which every comparison narrows."""

    def __init__(self, chance: Branching) -> None:
        self.chance, self.low, self.high = chance, Fraction(0), Fraction(1)

    def __lt__(self, threshold: Any) -> bool:
        middle = min(max(Fraction(threshold), self.low), self.high)
        below = self.chance._turn([(True, middle - self.low), (False, self.high - middle)])
        self.low, self.high = (self.low, middle) if below else (middle, self.high)
        return below

    __le__ = __lt__  # a single point has no probability


def every_path(program: Callable[[Branching], Any]) -> Iterator[tuple[Any, Fraction]]:
    """Run a program once for each way that chance can turn: (its result, the probability of that way)."""
    scripts: list[list[int]] = [[]]
    while scripts:
        start = scripts.pop()
        chance = Branching(start)
        yield program(chance), chance.probability
        # The turns beyond the script took their first outcome: the others are still to do.
        for depth in range(len(start), len(chance.script)):
            scripts.extend([*chance.script[:depth], outcome] for outcome in range(1, chance.widths[depth]))


# [/branching]


# [law]
def step_law(
    target: Model, draft: Model | ByStart, gamma: int, rule: Rule, prefix: Prefix = (), propose: Propose | None = None
) -> dict[Prefix, Fraction]:
    """The law of what one speculative step emits after a prefix: 1 to gamma + 1 tokens (gamma: see `output_law`)."""
    _check(gamma, "gamma")
    proposal = propose or PROPOSALS.get(rule, chain)

    def once(chance: Branching) -> tuple[Prefix, Any]:
        # The coupled rule races with the drafter's own noise; for the others the drafter's is its own.
        common = rule is rules.coupled
        laws, guesses, tokens = proposal(target, draft, prefix, gamma, chance.race if common else chance.choose)
        return tuple(rule(laws, guesses, tokens, _Racing(chance) if common else chance)), chance.turns

    law: dict[Prefix, Fraction] = defaultdict(Fraction)
    for (emitted, turns), probability in every_path(once):
        law[emitted] += probability
        seen = {"turns": turns, "emitted": emitted, "probability": probability}
        step("law.path", path_state, PATH, target=target, prefix=prefix, law=law, path=seen)
    return dict(law)


def output_law(
    target: Model, draft: Model | ByStart, gamma: int, rule: Rule, length: int, propose: Propose | None = None
) -> dict[Prefix, Fraction]:
    """The law of the first `length` tokens of a text that is decoded by speculative steps, exactly.

    `target` and `draft` give the law behind a prefix as Fractions. `gamma`: drafts a step; for `multi_draft` the number
    of candidates, for `tree` its depth. `propose` says how drafts are drawn (`chain`, `siblings()`, `branching()`; by
    default as fits the rule). If the draft's law depends on where the step began as well, `draft` is a `ByStart` and
    `propose` is `from_start(chain)`, for example. ValueError for a gamma or length below 0 and for laws that are none.
    """
    _check(length, "length")
    open_: list[dict[Prefix, Fraction]] = [defaultdict(Fraction) for _ in range(length + 1)]  # texts by their length
    open_[0][()] = Fraction(1)
    for texts in open_[:-1]:
        for text, weight in texts.items():
            for emitted, probability in step_law(target, draft, gamma, rule, text, propose).items():
                longer = (text + emitted)[:length]
                open_[len(longer)][longer] += weight * probability
            step("law.text", text_state, TEXT, target=target, text=text, weight=weight, laws=open_, truth=joint_law)
    return dict(open_[length])


def joint_law(target: Model, length: int) -> dict[Prefix, Fraction]:
    """The target's own law over texts of a length: the product of its laws along each text. What must come out."""
    texts: dict[Prefix, Fraction] = {(): Fraction(1)}
    for _ in range(length):
        texts = {(*t, x): w * p for t, w in texts.items() for x, p in enumerate(_law(target, t)) if p > 0}
    return texts


def total_variation(a: dict[Prefix, Fraction], b: dict[Prefix, Fraction]) -> Fraction:
    """Half the sum of |a − b|: the largest difference in the probability of any event."""
    return sum((abs(a.get(t, Fraction(0)) - b.get(t, Fraction(0))) for t in {*a, *b}), Fraction(0)) / 2


# [/law]


class _Racing:
    """Chance as the coupled rule gets it: its draws are races."""

    def __init__(self, chance: Branching) -> None:
        self.uniform, self.choose = chance.uniform, chance.race


# [second_winner]
def second_winner(q: Law, i: int, p: Law) -> Law:
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
        low, high = q[j] / q[i], p[j] / p[i] if p[i] > 0 else None

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


# [/second_winner]


# [proposals]
def chain(
    target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Law, int], int]
) -> tuple[Sequence[Any], Sequence[Any], Sequence[int]]:
    """One draft of gamma tokens, each from the draft's law behind the one before."""

    def guess() -> Iterator[tuple[int, Law]]:
        text = prefix
        for i in range(gamma):
            law = _law(draft, text)
            text = (*text, choose(law, i))
            yield text[-1], law

    guesses = Lazy(guess())
    return verdicts(target, prefix, tokens := Lazy(x for x, _ in guesses)), Lazy(q for _, q in guesses), tokens


def verdicts(target: Model, prefix: Prefix, tokens: Sequence[int]) -> Sequence[Any]:
    """The target's laws behind a prefix and behind each token of a draft."""

    def read() -> Iterator[Law]:
        text = prefix
        yield _law(target, text)
        for x in tokens:
            text = (*text, x)
            yield _law(target, text)

    return Lazy(read())


def siblings(replacement: bool = False) -> Propose:
    """gamma candidates for one position (fewer, where the draft's law has no more to give)."""

    def propose(
        target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Law, int], int]
    ) -> tuple[Sequence[Law], Sequence[Law], Sequence[int]]:
        laws, tokens = _candidates(_law(draft, prefix), gamma, choose, replacement)
        return [_law(target, prefix), *(_law(target, (*prefix, x)) for x in tokens)], laws, tokens

    return propose


def branching(width: int = 2, replacement: bool = False) -> Propose:
    """A tree of depth gamma, with `width` candidates at each node."""

    def propose(
        target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Law, int], int]
    ) -> tuple[Any, Any, Any]:
        drawn = _OnDemand(
            lambda path: _candidates(_law(draft, prefix + path), width if len(path) < gamma else 0, choose, replacement)
        )
        laws, tokens = _OnDemand(lambda path: drawn[path][0]), _OnDemand(lambda path: drawn[path][1])
        return _OnDemand(lambda path: _law(target, prefix + path)), laws, tokens

    return propose


def from_start(propose: Propose) -> Propose:
    """The same drafts, by a drafter that sees where the step began: `draft(start)` is its model for that step.

    So `NGram` drafts: it counts the text and not the drafts, hence its law behind a prefix is one thing where the end
    of the prefix was drafted in this step, and another where it was committed before.
    """
    return lambda target, draft, start, gamma, choose: propose(target, draft(start), start, gamma, choose)


PROPOSALS: dict[Rule, Propose] = {rules.multi_draft: siblings(), rules.tree: branching()}
# [/proposals]


def _candidates(
    law: Law, count: int, choose: Callable[[Law, int], int], replacement: bool
) -> tuple[list[Law], list[int]]:
    laws: list[Law] = []
    tokens: list[int] = []
    while len(tokens) < count and law.any():
        laws.append(law / law.sum())
        tokens.append(choose(laws[-1], len(tokens)))
        if not replacement:
            law = law.copy()
            law[tokens[-1]] = Fraction(0)
    return laws, tokens


class _OnDemand(dict[Prefix, Any]):
    def __init__(self, make: Callable[[Prefix], Any]) -> None:
        self.make = make

    def __missing__(self, path: Prefix) -> Any:
        return self.setdefault(path, self.make(path))


def _law(model: Model, text: Prefix) -> Law:
    law = np.array([Fraction(weight) for weight in model(text)], dtype=object)
    if (law < 0).any() or law.sum() != 1:
        raise ValueError(f"behind {text} the model gives {[str(w) for w in law]}, which is no law: it must sum to one")
    return law


def _check(value: int, name: str) -> None:
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
