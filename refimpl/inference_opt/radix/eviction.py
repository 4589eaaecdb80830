"""Eviction policies: which leaf of the radix tree to forget when pages run out.

A policy gives every node a key, and the free leaf of the least key goes first. Keys may change when a node is used, and
then only, so that leaves can wait in a heap: O(log n) for an eviction, whatever the policy. These three need nothing
but what every node carries; `lab/eviction/learned.py` has two that learn.
"""

import weakref
from collections.abc import Hashable, Sequence
from math import inf
from typing import Any

from inference_opt.radix.node import TOKEN_BYTES, Node
from inference_opt.values import integer


class Policy:
    """What a tree asks. An error raised by any of these is raised by the tree's call, and leaves a sound tree."""

    page_size: int | None = None  # of the trees that it can serve; None: of any
    _tree: "weakref.ref[Any] | None" = None

    def serve(self, tree: Any) -> None:
        """A tree takes it. ValueError for a tree of another page size, and while it serves another tree."""
        if self.page_size not in (None, tree.page_size):
            raise ValueError(
                f"this {type(self).__name__} was made for pages of {self.page_size} tokens, "
                f"the tree has pages of {tree.page_size}: give both the same page_size"
            )
        if self._tree and self._tree() is not None:
            raise ValueError(f"this {type(self).__name__} serves another tree already: make one for each")
        self._tree = weakref.ref(tree)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tree": None}  # a copy's tree is not this one

    def key(self, node: Node) -> Any:
        """What the node is worth. Any type that compares."""
        raise NotImplementedError

    def cuts(self, text: bytes, namespace: Hashable) -> Sequence[int]:
        """Before `text` is inserted: depths in pages, rising, at which what it is worth changes within the text."""
        return ()

    def touch(self, path: list[Node], text: bytes, namespace: Hashable, hit: bool) -> None:
        """A use: `path` (from the top) was found for `text` (`hit`; it may go on behind the path), or inserted."""


class LRU(Policy):
    """Least recently used first."""

    def key(self, node: Node) -> int:
        """When it was used last."""
        return node.used


class FIFO(Policy):
    """First inserted, first out."""

    def key(self, node: Node) -> int:
        """When it came."""
        return node.born


class LFU(Policy):
    """Least frequently used first, and of equals the least recently used."""

    def key(self, node: Node) -> tuple[int, int]:
        """How often it was found, and when last."""
        return node.hits, node.used


def next_uses(texts: Sequence[bytes], page_bytes: int) -> list[list[float]]:
    """[text][page]: the number of the next text that begins with the same pages up to this one; inf if none does.

    The rest of a text that fills no whole page does not count.
    """
    names: dict[tuple[int, bytes], int] = {}  # a prefix, by the name of the one a page shorter and its last page
    prefixes: list[list[int]] = []
    for text in texts:
        prefixes.append([])
        name = -1
        for start in range(0, len(text) - page_bytes + 1, page_bytes):
            name = names.setdefault((name, text[start : start + page_bytes]), len(names))
            prefixes[-1].append(name)
    seen: dict[int, float] = {}  # from the last text backwards: who uses each prefix next
    uses: list[list[float]] = []
    for number in range(len(texts) - 1, -1, -1):
        uses.append([seen.get(name, inf) for name in prefixes[number]])
        seen.update(dict.fromkeys(prefixes[number], float(number)))
    return uses[::-1]


class Belady(Policy):
    """The bound that no policy can pass: farthest next use first (Belady 1966), which needs the future.

    For a replay of `texts`, in order, each matched and then inserted. Every page gets a node of its own, since the
    pages of one request may be used again at different times.
    """

    def __init__(self, texts: Sequence[bytes], page_size: int) -> None:
        self.page_size: int = integer("page_size", page_size, 1)
        self._next = next_uses(texts, page_size * TOKEN_BYTES)
        self._request = -1

    def key(self, node: Node) -> float:
        """Minus the time of its next use."""
        return node.policy_state

    def cuts(self, text: bytes, namespace: Hashable) -> Sequence[int]:
        """After every page."""
        return range(1, len(text) // (self.page_size * TOKEN_BYTES))

    def touch(self, path: list[Node], text: bytes, namespace: Hashable, hit: bool) -> None:
        """Note when each page of the path will be used next. ValueError for a text that was not foreseen."""
        if not 0 <= self._request + hit < len(self._next):
            raise ValueError(f"{len(self._next)} texts were foreseen, each matched and then inserted: this is another")
        self._request += hit
        for node, request in zip(path, self._next[self._request]):
            node.policy_state = -request
