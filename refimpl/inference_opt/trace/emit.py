"""Telling what happens. Code that owns state says so in one line, and whoever records hears it.

    emit("pool.allocate", self, count=count, pages=pages)
          │               │     └─ data: what happened, as values
          │               └─ whose state changed
          └─ the event

Pure code (rules, attention) says nothing. It is recorded from outside: who calls it hands it `watched(x)` in place of
x, which is x itself unless someone records, and then whatever the listener puts in its place.

Unrecorded, either is one look at a context variable. How an event is said and drawn stands in `explain/views/`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import CodeType
from typing import Any, Protocol, TypeVar, no_type_check, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Listener(Protocol):
    """Who records."""

    def hear(self, event: str, subject: Any, data: dict[str, Any], code: CodeType, line: int) -> None:
        """Something has happened at a line of the code. Changes nothing that it is told of."""
        ...

    def watch(self, subject: Any, context: dict[str, Any]) -> Any:
        """What takes the place of `subject`: the same, telling what it is asked."""
        ...


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def recording() -> bool:
    """Whether someone listens. Where microseconds count: `if recording(): emit(…)` makes no arguments for nobody."""
    return _listener.get() is not None


@no_type_check  # a checker put round it would be its caller, and cost
def emit(event: str, subject: Any = None, /, **data: Any) -> None:
    """Something has happened. Costs nothing to speak of unless it is recorded."""
    listener = _listener.get()
    if listener is not None:
        frame = sys._getframe(1)
        listener.hear(event, subject, data, frame.f_code, frame.f_lineno)


def emit_at(code: CodeType, line: int, event: str, subject: Any = None, /, **data: Any) -> None:
    """The same, told of another place in the code than the caller's."""
    listener = _listener.get()
    if listener is not None:
        listener.hear(event, subject, data, code, line)


@no_type_check
def watched(subject: T, /, **context: Any) -> T:
    """The subject itself or, while someone records, what tells of its use (which may need some `context`)."""
    listener = _listener.get()
    return subject if listener is None else listener.watch(subject, context)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """The listener hears what happens within the block, and nobody else does."""
    before = _listener.get()
    try:
        _listener.set(listener)
        yield
    finally:
        _listener.set(before)


unrecorded = partial(listening, None)  # what the block does is nobody's business: it keeps books of its own
