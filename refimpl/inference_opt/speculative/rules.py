"""Acceptance rules: what of a draft the target keeps, so that the text's law stays the target's.

A drafter guessed tokens x_1 … x_γ, each drawn from a law q; the target has then read them all at once and says, after
each, its own law p. A rule looks at both and emits the accepted beginning of the draft and one token more:

        draft      x_1  x_2  x_3  x_4            p = target (Leviathan et al. 2211.17192 write p, q as we do;
        target   p_0  p_1  p_2  p_3  p_4         Chen et al. 2302.01318 swap the letters)
        emitted    x_1  x_2  y                   x_3 rejected, y drawn in its place

Every rule here is a pure function of `target`, `draft`, `tokens` and `chance`. Laws are numpy arrays over the
vocabulary, of floats in the engine and of `Fraction`s in `exact.py`: the same lines run on both, and what is proved
of the one holds, up to rounding, of the other. `chance` is asked for numbers in [0, 1) and for draws; the i-th of a
step is independent of all others (but for `coupled`, which wants to share its draws with the drafter).

Greedy decoding is no case of its own: all of p lies on one token, and a draft is accepted if it is that token.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from inference_opt.speculative.verdicts import (
    ACCEPTED,
    BONUS,
    COMPARED,
    LEAF,
    LEFT,
    REJECTED,
    REPLACED,
    TRIED,
    WEIGHED,
    Path,
    candidate,
    verdict,
    weighed,
)
from inference_opt.trace import step

Law = Shaped[np.ndarray, "vocab"]  # of floats or Fractions


@runtime_checkable
class Chance(Protocol):
    """Where randomness comes from: `sampling.Noise`, or `enumerate.Branching`, which takes every turn there is."""

    def uniform(self, i: int) -> Any:
        """A number in [0, 1), to be compared."""
        ...

    def choose(self, weights: Law, i: int) -> int:
        """A token, with probability in proportion to its weight."""
        ...


# [token_wise]
def token_wise(target: Sequence[Law], draft: Sequence[Law], tokens: Sequence[int], chance: Chance) -> list[int]:
    """Accept each x with probability min(1, p(x) / q(x)) (2211.17192, Algorithm 1; 2302.01318, Algorithm 2).

    What acceptance lets through of a token is q · min(1, p/q) = min(p, q); what it leaves open is (p − q)⁺, and the
    one rejection draws from exactly that: min(p, q) + (p − q)⁺ = p.
    """
    emitted: list[int] = []
    seen = {"target": target, "draft": draft, "tokens": tokens, "emitted": emitted}
    for i, x in enumerate(tokens):
        p, q = target[i], draft[i]
        u = chance.uniform(i)
        if not u < ratio(p[x], q[x]):  # strictly: a token with p(x) = 0 is rejected, u = 0 included
            step("speculation.reject", verdict, REJECTED, **seen, i=i, x=x, u=u)
            rest = residual(p, q)
            emitted.append(chance.choose(rest, i))
            step("speculation.replace", verdict, REPLACED, **seen, i=i, weights=rest, drawn=emitted[i])
            return emitted
        emitted.append(x)
        step("speculation.accept", verdict, ACCEPTED, **seen, i=i, x=x, u=u)
    emitted.append(chance.choose(target[len(emitted)], len(emitted)))
    step("speculation.bonus", verdict, BONUS, **seen, i=len(emitted) - 1, drawn=emitted[-1])
    return emitted


def ratio(p: Any, q: Any) -> Any:
    """min(1, p/q), without the division where it is 1: of a q near 0 it would overflow."""
    return p / q if p < q else 1


def residual(p: Law, q: Law) -> Law:
    """(p − q)⁺, not normalised. Without mass, p = q and rejection has probability 0: rounding alone comes here."""
    excess = np.maximum(p - q, 0)
    return excess if excess.any() else p


# [/token_wise]


# [block]
def block(target: Sequence[Law], draft: Sequence[Law], tokens: Sequence[int], chance: Chance) -> list[int]:
    """Judge the draft as a whole, and keep the longest beginning that passes (Sun et al. 2403.10444, Algorithm 2).

    w_i = min(1, w_{i−1} p(x_i) / q(x_i)) carries over what earlier tokens had in excess, where `token_wise` throws it
    away at each token; so it accepts no fewer tokens on average. Beginning i passes with probability
    h_i = S_i / (S_i + 1 − w_i), S_i = Σ (w_i p − q)⁺ under the laws behind it, and h_γ = w_γ.
    """
    tokens = list(tokens)
    accepted, kept, w = 0, 1, 1
    seen = {"target": target, "draft": draft, "tokens": tokens}
    for i, x in enumerate(tokens, start=1):
        w = ratio(w * target[i - 1][x], draft[i - 1][x])
        h = w
        if i < len(tokens):
            excess = np.maximum(w * target[i] - draft[i], 0).sum()
            # 0/0: there is no excess and w = 1, so the next beginning passes for certain and this one may fail.
            h = excess / (excess + 1 - w) if excess + 1 - w > 0 else 0
        u = chance.uniform(i)
        if u < h:
            accepted, kept = i, w
        step("speculation.weigh", weighed, WEIGHED, **seen, i=i, w=w, h=h, u=u, accepted=accepted)
    emitted = tokens[:accepted]
    if accepted == len(tokens):
        emitted.append(chance.choose(target[accepted], accepted))
        step("speculation.bonus", verdict, BONUS, **seen, emitted=emitted, i=accepted, drawn=emitted[-1])
        return emitted
    rest = residual(kept * target[accepted], draft[accepted])
    emitted.append(chance.choose(rest, accepted))
    step(
        "speculation.replace", verdict, REPLACED, **seen, emitted=emitted, i=accepted, weights=rest, drawn=emitted[-1],
        w=kept,
    )  # fmt: skip
    return emitted


# [/block]


# [coupled]
def coupled(target: Sequence[Law], draft: Sequence[Law], tokens: Sequence[int], chance: Chance) -> list[int]:
    """Draw the target's own token, and go on as long as the draft's is the same (Daliri, Musco & Suresh, 2408.07978).

    The drafter drew with the same noise, so that both often choose alike. What is emitted never depends on the draft:
    the same seed gives the same text with any drafter, or none.
    """
    emitted: list[int] = []
    seen = {"target": target, "draft": draft, "tokens": tokens, "emitted": emitted}
    for i, x in enumerate(tokens):
        emitted.append(chance.choose(target[i], i))
        step("speculation.compare", verdict, COMPARED, **seen, i=i, x=x, drawn=emitted[i])
        if emitted[i] != x:
            return emitted
    emitted.append(chance.choose(target[len(emitted)], len(emitted)))
    step("speculation.bonus", verdict, BONUS, **seen, i=len(emitted) - 1, drawn=emitted[-1])
    return emitted


# [/coupled]


# [point_mass]
def point_mass(target: Sequence[Law], draft: Any, tokens: Sequence[int], chance: Chance) -> list[int]:
    """Token-wise for a draft that was not drawn but found (prompt lookup): q is 1 at x, and is not looked at.

    Accept with probability p(x); what is left of p after a rejection is p without x.
    """
    emitted: list[int] = []
    seen = {"target": target, "draft": None, "tokens": tokens, "emitted": emitted}
    for i, x in enumerate(tokens):
        p, u = target[i], chance.uniform(i)
        if not u < p[x]:
            step("speculation.reject", verdict, REJECTED, **seen, i=i, x=x, u=u)
            rest = p.copy()
            rest[x] = 0
            emitted.append(chance.choose(rest if rest.any() else p, i))
            step("speculation.replace", verdict, REPLACED, **seen, i=i, weights=rest, drawn=emitted[i])
            return emitted
        emitted.append(x)
        step("speculation.accept", verdict, ACCEPTED, **seen, i=i, x=x, u=u)
    emitted.append(chance.choose(target[len(emitted)], len(emitted)))
    step("speculation.bonus", verdict, BONUS, **seen, i=len(emitted) - 1, drawn=emitted[-1])
    return emitted


# [/point_mass]


# [multi_draft]
def multi_draft(target: Sequence[Law], draft: Sequence[Law], tokens: Sequence[int], chance: Chance) -> list[int]:
    """Several candidates for one position, tried in turn (Miao et al. 2305.09781, SpecInfer; Chen et al. 2402.12374).

    target[0] is the law of the position, target[j + 1] that behind candidate j, draft[j] the law that candidate j was
    drawn from *given those before it*: with replacement the same law each time, without replacement that law less the
    candidates before, normalised. The residual of each rejection is the target of the next try.
    """
    winner, rest = _try_all(target[0], draft, {(): tokens}, (), chance, 0)
    if winner is None:
        return _drawn(target[0], rest if tokens else None, {(): tokens}, (), chance)
    return _drawn(target[winner + 1], None, {(): tokens}, (tokens[winner],), chance)


def _try_all(
    p: Law, draft: Sequence[Law], tree: Mapping[Path, Sequence[int]], path: Path, chance: Chance, tried: int
) -> tuple[int | None, Law]:
    """The first of a node's candidates accepted, or None and what is left of p. `tried`: candidates at other nodes."""
    for j, x in enumerate(tree[path]):
        q, u = draft[j], chance.uniform(tried + j)
        seen = {"tree": tree, "path": path, "p": p, "j": j, "q": q, "u": u}
        if u < ratio(p[x], q[x]):
            step("speculation.accept", candidate, TRIED, **seen, kept=True)
            return j, p
        step("speculation.reject", candidate, TRIED, **seen, kept=False)
        p = residual(p, q)
        p = p / p.sum()
    return None, p


