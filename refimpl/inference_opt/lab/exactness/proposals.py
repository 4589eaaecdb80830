"""How drafts are drawn, and what a rule is given of them: a chain, siblings, a tree. Only what it reads is drawn."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from inference_opt.speculative import rules
from inference_opt.speculative.coupled_tree import coupled_tree
from inference_opt.speculative.rules import Probs, Randomness
from inference_opt.speculative.traversal import traversal

Prefix = tuple[int, ...]
Model = Callable[[Prefix], Sequence[Fraction]]  # the distribution of the token after a prefix
ByStart = Callable[[Prefix], Model]  # a drafter's model, by the text at the start of the step
Rule = Callable[[Any, Any, Any, Randomness], list[int]]
# (target, draft, prefix, gamma, choose) → what a rule takes: the target's distributions, the draft's, the tokens
Propose = Callable[[Model, Any, Prefix, int, Callable[[Probs, int], int]], tuple[Any, Any, Any]]


class Lazy(Sequence[Any]):
    """A sequence that is drawn when it is read: what a rule never reads need not be enumerated."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self.so_far: list[Any] = []  # what has been read

    def __getitem__(self, i: Any) -> Any:
        while i >= len(self.so_far):
            try:
                self.so_far.append(next(self._items))
            except StopIteration:
                raise IndexError(i) from None
        return self.so_far[i]

    def __len__(self) -> int:
        self.so_far.extend(self._items)
        return len(self.so_far)


def chain(
    target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
) -> tuple[Sequence[Any], Sequence[Any], Sequence[int]]:
    """One draft of gamma tokens, each drawn from the draft model's distribution after the one before."""

    def guess() -> Iterator[tuple[int, Probs]]:
        text = prefix
        for i in range(gamma):
            q = probs_behind(draft, text)
            text = (*text, choose(q, i))
            yield text[-1], q

    guesses = Lazy(guess())
    tokens = Lazy(x for x, _ in guesses)
    return target_along(target, prefix, tokens), Lazy(q for _, q in guesses), tokens


def target_along(target: Model, prefix: Prefix, tokens: Sequence[int]) -> Sequence[Any]:
    """The target's distributions after a prefix and after each token of a draft."""

    def read() -> Iterator[Probs]:
        text = prefix
        yield probs_behind(target, text)
        for x in tokens:
            text = (*text, x)
            yield probs_behind(target, text)

    return Lazy(read())


def siblings(replacement: bool = False) -> Propose:
    """gamma candidates for one position (fewer, where the draft's distribution has fewer tokens)."""

    def propose(
        target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
    ) -> tuple[Sequence[Probs], Sequence[Probs], Sequence[int]]:
        probs, tokens = _candidates(probs_behind(draft, prefix), gamma, choose, replacement)
        return [probs_behind(target, prefix), *(probs_behind(target, (*prefix, x)) for x in tokens)], probs, tokens

    return propose


def branching(width: int = 2, replacement: bool = False) -> Propose:
    """A tree of depth gamma, with `width` candidates at each node."""

    def propose(
        target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
    ) -> tuple[Any, Any, Any]:
        drawn = _OnDemand(
            lambda path: _candidates(
                probs_behind(draft, prefix + path), width if len(path) < gamma else 0, choose, replacement
            )
        )
        probs = _OnDemand(lambda path: drawn[path][0])
        tokens = _OnDemand(lambda path: drawn[path][1])
        return _OnDemand(lambda path: probs_behind(target, prefix + path)), probs, tokens

    return propose


def from_start(propose: Propose) -> Propose:
    """The same drafts, by a drafter that sees where the step began: `draft(start)` is its model for that step.

    `NGram` drafts like this: it counts the text but not the drafts, so its distribution after a prefix differs between
    a step that drafted the end of the prefix and one that found it committed.
    """
    return lambda target, draft, start, gamma, choose: propose(target, draft(start), start, gamma, choose)


PROPOSALS: dict[Rule, Propose] = {
    rules.multi_draft: siblings(),
    **dict.fromkeys((rules.tree, coupled_tree, traversal), branching()),
}


def _candidates(
    q: Probs, count: int, choose: Callable[[Probs, int], int], replacement: bool
) -> tuple[list[Probs], list[int]]:
    probs: list[Probs] = []
    tokens: list[int] = []
    while len(tokens) < count and q.any():
        probs.append(q / q.sum())
        tokens.append(choose(probs[-1], len(tokens)))
        if not replacement:
            q = q.copy()
            q[tokens[-1]] = Fraction(0)
    return probs, tokens


class _OnDemand(dict[Prefix, Any]):
    def __init__(self, make: Callable[[Prefix], Any]) -> None:
        self.make = make

    def __missing__(self, path: Prefix) -> Any:
        return self.setdefault(path, self.make(path))


def probs_behind(model: Model, text: Prefix) -> Probs:
    """A model's distribution after a text, as exact numbers. ValueError if it is not a distribution."""
    probs = np.array([Fraction(weight) for weight in model(text)], dtype=object)
    if (probs < 0).any() or probs.sum() != 1:
        given = [str(w) for w in probs]
        raise ValueError(f"behind {text} the model gives {given}: expected probabilities ≥ 0 that sum to one")
    return probs
