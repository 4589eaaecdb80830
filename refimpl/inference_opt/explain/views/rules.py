"""Acceptance rules, recorded through the randomness they are given: where p and q stand, what was drawn, what is left.

    watched(rule)(target, draft, tokens, rng)       the very rule, with a `RecordingRandomness` round rng

A rule does not tell what it does. But it asks `rng` for every number and every draw that it decides by. So what it was
given and how its comparisons came out tell where it stands. A picture computes that a second time, and its invariants
check what the rule did.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType, FunctionType
from typing import Any, NamedTuple, no_type_check

import numpy as np

from inference_opt.explain.views.registry import PICTURES, SENTENCES, snapshot, watching
from inference_opt.lab.exactness.proposals import Lazy
from inference_opt.speculative import rules
from inference_opt.speculative.coupled_tree import coupled_tree
from inference_opt.speculative.drafter import one_hot
from inference_opt.speculative.rules import Path, Probs, Randomness, ratio, residual
from inference_opt.trace import emit_at

MAX_BARS = 12  # tokens whose bars are shown: the likeliest, and those that the step is about

ACCEPTED = "draft {i} is {x:text}: u = {u} is below min(1, p/q) = {ratio}, so it is kept"
REJECTED = (
    "draft {i} is {x:text}: u = {u} is not below min(1, p/q) = {ratio}, so it is rejected, and all drafts after it"
)
REPLACED = "{drawn:text} is drawn from what the target has in excess, {excess}, in place of the rejected draft"
COMPARED = "{drawn:text} is drawn from p by the noise that drew draft {i}, {x:text}: the draft is {fate}"
SOUGHT = "{drawn:text} is drawn from p: {fate}"
BONUS = "all drafts were kept: {drawn:text} is drawn from the target's distribution after them, one token more"
WEIGHED = "the first {i:draft}, w = {w}, may stay with probability h = {h}; u = {u}, {passes}"
TRIED = "candidate {i} is {x:text}: u = {u}, min(1, p/q) = {ratio}, so it is {fate}{then}"
LEFT = "no candidate is kept: {drawn:text} is drawn from what they have left of p"
LEAF = "no draft is left to judge: {drawn:text} is drawn from the target's distribution here, one token more"

BEHIND = "p after the last draft: one token more is drawn from it"
OWED = "the residual (p − q)⁺, normalised: the replacement is drawn from it"
REMAINING = "what all candidates have left of p: the token is drawn from it"
SHARED = "p: the target's own draw, by the drafter's noise; the draft is kept if it is the same"
OWN = "p: the target's own draw; a candidate is kept if it is the same"
TARGET = "p, target"

CHAINS = (rules.token_wise, rules.block, rules.coupled, rules.point_mass)
TREES = (rules.multi_draft, rules.tree, coupled_tree)


@dataclass(frozen=True)
class Verdict:
    """A rule at work: what it was given, and how its comparisons have come out so far."""

    rule: Callable[..., list[int]]
    target: Any
    draft: Any
    tokens: Any
    passed: list[bool] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)

    def of_draw(self, i: int) -> str:
        """The event of a draw that the rule asks for, the i-th of the step."""
        if self.rule is rules.coupled:
            return "speculation.compare" if i < len(drafts_read(self.tokens)) else "speculation.bonus"
        if self.rule is coupled_tree:
            return "speculation.compare" if self.tokens[tuple(self.drawn)] else "speculation.bonus"
        if self.rule is rules.block:
            return "speculation.replace" if i < len(self.tokens) else "speculation.bonus"
        return "speculation.replace" if self.passed and not self.passed[-1] else "speculation.bonus"


class RecordingRandomness:
    """Draws from another randomness, and emits at the rule's own line what was asked and what came out."""

    def __init__(self, verdict: Verdict, rng: Randomness) -> None:
        self.verdict = verdict
        self.rng = rng

    def uniform(self, i: int) -> "RecordingUniform":
        """A number that tells what it is compared with."""
        return RecordingUniform(self, self.rng.uniform(i))

    @no_type_check  # a checker put round it would be its caller
    def choose(self, weights: Probs, i: int) -> int:
        """A token, drawn and told."""
        token, event = self.rng.choose(weights, i), self.verdict.of_draw(i)
        self.verdict.drawn.append(token)
        self.tell(event, sys._getframe(1), weights=weights, drawn=token, i=i)
        return token

    def tell(self, event: str, frame: FrameType, **data: Any) -> None:
        """Emit an event at the line where the rule stands."""
        emit_at(frame.f_code, frame.f_lineno, event, verdict=self.verdict, **data)


