"""The kinds of values that a file's fields may hold. A field with a value of another kind is refused by its name."""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A kind of value: its name in messages, the test of a value, and the conversion of one that passes."""

    says: str
    holds: Callable[[Any], bool]
    read: Callable[[Any], Any] = lambda value: value

    def check(self, name: str, value: Any) -> T:
        """The value, converted. ValueError if it is of another kind."""
        if not self.holds(value):
            raise ValueError(f"{name} must be {self.says}, got {reprlib.repr(value)}")
        return self.read(value)


def _is_token(value: Any) -> bool:
    return type(value) is int and value >= 0  # isinstance would accept a bool


SIZE = Kind[int]("a positive integer", lambda v: type(v) is int and v > 0)
COUNT = Kind[int]("an integer of 0 or more", _is_token)
# Angles are computed from positions in float32 (`rope.py`), which cannot tell neighbours apart beyond 2^24.
CONTEXT = Kind[int]("a positive integer of at most 2^24", lambda v: type(v) is int and 0 < v <= 2**24)
# The bounds keep the number from becoming 0 or infinity in float32, in which the model computes.
POSITIVE = Kind[float]("a positive number", lambda v: type(v) in (int, float) and 1e-37 <= v <= 1e37, float)
NOT_NEGATIVE = Kind[float](
    "a number of 0 or more", lambda v: type(v) in (int, float) and (v == 0 or POSITIVE.holds(v)), float
)
FLAG = Kind[bool]("true or false", lambda v: type(v) is bool)
TEXT = Kind[str]("a string", lambda v: type(v) is str)
TEXTS = Kind[list[str]]("a list of strings", lambda v: type(v) is list and all(type(each) is str for each in v))
INDICES = Kind[tuple[int, ...]](
    "a list of integers of 0 or more", lambda v: type(v) is list and all(_is_token(each) for each in v), tuple
)
PAIR = Kind[tuple[int, int]](
    "a list of two positive integers",
    lambda v: type(v) is list and len(v) == 2 and all(SIZE.holds(each) for each in v),
    tuple,
)
OBJECT = Kind[Mapping[str, Any]]("a JSON object", lambda v: type(v) is dict)
TOKENS = Kind[int | list[int]](
    "a token id or a list of token ids",
    lambda v: _is_token(v) or (type(v) is list and all(_is_token(each) for each in v)),
)


@dataclass(frozen=True)
class Fields:
    """Fields by name. A field that is null counts as missing. Messages put `prefix` before a name."""

    values: Mapping[str, Any]
    prefix: str = ""

    def get(self, name: str, kind: Kind[T], default: D) -> T | D:
        """A field's value, or the default if it is missing. ValueError if its value is of another kind."""
        value = self.values.get(name)
        return default if value is None else kind.check(self.prefix + name, value)

    def need(self, name: str, kind: Kind[T]) -> T:
        """The value of a required field. ValueError if it is missing or of another kind."""
        if self.values.get(name) is None:
            raise ValueError(f"the checkpoint's configuration lacks {self.prefix + name!r}")
        return kind.check(self.prefix + name, self.values[name])

    def tokens(self, name: str) -> tuple[int, ...]:
        """One token id or several; none if the field is missing."""
        ids = self.get(name, TOKENS, None)
        return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
