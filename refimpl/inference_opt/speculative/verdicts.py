"""A verdict as a recorded step shows it: both laws at the draft, the number drawn, what is left after a rejection."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

MOST = 12  # tokens whose bars are shown: the likeliest, and those that the step is about

ACCEPTED = "draft {i} is {x:text}: u = {u} lies below p/q = {ratio}, so it is kept"
REJECTED = "draft {i} is {x:text}: u = {u} does not lie below p/q = {ratio}, so it is rejected, and all behind it"
REPLACED = "{drawn:text} is drawn from what the target has in excess, (p − q)⁺, in place of the rejected draft"
COMPARED = "{drawn:text} is drawn from p by the noise that drew draft {i}, {x:text}: the draft is {fate}"
BONUS = "all drafts were kept: {drawn:text} is drawn from the target's law behind them, a token for free"


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
) -> dict[str, Any]:
    """The state of a rule at draft i: x judged by u, or `drawn` from `weights`; x and `drawn`: compared.

    Without laws of the draft (None, []) drafts were found: all of q lies on each.
    """
    drafts = tokens.snapshot() if hasattr(tokens, "snapshot") else list(tokens)  # never more than the rule has read
    p = np.array(target[i], dtype=float)
    q = np.zeros_like(p)
    if x is not None or weights is not None:
        if draft is None or draft == []:
            q[drafts[i]] = 1
        else:
            q = np.array(draft[i], dtype=float)
    spared = np.maximum(p - q, 0)
    likely = np.argsort(-np.maximum(p, q), kind="stable")[:MOST]
    shown = sorted({*map(int, likely), *(t for t in (x, drawn) if t is not None)})
    rest = np.array(p if weights is None else weights, dtype=float)  # what `drawn` is drawn from
    number = None if u is None else float((u.low + u.high) / 2 if hasattr(u, "low") else u)
    ratio = None if x is None else float(p[x] / q[x])
    state = {
        "kind": "speculation", "drafts": drafts, "emitted": list(emitted), "at": i, "x": x, "u": number, "ratio": ratio,
        "kept": None if x is None else emitted[i : i + 1] == [x], "drawn": drawn, "vocab": shown,
        "p": p[shown].tolist(), "q": q[shown].tolist(), "rest": (rest[shown] / (rest.sum() or 1)).tolist(),
        "tokens_shown": {*shown, *drafts, *emitted},
    }  # fmt: skip
    laws = {"p and q are laws": bool(np.isclose(p.sum(), 1)) and (x is None or bool(np.isclose(q.sum(), 1)))}
    if number is not None:
        laws["min(p, q) + (p − q)⁺ = p"] = bool(np.allclose(np.minimum(p, q) + spared, p))
        laws["kept exactly where u q(x) < p(x)"] = state["kept"] == (number * q[x] < p[x])
    counters: dict[str, float] = {"drafts kept": min(len(emitted), i + bool(state["kept"]))}
    if x is not None:
        counters |= {"chance that a draft is kept here, Σ min(p, q)": round(float(np.minimum(p, q).sum()), 4)}
    said = {"fate": "kept" if state["kept"] else "given up"}
    said |= {name: "?" if value is None else f"{value:.3f}" for name, value in (("u", number), ("ratio", ratio))}
    return state | {"invariants": laws, "counters": counters, "said": said}


Text = tuple[int, ...]

PATH = "{emitted:text} comes out of this path, which has probability {probability}; {total} of all has been seen"
TEXT = "{text:text}, of weight {weight}, has gone on in every way; texts complete so far have {done} of all probability"


def path_state(
    target: Callable[[Text], Any], prefix: Text, law: Mapping[Text, Any], path: dict[str, Any]
) -> dict[str, Any]:
    """The law of one speculative step while its paths are summed up, by the first token that comes out."""
    truth = [Fraction(weight) for weight in target(prefix)]
    first = [sum((weight for text, weight in law.items() if text[0] == x), Fraction(0)) for x in range(len(truth))]
    total = sum(first, Fraction(0))
    invariants = {"no path is counted twice: the sum is at most 1": total <= 1}
    if total == 1:
        invariants["the first token has the target's law"] = first == truth
    state = {"kind": "law", "prefix": prefix, "first": first, "truth": truth, "total": total, "path": path}
    said = {"emitted": path["emitted"], "probability": path["probability"], "total": total}
    counters = {"probability seen": round(float(total), 6)}
    shown = {*range(len(truth)), *prefix}
    return state | {"invariants": invariants, "counters": counters, "said": said, "tokens_shown": shown}


def text_state(
    target: Callable[[Text], Any],
    text: Text,
    weight: Fraction,
    laws: Sequence[Mapping[Text, Fraction]],
    truth: Callable[[Any, int], Mapping[Text, Fraction]],
) -> dict[str, Any]:
    """The law of texts while the shorter ones go on, beside the target's own."""
    length = len(laws) - 1
    right, found = truth(target, length), laws[length]
    done = sum(found.values(), Fraction(0))
    texts: list[Any] = [[t, found.get(t, Fraction(0)), right.get(t, Fraction(0))] for t in sorted({*right, *found})]
    invariants, counters = {"the sum is at most 1": done <= 1}, {"texts complete": round(float(done), 6)}
    if done == 1:
        apart = sum((abs(mine - its) for _, mine, its in texts), Fraction(0)) / 2
        invariants["the texts have the target's law"] = apart == 0
        counters["total variation from the target"] = round(float(apart), 6)
    state = {
        "kind": "law",
        "texts": texts,
        "total": done,
        "text": text,
        "tokens_shown": {x for t in texts for x in t[0]},
    }
    return state | {"invariants": invariants, "counters": counters, "said": {"done": done}}