class RecordingUniform:
    """A number in [0, 1), to be compared once."""

    def __init__(self, recording: RecordingRandomness, u: Any) -> None:
        self.recording = recording
        self.u = u

    @no_type_check
    def __lt__(self, threshold: Any) -> bool:
        below = bool(self.u < threshold)
        verdict = self.recording.verdict
        verdict.passed.append(below)
        event = "weigh" if verdict.rule is rules.block else "accept" if below else "reject"
        self.recording.tell(f"speculation.{event}", sys._getframe(1), u=self.u, threshold=threshold)
        return below


@watching.register
def watch_rule(rule: FunctionType) -> Any:
    """A function that calls the rule with a `RecordingRandomness`. Functions that are not rules stay as they are."""
    if rule not in CHAINS + TREES:
        return rule

    def watched_rule(target: Any, draft: Any, tokens: Any, rng: Randomness) -> list[int]:
        return rule(target, draft, tokens, RecordingRandomness(Verdict(rule, target, draft, tokens), rng))

    return watched_rule


@snapshot.register
def drafts_so_far(drafts: Lazy) -> list[Any]:
    """The drafts that were read so far: reading more would draw them."""
    return list(drafts.so_far)


def drafts_read(tokens: Any) -> list[int]:
    """The drafts, but never more than the rule has read."""
    return drafts_so_far(tokens) if isinstance(tokens, Lazy) else list(tokens)


# Chains: token_wise, block, coupled, point_mass


def chain_judged(verdict: Verdict, u: Any) -> dict[str, Any]:
    """A draft is compared with its number u."""
    i = len(verdict.passed) - 1
    x = verdict.tokens[i]
    kept = verdict.passed[i]
    return chain_state(verdict, i, None, SHARED, q=draft_at(verdict, i), x=x, u=u, kept=kept)


def weighed(verdict: Verdict, u: Any, threshold: Any) -> dict[str, Any]:
    """`block` at the first i drafts: w p and q behind them, whose excess makes h; u against h."""
    passed = verdict.passed
    i = len(passed)
    drafts = list(verdict.tokens)
    w = weight_of(verdict, i)
    h = float(threshold)
    p = float(w) * floats(verdict.target[i])
    q = floats(verdict.draft[i]) if i < len(drafts) else None
    accepted = max((n for n, stays in enumerate(passed, start=1) if stays), default=0)
    fates = ["kept"] * accepted + ["open"] * (i - accepted) + ["to be judged"] * (len(drafts) - i)
    state = bars(drafts, fates, i - 1, p, q, "", u=u, kept=passed[-1]) | {"h": h, "law": "w p"}
    expected = float(w)
    if q is not None:
        excess = np.maximum(p - q, 0).sum()
        expected = excess / (excess + 1 - float(w)) if excess + 1 - float(w) > 0 else 0.0
    state["invariants"] = {
        "0 ≤ w ≤ 1": 0 <= w <= 1,
        "h = S / (S + 1 − w), of all drafts h = w": bool(np.isclose(h, expected)),
        "a beginning stays exactly where u < h": passed[-1] == (state["u"] < h),
    }
    state["said"] |= {"i": i, "w": f"{float(w):.3f}", "h": f"{h:.3f}"}
    state["said"]["passes"] = "so it stays" if passed[-1] else "so only a longer one may save the last of it"
    return state


def chain_drawn(verdict: Verdict, weights: Probs, drawn: int, i: int) -> dict[str, Any]:
    """A token is drawn behind i drafts: instead of a rejected one, for comparison, or for free."""
    event = verdict.of_draw(i)
    if event == "speculation.compare":
        x = verdict.tokens[i]
        return chain_state(verdict, i, None, SHARED, q=draft_at(verdict, i), x=x, kept=drawn == x, drawn=drawn)
    if event == "speculation.bonus":
        return chain_state(verdict, i, None, BEHIND, drawn=drawn)
    w = weight_of(verdict, i) if verdict.rule is rules.block else None
    return chain_state(verdict, i, w, OWED, q=draft_at(verdict, i), weights=weights, drawn=drawn)


def chain_state(
    verdict: Verdict, i: int, w: Any, source: str, q: np.ndarray | None = None, kept: bool | None = None, **more: Any
) -> dict[str, Any]:
    """A chain at its draft i, `kept`, rejected, or (None) not judged here. `w`: what `block` takes of p."""
    drafts = drafts_read(verdict.tokens)
    over = kept is False or (kept is None and i < len(drafts))  # nothing behind it will be kept
    fates = ["kept"] * (i + bool(kept)) + ["rejected"] * over
    fates += ["to be judged" if not over else "never looked at" if w is None else "rejected"] * len(drafts)
    p = (1.0 if w is None else float(w)) * floats(verdict.target[i])
    state = bars(drafts, fates, i, p, q, source, kept=kept, **more)
    state["law"] = TARGET if w is None else "w p"
    state["said"] |= {"i": i, "excess": "(p − q)⁺" if w is None else f"(w p − q)⁺, w = {float(w):.3f}"}
    return state


