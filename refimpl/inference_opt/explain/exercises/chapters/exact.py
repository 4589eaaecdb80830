"""How acceptance rules are judged (chapters 06, 07): every outcome of their randomness is followed.

A rule is given one draft at a time. What it emits then has a law. `Branching` (`lab/exactness/`) gives it exactly, and
the definition of the rule gives it a second time, as a table.
"""

import copy
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import product
from types import FrameType
from typing import Any

import numpy as np
from hypothesis import strategies as st

from inference_opt.explain.exercises.exercise import Broken, expect
from inference_opt.explain.views.registry import PICTURES
from inference_opt.explain.views.rules import RecordingRandomness, Verdict
from inference_opt.lab.exactness.enumerate import Branching, every_path
from inference_opt.speculative import rules
from inference_opt.trace import recording, unrecorded

Weights = Sequence[int]  # a distribution, but for its sum
Emitted = tuple[int, ...]
Law = Mapping[Emitted, Fraction]
ROUNDING = 1e-9  # more than a rule that computes with floats is off, less than any mistake


# Inputs


def weights(vocab: int) -> st.SearchStrategy[list[int]]:
    """A distribution as small whole numbers, not yet divided by their sum."""
    return st.lists(st.integers(0, 4), min_size=vocab, max_size=vocab).filter(any)


@st.composite
def drafts(draw: Any, most: int = 3, found: bool = False) -> dict[str, Any]:
    """What a rule is given: `target`, `draft` (not where drafts are found), `tokens`, each of which q can draw."""
    vocab = draw(st.integers(2, 3))
    gamma = draw(st.integers(0, most if vocab == 2 else min(most, 2)))
    target = [draw(weights(vocab)) for _ in range(gamma + 1)]
    if found:
        return {"target": target, "tokens": [draw(st.integers(0, vocab - 1)) for _ in range(gamma)]}
    draft = [draw(weights(vocab)) for _ in range(gamma)]
    tokens = [draw(st.sampled_from([x for x, w in enumerate(q) if w])) for q in draft]
    return {"target": target, "draft": draft, "tokens": tokens}


def fractions(rows: Sequence[Weights]) -> list[np.ndarray]:
    """Exact distributions. ValueError for weights that are none."""
    if not all(sum(row) > 0 and min(row) >= 0 and len(row) == len(rows[0]) for row in rows):
        raise ValueError(f"each row must be weights ≥ 0, not all 0, one for each token; got {rows}")
    return [np.array([Fraction(w, sum(row)) for w in row], dtype=object) for row in rows]


def floats(rows: Sequence[Weights]) -> list[np.ndarray]:
    """The same as the engine has them."""
    return [np.array(row, dtype=float) / sum(row) for row in rows]


def check_drafts(target: Sequence[Any], draft: Sequence[Any], tokens: Sequence[int]) -> None:
    """ValueError for what no drafter can have drawn."""
    if not len(target) - 1 == len(draft) == len(tokens):
        raise ValueError(f"{len(tokens)} drafts need as many rows of draft and one more of target")
    if draft and len(draft[0]) != len(target[0]):
        raise ValueError("target and draft must have the same tokens")
    if any(not 0 <= x < len(q) or not q[x] > 0 for x, q in zip(tokens, draft)):
        raise ValueError(f"tokens {list(tokens)} must be drawn from draft: each needs a weight there")


# Randomness


class Draws:
    """`Noise`, every outcome in turn: draw i of a kind is one draw, however often a rule asks for it.

    `recording` tells of what is asked. Numbers i outside `allowed` belong to somebody else.
    """

    def __init__(
        self, branching: Branching, recording: RecordingRandomness | None = None, allowed: range | None = None
    ) -> None:
        self.branching, self.recording, self.allowed = branching, recording, allowed
        self.numbers: dict[int, Any] = {}

    def uniform(self, i: int) -> "Number":
        """A number in [0, 1), to be compared."""
        if self.allowed is not None and i not in self.allowed:
            raise Broken(f"rng.uniform({i}) belongs to another node: a node's own are `tried` and those behind it, one "
                         "for each candidate", i, list(self.allowed))  # fmt: skip
        if i not in self.numbers:
            self.numbers[i] = self.branching.uniform(i)
        return Number(self.numbers[i], self.recording)

    def choose(self, weights: Any, i: int) -> int:
        """A token, in proportion to its weight."""
        check_weights(weights)
        return self.branching.race(np.array(weights), i)


