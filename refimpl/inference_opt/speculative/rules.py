"""Acceptance rules: how much of a draft is kept, so that the text still follows the target's distribution.

A drafter guessed tokens x_1 … x_γ, each drawn from a distribution q. The target then read them all at once and gave a
distribution p before and after each. A rule looks at both, and emits the accepted prefix of the draft and one more:

        draft      x_1  x_2  x_3  x_4            p = target (Leviathan et al. 2211.17192 write p, q as we do;
        target   p_0  p_1  p_2  p_3  p_4         Chen et al. 2302.01318 swap the letters)
        emitted    x_1  x_2  y                   x_3 rejected, y drawn in its place

Every rule is a pure function of `target`, `draft`, `tokens` and `rng`. Distributions are numpy arrays over the
vocabulary, of floats in the engine and of `Fraction`s in `lab/exactness/`. The same lines run on both, so what is
proved with fractions holds, up to rounding, for floats. `rng` gives numbers in [0, 1) and draws; the i-th of a step is
independent of all others (except for `coupled`, which shares its draws with the drafter on purpose). Greedy decoding
needs no case of its own: all of p is on one token, and a draft is accepted if it is that token.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

Probs = Shaped[np.ndarray, "vocab"]  # a distribution, of floats or Fractions
Path = tuple[int, ...]  # a node of a tree of drafts, by the tokens from the root to it; () is the text so far


@runtime_checkable
class Randomness(Protocol):
    """Where randomness comes from: `Noise` draws, `Branching` takes every outcome in turn, a recording tells of it."""

    def uniform(self, i: int) -> Any:
        """A number in [0, 1), to be compared."""

    def choose(self, weights: Probs, i: int) -> int:
        """A token, with probability in proportion to its weight."""


def token_wise(target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness) -> list[int]:
    """Accept each x with probability min(1, p(x) / q(x)) (2211.17192, Algorithm 1; 2302.01318, Algorithm 2).

    Acceptance emits a token with probability q · min(1, p/q) = min(p, q). What p still lacks is (p − q)⁺, and a
    rejection draws from exactly that: min(p, q) + (p − q)⁺ = p.
    """
    emitted: list[int] = []
    for i, (p, q, x) in enumerate(zip(target, draft, tokens)):
        if not rng.uniform(i) < ratio(p[x], q[x]):  # strictly: a token with p(x) = 0 is rejected, u = 0 included
            return [*emitted, rng.choose(residual(p, q), i)]
        emitted.append(x)
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


def ratio(p: Any, q: Any) -> Any:
    """min(1, p/q), without the division where it is 1: it would overflow for q near 0."""
    return p / q if p < q else 1


def residual(p: Probs, q: Probs) -> Probs:
    """(p − q)⁺, not normalised. If it has no mass, p = q, and only rounding can have rejected: then p."""
    excess = np.maximum(p - q, 0)
    return excess if excess.any() else p


def block(target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness) -> list[int]:
    """Judge the draft as a whole, and keep the longest prefix that passes (Sun et al. 2403.10444, Algorithm 2).

    w_i = min(1, w_{i−1} p(x_i) / q(x_i)) carries over what earlier tokens had in excess; `token_wise` throws it away at
    each token, so `block` accepts no fewer tokens on average. The first i drafts pass with probability
    h_i = S_i / (S_i + 1 − w_i), S_i = Σ (w_i p − q)⁺ of the distributions behind them, and h_γ = w_γ.
    """
    tokens = list(tokens)
    w: list[Any] = [1]
    accepted = 0
    for i, x in enumerate(tokens, start=1):
        w.append(ratio(w[i - 1] * target[i - 1][x], draft[i - 1][x]))
        h = w[i]
        if i < len(tokens):
            excess = np.maximum(w[i] * target[i] - draft[i], 0).sum()
            # 0/0: no excess and w = 1. A later prefix passes for certain, so this one need not.
            h = excess / (excess + 1 - w[i]) if excess + 1 - w[i] > 0 else 0
        if rng.uniform(i) < h:
            accepted = i
    p = target[accepted]
    rest = residual(w[accepted] * p, draft[accepted]) if accepted < len(tokens) else p
    return [*tokens[:accepted], rng.choose(rest, accepted)]


def coupled(target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness) -> list[int]:
    """Draw the target's own token, and go on as long as the draft's is the same (Daliri, Musco & Suresh 2408.07978).

    The drafter drew with the same noise, so both often choose the same token. What is emitted never depends on the
    draft: the same seed gives the same text with any drafter, or none.
    """
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        emitted.append(rng.choose(target[i], i))
        if emitted[i] != x:
            return emitted
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


def point_mass(target: Sequence[Probs], draft: Any, tokens: Sequence[int], rng: Randomness) -> list[int]:
    """`token_wise` where q is 1 at x: the draft was found (prompt lookup), not drawn. The residual is p without x."""
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        p = target[i]
        if not rng.uniform(i) < p[x]:
            rest = p.copy()
            rest[x] = 0
            return [*emitted, rng.choose(rest if rest.any() else p, i)]
        emitted.append(x)
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


def multi_draft(target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness) -> list[int]:
    """Several candidates for one position, tried in turn (Miao et al. 2305.09781, SpecInfer; Chen et al. 2402.12374).

    target[0] is the distribution at the position, target[j + 1] the one after candidate j. draft[j] is the distribution
    of candidate j *given those before it*: with replacement always q, without replacement q without the earlier
    candidates, normalised. The residual of each rejection is the target of the next try.
    """
    winner, rest = try_all(target[0], draft, tokens, rng, 0)
    if winner is None:
        return [rng.choose(rest, 0)]
    return [tokens[winner], rng.choose(target[winner + 1], 1)]


def try_all(
    p: Probs, draft: Sequence[Probs], candidates: Sequence[int], rng: Randomness, tried: int
) -> tuple[int | None, Probs]:
    """The first candidate accepted, or None and what is left of p. `tried`: draws set aside by nodes above."""
    for j, x in enumerate(candidates):
        q = draft[j]
        if rng.uniform(tried + j) < ratio(p[x], q[x]):
            return j, p
        p = residual(p, q)
        p = p / p.sum()
    return None, p


def tree(
    target: Mapping[Path, Probs],
    draft: Mapping[Path, Sequence[Probs]],
    tokens: Mapping[Path, Sequence[int]],
    rng: Randomness,
) -> list[int]:
    """Several candidates at every node: walk down as long as one is accepted (2305.09781; EAGLE 2401.15077).

    target[path] is the distribution after a node, tokens[path] the candidates there (none: a leaf), draft[path] what
    they were drawn from. Depth 1 is `multi_draft`; a single candidate at every node is `token_wise`.
    """
    path: Path = ()
    tried = 0
    while True:
        candidates = tokens[path]
        winner, rest = try_all(target[path], draft[path], candidates, rng, tried)
        if winner is None:  # rejected, or a leaf, where p is whole
            return [*path, rng.choose(rest, len(path))]
        tried += len(candidates)
        path = (*path, candidates[winner])
