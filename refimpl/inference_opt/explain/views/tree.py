"""The radix tree: what its events say, its state, what must hold of it."""

from typing import Any

from inference_opt.explain.views.registry import SENTENCES, counters, invariants, snapshot
from inference_opt.radix.node import Node, upwards
from inference_opt.radix.tree import RadixTree

SENTENCES |= {
    "radix.match": "{tokens:text} is looked up: found as far as {found:text}, pages {pages}",
    "radix.insert": "{tokens:text} is handed over on pages {pages}; new to the tree: {new}",
    "radix.split": "an edge is split: {head:text} above, {rest:text} below, either with {locks:lock}",
    "radix.lock": "a lock on {node:text} and all above it: {locks:lock} there now",
    "radix.unlock": "a lock less on {node:text} and all above it: {locks:lock} left there",
    "radix.evict": "{count:page} wanted: {removed} from the end of the leaf valued least, which keeps {kept:page}",
}


@snapshot.register
def handle(node: Node) -> list[int]:
    """What a handle means: the tokens from the root to the end of the edge."""
    return [token for each in list(upwards(node))[::-1] for token in each.tokens]


@snapshot.register
def state(tree: RadixTree) -> dict[str, Any]:
    """Every node behind its parent, whose place in the list it names; children in the order of their arrival.

    A flat list: a tree may be deeper than JSON can be nested.
    """
    nodes: list[dict[str, Any]] = []
    stack: list[tuple[Node, int | None]] = [(root, None) for root in reversed(tree.roots.values())]
    while stack:
        node, parent = stack.pop()
        stack += [(child, len(nodes)) for child in reversed(node.children.values())]
        names = ("tokens", "pages", "locks", "users", "used", "hits")
        place = {"parent": parent} if node.parent else {"parent": None, "namespace": node.namespace}
        nodes.append(place | {name: getattr(node, name) for name in names})
    tokens = {token for node in tree.nodes() for token in node.tokens}
    return {
        "kind": "tree",
        "page_size": tree.page_size,
        "clock": tree.clock,
        "evictable": tree.evictable,
        "nodes": nodes,
        "tokens_shown": tokens,
    }


@invariants.register
def sound(tree: RadixTree) -> dict[str, bool]:
    """Those at the head of `radix/tree.py`."""
    nodes = list(tree.nodes())
    everyone = (*nodes, *tree.roots.values())
    pages = [page for node in nodes for page in node.pages]
    size = tree.page_bytes
    return {
        "every page is in the tree once": len(set(pages)) == len(pages),
        "edges are whole pages, none is empty": all(n.edge and len(n.edge) == len(n.pages) * size for n in nodes),
        "children are found by their first page": all(
            key == child.edge[:size] for node in everyone for key, child in node.children.items()
        ),
        "a lock counts on every node up to the root": all(
            node.locks == node.users + sum(child.locks for child in node.children.values()) for node in nodes
        ),
        "evictable: the pages without a lock": tree.evictable == sum(len(n.pages) for n in nodes if not n.locks),
    }


@counters.register
def counted(tree: RadixTree) -> dict[str, int]:
    """Pages kept, and those that could be had."""
    return {
        "pages in the tree": sum(len(node.pages) for node in tree.nodes()),
        "of these evictable": tree.evictable,
    }
