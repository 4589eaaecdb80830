"""The distribution of what a rule emits, while its paths are summed up (`lab/exactness/exact.py`)."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from inference_opt.explain.views.registry import PICTURES, SENTENCES
from inference_opt.lab.exactness.exact import joint_law, total_variation
from inference_opt.lab.exactness.proposals import Model, Prefix

SENTENCES |= {
    "law.path": "{emitted:text} comes out of this path, which has probability {probability}; "
    "{total} of all has been seen",
    "law.text": "{text:text}, of weight {weight}, has gone on in every way; "
    "texts complete so far have {done} of all probability",
}


def path_state(target: Model, prefix: Prefix, law: Mapping[Prefix, Any], path: dict[str, Any]) -> dict[str, Any]:
    """One speculative step while its paths are summed up: the law so far, by the first token that comes out."""
    truth = [Fraction(weight) for weight in target(prefix)]
    first = [sum((weight for text, weight in law.items() if text[0] == x), Fraction(0)) for x in range(len(truth))]
    total = sum(first, Fraction(0))
    invariants = {"no path is counted twice: the sum is at most 1": total <= 1}
    if total == 1:
        invariants["the first token has the target's distribution"] = first == truth
    state = {"kind": "law", "prefix": prefix, "first": first, "truth": truth, "total": total, "path": path}
    said = {"emitted": path["emitted"], "probability": path["probability"], "total": total}
    counters = {"probability seen": round(float(total), 6)}
    shown = {*range(len(truth)), *prefix}
    return state | {"invariants": invariants, "counters": counters, "said": said, "tokens_shown": shown}


def text_state(
    target: Model,
    text: Prefix,
    weight: Fraction,
    laws: Sequence[Mapping[Prefix, Fraction]],
) -> dict[str, Any]:
    """The law of texts, while the shorter ones go on, beside the target's own."""
    length = len(laws) - 1
    right = joint_law(target, length)
    found = dict(laws[length])
    done = sum(found.values(), Fraction(0))
    texts: list[Any] = [[t, found.get(t, Fraction(0)), right.get(t, Fraction(0))] for t in sorted({*right, *found})]
    invariants = {"the sum is at most 1": done <= 1}
    counters = {"texts complete": round(float(done), 6)}
    if done == 1:
        apart = total_variation(found, right)
        invariants["the texts have the target's distribution"] = apart == 0
        counters["total variation from the target"] = round(float(apart), 6)
    state = {
        "kind": "law",
        "texts": texts,
        "total": done,
        "text": text,
        "tokens_shown": {x for t in texts for x in t[0]},
    }
    return state | {"invariants": invariants, "counters": counters, "said": {"done": done}}


PICTURES |= {"law.path": path_state, "law.text": text_state}
