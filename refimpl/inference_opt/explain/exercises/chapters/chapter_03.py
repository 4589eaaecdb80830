"""Chapter 03: the radix tree."""

from collections.abc import Sequence
from functools import partial
from math import inf
from typing import Any

from hypothesis import strategies as st

from inference_opt.cache.pool import PagePool
from inference_opt.explain.exercises.exercise import (
    Broken,
    Predict,
    Property,
    Question,
    Repair,
    Write,
    expect,
    expect_error,
)
from inference_opt.explain.record import record
from inference_opt.radix import eviction
from inference_opt.radix.eviction import Belady
from inference_opt.radix.node import TOKEN_BYTES, Node, as_bytes, upwards
from inference_opt.radix.tree import RadixTree
from inference_opt.trace.trace import Trace

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
    seen: list[tuple[Node, list[int]]] = []
    for root in tree.roots.values():
        stack: list[tuple[Node, list[int]]] = [(root, [])]
        while stack:
            node, above = stack.pop()
            text = above + node.tokens
            seen.append((node, text))
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
                    raise Broken(
                        f"what has used the edge below {text} has used the one above it, too",
                        f"above: hits = {node.hits}, used = {node.used}",
                        f"at least hits = {child.hits}, used = {child.used}",
                    )
                stack.append((child, text))
    for node, text in reversed(seen):  # from below: where a count is wrong first, the mistake was made
        counted = node.users + sum(child.locks for child in node.children.values())
        expect(node.locks, counted, f"`locks` of the node at the end of {text} counts the locks on it and below it")
    expect(held, model.page, "the tree holds each page of each text once, under its own prefix")
    free = sum(len(node.pages) for node in tree.nodes() if node.locks == 0)
    expect(tree.evictable, free, "`evictable` is the number of pages on unlocked nodes")


SIZES = st.integers(1, 3)
TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=9), max_size=5)