def _drawn(p: Law, rest: Law | None, tree: Mapping[Path, Sequence[int]], path: Path, chance: Chance) -> list[int]:
    """The path and one token more: from what a node's candidates left of p, or behind a leaf (None) from p itself."""
    token = chance.choose(p if rest is None else rest, len(path))
    seen = {"tree": tree, "path": path, "p": p, "weights": rest, "drawn": token}
    if rest is None:
        step("speculation.bonus", candidate, LEAF, **seen)
    else:
        step("speculation.replace", candidate, LEFT, **seen)
    return [*path, token]


# [/multi_draft]


# [tree]
def tree(
    target: Mapping[Path, Law],
    draft: Mapping[Path, Sequence[Law]],
    tokens: Mapping[Path, Sequence[int]],
    chance: Chance,
) -> list[int]:
    """Several candidates at every node: walk down as long as one is accepted (2305.09781; EAGLE 2401.15077).

    target[path] is the law behind a node, tokens[path] the candidates there (none: a leaf) and draft[path] the law each
    was drawn from, as in `multi_draft`, which is the tree of depth 1. One candidate at every node is `token_wise`.
    """
    path: Path = ()
    tried = 0
    while True:
        candidates = tokens[path]
        winner, rest = _try_all(target[path], draft[path], tokens, path, chance, tried)
        if winner is None:
            return _drawn(target[path], rest if candidates else None, tokens, path, chance)
        tried += len(candidates)
        path = (*path, candidates[winner])


# [/tree]