def check_weights(weights: Any) -> None:
    """`Broken` for what nothing can be drawn from."""
    if not all(w >= 0 for w in weights) or not any(w > 0 for w in weights):  # nan is not ≥ 0
        raise Broken("rng.choose is asked to draw from weights that are not ≥ 0 with a sum > 0",
                     np.array(weights, dtype=float))  # fmt: skip


class Number:
    """a · u + b for a uniform number u: every comparison comes out both ways."""

    def __init__(self, u: Any, recording: RecordingRandomness | None, a: Any = 1, b: Any = 0) -> None:
        self.u, self.recording, self.a, self.b = u, recording, a, b

    def _below(self, threshold: Any) -> bool:
        if self.a == 0:
            return bool(self.b < threshold)
        t = (threshold - self.b) / Fraction(self.a)
        below = bool(self.u < t) == (self.a > 0)
        if self.recording is not None:
            verdict = self.recording.verdict
            verdict.passed.append(below)
            event = "weigh" if verdict.rule is rules.block else "accept" if below else "reject"
            self.recording.tell(f"speculation.{event}", _asking(), u=self.u, threshold=t)
        return below

    def __lt__(self, other: Any) -> bool:
        return self._below(other)

    def __le__(self, other: Any) -> bool:  # a single point has no probability
        return self._below(other)

    def __gt__(self, other: Any) -> bool:
        return not self._below(other)

    def __ge__(self, other: Any) -> bool:
        return not self._below(other)

    def __mul__(self, other: Any) -> "Number":
        return Number(self.u, self.recording, self.a * Fraction(other), self.b * Fraction(other))

    def __add__(self, other: Any) -> "Number":
        return Number(self.u, self.recording, self.a, self.b + other)

    def __truediv__(self, other: Any) -> "Number":
        return self * (1 / Fraction(other))

    def __neg__(self) -> "Number":
        return self * -1

    def __sub__(self, other: Any) -> "Number":
        return self + -other

    def __rsub__(self, other: Any) -> "Number":
        return -self + other

    __rmul__ = __mul__
    __radd__ = __add__

    def __float__(self) -> float:
        raise Broken(
            "rng.uniform(i) is followed to every outcome of a comparison: compare it as it is, without float()"
        )


def _asking() -> FrameType:
    """The frame of who compares."""
    frame: Any = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame


class Telling(RecordingRandomness):
    """Tells of what a rule asks of `Draws`."""

    rng: Draws

    @property
    def branching(self) -> Branching:
        """What all outcomes are followed by."""
        return self.rng.branching

    def uniform(self, i: int) -> Any:
        """A number that tells what it is compared with."""
        return self.rng.uniform(i)

    def tell(self, event: str, frame: FrameType, **data: Any) -> None:
        """Emit an event, unless a wrong rule stands where there is no picture: the recording would end there."""
        with suppress(Exception):
            PICTURES[event](verdict=self.verdict, **data)
            super().tell(event, frame, **data)


# Laws


def law_of(call: Callable[[Draws], Any]) -> tuple[dict[Any, Fraction], dict[Any, list[int]]]:
    """The law of what `call` returns, and for each outcome the turns of its likeliest path."""

    def once(rng: Branching) -> tuple[Any, list[int]]:
        return call(Draws(rng)), rng.script

    law: dict[Any, Fraction] = defaultdict(Fraction)
    turns: dict[Any, tuple[Fraction, list[int]]] = {}
    with unrecorded():
        for (outcome, script), probability in every_path(once):
            law[outcome] += probability
            turns[outcome] = max(turns.get(outcome, (Fraction(0), [])), (probability, script))
    return dict(law), {outcome: script for outcome, (_, script) in turns.items()}


