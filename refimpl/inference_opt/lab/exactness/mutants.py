"""Acceptance rules and drafters with one thing wrong each. `zoo.py` says where each was met.

The line that differs from `rules.py` is marked with ✗. They run on Fractions and on floats, as the right ones do.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product

import numpy as np

from inference_opt.lab.exactness.lazy import Lazy
from inference_opt.lab.exactness.proposals import Model, Prefix, Propose, siblings, verdicts
from inference_opt.speculative.rules import Probs, Randomness, residual

Laws = Sequence[Probs]
Tokens = Sequence[int]


# [rules]
def no_residual(target: Laws, draft: Laws, tokens: Tokens, chance: Randomness) -> list[int]:
    """A rejected token is replaced by a draw from p: what acceptance let through already comes twice."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not chance.uniform(i) < target[i][x] / draft[i][x]:
            return [*emitted, chance.choose(target[i], i)]  # ✗
        emitted.append(x)
    return [*emitted, chance.choose(target[len(emitted)], len(emitted))]


def residual_at_the_token(target: Laws, draft: Laws, tokens: Tokens, chance: Randomness) -> list[int]:
    """q is subtracted from p at the rejected token only."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not chance.uniform(i) < target[i][x] / draft[i][x]:
            rest = target[i].copy()
            rest[x] = max(rest[x] - draft[i][x], 0)  # ✗
            return [*emitted, chance.choose(rest, i)]
        emitted.append(x)
    return [*emitted, chance.choose(target[len(emitted)], len(emitted))]


def softmax_residual(target: Laws, draft: Laws, tokens: Tokens, chance: Randomness) -> list[int]:
    """The residual goes through a softmax in place of a division by its sum: nearly uniform, and nowhere zero."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not chance.uniform(i) < target[i][x] / draft[i][x]:
            rest = [Fraction(math.exp(r)) for r in np.maximum(target[i] - draft[i], 0)]  # ✗
            return [*emitted, chance.choose(np.array(rest), i)]
        emitted.append(x)
    return [*emitted, chance.choose(target[len(emitted)], len(emitted))]


def lenient(target: Laws, draft: Laws, tokens: Tokens, chance: Randomness) -> list[int]:
    """A token is accepted with probability p / (q / 2): lenience ½ (2211.17192, A.5), which says that it is lossy."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not chance.uniform(i) < 2 * target[i][x] / draft[i][x]:  # ✗
            return [*emitted, chance.choose(residual(target[i], draft[i]), i)]
        emitted.append(x)
    return [*emitted, chance.choose(target[len(emitted)], len(emitted))]


def typical(target: Laws, draft: Laws, tokens: Tokens, chance: Randomness) -> list[int]:
    """Whatever the target finds likely enough is accepted, here p ≥ ¼; else its favourite token is taken."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not target[i][x] >= Fraction(1, 4):  # ✗
            return [*emitted, int(np.argmax(target[i]))]  # ✗
        emitted.append(x)
    return [*emitted, chance.choose(target[len(emitted)], len(emitted))]


def one_uniform(target: Laws, draft: Laws, tokens: Tokens, chance: Randomness) -> list[int]:
    """One number decides at every position: that the first draft passed says that it was small."""
    emitted: list[int] = []
    u = chance.uniform(0)  # ✗
    for i, x in enumerate(tokens):
        if not u < target[i][x] / draft[i][x]:
            return [*emitted, chance.choose(residual(target[i], draft[i]), i)]
        emitted.append(x)
    return [*emitted, chance.choose(target[len(emitted)], len(emitted))]


def accept_all(target: Laws, draft: Laws, tokens: Tokens, chance: Randomness) -> list[int]:
    """The drafts come through, all of them: only the bonus token is the target's."""
    return [*tokens, chance.choose(target[len(tokens)], len(tokens))]  # ✗


def stale_bonus(target: Laws, draft: Laws, tokens: Tokens, chance: Randomness) -> list[int]:
    """After full acceptance the bonus token is drawn from what was left at the last draft's position."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not chance.uniform(i) < target[i][x] / draft[i][x]:
            return [*emitted, chance.choose(residual(target[i], draft[i]), i)]
        emitted.append(x)
    last = len(emitted) - 1
    return [*emitted, chance.choose(residual(target[last], draft[last]), last + 1)]  # ✗


def at_most(target: Laws, draft: Laws, tokens: Tokens, chance: Randomness) -> list[int]:
    """u ≤ p / q: a number that can be 0 lets a token pass that the target never says."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not chance.uniform(i) <= target[i][x] / draft[i][x]:  # ✗
            return [*emitted, chance.choose(residual(target[i], draft[i]), i)]
        emitted.append(x)
    return [*emitted, chance.choose(target[len(emitted)], len(emitted))]


