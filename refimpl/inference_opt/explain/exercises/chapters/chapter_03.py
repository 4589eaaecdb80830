"""Chapter 03: the radix tree."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from inference_opt.explain.exercises.exercise import Broken, Property, Repair, Write, expect
from inference_opt.radix.node import Node, upwards
from inference_opt.radix.tree import RadixTree

# What is there to judge by: a tree that is a plain dict of all prefixes, page by page.


def whole(tokens: Sequence[int], size: int) -> list[int]:
    """The whole pages of a text."""
    return list(tokens[: len(tokens) // size * size])


class Prefixes:
    """What a radix tree must know, in the simplest way: {prefix of whole pages: its last page}."""

    def __init__(self, size: int) -> None:
        self.size, self.page = size, dict[tuple[int, ...], int]()

    def find(self, tokens: Sequence[int]) -> list[int]:
        """The pages of the longest known prefix."""
        pages = []
        for end in range(self.size, len(tokens) + 1, self.size):
            if (page := self.page.get(tuple(tokens[:end]))) is None:
                break
            pages.append(page)
        return pages

    def insert(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Pages of prefixes that are new."""
        for i, page in enumerate(pages):
            self.page.setdefault(tuple(tokens[: (i + 1) * self.size]), page)


def check_tree(tree: RadixTree, model: Prefixes) -> None:
    """The tree's structure, its counts, and that it holds exactly the model's prefixes and pages."""
    held = {}
    for root in tree.roots.values():
        stack: list[tuple[Node, list[int]]] = [(root, [])]
        while stack:
            node, above = stack.pop()
            text = above + node.tokens
            if node.parent is not None:
                if not node.edge:
                    raise Broken("a node below the root has an empty edge")
                if len(node.tokens) != len(node.pages) * tree.page_size:
                    raise Broken("an edge is whole pages", f"{len(node.tokens)} tokens, {len(node.pages)} pages",
                                 f"{tree.page_size} tokens a page")  # fmt: skip
                for i, page in enumerate(node.pages):
                    held[tuple(text[: len(above) + (i + 1) * tree.page_size])] = page
            for key, child in node.children.items():
                if child.parent is not node:
                    raise Broken("a child's parent is the node that has it")
                expect(key, child.edge[: tree.page_bytes], "a child is looked up by the first page of its edge")
                if node.parent is not None and (node.hits < child.hits or node.used < child.used):
                    uses = f"{node.hits} matches, last use {node.used}; below it {child.hits} and {child.used}"
                    raise Broken("whatever used an edge has used the edges above it", uses)
                stack.append((child, text))
            expect(node.locks, node.users + sum(child.locks for child in node.children.values()),
                   "`locks` counts the locks on a node and below it")  # fmt: skip
    expect(held, model.page, "the tree holds each page of each text once, under its own prefix")
    free = sum(len(node.pages) for node in tree.nodes() if node.locks == 0)
    expect(tree.evictable, free, "`evictable` is the number of pages on unlocked nodes")


SIZES = st.integers(1, 3)
TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=9), max_size=5)


def grow(texts: Sequence[Sequence[int]], page_size: int) -> tuple[RadixTree, Prefixes]:
    """A tree in which the texts were inserted one after the other, and the model of it."""
    tree, model, page = RadixTree(page_size), Prefixes(page_size), 0
    for text in texts:
        tokens = whole(text, page_size)
        count = len(tokens) // page_size
        found = model.find(tokens)
        pages = found + list(range(page, page + count - len(found)))
        page += count - len(found)
        stored = tree.insert(tokens, pages)
        model.insert(tokens, pages)
        expect(list(stored.pages), model.find(tokens), f"insert returns the pages of {tokens}")
    return tree, model


def finds_what_was_inserted(texts: list[list[int]], page_size: int) -> None:
    """Insert, look up, and look at the tree."""
    tree, model = grow(texts, page_size)
    check_tree(tree, model)
    for text in texts:
        match = tree.match(text)
        expect(list(match.pages), model.find(text), f"match finds the longest cached prefix of {text}")
        path = [token for node in reversed(list(upwards(match.node))) for token in node.tokens]
        expect(path, text[: len(path)], "the node that match returns ends where the match ends")
        expect(len(path), len(match.pages) * page_size, "the node that match returns ends where the match ends")
    check_tree(tree, model)


