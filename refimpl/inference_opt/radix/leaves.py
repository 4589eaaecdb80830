"""The leaves of a radix tree that may be evicted, in a heap by what the policy says they are worth.

A key may change while a leaf waits. One that rose is noticed at the leaf's turn; one that fell is pushed again, and the
older entry is stale, as are those of nodes that are no free leaves any more. They are dropped when they come up, or
when most of the heap is stale. An entry counts if its key is its node's `queued`.
"""

import heapq
import itertools
from typing import Any

from inference_opt.radix.eviction import Policy
from inference_opt.radix.node import Node

SPARE = 16  # stale entries that the heap may have beside one for each leaf


class Leaves:
    """What `RadixTree` knows of its leaves. A policy's error changes nothing here."""

    policy: Policy

    def _begin(self) -> None:
        """No leaves."""
        self._heap: list[tuple[Any, int, Node]] = []
        self._order = itertools.count()  # the older entry of equals goes first
        self._leaves = 0  # free or not

    def _enqueue(self, node: Node) -> None:
        """Put what is a free leaf, or is about to be one, in the heap."""
        if node.parent is None:
            return
        key = self.policy.key(node)
        if node.queued is None or key < node.queued:
            if len(self._heap) > 2 * self._leaves + SPARE:
                self._heap = [entry for entry in self._heap if self._counts(entry[0], entry[2])]
                heapq.heapify(self._heap)
            heapq.heappush(self._heap, (key, next(self._order), node))
            node.queued = key

    def _least(self) -> Node | None:
        """The free leaf that the policy values least. O(log n)."""
        while self._heap:
            key, _, node = self._heap[0]
            if not self._counts(key, node):
                heapq.heappop(self._heap)
            elif (risen := self.policy.key(node)) > key:
                heapq.heapreplace(self._heap, (risen, next(self._order), node))
                node.queued = risen
            else:
                return node
        return None

    def _counts(self, key: Any, node: Node) -> bool:
        """Whether an entry is its node's, and the node a free leaf. If it is none, it is queued when it becomes one."""
        if key != node.queued:
            return False
        if node.children or node.locks:
            node.queued = None
        return node.queued is not None