def furthest(came: Mapping[Any, Fraction], right: Mapping[Any, Fraction]) -> Any:
    """What comes out too often by most, None where two laws agree."""
    off = {each: came[each] - right.get(each, 0) for each in came}
    worst = max(off, key=lambda each: off[each])
    return worst if off[worst] > ROUNDING else None


class Odds:
    """A probability, written as a fraction."""

    def __init__(self, probability: Any) -> None:
        self.exact = Fraction(probability).limit_denominator(10**6)

    def __repr__(self) -> str:
        return f"probability {self.exact}"


def emits(rule: Callable[..., Any], target: Any, draft: Any, tokens: Any, rng: Any) -> Emitted:
    """What a rule emits. `Broken` for what is no beginning of the draft and one token more."""
    came = rule(target, draft, list(tokens), rng)
    if not isinstance(came, list) or not all(isinstance(x, int | np.integer) for x in came):
        raise Broken("what is emitted is a list of tokens", came)
    if not 1 <= len(came) <= len(tokens) + 1 or came[:-1] != list(tokens[: len(came) - 1]):
        raise Broken("what is emitted is a beginning of the draft, which may be empty, and one token more", came,
                     f"drafts {list(tokens)}")  # fmt: skip
    return tuple(map(int, came))


def follows(
    rule: Callable[..., Any], right: Law, target: Sequence[Any], draft: Sequence[Any], tokens: Sequence[int]
) -> None:
    """A rule's law, given the drafts, is the right one. Of a recording, it is shown on what comes too often."""
    came, turns = law_of(lambda rng: emits(rule, copy.deepcopy(target), copy.deepcopy(draft), tokens, rng))
    worst = furthest(came, right)
    if worst is None:
        return
    if recording():
        verdict = Verdict(rule, target, draft, list(tokens))
        replay(verdict, turns[worst], lambda rng: emits(rule, target, draft, tokens, rng))
    given = f"given the drafts {list(tokens)}" if tokens else "without drafts"
    raise Broken(f"{given}, {list(worst)} is emitted too often", Odds(came[worst]),
                 Odds(right.get(worst, 0)))  # fmt: skip


def replay(verdict: Verdict, turns: Sequence[int], call: Callable[[Any], Any]) -> None:
    """One path once more, told step by step, as far as it goes."""
    draws = Draws(Branching(turns))
    draws.recording = Telling(verdict, draws)
    with suppress(Exception):  # what is wrong is said elsewhere
        call(draws.recording)


def gives_the_target(rule: Callable[..., Any], target: Sequence[Any], draft: Sequence[Any]) -> None:
    """Texts that begin with a step, its drafts drawn from `draft`, and are continued by the target, have its law."""

    tokens: list[int] = []

    def step(draws: Any) -> Emitted:
        tokens[:] = [draws.branching.choose(q, i) for i, q in enumerate(draft)]  # the drafter's randomness is its own
        return emits(rule, target, draft, tokens, draws)

    law, turns = law_of(step)
    texts, right = continued(law, target), joint(target, len(target))
    worst = furthest(texts, right)
    if worst is None:
        return
    if recording():
        shown = max((each for each in law if worst[: len(each)] == each), key=lambda each: law[each])
        replay(Verdict(rule, target, draft, tokens), turns[shown], step)
    raise Broken(f"the text {list(worst)} comes too often", Odds(texts[worst]), Odds(right.get(worst, 0)))


def joint(target: Sequence[Any], texts: int) -> Law:
    """The target's law over texts of a length: the product along each text."""
    vocab = range(len(target[0]))
    law = {text: _product(p[x] for p, x in zip(target, text)) for text in product(vocab, repeat=texts)}
    return {text: w for text, w in law.items() if w}


def continued(law: Law, target: Sequence[Any]) -> Law:
    """The law of what is emitted, continued by the target to the length of `target`."""
    whole: dict[Emitted, Fraction] = defaultdict(Fraction)
    for emitted, w in law.items():
        for rest, v in joint(target[len(emitted) :] or [[Fraction(1)]], len(target) - len(emitted)).items():
            whole[emitted + rest] += w * v
    return dict(whole)


