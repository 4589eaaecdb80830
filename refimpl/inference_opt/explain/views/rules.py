"""A verdict as a recorded step shows it: both laws at the draft, the number drawn, what is left after a rejection."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST = 12  # tokens whose bars are shown: the likeliest, and those that the step is about

ACCEPTED = "draft {i} is {x:text}: u = {u} lies below p/q = {ratio}, so it is kept"
REJECTED = "draft {i} is {x:text}: u = {u} does not lie below p/q = {ratio}, so it is rejected, and all behind it"
REPLACED = "{drawn:text} is drawn from what the target has in excess, {excess}, in place of the rejected draft"
COMPARED = "{drawn:text} is drawn from p by the noise that drew draft {i}, {x:text}: the draft is {fate}"
BONUS = "all drafts were kept: {drawn:text} is drawn from the target's law behind them, a token for free"
WEIGHED = "the first {i:draft}, w = {w}, may stay with probability h = {h}; u = {u}, {passes}"
TRIED = "candidate {j} is {x:text}: u = {u}, p/q = {ratio}, so it is {fate}{then}"
LEFT = "no candidate is kept: {drawn:text} is drawn from what they have left of p"
LEAF = "no draft is left to judge: {drawn:text} is drawn from the target's law here, a token for free"
BEHIND = "p behind the last draft: the token for free is drawn from it"
OWED = "the residual, (p − q)⁺ made a law: the replacement is drawn from it"
TARGET_LAW = "p, target"
SHARED = "p: the target's own draw, by the drafter's noise; the draft is kept if it is the same"

Path = tuple[int, ...]  # a node of a tree of drafts, by the tokens from the root to it; () is the text so far


def verdict(
    target: Sequence[Any],
    draft: Sequence[Any] | None,
    tokens: Sequence[int],
    emitted: Sequence[int],
    i: int,
    x: int | None = None,
    u: Any = None,
    weights: Any = None,
    drawn: int | None = None,
    w: Any = None,
) -> dict[str, Any]:
    """The state of a rule at draft i: x judged by u, or `drawn` from `weights`; x and `drawn`: compared.

    Without laws of the draft (None, []) drafts were found: all of q lies on each. `w`: what `block` has left of p.
    """
    drafts = tokens.snapshot() if hasattr(tokens, "snapshot") else list(tokens)  # never more than the rule has read
    p, q = float(w or 1) * np.array(target[i], dtype=float), None
    if x is not None or weights is not None:
        q = np.eye(len(p))[drafts[i]] if draft is None or draft == [] else np.array(draft[i], dtype=float)
    kept = None if x is None else emitted[i : i + 1] == [x]
    over = kept is False or (x is None and i < len(drafts))
    fates = ["kept"] * (i + bool(kept)) + ["rejected"] * over
    fates += ["to be judged" if not over else "never looked at" if w is None else "rejected"] * len(drafts)
    source = SHARED if x is not None else BEHIND if weights is None else OWED
    state = _state(drafts, fates, i, p, q, x, u, kept, drawn, weights, source)
    state["law"] = TARGET_LAW if w is None else "w p"
    state["said"]["excess"] = "(p − q)⁺" if w is None else f"(w p − q)⁺, w = {float(w):.3f}"
    return state


def weighed(
    target: Sequence[Any], draft: Sequence[Any], tokens: Sequence[int], i: int, w: Any, h: Any, u: Any, accepted: int
) -> dict[str, Any]:
    """The state of `block` at the beginning of i drafts: w p and q behind it, whose excess makes h; u against h."""
    p = float(w) * np.array(target[i], dtype=float)
    q = np.array(draft[i], dtype=float) if i < len(tokens) else None
    fates = ["kept"] * accepted + ["open"] * (i - accepted) + ["to be judged"] * (len(tokens) - i)
    state = _state(list(tokens), fates, i - 1, p, q, None, u, accepted == i, None, None, "") | {
        "h": float(h),
        "law": "w p",
    }
    excess = p.sum() if q is None else np.maximum(p - q, 0).sum()
    right = 1.0 * float(w) if q is None else excess / (excess + 1 - float(w)) if excess + 1 - float(w) > 0 else 0.0
    state["invariants"] = {
        "0 ≤ w ≤ 1": 0 <= w <= 1,
        "h = S / (S + 1 − w), of all drafts h = w": bool(np.isclose(float(h), right)),
        "a beginning stays exactly where u < h": (accepted == i) == (state["u"] < float(h)),
    }
    state["said"] |= {"w": f"{float(w):.3f}", "h": f"{float(h):.3f}"}
    state["said"]["passes"] = "so it stays" if accepted == i else "so only a longer one may save the last of it"
    return state


def candidate(
    tree: Mapping[Path, Sequence[int]],
    path: Path,
    p: Any,
    j: int | None = None,
    q: Any = None,
    u: Any = None,
    kept: bool | None = None,
    weights: Any = None,
    drawn: int | None = None,
) -> dict[str, Any]:
    """The state of `multi_draft` and `tree` at a node: its candidate j judged by u, or `drawn` from `weights`."""
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
                at = len(tree[node]) if j is None else j
                fate = "rejected" if k < at or (k == at and not kept) else "to be judged"
                fate = fate if not kept or k < at else "kept" if k == at else "never looked at"
            else:
                above = fates[number[node]]
                fate = "to be judged" if above in ("to be judged", "kept") else "never looked at"
            number.setdefault((*node, token), len(drafts))
            drafts.append(token)
            parents.append(number[node])
            fates.append(fate)
    x, at = None, number[path]
    if j is not None:
        x = tree[path][j]
        at = parents.index(number[path]) + j
    p, q = np.array(p, dtype=float), None if q is None else np.array(q, dtype=float)
    source = BEHIND if weights is None else "what all candidates have left of p: the token is drawn from it"
    state = _state(drafts, fates, at, p, q, x, u, kept, drawn, weights, source) | {"parents": parents}
    state["law"] = "left of p" if j else TARGET_LAW
    state["said"] |= {"x": x, "then": "" if kept else "; the next is judged by what is left, (p − q)⁺ made a law"}
    return state


def _state(
    drafts: list[int],
    fates: list[str],
    at: int,
    p: np.ndarray,
    q: np.ndarray | None,
    x: int | None,
    u: Any,
    kept: bool | None,
    drawn: int | None,
    weights: Any,
    source: str,
) -> dict[str, Any]:
    """Drafts with their fates, the bars of both laws (q: None where none is compared), what was drawn from what."""
    judged, q = q is not None, np.zeros_like(p) if q is None else q
    likely = np.argsort(-np.maximum(p, q), kind="stable")[:MOST]
    shown = sorted({*map(int, likely), *(t for t in (x, drawn) if t is not None)})
    rest = np.array(p if weights is None else weights, dtype=float)  # what `drawn` is drawn from
    number = None if u is None else float((u.low + u.high) / 2 if hasattr(u, "low") else u)
    state = {
        "kind": "speculation", "drafts": drafts, "parents": list(range(-1, len(drafts) - 1)),
        "fates": fates[: len(drafts)], "at": at, "x": x, "u": number, "kept": kept, "judged": judged, "drawn": drawn,
        "law": TARGET_LAW, "source": source, "vocab": shown, "p": p[shown].tolist(), "q": q[shown].tolist(),
        "rest": (rest[shown] / (rest.sum() or 1)).tolist(), "tokens_shown": {*shown, *drafts},
    }  # fmt: skip
    laws, counters = {}, {"drafts kept": state["fates"].count("kept")}
    if x is not None or not judged:
        laws["p and q are laws"] = bool(np.isclose(p.sum(), 1)) and (not judged or bool(np.isclose(q.sum(), 1)))
    said: dict[str, Any] = {"fate": "kept" if kept else "rejected" if drawn is None else "given up"}
    if x is not None:
        counters["chance that a draft is kept here, Σ min(p, q)"] = round(float(np.minimum(p, q).sum()), 4)
        said["ratio"] = f"{p[x] / q[x]:.3f}"
    if x is not None and number is not None:
        laws["min(p, q) + (p − q)⁺ = p"] = bool(np.allclose(np.minimum(p, q) + np.maximum(p - q, 0), p))
        laws["kept exactly where u q(x) < p(x)"] = kept == (number * q[x] < p[x])
    said["u"] = "?" if number is None else f"{number:.3f}"
    return state | {"invariants": laws, "counters": counters, "said": said}
