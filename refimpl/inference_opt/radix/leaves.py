"""The leaves of a radix tree that may be evicted, in a heap by what the policy says they are worth.

A key may change while a leaf waits. A key that rose is noticed when the leaf's turn comes. A key that fell is pushed
again, and the older entry is stale, as are the entries of nodes that are no longer free leaves. Stale entries are
dropped when they come up, or when most of the heap is stale. An entry counts if its key is its node's `queued`.
"""

import heapq
import itertools
from typing import Any

from inference_opt.radix.eviction import Policy
from inference_opt.radix.node import Node

SPARE = 16  # stale entries that the heap may have beside one for each leaf


class Leaves:
    """A tree's leaves that no one has locked. A policy's error changes nothing here."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.heap: list[tuple[Any, int, Node]] = []
        self.order = itertools.count()  # ties go to the older entry
        self.count = 0  # of all leaves of the tree, free or not

    def push(self, node: Node) -> None:
        """Put what is a free leaf, or is about to be one, in the heap."""
        if node.parent is None:
            return
        key = self.policy.key(node)
        if node.queued is None or key < node.queued:
            if len(self.heap) > 2 * self.count + SPARE:
                self.heap = [entry for entry in self.heap if self._counts(entry[0], entry[2])]
                heapq.heapify(self.heap)
            heapq.heappush(self.heap, (key, next(self.order), node))
            node.queued = key

    def least(self) -> Node | None:
        """The free leaf that the policy values least. O(log n)."""
        while self.heap:
            key, _, node = self.heap[0]
            if not self._counts(key, node):
                heapq.heappop(self.heap)
            elif (risen := self.policy.key(node)) > key:
                heapq.heapreplace(self.heap, (risen, next(self.order), node))
                node.queued = risen
            else:
                return node
        return None

    def _counts(self, key: Any, node: Node) -> bool:
        """Whether an entry is its node's, and the node a free leaf. If it is not, it is queued when it becomes one."""
        if key != node.queued:
            return False
        if node.children or node.locks:
            node.queued = None
        return node.queued is not None
