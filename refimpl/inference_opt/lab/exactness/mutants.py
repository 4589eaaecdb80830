"""Acceptance rules and drafters with one thing wrong each. `zoo.py` says where each was met.

The line that differs from `rules.py` is marked with ✗. Like the right ones, they run on Fractions and on floats.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product

import numpy as np

from inference_opt.lab.exactness.proposals import Lazy, Model, Prefix, Propose, siblings, target_along
from inference_opt.speculative.rules import Probs, Randomness, ratio, residual

Distributions = Sequence[Probs]
Tokens = Sequence[int]


def no_residual(target: Distributions, draft: Distributions, tokens: Tokens, rng: Randomness) -> list[int]:
    """A rejected token is replaced by a draw from p, which includes what was already accepted."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not rng.uniform(i) < ratio(target[i][x], draft[i][x]):
            return [*emitted, rng.choose(target[i], i)]  # ✗
        emitted.append(x)
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


def residual_at_the_token(target: Distributions, draft: Distributions, tokens: Tokens, rng: Randomness) -> list[int]:
    """q is subtracted from p at the rejected token only."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not rng.uniform(i) < ratio(target[i][x], draft[i][x]):
            rest = target[i].copy()
            rest[x] = max(rest[x] - draft[i][x], 0)  # ✗
            return [*emitted, rng.choose(rest, i)]
        emitted.append(x)
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


def softmax_residual(target: Distributions, draft: Distributions, tokens: Tokens, rng: Randomness) -> list[int]:
    """The residual goes through a softmax instead of a division by its sum: nearly uniform, and nowhere zero."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not rng.uniform(i) < ratio(target[i][x], draft[i][x]):
            rest = [type(r)(math.exp(r)) for r in np.maximum(target[i] - draft[i], 0)]  # ✗
            return [*emitted, rng.choose(np.array(rest), i)]
        emitted.append(x)
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


def lenient(target: Distributions, draft: Distributions, tokens: Tokens, rng: Randomness) -> list[int]:
    """A token is accepted with probability min(1, p / (q / 2)): lenience ½, lossy by design (2211.17192, A.5)."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not rng.uniform(i) < ratio(2 * target[i][x], draft[i][x]):  # ✗
            return [*emitted, rng.choose(residual(target[i], draft[i]), i)]
        emitted.append(x)
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


def typical(target: Distributions, draft: Distributions, tokens: Tokens, rng: Randomness) -> list[int]:
    """A draft is accepted if p ≥ ¼; otherwise the target's most probable token is emitted."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not target[i][x] >= Fraction(1, 4):  # ✗
            return [*emitted, int(np.argmax(target[i]))]  # ✗
        emitted.append(x)
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


def one_uniform(target: Distributions, draft: Distributions, tokens: Tokens, rng: Randomness) -> list[int]:
    """One number decides at every position: if the first draft was accepted, the number was small."""
    emitted: list[int] = []
    u = rng.uniform(0)  # ✗
    for i, x in enumerate(tokens):
        if not u < ratio(target[i][x], draft[i][x]):
            return [*emitted, rng.choose(residual(target[i], draft[i]), i)]
        emitted.append(x)
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


def accept_all(target: Distributions, draft: Distributions, tokens: Tokens, rng: Randomness) -> list[int]:
    """All drafts are accepted: only the bonus token is the target's."""
    return [*tokens, rng.choose(target[len(tokens)], len(tokens))]  # ✗


def stale_bonus(target: Distributions, draft: Distributions, tokens: Tokens, rng: Randomness) -> list[int]:
    """After full acceptance the bonus token is drawn from the residual of the last draft's position."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not rng.uniform(i) < ratio(target[i][x], draft[i][x]):
            return [*emitted, rng.choose(residual(target[i], draft[i]), i)]
        emitted.append(x)
    last = len(emitted) - 1
    return [*emitted, rng.choose(residual(target[last], draft[last]), last + 1)]  # ✗


def at_most(target: Distributions, draft: Distributions, tokens: Tokens, rng: Randomness) -> list[int]:
    """u ≤ p / q: if u is 0, a token is accepted that the target never emits."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        if not rng.uniform(i) <= ratio(target[i][x], draft[i][x]):  # ✗
            return [*emitted, rng.choose(residual(target[i], draft[i]), i)]
        emitted.append(x)
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