def block_unscaled(target: Laws, draft: Laws, tokens: Tokens, chance: Randomness) -> list[int]:
    """Block verification that then draws from (p − q)⁺, as token-wise does."""
    tokens = list(tokens)
    accepted, w = 0, 1
    for i, x in enumerate(tokens, start=1):
        w = min(w * target[i - 1][x] / draft[i - 1][x], 1)
        h = w
        if i < len(tokens):
            excess = np.maximum(w * target[i] - draft[i], 0).sum()
            h = excess / (excess + 1 - w) if excess + 1 - w > 0 else 0
        if chance.uniform(i) < h:
            accepted = i
    if accepted == len(tokens):
        return [*tokens, chance.choose(target[accepted], accepted)]
    return [*tokens[:accepted], chance.choose(residual(target[accepted], draft[accepted]), accepted)]  # ✗


# [/rules]


# [drafters]
def chain_of(drawn: Callable[[Probs], Probs], scored: Callable[[Probs], Probs]) -> Propose:
    """A chain whose tokens are drawn from one reading of q and reported with another. Exact only if they agree."""

    def propose(
        target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
    ) -> tuple[Sequence[Probs], Sequence[Probs], Sequence[int]]:
        def guess() -> Iterator[tuple[int, Probs]]:
            text = prefix
            for i in range(gamma):
                q = np.array(draft(text), dtype=object)
                text = (*text, choose(drawn(q), i))
                yield text[-1], scored(q)

        guesses = Lazy(guess())
        return verdicts(target, prefix, tokens := Lazy(x for x, _ in guesses)), Lazy(q for _, q in guesses), tokens

    return propose


def as_is(q: Probs) -> Probs:
    """q."""
    return q


def top(k: int) -> Callable[[Probs], Probs]:
    """q, given that the token is one of the k likeliest (of equals the first). k = 1 is greedy."""

    def law(q: Probs) -> Probs:
        kept = np.array([Fraction(0)] * len(q), dtype=object)
        for x in sorted(range(len(q)), key=lambda x: -q[x])[:k]:
            kept[x] = q[x]
        return kept / kept.sum()

    return law


def cold(q: Probs) -> Probs:
    """q at temperature ½: its squares."""
    return q * q / (q * q).sum()


def coarse(q: Probs) -> Probs:
    """q with four significant bits: as far off, 6 %, as a softmax is whose logits between 16 and 32 are bfloat16."""
    rounded = []
    for weight in q:
        unit = Fraction(2) ** (math.floor(math.log2(weight)) - 3) if weight else Fraction(1)
        rounded.append(round(weight / unit) * unit)
    return np.array(rounded, dtype=object) / sum(rounded)


def stop_early(keep: bool) -> Propose:
    """Drafting ends at a token that was drawn with q < ⅓; the token is kept, which is right, or dropped."""

    def propose(
        target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
    ) -> tuple[Sequence[Probs], Sequence[Probs], Sequence[int]]:
        tokens: list[int] = []
        laws: list[Probs] = []
        while len(tokens) < gamma:
            q = np.array(draft(prefix + tuple(tokens)), dtype=object)
            x = choose(q, len(tokens))
            unsure = q[x] < Fraction(1, 3)
            if keep or not unsure:  # ✗ if not keep: those that remain were drawn from q given q ≥ ⅓
                tokens.append(x)
                laws.append(q)
            if unsure:
                break
        return verdicts(target, prefix, tokens), laws, tokens

    return propose


def beam(
    target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
) -> tuple[Sequence[Probs], Sequence[Probs], Sequence[int]]:
    """The likeliest text of gamma tokens, searched for, not drawn, and reported with q."""

    def laws(tokens: Sequence[int]) -> list[Probs]:
        return [np.array(draft(prefix + tuple(tokens[:i])), dtype=object) for i in range(gamma)]

    texts = product(range(len(draft(prefix))), repeat=gamma)
    best = max(texts, key=lambda tokens: math.prod(q[x] for q, x in zip(laws(tokens), tokens)))
    return verdicts(target, prefix, best), laws(best), best  # ✗ with `point_mass`, which looks at no law, it is exact


def original_q(
    target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
) -> tuple[Sequence[Probs], Sequence[Probs], Sequence[int]]:
    """Candidates drawn without replacement, each reported with the law before any was taken away."""
    behind, laws, tokens = siblings()(target, draft, prefix, gamma, choose)
    return behind, [laws[0]] * len(tokens), tokens  # ✗


# [/drafters]
