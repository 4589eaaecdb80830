"""Drafts that are drawn only as a rule reads them."""

from collections.abc import Iterator, Sequence
from typing import Any


class Lazy(Sequence[Any]):
    """A sequence that is drawn as it is read: what a rule never looks at need not be enumerated."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self._read: list[Any] = []

    def __getitem__(self, i: Any) -> Any:
        while i >= len(self._read):
            try:
                self._read.append(next(self._items))
            except StopIteration:
                raise IndexError(i) from None
        return self._read[i]

    def snapshot(self) -> list[Any]:
        """What has been drawn so far."""
        return list(self._read)

    def __len__(self) -> int:
        self._read.extend(self._items)
        return len(self._read)