def _product(factors: Any) -> Fraction:
    result = Fraction(1)
    for factor in factors:
        result *= factor
    return result


# The laws that the rules must have, given the drafts


def excess(p: Any, q: Any, w: Any = 1) -> list[Fraction]:
    """(w p − q)⁺."""
    return [max(w * a - b, Fraction(0)) for a, b in zip(p, q)]


def spread(law: dict[Emitted, Fraction], before: Sequence[int], weight: Fraction, of: Sequence[Any]) -> None:
    """Add a draw from `of` behind `before`."""
    if weight:
        for y, w in enumerate(of):
            if w:
                law[*before, y] = law.get((*before, y), Fraction(0)) + weight * w / sum(of)


def token_wise_law(target: Sequence[Any], draft: Sequence[Any], tokens: Sequence[int]) -> Law:
    """2211.17192, Algorithm 1."""
    law: dict[Emitted, Fraction] = {}
    still = Fraction(1)
    for i, x in enumerate(tokens):
        kept = min(Fraction(1), target[i][x] / draft[i][x])
        spread(law, tokens[:i], still * (1 - kept), excess(target[i], draft[i]))
        still *= kept
    spread(law, tokens, still, target[-1])
    return law


def block_law(target: Sequence[Any], draft: Sequence[Any], tokens: Sequence[int]) -> Law:
    """2403.10444, Algorithm 2: from the longest beginning to the shortest, the first that passes is kept."""
    w = [Fraction(1)]
    for p, q, x in zip(target, draft, tokens):
        w.append(min(Fraction(1), w[-1] * p[x] / q[x]))
    law: dict[Emitted, Fraction] = {}
    spread(law, tokens, w[-1], target[-1])
    still = 1 - w[-1]  # that no longer one has passed
    for i in reversed(range(len(tokens))):
        owed = excess(target[i], draft[i], w[i])
        total = sum(owed) + 1 - w[i]
        passes = (sum(owed) / total if total else Fraction(1)) if i else Fraction(1)  # the empty one always
        spread(law, tokens[:i], still * passes, owed)
        still *= 1 - passes
    return law


# What holds of every rule on floats


class Scripted:
    """Randomness that is settled beforehand: the numbers, and which of the tokens that have a weight is drawn."""

    def __init__(self, numbers: Sequence[float], pick: int) -> None:
        self.numbers, self.pick = numbers, pick

    def uniform(self, i: int) -> float:
        """The i-th number, from the beginning again where they end."""
        return self.numbers[i % len(self.numbers)]

    def choose(self, weights: Any, i: int) -> int:
        """One of the tokens with a weight."""
        if not isinstance(weights, np.ndarray):
            raise Broken("rng.choose takes an array", weights)
        check_weights(weights)
        possible = np.flatnonzero(weights)
        return int(possible[self.pick % len(possible)])


NUMBERS = st.lists(st.sampled_from([0.5, 0.0, 0.25, 0.75, 1 - 2**-53]), min_size=1, max_size=3)


def emits_what_the_target_can_say(
    rule: Callable[..., Any],
    target: list[np.ndarray],
    draft: Any,
    tokens: Sequence[int],
    numbers: Sequence[float],
    pick: int,
) -> None:
    """On floats: all that is emitted has p > 0; nothing is changed, nothing remembered."""
    given = copy.deepcopy((target, draft))
    first = emits(rule, target, draft, tokens, Scripted(numbers, pick))
    for i, x in enumerate(first):
        if not target[i][x] > 0:
            raise Broken(f"token {x} is emitted at place {i}, where its p is 0", list(first))
    for name, came, before in zip(("target", "draft"), (target, draft), given):
        if not all(np.array_equal(a, b) for a, b in zip(came, before)):
            raise Broken(f"the rule changes `{name}`", came, before)
    expect(emits(rule, target, draft, tokens, Scripted(numbers, pick)), first, "the same input gives the same again")
