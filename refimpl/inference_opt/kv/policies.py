"""Eviction policies: which leaf of the radix tree to forget when pages run out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference_opt.kv.radix import Node


class Policy:
    """The smallest key is evicted first. A node's key never falls between its insertion and its eviction."""

    def key(self, node: "Node") -> float:
        """What the node is worth now."""
        raise NotImplementedError

    def touch(self, path: "list[Node]", hit: bool) -> None:
        """A use of all of the path, from the top: found there (`hit`), or inserted."""

    def evicted(self, node: "Node") -> None:
        """The node is gone."""


class LRU(Policy):
    """Least recently used."""

    def key(self, node: "Node") -> float:
        """When it was used last."""
        return node.used
