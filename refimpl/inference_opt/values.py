"""Checks of a caller's values: each is an integer, a number, a switch or a prompt, or a ValueError says what it is.

Python accepts True for 1, and int() accepts "1" and 1.7, so the type of each value is checked. Scalars of NumPy and
torch become Python's.
"""

from collections.abc import Iterable, Sequence
from math import isfinite
from numbers import Integral, Real
from reprlib import Repr
from typing import Any


def integer(name: str, value: Any, minimum: int | None = None) -> int:
    """The value as an int. ValueError for text, a float (even 1.0), a switch, or a value below `minimum`."""
    given = _scalar(value)
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise ValueError(f"{name} must be an integer, got {shown(value)}")
    if minimum is not None and given < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {shown(value)}")
    return int(given)


def number(name: str, value: Any) -> float:
    """The value as a float. ValueError for text, a switch, NaN or infinity."""
    given = _scalar(value)
    try:
        if isinstance(given, Real) and not isinstance(given, bool) and isfinite(given):
            return float(given)
    except OverflowError:  # an integer too large for a float
        pass
    raise ValueError(f"{name} must be a finite number, got {shown(value)}")


def switch(name: str, value: Any) -> bool:
    """The value, True or False. ValueError for anything else, including 1 and 0."""
    given = _scalar(value)
    if not isinstance(given, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return given


def token_ids(name: str, value: Any) -> list[int]:
    """A sequence, array or tensor of integers as a list of ints. ValueError for text, and for iterators."""
    sequence = isinstance(value, Sequence) or getattr(value, "ndim", -1) == 1
    if not sequence or isinstance(value, str | bytes | bytearray):
        hint = "; a tokenizer's `encode` makes them from text" if isinstance(value, str) else ""
        raise ValueError(f"{name} must be a sequence of token ids, got {shown(value)}{hint}")
    ids = value.tolist() if hasattr(value, "tolist") else list(value)
    return ids if are_ints(ids) else [integer(f"token {i} of {name}", x) for i, x in enumerate(ids)]


def are_ints(values: Sequence[Any]) -> bool:
    """Whether all values are ints, as they nearly always are: a quick test, so that the slow one is rarely needed."""
    return set(map(type, values)) <= {int}


def listed(name: str, value: Any, of: str) -> list[Any]:
    """The values of a collection as a list. ValueError for a single value or a text."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise ValueError(f"{name} must be a list of {of}, got {shown(value)}")
    return list(value)


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, or, if that is long, its type."""
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"


def brief(value: Any) -> str:
    """A value as Python writes it, its middle left out if it is long: for a repr of one line."""
    short = Repr()
    short.maxstring, short.maxlist, short.maxdict, short.maxother = 70, 10, 5, 70
    return short.repr(value)


def _scalar(value: Any) -> Any:
    return value.item() if getattr(value, "ndim", None) == 0 else value