def block_unscaled(target: Distributions, draft: Distributions, tokens: Tokens, rng: Randomness) -> list[int]:
    """Block verification that then draws from (p − q)⁺, as token-wise does."""
    tokens = list(tokens)
    accepted = 0
    w = 1
    for i, x in enumerate(tokens, start=1):
        w = ratio(w * target[i - 1][x], draft[i - 1][x])
        h = w
        if i < len(tokens):
            excess = np.maximum(w * target[i] - draft[i], 0).sum()
            h = excess / (excess + 1 - w) if excess + 1 - w > 0 else 0
        if rng.uniform(i) < h:
            accepted = i
    if accepted == len(tokens):
        return [*tokens, rng.choose(target[accepted], accepted)]
    return [*tokens[:accepted], rng.choose(residual(target[accepted], draft[accepted]), accepted)]  # ✗


def chain_of(drawn: Callable[[Probs], Probs], scored: Callable[[Probs], Probs]) -> Propose:
    """A chain whose tokens are drawn from drawn(q) and reported with scored(q). Exact only if the two agree."""

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
        tokens = Lazy(x for x, _ in guesses)
        return target_along(target, prefix, tokens), Lazy(q for _, q in guesses), tokens

    return propose


def as_is(q: Probs) -> Probs:
    """q, unchanged."""
    return q


def top(k: int) -> Callable[[Probs], Probs]:
    """q, given that the token is one of the k most probable (ties go to the lowest id). k = 1 is greedy."""

    def filtered(q: Probs) -> Probs:
        kept = np.array([Fraction(0)] * len(q), dtype=object)
        for x in sorted(range(len(q)), key=lambda x: -q[x])[:k]:
            kept[x] = q[x]
        return kept / kept.sum()

    return filtered


def cold(q: Probs) -> Probs:
    """q at temperature ½: its squares."""
    return q * q / (q * q).sum()


def coarse(q: Probs) -> Probs:
    """q with four significant bits: up to 6 % off, like the softmax of bfloat16 logits between 16 and 32."""
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
        probs: list[Probs] = []
        while len(tokens) < gamma:
            q = np.array(draft(prefix + tuple(tokens)), dtype=object)
            x = choose(q, len(tokens))
            unsure = q[x] < Fraction(1, 3)
            if keep or not unsure:  # ✗ if not keep: those that remain were drawn from q given q ≥ ⅓
                tokens.append(x)
                probs.append(q)
            if unsure:
                break
        return target_along(target, prefix, tokens), probs, tokens

    return propose


def beam(
    target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
) -> tuple[Sequence[Probs], Sequence[Probs], Sequence[int]]:
    """The most probable text of gamma tokens, found by search and not drawn, but reported with q."""

    def along(tokens: Sequence[int]) -> list[Probs]:
        return [np.array(draft(prefix + tuple(tokens[:i])), dtype=object) for i in range(gamma)]

    texts = product(range(len(draft(prefix))), repeat=gamma)
    best = max(texts, key=lambda tokens: math.prod(q[x] for q, x in zip(along(tokens), tokens)))
    return target_along(target, prefix, best), along(best), best  # ✗ exact with `point_mass`, which does not look at q


def original_q(
    target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
) -> tuple[Sequence[Probs], Sequence[Probs], Sequence[int]]:
    """Candidates drawn without replacement, each reported with the distribution before any was taken away."""
    behind, probs, tokens = siblings()(target, draft, prefix, gamma, choose)
    return behind, [probs[0]] * len(tokens), tokens  # ✗
