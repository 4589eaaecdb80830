"""Acceptance rules: what of a draft the target keeps, so that the text's distribution stays the target's.

A drafter guessed tokens x_1 … x_γ, each drawn from a distribution q. The target has then read them all at once and
says, after each, its own distribution p. A rule looks at both, and emits the accepted beginning of the draft and one
token more:

        draft      x_1  x_2  x_3  x_4            p = target (Leviathan et al. 2211.17192 write p, q as we do;
        target   p_0  p_1  p_2  p_3  p_4         Chen et al. 2302.01318 swap the letters)
        emitted    x_1  x_2  y                   x_3 rejected, y drawn in its place

Every rule is a pure function of `target`, `draft`, `tokens` and `rng`. Distributions are numpy arrays over the
vocabulary, of floats in the engine and of `Fraction`s in `lab/exactness/`: the same lines run on both, and what is
proved of the one holds, up to rounding, of the other. `rng` is asked for numbers in [0, 1) and for draws; the i-th of
a step is independent of all others (but for `coupled`, which wants to share its draws with the drafter).

Greedy decoding needs no case of its own: all of p lies on one token, and a draft is accepted if it is that token.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

Probs = Shaped[np.ndarray, "vocab"]  # a distribution, of floats or Fractions
Path = tuple[int, ...]  # a node of a tree of drafts, by the tokens from the root to it; () is the text so far


@runtime_checkable
class Randomness(Protocol):
    """Where chance comes from: `sampling.Noise` draws, `lab/exactness` takes every turn there is, a recording tells."""

    def uniform(self, i: int) -> Any:
        """A number in [0, 1), to be compared."""
        ...

    def choose(self, weights: Probs, i: int) -> int:
        """A token, with probability in proportion to its weight."""
        ...


# [token_wise]
def token_wise(target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness) -> list[int]:
    """Accept each x with probability min(1, p(x) / q(x)) (2211.17192, Algorithm 1; 2302.01318, Algorithm 2).

    What acceptance lets through of a token is q · min(1, p/q) = min(p, q); what it leaves open is (p − q)⁺, and the
    one rejection draws from exactly that: min(p, q) + (p − q)⁺ = p.
    """
    emitted: list[int] = []
    for i, (p, q, x) in enumerate(zip(target, draft, tokens)):
        if not rng.uniform(i) < ratio(p[x], q[x]):  # strictly: a token with p(x) = 0 is rejected, u = 0 included
            return [*emitted, rng.choose(residual(p, q), i)]
        emitted.append(x)
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


def ratio(p: Any, q: Any) -> Any:
    """min(1, p/q), without the division where it is 1: of a q near 0 it would overflow."""
    return p / q if p < q else 1


def residual(p: Probs, q: Probs) -> Probs:
    """(p − q)⁺, not normalised. Without mass, p = q and rejection has probability 0: only rounding comes here."""
    excess = np.maximum(p - q, 0)
    return excess if excess.any() else p


# [/token_wise]


# [block]
def block(target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness) -> list[int]:
    """Judge the draft as a whole, and keep the longest beginning that passes (Sun et al. 2403.10444, Algorithm 2).

    w_i = min(1, w_{i−1} p(x_i) / q(x_i)) carries over what earlier tokens had in excess, where `token_wise` throws it
    away at each token; so it accepts no fewer tokens on average. Beginning i passes with probability
    h_i = S_i / (S_i + 1 − w_i), S_i = Σ (w_i p − q)⁺ of the distributions behind it, and h_γ = w_γ.
    """
    tokens = list(tokens)
    accepted, w_accepted = 0, 1
    w = 1
    for i, x in enumerate(tokens, start=1):
        w = ratio(w * target[i - 1][x], draft[i - 1][x])
        h = w
        if i < len(tokens):
            excess = np.maximum(w * target[i] - draft[i], 0).sum()
            # 0/0: there is no excess and w = 1, so the next beginning passes for certain and this one may fail.
            h = excess / (excess + 1 - w) if excess + 1 - w > 0 else 0
        if rng.uniform(i) < h:
            accepted, w_accepted = i, w
    rest = target[accepted]
    if accepted < len(tokens):
        rest = residual(w_accepted * rest, draft[accepted])
    return [*tokens[:accepted], rng.choose(rest, accepted)]


# [/block]


# [coupled]
def coupled(target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness) -> list[int]:
    """Draw the target's own token, and go on as long as the draft's is the same (Daliri, Musco & Suresh, 2408.07978).

    The drafter drew with the same noise, so that both often choose alike. What is emitted never depends on the draft:
    the same seed gives the same text with any drafter, or none.
    """
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        emitted.append(rng.choose(target[i], i))
        if emitted[i] != x:
            return emitted
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


# [/coupled]


# [point_mass]
def point_mass(target: Sequence[Probs], draft: Any, tokens: Sequence[int], rng: Randomness) -> list[int]:
    """Token-wise for a draft that was not drawn but found (prompt lookup): q is 1 at x, and is not looked at.

    Accept with probability p(x); what is left of p after a rejection is p without x.
    """
    emitted: list[int] = []
    for i, x in enumerate(tokens):
        p = target[i]
        if not rng.uniform(i) < p[x]:
            rest = p.copy()
            rest[x] = 0
            return [*emitted, rng.choose(rest if rest.any() else p, i)]
        emitted.append(x)
    return [*emitted, rng.choose(target[len(emitted)], len(emitted))]


# [/point_mass]


# [multi_draft]
def multi_draft(target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness) -> list[int]:
    """Several candidates for one position, tried in turn (Miao et al. 2305.09781, SpecInfer; Chen et al. 2402.12374).

    target[0] is the distribution of the position, target[j + 1] that behind candidate j, draft[j] the one that
    candidate j was drawn from *given those before it*: with replacement the same each time, without replacement that
    distribution less the candidates before, normalised. The residual of each rejection is the target of the next try.
    """
    winner, rest = try_all(target[0], draft, tokens, rng, 0)
    if winner is None:
        return [rng.choose(rest, 0)]
    return [tokens[winner], rng.choose(target[winner + 1], 1)]


def try_all(
    p: Probs, draft: Sequence[Probs], candidates: Sequence[int], rng: Randomness, tried: int
) -> tuple[int | None, Probs]:
    """The first candidate accepted, or None and what is left of p. `tried`: candidates at other nodes."""
    for j, x in enumerate(candidates):
        q = draft[j]
        if rng.uniform(tried + j) < ratio(p[x], q[x]):
            return j, p
        p = residual(p, q)
        p = p / p.sum()
    return None, p


# [/multi_draft]


# [tree]
def tree(
    target: Mapping[Path, Probs],
    draft: Mapping[Path, Sequence[Probs]],
    tokens: Mapping[Path, Sequence[int]],
    rng: Randomness,
) -> list[int]:
    """Several candidates at every node: walk down as long as one is accepted (2305.09781; EAGLE 2401.15077).

    target[path] is the distribution behind a node, tokens[path] the candidates there (none: a leaf), draft[path] the
    distribution each was drawn from, as in `multi_draft`, which is the tree of depth 1. One candidate at every node is
    `token_wise`.
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


# [/tree]