def draft_at(verdict: Verdict, i: int) -> np.ndarray:
    """q at draft i; if the draft was found, all of q is on the token."""
    if verdict.rule is rules.point_mass or verdict.draft is None or verdict.draft == []:
        return one_hot(verdict.tokens[i], len(verdict.target[i]))
    return floats(verdict.draft[i])


def weight_of(verdict: Verdict, i: int) -> Any:
    """w_i of block verification (`rules.block`)."""
    w: Any = 1
    for x, p, q in zip(list(verdict.tokens)[:i], verdict.target, verdict.draft):
        w = ratio(w * p[x], q[x])
    return w


# Trees: multi_draft, tree, coupled_tree


class Place(NamedTuple):
    """Where a tree's rule stands: at candidate `i` of a node, which was drawn from `q` and is judged by `left`."""

    tree: Mapping[Path, Sequence[int]]
    path: Path
    i: int
    p: Probs  # the target's distribution at the node
    left: Probs  # what the candidates before i have left of it
    q: Any  # None behind the last candidate


def place(verdict: Verdict, passed: Sequence[bool]) -> Place:
    """The walk down the tree, as its comparisons came out."""
    target = verdict.target
    draft = verdict.draft
    tree = verdict.tokens
    if verdict.rule is rules.multi_draft:  # the tree of depth 1
        target = {(): target[0]} | {(x,): p for x, p in zip(tree, target[1:])}
        draft = {(): draft}
        tree = {(): tree}
    path: Path = ()
    i = 0
    left = target[path]
    for kept in passed:
        if kept:
            path = (*path, tree[path][i])
            i = 0
            left = target[path]
        else:
            left = residual(left, draft[path][i])
            left = left / left.sum()
            i += 1
    q = draft[path][i] if i < len(tree.get(path, ())) else None
    return Place(tree, path, i, target[path], left, q)


def candidate_judged(verdict: Verdict, u: Any) -> dict[str, Any]:
    """A candidate is compared with its number u."""
    at = place(verdict, verdict.passed[:-1])
    kept = verdict.passed[-1]
    x = at.tree[at.path][at.i]
    state = tree_state(at, at.left, BEHIND, x=x, q=floats(at.q), u=u, kept=kept)
    state["law"] = "left of p" if at.i else TARGET
    state["said"]["then"] = "" if kept else "; the next is judged by what is left, (p − q)⁺ normalised"
    return state


def candidate_drawn(verdict: Verdict, weights: Probs, drawn: int, i: int) -> dict[str, Any]:
    """A token is drawn at a node: from what its candidates have left of p, or, behind a leaf, from p itself."""
    if verdict.rule is coupled_tree:
        return compared(verdict)
    at = place(verdict, verdict.passed)
    if verdict.of_draw(i) == "speculation.replace":
        return tree_state(at, at.p, REMAINING, weights=weights, drawn=drawn)
    return tree_state(at, at.p, BEHIND, drawn=drawn)


def compared(verdict: Verdict) -> dict[str, Any]:
    """The target's own draw at a node is looked for among the candidates there, if there are any."""
    *above, drawn = verdict.drawn
    path, tree = tuple(above), verdict.tokens
    candidates, p = list(tree[path]), verdict.target[path]
    if drawn not in candidates:
        state = tree_state(
            Place(tree, path, len(candidates), p, p, None), p, OWN if candidates else BEHIND, drawn=drawn
        )
        state["said"]["fate"] = "no candidate is that token, so the step ends with it"
        return state
    at = Place(tree, path, candidates.index(drawn), p, p, None)
    state = tree_state(at, p, OWN, x=drawn, q=one_hot(drawn, len(p)), kept=True, drawn=drawn)
    state["said"]["fate"] = "a candidate is that token, so it is kept"
    return state


def tree_state(
    place: Place, p: Probs, source: str, x: int | None = None, kept: bool | None = None, **more: Any
) -> dict[str, Any]:
    """A tree of drafts with the fate of each: what was judged, where the rule stands, what it may still reach."""
    tree = place.tree
    path = place.path
    drafts: list[int] = []
    parents: list[int] = []
    fates: list[str] = []
    number: dict[Path, int] = {(): -1}
    for node in sorted((node for node in tree if len(tree[node])), key=len):
        for k, token in enumerate(tree[node]):
            # Where this candidate's fate is, or was, decided: at the node where its path leaves the one that is kept.
            here = path[: len(node)] == node
            if here and len(node) < len(path):
                won = tree[node].index(path[len(node)])
                fate = "rejected" if k < won else "kept" if k == won else "never looked at"
            elif here:
                at = len(tree[node]) if x is None else place.i
                fate = "rejected" if k < at or (k == at and not kept) else "to be judged"
                fate = fate if not kept or k < at else "kept" if k == at else "never looked at"
            else:
                above = fates[number[node]]
                fate = "to be judged" if above in ("to be judged", "kept") else "never looked at"
            number.setdefault((*node, token), len(drafts))
            drafts.append(token)
            parents.append(number[node])
            fates.append(fate)
    at = number[path] if x is None else parents.index(number[path]) + place.i
    state = bars(drafts, fates, at, floats(p), source=source, x=x, kept=kept, **more) | {"parents": parents}
    state["said"] |= {"i": place.i}
    return state