def grow(texts: Sequence[Sequence[int]], page_size: int, tree: RadixTree | None = None) -> tuple[RadixTree, Prefixes]:
    """A tree in which the texts were inserted one after the other, and the model of it."""
    tree, model, page = tree or RadixTree(page_size), Prefixes(page_size), 0
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
    for each in upwards(node):
        each.policy_state = "kept"  # a policy's notes, which are about the whole edge
    page = 100
    for text in texts:
        tokens = whole(text, page_size)
        found = model.find(tokens)
        pages = found + list(range(page, page + len(tokens) // page_size - len(found)))
        page += len(pages) - len(found)
        tree.insert(tokens, pages)
        model.insert(tokens, pages)
        check_tree(tree, model)
    for each in upwards(node):
        expect(
            each.policy_state, "kept", "what a policy noted of an edge (`policy_state`) is noted of both of its parts"
        )
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
    ),
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


class Sound(RadixTree):
    """A tree with the reference's own walk, to be walked by the learner's."""

    _walk = RadixTree._walk


def picture(tree: RadixTree) -> Any:
    """All that a call which only looks must leave alone, in words."""
    nodes = []
    for node in tree.nodes():
        text = [token for each in reversed(list(upwards(node))) for token in each.tokens]
        counts = f"{node.locks} locks, {node.users} users, {node.hits} matches, used at {node.used}"
        nodes.append(f"{text} on pages {node.pages}: {counts}")
    return {"nodes": sorted(nodes), "roots of": list(tree.roots), "clock": tree.clock, "evictable": tree.evictable}


def walks_as_far_as_is_known(texts: list[list[int]], asked: list[int], page_size: int) -> None:
    """A text is followed down a sound tree, in the namespace of the texts and in another."""
    tree, model = grow(texts, page_size, Sound(page_size))
    before = picture(tree)
    for namespace, pages in ((None, len(model.find(asked))), ("other", 0)):
        came = RadixTree._walk(tree, as_bytes(asked), namespace)
        if not isinstance(came, tuple) or len(came) != 3 or not isinstance(came[0], Node):
            raise Broken("three values are returned: a node, and two numbers of bytes", came)
        node, within, depth = came
        where = "" if namespace is None else ", in a namespace that has no texts"
        expect(depth, pages * page_size * TOKEN_BYTES, f"the bytes matched in all{where}")
        *path, root = upwards(node)
        above = sum(len(each.edge) for each in path[1:])
        expect(within, depth - above, f"the bytes matched of the last node's edge{where}")
        if not (0 < within <= len(node.edge) or node is root):
            right = f"1 to {len(node.edge)}"
            raise Broken(
                f"the last node is the one whose edge the match ends in{where}", f"{within} bytes of it", right
            )
        spelled = b"".join(each.edge for each in reversed(path))[:depth]
        expect(spelled, as_bytes(asked)[:depth], f"the nodes up to the last spell what is matched{where}")
        expect(root.namespace, namespace, f"the root is that of the namespace{where}")
        expect(root is tree.roots.get(namespace, root), True, f"the root is the tree's own{where}")
    expect(picture(tree), before, "looking changes nothing")


WALKS = Property(
    "a text is followed as far as it is known, in whole pages",
    st.fixed_dictionaries({"texts": TEXTS, "asked": st.lists(st.integers(0, 2), max_size=9), "page_size": SIZES}),
    walks_as_far_as_is_known,
    (
        {"texts": [[0, 1, 2, 3]], "asked": [0, 1, 2, 0], "page_size": 2},
        {"texts": [[0, 1, 2, 3]], "asked": [0, 1, 2], "page_size": 2},
        {"texts": [[0, 1, 2, 3], [0, 1, 2, 0]], "asked": [0, 1, 2, 3], "page_size": 1},
    ),
)


def locks_are_counted(texts: list[list[int]], locks: list[int], page_size: int) -> None:
    """Some texts are locked, some of them twice, and unlocked again; the tree is counted after each step."""
    tree, model = grow(texts, page_size)
    held: list[Node] = []
    for which in locks:
        held.append(tree.match(texts[which % len(texts)]).node)
        tree.lock(held[-1])
        check_tree(tree, model)
        expect(held[-1].users, held.count(held[-1]), "`users` counts the locks on this very node")
    for node in [*tree.nodes(), *tree.roots.values()]:
        if not node.users:
            expect_error(partial(tree.unlock, node), "a node that nobody locked, itself, cannot be unlocked")
    check_tree(tree, model)
    for done, node in enumerate(held, start=1):
        tree.unlock(node)
        check_tree(tree, model)
        expect(node.users, held[done:].count(node), "`users` counts the locks on this very node")
    gone = tree.evict(1000)
    expect(sorted(gone), sorted(model.page.values()), "after the last `unlock` every page can be evicted")


def locks_have_edges(tokens: list[int]) -> None:
    """The root of a namespace that has no page yet, and a node that is gone."""
    tree = RadixTree(1)
    root = tree.match(tokens, "new").node
    tree.lock(root)
    expect(tree.roots.get("new") is root, True, "a root that is locked has joined the tree")
    stored = tree.insert(tokens, list(range(len(tokens))), "new").node
    expect(list(upwards(stored))[-1] is root, True, "what is inserted hangs on the root that is locked")
    tree.lock(stored)
    tree.unlock(stored)
    tree.evict(len(tokens))
    before = picture(tree)
    expect_error(lambda: tree.lock(stored), "a node that was evicted cannot be locked")
    expect(picture(tree), before, "a refused lock changes nothing")
    tree.unlock(root)
    expect(list(tree.roots), [], "a root with neither page nor lock has left the tree")


COUNTS = Property(
    "locks are counted on every node up to the root",
    st.fixed_dictionaries({
        "texts": st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=3),
        "locks": st.lists(st.integers(0, 2), max_size=4), "page_size": SIZES,
    }),
    locks_are_counted,
    ({"texts": [[0, 1], [0, 2]], "locks": [0, 0, 1], "page_size": 1},),
)  # fmt: skip
ODD_LOCKS = Property(
    "a root may be locked, a node that is gone may not",
    st.fixed_dictionaries({"tokens": st.lists(st.integers(0, 2), min_size=1, max_size=3)}),
    locks_have_edges,
)


