"""The exact distribution of what speculative decoding emits: all paths of random outcomes, added up in fractions.

A rule (of `rules.py`, or a wrong one of `mutants.py`) is run unchanged, on `Fraction`s. Where it asks for a draw,
`Branching` gives one outcome after the other, and keeps the probability of each. Where it compares a uniform number
with a threshold, both results are followed; after each, the number is known to lie on that side. So the distribution of
a step is a sum over all its paths, without sampling, tolerance or a second version of the rule. A *law*, in the names
of this package, is such a distribution over texts.
"""

from collections import defaultdict
from fractions import Fraction
from typing import Any

from inference_opt.lab.exactness.enumerate import Branching, Racing, every_path
from inference_opt.lab.exactness.proposals import PROPOSALS, ByStart, Model, Prefix, Propose, Rule, chain, probs_behind
from inference_opt.speculative import rules
from inference_opt.trace import emit


def step_law(
    target: Model, draft: Model | ByStart, gamma: int, rule: Rule, prefix: Prefix = (), propose: Propose | None = None
) -> dict[Prefix, Fraction]:
    """The distribution of what a step emits after a prefix: 1 to gamma + 1 tokens (gamma: see `output_law`)."""
    _check(gamma, "gamma")
    proposal = propose or PROPOSALS.get(rule, chain)

    def once(rng: Branching) -> tuple[Prefix, Any]:
        # The coupled rule races with the drafter's own noise; for the others the drafter's is its own.
        common = rule is rules.coupled
        ps, qs, tokens = proposal(target, draft, prefix, gamma, rng.race if common else rng.choose)
        return tuple(rule(ps, qs, tokens, Racing(rng) if common else rng)), rng.turns

    law: dict[Prefix, Fraction] = defaultdict(Fraction)
    for (emitted, turns), probability in every_path(once):
        law[emitted] += probability
        path = {"turns": turns, "emitted": emitted, "probability": probability}
        emit("law.path", target=target, prefix=prefix, law=law, path=path)
    return dict(law)


def output_law(
    target: Model, draft: Model | ByStart, gamma: int, rule: Rule, length: int, propose: Propose | None = None
) -> dict[Prefix, Fraction]:
    """The distribution of the first `length` tokens of a text that is decoded by speculative steps, exactly.

    `target` and `draft` give the distribution after a prefix as Fractions. `gamma`: drafts a step; for `multi_draft`
    the number of candidates, for `tree` its depth. `propose` says how drafts are drawn (`chain`, `siblings()`,
    `branching()`; the default fits the rule). If the draft's distribution also depends on where the step began,
    `draft` is a `ByStart` and `propose` is `from_start(chain)`, for example. ValueError for a gamma or length below 0
    and for a model that does not give a distribution.
    """
    _check(length, "length")
    open_: list[dict[Prefix, Fraction]] = [defaultdict(Fraction) for _ in range(length + 1)]  # texts by their length
    open_[0][()] = Fraction(1)
    for texts in open_[:-1]:
        for text, weight in texts.items():
            for emitted, probability in step_law(target, draft, gamma, rule, text, propose).items():
                longer = (text + emitted)[:length]
                open_[len(longer)][longer] += weight * probability
            emit("law.text", target=target, text=text, weight=weight, laws=open_)
    return dict(open_[length])


def joint_law(target: Model, length: int) -> dict[Prefix, Fraction]:
    """The target's distribution over texts of a length, the product along each text. An exact rule emits this."""
    texts: dict[Prefix, Fraction] = {(): Fraction(1)}
    for _ in range(length):
        texts = {(*t, x): w * p for t, w in texts.items() for x, p in enumerate(probs_behind(target, t)) if p > 0}
    return texts


def total_variation(a: dict[Prefix, Fraction], b: dict[Prefix, Fraction]) -> Fraction:
    """Half the sum of |a − b|: the largest difference in the probability of any event."""
    return sum((abs(a.get(t, Fraction(0)) - b.get(t, Fraction(0))) for t in {*a, *b}), Fraction(0)) / 2


def _check(value: int, name: str) -> None:
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