# Both


def bars(
    drafts: list[int],
    fates: list[str],
    at: int,
    p: np.ndarray,
    q: np.ndarray | None = None,
    source: str = "",
    x: int | None = None,
    u: Any = None,
    kept: bool | None = None,
    weights: Probs | None = None,
    drawn: int | None = None,
) -> dict[str, Any]:
    """Drafts with their fates, p and q as bars (q None: p is not compared), and what was drawn (by default from p)."""
    judged = q is not None
    q = np.zeros_like(p) if q is None else q
    likely = np.argsort(-np.maximum(p, q), kind="stable")[:MAX_BARS]
    shown = sorted({*map(int, likely), *(t for t in (x, drawn) if t is not None)})
    rest = p if weights is None else floats(weights)
    number = None if u is None else float((u.low + u.high) / 2 if hasattr(u, "low") else u)
    fates = fates[: len(drafts)]
    state = {
        "kind": "speculation",
        "drafts": drafts,
        "parents": list(range(-1, len(drafts) - 1)),
        "fates": fates,
        "at": at,
        "x": x,
        "u": number,
        "kept": kept,
        "judged": judged,
        "drawn": drawn,
        "law": TARGET,
        "source": source,
        "vocab": shown,
        "p": p[shown].tolist(),
        "q": q[shown].tolist(),
        "rest": (rest[shown] / (rest.sum() or 1)).tolist(),
        "tokens_shown": {*shown, *drafts},
    }
    invariants: dict[str, bool] = {}
    counters: dict[str, Any] = {"drafts kept": fates.count("kept")}
    said: dict[str, Any] = {"x": x, "drawn": drawn, "u": "?" if number is None else f"{number:.3f}"}
    said["fate"] = "kept" if kept else "rejected" if drawn is None else "given up"
    if x is not None or not judged:
        sums = [p.sum(), q.sum()] if judged else [p.sum()]
        invariants["p and q are distributions"] = bool(np.allclose(sums, 1))
    if x is not None:
        counters["chance that a draft is kept here, Σ min(p, q)"] = round(float(np.minimum(p, q).sum()), 4)
        said["ratio"] = f"{ratio(p[x], q[x]):.3f}"
    if x is not None and number is not None:
        invariants["min(p, q) + (p − q)⁺ = p"] = bool(np.allclose(np.minimum(p, q) + np.maximum(p - q, 0), p))
        invariants["kept exactly where u q(x) < p(x)"] = kept == bool(number * q[x] < p[x])
    return state | {"invariants": invariants, "counters": counters, "said": said}


def floats(probs: Probs) -> np.ndarray:
    """Floats, of fractions too."""
    return np.array(probs, dtype=float)


def judged(verdict: Verdict, u: Any, threshold: Any) -> dict[str, Any]:
    """A draft or candidate is compared with its number u."""
    return (candidate_judged if verdict.rule in TREES else chain_judged)(verdict, u)


def drawn_from(verdict: Verdict, weights: Probs, drawn: int, i: int) -> dict[str, Any]:
    """A token is drawn."""
    return (candidate_drawn if verdict.rule in TREES else chain_drawn)(verdict, weights, drawn, i)


def sentence(of_chains: str, of_trees: str) -> Callable[..., str]:
    """The sentence of an event that both kinds of rules have."""
    return lambda verdict, **data: of_trees if verdict.rule in TREES else of_chains


SENTENCES |= {
    "speculation.accept": sentence(ACCEPTED, TRIED),
    "speculation.reject": sentence(REJECTED, TRIED),
    "speculation.weigh": WEIGHED,
    "speculation.replace": sentence(REPLACED, LEFT),
    "speculation.bonus": sentence(BONUS, LEAF),
    "speculation.compare": sentence(COMPARED, SOUGHT),
}
PICTURES |= {
    "speculation.accept": judged,
    "speculation.reject": judged,
    "speculation.weigh": weighed,
    "speculation.replace": drawn_from,
    "speculation.bonus": drawn_from,
    "speculation.compare": drawn_from,
}