def next_use_of(texts: Sequence[Sequence[int]], prefix: Sequence[int], behind: int) -> float:
    """The first text after number `behind` that begins with the prefix, found by reading them all."""
    later = range(behind + 1, len(texts))
    return next((number for number in later if list(texts[number][: len(prefix)]) == list(prefix)), inf)


def foresees(texts: list[list[int]], page_size: int) -> None:
    """Every page of every text, against a search."""
    handed = [as_bytes(text) for text in texts]
    came = eviction.next_uses(handed, page_size * TOKEN_BYTES)
    right = []
    for number, text in enumerate(texts):
        ends = range(page_size, len(text) + 1, page_size)
        right.append([next_use_of(texts, text[:end], number) for end in ends])
    expect(came, right, "when each page of each text is used next")
    expect(handed, [as_bytes(text) for text in texts], "the argument is left alone")
    expect(eviction.next_uses(handed, page_size * TOKEN_BYTES), right, "asked again, the same answer")


def evicts_what_is_used_last(texts: list[list[int]], room: int) -> None:
    """A replay in a tree with too little room: of all leaves that may go, the one needed last goes."""
    tree, prefix, page = RadixTree(1, Belady([as_bytes(text) for text in texts], 1)), dict[int, list[int]](), 0
    for number, text in enumerate(texts):
        match = tree.match(text)
        tree.lock(match.node)
        need = len(text) - len(match.pages)
        while len(tree) and len(tree) + need > room:
            leaves = {n.pages[-1] for n in tree.nodes() if not n.children and not n.locks}
            if not (gone := tree.evict(1)):
                break
            due = {each: next_use_of(texts, prefix[each], number) for each in leaves}
            expect(
                due[gone[0]],
                max(due.values()),
                f"before text {number} is inserted, the page that goes is used next in text",
            )
        new = list(range(page, page + need))
        page += need
        tree.insert(text, match.pages + new)
        prefix |= {each: text[: len(match.pages) + i + 1] for i, each in enumerate(new)}
        tree.unlock(match.node)


FORESEES = Property(
    "the next use of a page is the next text that begins with all tokens up to its end",
    st.fixed_dictionaries({"texts": TEXTS, "page_size": SIZES}),
    foresees,
    (
        {"texts": [[0, 1], [1, 1], [0, 1]], "page_size": 1},
        {"texts": [[0, 1, 2], [0, 1, 0], [0, 1]], "page_size": 2},
        {"texts": [[1, 1], [1, 1], [1, 1]], "page_size": 1},
    ),
)
FARTHEST = Property(
    "Belady’s policy evicts what is needed last",
    st.fixed_dictionaries(
        {"texts": st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=6), "room": st.integers(1, 6)}
    ),
    evicts_what_is_used_last,
)


