"""Tree and pages as recorded steps show them: what each step says, the state, what must hold, what is counted."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from inference_opt.kv.node import WIDTH, Node

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
        """Those at the head of `radix.py`."""
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


ATTENDED = "layer {layer}: {q.shape[0]:new token} over {end:key} {how} pages {pages}"


def attended(
    cache: Any, layer: int, pages: Sequence[int], end: int, q: Tensor, out: Tensor, scale: float
) -> dict[str, Any]:
    """One sequence's attention: where its keys lie, and how the last new token weighs them."""
    state = {"kind": "attention", "layer": layer, "table": list(pages), "end": end, "new": len(q)}
    state |= {"page_size": cache.page_size, "pages": cache.num_pages, "weights": []}
    kept = cache.bytes_per_token() // len(cache.keys)  # of one layer
    how, moved = ("read in", "bytes read") if cache.in_place else ("gathered from", "bytes gathered")
    counters = {"keys and values computed": {"value": len(q), "naive": end}, moved: end * kept}
    shot = {"counters": counters, "said": {"how": how}}
    if cache.latent_dim is not None:  # the weights are the latent form's own affair
        return state | shot
    used = torch.tensor(pages, device=q.device)
    k, v = (x[layer].index_select(0, used).flatten(0, 1)[:end].double() for x in (cache.keys, cache.values))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # [end, heads, d]
    weights = torch.softmax(torch.einsum("hd,khd->hk", q[-1].double(), k) * scale, dim=-1)  # [heads, end]
    state["weights"] = weights.round(decimals=4).tolist()
    eps = torch.finfo(out.dtype).eps
    same = torch.allclose(torch.einsum("hk,khd->hd", weights, v), out[-1].double(), rtol=4 * eps, atol=max(1e-4, eps))
    ends = end <= len(pages) * cache.page_size
    invariants = {"the weights drawn give the output": same, "the page table has a page for every key": ends}
    return state | shot | {"invariants": invariants}
