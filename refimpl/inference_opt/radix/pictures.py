"""The tree as recorded steps show it: what each step says, the state, what must hold, what is counted."""

from collections.abc import Hashable, Iterator
from typing import Any

from inference_opt.radix.node import WIDTH, Node

MATCHED = "{tokens:text} is looked up: found as far as {found:text}, pages {pages}"
INSERTED = "{tokens:text} is handed over on pages {pages}; new to the tree: {new}"
SPLIT = "an edge is split: {head:text} above, {rest:text} below, either with {locks:lock}"
LOCKED = "a lock on {node:text} and all above it: {locks:lock} there now"
UNLOCKED = "a lock less on {node:text} and all above it: {locks:lock} left there"
EVICTED = "{count:page} wanted: {removed} from the end of the leaf valued least, which keeps {kept:page}"


class TreePictures:
    """What `RadixTree` shows of itself. Reads, and changes nothing."""

    page_size: int
    clock: int
    evictable: int
    roots: dict[Hashable, Node]

    def nodes(self) -> Iterator[Node]:
        """Every node, parents before children, roots left out."""
        stack = [child for root in self.roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def snapshot(self) -> dict[str, Any]:
        """Every node behind its parent, whose place in the list it names; children in the order of their arrival.

        A flat list: a tree may be deeper than JSON can be nested.
        """
        nodes: list[dict[str, Any]] = []
        stack: list[tuple[Node, int | None]] = [(root, None) for root in reversed(self.roots.values())]
        while stack:
            node, parent = stack.pop()
            stack += [(child, len(nodes)) for child in reversed(node.children.values())]
            names = ("tokens", "pages", "locks", "users", "used", "hits")
            shown = {"parent": parent} if node.parent else {"parent": None, "namespace": node.namespace}
            nodes.append(shown | {name: getattr(node, name) for name in names})
        state = {"page_size": self.page_size, "clock": self.clock, "evictable": self.evictable, "nodes": nodes}
        return {"kind": "tree", **state, "tokens_shown": {token for node in self.nodes() for token in node.tokens}}

    def invariants(self) -> dict[str, bool]:
        """Those at the head of `tree.py`."""
        nodes = list(self.nodes())
        everyone = (*nodes, *self.roots.values())
        pages = [page for node in nodes for page in node.pages]
        size = self.page_size * WIDTH
        return {
            "every page is in the tree once": len(set(pages)) == len(pages),
            "edges are whole pages, none is empty": all(n.edge and len(n.edge) == len(n.pages) * size for n in nodes),
            "children are found by their first page": all(
                key == child.edge[:size] for node in everyone for key, child in node.children.items()
            ),
            "a lock counts on every node up to the root": all(
                node.locks == node.users + sum(child.locks for child in node.children.values()) for node in nodes
            ),
            "evictable: the pages without a lock": self.evictable == sum(len(n.pages) for n in nodes if not n.locks),
        }

    def counters(self) -> dict[str, int]:
        """Pages kept, and those that could be had."""
        return {
            "pages in the tree": sum(len(node.pages) for node in self.nodes()),
            "of these evictable": self.evictable,
        }
