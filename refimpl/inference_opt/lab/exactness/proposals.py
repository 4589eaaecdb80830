"""How drafts are drawn, and what a rule is given of them: a chain, siblings, a tree. Only what it reads is drawn."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from inference_opt.lab.exactness.lazy import Lazy
from inference_opt.speculative import rules
from inference_opt.speculative.rules import Probs, Randomness

Prefix = tuple[int, ...]
Model = Callable[[Prefix], Sequence[Fraction]]  # the law of the token behind a prefix
ByStart = Callable[[Prefix], Model]  # a drafter's model, by the text that a step begins behind
Rule = Callable[[Any, Any, Any, Randomness], list[int]]
# (target, draft, prefix, gamma, choose) → what a rule takes: target's laws, draft's laws, tokens
Propose = Callable[[Model, Any, Prefix, int, Callable[[Probs, int], int]], tuple[Any, Any, Any]]


# [proposals]
def chain(
    target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
) -> tuple[Sequence[Any], Sequence[Any], Sequence[int]]:
    """One draft of gamma tokens, each from the draft's law behind the one before."""

    def guess() -> Iterator[tuple[int, Probs]]:
        text = prefix
        for i in range(gamma):
            law = law_behind(draft, text)
            text = (*text, choose(law, i))
            yield text[-1], law

    guesses = Lazy(guess())
    return verdicts(target, prefix, tokens := Lazy(x for x, _ in guesses)), Lazy(q for _, q in guesses), tokens


def verdicts(target: Model, prefix: Prefix, tokens: Sequence[int]) -> Sequence[Any]:
    """The target's laws behind a prefix and behind each token of a draft."""

    def read() -> Iterator[Probs]:
        text = prefix
        yield law_behind(target, text)
        for x in tokens:
            text = (*text, x)
            yield law_behind(target, text)

    return Lazy(read())


def siblings(replacement: bool = False) -> Propose:
    """gamma candidates for one position (fewer, where the draft's law has no more to give)."""

    def propose(
        target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
    ) -> tuple[Sequence[Probs], Sequence[Probs], Sequence[int]]:
        laws, tokens = _candidates(law_behind(draft, prefix), gamma, choose, replacement)
        return [law_behind(target, prefix), *(law_behind(target, (*prefix, x)) for x in tokens)], laws, tokens

    return propose


def branching(width: int = 2, replacement: bool = False) -> Propose:
    """A tree of depth gamma, with `width` candidates at each node."""

    def propose(
        target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
    ) -> tuple[Any, Any, Any]:
        drawn = _OnDemand(
            lambda path: _candidates(
                law_behind(draft, prefix + path), width if len(path) < gamma else 0, choose, replacement
            )
        )
        laws, tokens = _OnDemand(lambda path: drawn[path][0]), _OnDemand(lambda path: drawn[path][1])
        return _OnDemand(lambda path: law_behind(target, prefix + path)), laws, tokens

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
    law: Probs, count: int, choose: Callable[[Probs, int], int], replacement: bool
) -> tuple[list[Probs], list[int]]:
    laws: list[Probs] = []
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


def law_behind(model: Model, text: Prefix) -> Probs:
    """A model's law behind a text, as exact numbers. ValueError where it is none."""
    law = np.array([Fraction(weight) for weight in model(text)], dtype=object)
    if (law < 0).any() or law.sum() != 1:
        raise ValueError(f"behind {text} the model gives {[str(w) for w in law]}, which is no law: it must sum to one")
    return law
