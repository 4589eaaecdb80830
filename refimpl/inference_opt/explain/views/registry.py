"""How what happens is said and drawn: one file for each part of the package that tells of itself.

    SENTENCES    {event: a sentence, made of the event's data with str.format, or a function of the data that gives it}
    PICTURES     {event: a function of the data that makes a picture of them}
    snapshot     the whole state of a subject, by its type: a dict with its `kind`, which says how the player draws it
    invariants   what must hold of a subject: {what is said of it: whether it holds}
    counters     what is counted of it
    watching     what takes the place of a pure thing while someone records, and tells of its use

A picture is a dict with its `kind`, and may hold `invariants`, `counters` and, as `said`, more words for the sentence.
"""

from collections.abc import Callable
from functools import singledispatch
from types import CodeType
from typing import Any


def last_line(code: CodeType) -> int:
    """Of a function's source."""
    return max(line for *_, line in code.co_lines() if line)


SENTENCES: dict[str, str | Callable[..., str]] = {}
PICTURES: dict[str, Callable[..., dict[str, Any]]] = {}


@singledispatch
def snapshot(subject: Any) -> Any:
    """The state of a subject as it stands; None of what is no subject."""
    return None


@singledispatch
def invariants(subject: Any) -> dict[str, bool]:
    """What must hold of a subject between two calls."""
    return {}


@singledispatch
def counters(subject: Any) -> dict[str, Any]:
    """What is counted of a subject so far."""
    return {}


@singledispatch
def watching(subject: Any, **context: Any) -> Any:
    """What takes the place of a subject while someone records."""
    return subject
