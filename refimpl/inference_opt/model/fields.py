"""What a file's fields may hold: each is read as one kind of value, and refused by its name where it holds another."""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """Values of one kind: in words, how they are told from others, and what they become."""

    says: str
    holds: Callable[[Any], bool]
    read: Callable[[Any], Any] = lambda value: value

    def check(self, name: str, value: Any) -> T:
        """The value, where it is of this kind; ValueError otherwise."""
        if not self.holds(value):
            raise ValueError(f"{name} must be {self.says}, got {reprlib.repr(value)}")
        return self.read(value)


def _is_token(value: Any) -> bool:
    return type(value) is int and value >= 0  # a bool is an int to isinstance


SIZE = Kind[int]("a positive integer", lambda v: type(v) is int and v > 0)
COUNT = Kind[int]("an integer of 0 or more", _is_token)
# Positions are float32 numbers where angles are computed (`rope.py`): beyond, neighbours would be one and the same.
CONTEXT = Kind[int]("a positive integer of at most 2^24", lambda v: type(v) is int and 0 < v <= 2**24)
# Within float32, which all of them meet: neither 0 nor infinity there.
POSITIVE = Kind[float]("a positive number", lambda v: type(v) in (int, float) and 1e-37 <= v <= 1e37, float)
NOT_NEGATIVE = Kind[float](
    "a number of 0 or more", lambda v: type(v) in (int, float) and (v == 0 or POSITIVE.holds(v)), float
)
FLAG = Kind[bool]("true or false", lambda v: type(v) is bool)
TEXT = Kind[str]("a string", lambda v: type(v) is str)
TEXTS = Kind[list[str]]("a list of strings", lambda v: type(v) is list and all(type(each) is str for each in v))
OBJECT = Kind[Mapping[str, Any]]("a JSON object", lambda v: type(v) is dict)
TOKENS = Kind[int | list[int]](
    "a token id or a list of token ids",
    lambda v: _is_token(v) or (type(v) is list and all(_is_token(each) for each in v)),
)


@dataclass(frozen=True)
class Fields:
    """Fields by name. One that is null counts as one that is not there. Errors put `prefix` before a name."""

    values: Mapping[str, Any]
    prefix: str = ""

    def get(self, name: str, kind: Kind[T], default: D) -> T | D:
        """A field's value, or the default where it is not there; ValueError where it is of another kind."""
        value = self.values.get(name)
        return default if value is None else kind.check(self.prefix + name, value)

    def need(self, name: str, kind: Kind[T]) -> T:
        """The same of a field that must be there."""
        if self.values.get(name) is None:
            raise ValueError(f"the checkpoint's configuration lacks {self.prefix + name!r}")
        return kind.check(self.prefix + name, self.values[name])

    def tokens(self, name: str) -> tuple[int, ...]:
        """One token id or several; none where the field is not there."""
        ids = self.get(name, TOKENS, None)
        return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