def pages_of_letters() -> tuple[dict[str, Any], Trace]:
    """Three texts in a tree with pages of four letters."""
    pool, tree = PagePool(16, 4), RadixTree(4)
    first, second, third = ([ord(letter) for letter in text] for text in ("abcdefghij", "abcdefXYZ...", "abcdefXYZ..!"))
    numbers: dict[str, int] = {}
    with record("03.pages", watch=[tree, pool], label=chr) as trace:
        for name, text in (("after the first", first), ("after the second", second)):
            tokens = whole(text, 4)
            found = tree.match(tokens).pages
            tree.insert(tokens, found + pool.allocate(len(tokens) // 4 - len(found)))
            numbers[name] = len(tree)
        match = tree.match(third)
        numbers["found"] = 4 * len(match.pages)
        tree.lock(match.node)
        numbers["evictable"] = tree.evictable
        numbers["nodes"] = sum(1 for _ in tree.nodes())
    return numbers, trace


EXERCISES: tuple[Any, ...] = (
    Write(
        "03.split",
        "cut an edge of the tree in two",
        """
        Two texts begin with the same tokens. Their common edge must end where they differ, so the tree puts a new
        node there. `node` is the node whose edge is cut, `within` how many *bytes* of its edge belong to the new node
        above it (whole pages; a token is 4 bytes).

        Afterwards every text finds the same pages as before. Callers keep `node`, and for them it must still be the
        end of the whole prefix. A request that has locked the rest needs the head as well: it counts as locked, too.

        A `Node` has `edge`, `pages`, `parent`, `children`, `locks`, `users`, `used`, `hits`, `born` and `policy_state`;
        radix/node.py says what each is. The tokens of a page take `self.page_bytes` bytes.
        """,
        (
            "`node` keeps its identity and becomes the lower part. The new node, the head, goes between `node` and "
            "its parent.",
            "Four links change: the parent's child, the head's parent, the head's child, the node's parent. "
            "Children are looked up by the first page of their own edge, so the key of the rest differs from the "
            "key of the head.",
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
        A server with this `evict` was correct, and slower than it should have been: pages that were not asked for
        were gone, and their prefixes had to be computed again.

        The witness: `texts` are lists of tokens, which are inserted; `uses` are the numbers of texts that are looked up
        then; `lock` is the number of a text that is locked (none is, if there is no such text); `count` pages are asked
        for.
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
    Write(
        "03.match",
        "follow a text down the tree",
        """
        A new request comes, and the tree is asked how much of its text is known. Follow the text from the root of its
        namespace: at each node the next page of the text says which child to go to; the child's edge may be many pages
        long, and the text may part from it somewhere inside.

        `text` and `node.edge` are bytes, four a token. A page of tokens is `self.page_bytes` bytes long.
        `self._root(namespace)` gives the root to begin with. Its edge is empty.

        What must hold: the match is the longest known prefix in whole pages. It may end inside an edge, but only
        after a whole page of it. Nothing is changed: no node is made, split or marked as used.
        """,
        (
            "`node.children` is looked up by a page of bytes. If there is no such child, the walk ends at this "
            "node, and all of its edge is matched.",
            "A child that is found shares its first page with the text. Is the rest of its edge in the text, too? "
            "`text.startswith(edge, depth)` says so without a loop. If not, the match ends within this edge.",
            "Where the edge is not whole in the text: `within = common(edge, text, depth)`, rounded down to a "
            "multiple of `self.page_bytes`, and the result is `(child, within, depth + within)`. Else `depth` grows"
            " by the length of the edge, and the child is the next node.",
        ),
        15,
        RadixTree,
        "_walk",
        (WALKS, FINDS),
    ),
    Write(
        "03.lock",
        "keep a prefix while a request uses it",
        """
        A request reads the pages of its prefix until it is done. Meanwhile none of them may be evicted. `lock` ensures
        this. It is called with the node at the end of the prefix.

        `node.users` counts the locks on this very node. `node.locks` counts the locks on this node and on all nodes
        below it. `self.evictable` is the number of pages on nodes whose `locks` is 0; it is kept up to date, never
        recounted.

        `self._checked(node)` returns the node, and raises ValueError for one that is no longer in the tree. A prefix
        may be empty: then the node is a root. A root that has neither pages nor locks is not in `self.roots`; with
        its first lock it joins them, under its `namespace`.
        """,
        (
            "If the end of a prefix is kept, its beginning must be kept, too. Which nodes is that?",
            "`upwards(node)` yields the node, its parent, and so on up to the root. Each gets one lock more. Its "
            "pages stop being evictable only if it had no lock before.",
            "Check the node. If it has no parent, put it in `self.roots`. Add 1 to its `users`. Then for each node "
            "upwards: if `locks` is 0, subtract `len(pages)` from `self.evictable`; add 1 to `locks`.",
        ),
        10,
        RadixTree,
        "lock",
        (COUNTS, ODD_LOCKS, LOCKS),
    ),
    Repair(
        "03.unlock",
        "a server that believes it has room",
        """
        A server ran well until two requests with the same prompt met. From then on it let in more requests than it
        had pages for, and one of them failed: "cannot allocate 3 pages: 1 of 64 are free". It asks `self.evictable`
        how many pages it could free.

        The witness: `texts` are lists of tokens, which are inserted; `locks` are the numbers of texts that are then
        locked, one after the other, and unlocked in the same order.
        """,
        (
            "`evict` returned fewer pages than `evictable` promised. Which pages did it refuse to give?",
            "Lock a prefix twice and unlock it once. May its pages be evicted?",
            "The pages of a node become evictable when its last lock goes: when `locks` has become 0.",
        ),
        10,
        RadixTree,
        "unlock",
        (COUNTS, LOCKS),
        (
            (
                "        if above.locks == 0:\n            self.evictable += len(above.pages)",
                "        self.evictable += len(above.pages)",
            ),
        ),
        {"texts": [[0]], "locks": [0, 0], "page_size": 1},
    ),
    Write(
        "03.belady",
        "look into the future",
        """
        How good could eviction be? Belady's policy knows which texts will come, and evicts what is needed last. No
        policy can do better, so it is the bound that others are compared with. It needs to know, for each page of
        each text, when that page is used next.

        `texts` are the texts in the order in which they will come, as bytes (four a token). `page_bytes` is the
        length of a page. A page is used by a text only if the text begins with the same tokens up to the end of that
        page: equal tokens at another place, or after another beginning, are another page.
        """,
        (
            "Begin with the simplest way: for each page of each text, look through all later texts.",
            "For each prefix it is enough to know one number: the next text that has it. Go through the texts from "
            "the last to the first, and keep that number in a dict.",
            "With `seen = {}`, for each text from the last: its list is `[seen.get(text[:end], inf) for end in "
            "ends]`, where `ends` are the ends of its whole pages. Then set `seen[text[:end]]` to the text's number"
            " for each end. Reverse the list of lists at last. (The reference names prefixes by numbers, so that "
            "long texts are not copied.)",
        ),
        15,
        eviction,
        "next_uses",
        (FORESEES, FARTHEST),
    ),
    Predict(
        "03.pages",
        "how many pages, how many found",
        """
        A tree with pages of four letters, a token each. Two texts are inserted, as far as they fill whole pages, and
        each is looked up first, so that pages found are used again:

            abcdefghij
            abcdefXYZ...

        Then a third text is looked up, and what is found of it is locked:

            abcdefXYZ..!
        """,
        (
            "Only whole pages are kept, and a page is shared only if all of its letters are.",
            "The first text fills two pages, [abcd] and [efgh]. The second has [abcd], [efXY] and [Z...].",
            "The edge of the first text is split after [abcd]. Of the third text [abcd] and [efXY] are found, and "
            "the edge of the second is split there. The lock keeps both; [efgh] and [Z...] may go.",
        ),
        10,
        {
            "after the first": Question(
                "How many pages has the tree after the first text?",
                (
                    (3.0, "the letters i and j fill no page: their keys and values stay the request's own"),
                    (10.0, "these are letters; a page has four"),
                ),
            ),
            "after the second": Question(
                "How many pages has it after the second?",
                (
                    (5.0, "the page [abcd] is in the tree once"),
                    (
                        3.0,
                        "[efgh] and [efXY] are two pages: they share two letters, but a page is shared as a whole",
                    ),
                    (6.0, "the page [abcd] is in the tree once, and the letters i and j fill no page"),
                ),
            ),
            "found": Question(
                "How many letters of the third text are found?",
                (
                    (11.0, "the match ends after a whole page"),
                    (12.0, "the last letter differs"),
                    (4.0, "the second page [efXY] is known, too"),
                    (2.0, "these are pages; a page has four letters"),
                ),
            ),
            "evictable": Question(
                "How many pages may be evicted now, after the lock?",
                (
                    (0.0, "the lock keeps what the third text found, and no more"),
                    (
                        1.0,
                        "[Z...] is no part of what was found, though it is on the same path: it may go as well as "
                        "[efgh]",
                    ),
                    (4.0, "two pages are locked"),
                    (3.0, "two pages are locked: [abcd] is needed as much as [efXY]"),
                ),
            ),
            "nodes": Question(
                "How many nodes has the tree now, the root not counted?",
                (
                    (3.0, "the look-up of the third text has split an edge: a lock needs a node where the match ends"),
                    (5.0, "the root is not counted"),
                    (2.0, "where texts part, there is a node"),
                ),
            ),
        },
        pages_of_letters,
    ),
)
