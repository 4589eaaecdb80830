"""What a caller gives is what it says: an integer, a number, a switch, a prompt, or a plain ValueError.

Python takes True for 1 and int() takes "1" and 1.7, so each has to be asked for by its type. NumPy's and torch's
scalars become Python's.
"""

from collections.abc import Iterable, Sequence
from math import isfinite
from numbers import Integral, Real
from typing import Any


def integer(name: str, value: Any, least: int | None = None) -> int:
    """The value as an int. ValueError for text, a float (even 1.0), a switch, or less than `least`."""
    given = _plain(value)
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise ValueError(f"{name} must be an integer, got {shown(value)}")
    if least is not None and given < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(value)}")
    return int(given)


def number(name: str, value: Any) -> float:
    """The value as a float. ValueError for text, a switch, NaN or infinity."""
    given = _plain(value)
    try:
        if isinstance(given, Real) and not isinstance(given, bool) and isfinite(given):
            return float(given)
    except OverflowError:  # an integer that no float holds
        pass
    raise ValueError(f"{name} must be a finite number, got {shown(value)}")


def switch(name: str, value: Any) -> bool:
    """The value, True or False. ValueError for anything else, 1 and 0 too."""
    given = _plain(value)
    if not isinstance(given, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return given


def token_ids(name: str, value: Any) -> list[int]:
    """A sequence, array or tensor of integers as a list of ints. ValueError for text, and for what can be read once."""
    sequence = isinstance(value, Sequence) or getattr(value, "ndim", -1) == 1
    if not sequence or isinstance(value, str | bytes | bytearray):
        hint = "; a tokenizer's `encode` makes them of text" if isinstance(value, str) else ""
        raise ValueError(f"{name} must be a sequence of token ids, got {shown(value)}{hint}")
    ids = value.tolist() if hasattr(value, "tolist") else list(value)
    return ids if are_ints(ids) else [integer(f"token {i} of {name}", x) for i, x in enumerate(ids)]


def are_ints(values: Sequence[Any]) -> bool:
    """Whether all are ints already, as they nearly always are: then there is no need to ask one by one."""
    return set(map(type, values)) <= {int}


def listed(name: str, value: Any, of: str) -> list[Any]:
    """What there is several of, read once. ValueError for what is no collection, or one piece of text."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise ValueError(f"{name} must be a list of {of}, got {shown(value)}")
    return list(value)


def shown(value: Any) -> str:
    """A value as a message names it: as it is written, or where that is long by its type."""
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"


def _plain(value: Any) -> Any:
    return value.item() if getattr(value, "ndim", None) == 0 else value