def locks_survive_splits(locked: list[int], texts: list[list[int]], page_size: int) -> None:
    """A text is locked; others split its edge; then it is unlocked, and everything can be evicted."""
    tree, model = grow([locked], page_size)
    node = tree.match(locked).node
    tree.lock(node)
    before = model.find(locked)
    page = 100
    for text in texts:
        tokens = whole(text, page_size)
        found = model.find(tokens)
        pages = found + list(range(page, page + len(tokens) // page_size - len(found)))
        page += len(pages) - len(found)
        tree.insert(tokens, pages)
        model.insert(tokens, pages)
        check_tree(tree, model)
    gone = tree.evict(1000)
    expect(sorted(set(gone) & set(before)), [], "a locked page is not evicted")
    if sorted(tree.match(locked).pages) != sorted(before):
        raise Broken("what is locked is still found", list(tree.match(locked).pages), before)
    tree.unlock(node)
    expect(sorted(tree.evict(1000)), sorted(before), "after `unlock` everything can be evicted")


FINDS = Property(
    "every text finds the pages of its longest prefix in the tree",
    st.fixed_dictionaries({"texts": TEXTS, "page_size": SIZES}),
    finds_what_was_inserted,
)
LOCKS = Property(
    "a lock holds a whole prefix, however its edges are split",
    st.fixed_dictionaries(
        {"locked": st.lists(st.integers(0, 1), min_size=1, max_size=6), "texts": TEXTS, "page_size": SIZES}
    ),  # fmt: skip
    locks_survive_splits,
)


def evicts_the_least_used(texts: list[list[int]], uses: list[int], lock: int, count: int, page_size: int) -> None:
    """Some texts, some uses, a lock; then pages are asked back. A model that sorts leaves says which must go."""
    tree, model = grow(texts, page_size)
    for use in uses:
        tree.match(texts[use % len(texts)])
    locked: list[int] = []
    if texts and lock < len(texts):
        match = tree.match(texts[lock])
        tree.lock(match.node)
        locked = list(match.pages)
    nodes = {id(n): (n, [*n.pages]) for n in tree.nodes()}
    children = {key: {id(child) for child in node.children.values()} for key, (node, _) in nodes.items()}
    right: list[int] = []
    while len(right) < count:
        leaves = [nodes[key] for key in nodes if not children[key] and not nodes[key][0].locks]
        if not leaves:
            break
        node, pages = min(leaves, key=lambda leaf: leaf[0].used)
        right.append(pages.pop())
        if not pages:
            del nodes[id(node)]
            for below in children.values():
                below.discard(id(node))
    before, evictable = dict(model.page), tree.evictable
    gone = tree.evict(count)
    expect(list(gone), right, "the pages that go, in order: the end of the leaf used least recently, page by page")
    model.page = {prefix: page for prefix, page in before.items() if page not in gone}
    check_tree(tree, model)
    expect(tree.evictable, evictable - len(right), "`evictable` is the number of pages on unlocked nodes")
    expect(sorted(set(locked) & set(gone)), [], "a locked page is not evicted")


EVICTS = Property(
    "eviction takes what is asked for and no more, the least recently used leaf first, from its end",
    st.fixed_dictionaries({
        "texts": st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=5),
        "uses": st.lists(st.integers(0, 4), max_size=4), "lock": st.integers(0, 5), "count": st.integers(0, 8),
        "page_size": st.integers(1, 2),
    }),
    evicts_the_least_used,
)  # fmt: skip

EXERCISES: tuple[Any, ...] = (
    Write(
        "03.split",
        "cut an edge of the tree in two",
        """
        Two texts begin alike and then part. The edge that they share must end where they part, so the tree puts a new
        node there. `node` is the node whose edge is cut, `within` how many *bytes* of its edge belong to the new node
        above it (whole pages; a token is 4 bytes).

        What must hold afterwards: every text finds the same pages as before. A handle to `node` that somebody keeps
        still means the end of the whole prefix. Who holds a lock on the rest also holds the head.
        """,
        (
            "`node` keeps its identity and becomes the lower part. The new node, the head, goes between `node` and its parent.",
            "Four links change: the parent's child, the head's parent, the head's child, the node's parent. Children are "
            "looked up by the first page of their own edge, so the key of the rest differs from the key of the head.",
            "The head gets `node.edge[:within]`, the first `within // self.page_bytes` pages, and the node's `locks`, "
            "`used`, `hits` and `policy_state`; its `users` stay 0. The node keeps the rest of edge and pages.",
        ),
        15,
        RadixTree,
        "_split",
        (FINDS, LOCKS),
    ),
    Repair(
        "03.evict",
        "an eviction that takes too much",
        """
        A server with this `evict` was correct, and slower than it should have been: pages that nobody had asked for
        were gone, and their prefixes had to be computed again.
        """,
        (
            "How many pages go when one page is asked for, and the least used leaf has three?",
            "The leaf that goes last may keep its beginning. How much of it is needed?",
            "`keep` is what remains of the leaf: its length less what is still missing, `count - len(gone)`.",
        ),
        10,
        RadixTree,
        "evict",
        (EVICTS,),
        (("keep = max(len(node.pages) - (count - len(gone)), 0)", "keep = 0"),),
        {"texts": [[0, 1]], "uses": [], "lock": 5, "count": 1, "page_size": 1},
    ),
)
