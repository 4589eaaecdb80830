"""Exercises: the input that a reader's code is given, and what came out of it beside what is right."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from inference_opt.explain.views.registry import PICTURES, SENTENCES

DIGITS = 6  # of a float: two that differ by rounding are written alike


def written(value: Any) -> str:
    """A value as Python writes it, but floats with a few digits, fractions plain, and tensors as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{written(key)}: {written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(written, value))}{',' * (len(value) == 1)})"
    if isinstance(value, Set) and value:
        return f"{{{', '.join(sorted(map(written, value)))}}}"
    return repr(value) if isinstance(value, str) else str(value)


def told(value: Any) -> str:
    """The same of a whole value: a text is told as it is."""
    return value if isinstance(value, str) else written(value)


def comparison(sentence: str, given: dict[str, Any], rows: Sequence[tuple[str, Any, Any]]) -> dict[str, Any]:
    """A broken promise as a table. `rows`: what is compared, what came, what is right; equal where written alike."""
    compared = [[what, *map(told, (came, right))] for what, came, right in rows]
    return {
        "kind": "comparison",
        "given": [[name, told(value)] for name, value in given.items()],
        "rows": [[*row, row[1] == row[2]] for row in compared],
        "broken": sentence,
        "invariants": {sentence: False},
    }


def handed(given: dict[str, Any]) -> str:
    """The sentence of an input: str.format is yet to read it."""
    words = ", ".join(f"{name} = {told(value)}" for name, value in given.items())
    return f"the input: {words or 'nothing'}".replace("{", "{{").replace("}", "}}")


SENTENCES |= {"exercise.given": handed, "exercise.broken": "{sentence}"}
PICTURES["exercise.broken"] = comparison
