"""RadixAttention's tree: which pages hold the keys and values of which prefix (SGLang, 2312.07104, §3).

A key or value depends on its token and on all tokens before it, so pages may be reused by whoever's text *begins* with
the same tokens. A radix tree finds them: a path from the root spells a prefix, an edge carries a run of tokens and the
pages that hold them, and a node has its edge as its own:

    insert [1 2 3 4 5 6], pages [10 11 12]          insert [1 2 3 4 8 9], pages [10 11 13]: the edge is split

    root ── 1 2 3 4 5 6 / 10 11 12                  root ── 1 2 3 4 / 10 11 ──┬── 5 6 / 12
                                                                              └── 8 9 / 13        (page_size = 2)

Edges are whole pages long, and the children of a node differ within their first page, by which they are looked up: a
page that begins alike and ends differently belongs to one text only. Tokens are kept as bytes, four each: an edge is
compared where it stands in the question, by memcmp, and no token is copied on the way down.

Invariants, after every call:
  · every page in the tree is there once; the tree owns it until `evict` returns it;
  · no node but a root has an empty edge; a node that is not locked has no locked descendant;
  · `locks` of a node counts the locks held on it and below it; `evictable` is the number of pages on unlocked nodes,
    and `evict` can return every one of them, since leaves are evicted first and uncover their parents.
"""

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from inference_opt.kv.node import WIDTH, Node, as_bytes, common, upwards
from inference_opt.kv.pictures import EVICTED, INSERTED, LOCKED, MATCHED, SPLIT, UNLOCKED, TreePictures
from inference_opt.kv.policies import LRU, Policy
from inference_opt.steps import recording, step
from inference_opt.values import integer


class Match(NamedTuple):
    """The pages of a prefix, in order, and the node at its end (what `lock` takes)."""

    pages: list[int]
    node: Node


class Stored(NamedTuple):
    """Log entry: `pages` came to hold `tokens`, behind page `after` (None: they begin a text of `namespace`)."""

    namespace: Hashable
    after: int | None
    tokens: tuple[int, ...]
    pages: tuple[int, ...]


class Removed(NamedTuple):
    """Log entry: the pages are no longer the tree's."""

    pages: tuple[int, ...]


class RadixTree(TreePictures):
    """Prefixes to pages. A `namespace` (of a model, an adapter, a tenant) shares nothing with another.

    `log`, if given, is called with every change of content, in order: replayed from nothing they give the tree's
    present content. Splitting an edge is no change of content.
    """

    def __init__(
        self,
        page_size: int,
        policy: Policy | None = None,
        log: Callable[[Stored | Removed], None] | None = None,
    ) -> None:
        self.page_size = page_size = integer("page_size", page_size, 1)
        self.policy, self.log = policy or LRU(), log
        self._step = page_size * WIDTH  # bytes of a page of tokens
        self.inserted = self.evicted = 0  # pages, since the beginning
        self.clock = 0  # counts uses
        self._owned: set[int] = set()
        self._order = itertools.count()
        self.clear()

    def clear(self) -> None:
        """Forget everything, locked or not; the pages are the caller's again, and every handle is void."""
        for node in self.nodes() if self._owned else ():
            node.locks = -1
        if self.log and self._owned:
            self.log(Removed(tuple(self._owned)))
        self.evicted = self.inserted  # whatever was half done
        self._owned.clear()
        self.roots: dict[Hashable, Node] = {}
        self.evictable = 0  # pages on unlocked nodes
        self._heap: list[tuple[Any, int, Node]] = []  # leaves by their policy's key when pushed

    def __len__(self) -> int:
        """Pages that the tree owns."""
        return len(self._owned)

    # [match]
    def _walk(self, text: bytes, namespace: Hashable) -> tuple[Node, int, int]:
        """Follow `text` down: (the last node reached, bytes matched of its edge, bytes matched in all)."""
        size = self._step
        node, depth = self.roots.get(namespace, _NOTHING), 0
        while (child := node.children.get(text[depth : depth + size])) is not None:
            node = child
            edge = node.edge
            if not text.startswith(edge, depth):  # the match ends within this edge, behind one whole page at least
                within = common(edge, text, depth) // size * size
                return node, within, depth + within
            depth += len(edge)
        return node, len(node.edge), depth

    def cached(self, tokens: Sequence[int], namespace: Hashable = None) -> int:
        """How many tokens a match would find. Changes nothing, so a scheduler may ask about requests that wait."""
        return self._walk(as_bytes(tokens), namespace)[2] // WIDTH

    def look(self, tokens: Sequence[int], namespace: Hashable = None) -> tuple[int, int]:
        """How many pages a match would find, and how many of these are evictable now. Changes nothing."""
        node, within, depth = self._walk(as_bytes(tokens), namespace)
        size = self._step
        idle = [len(above.pages) for above in upwards(node) if above.locks == 0]
        if node.locks == 0:  # of the last edge only its beginning is found
            idle[0] = within // size
        return depth // size, sum(idle)

    def match(self, tokens: Sequence[int], namespace: Hashable = None) -> Match:
        """The longest cached prefix, in whole pages, and a use of it.

        The edge that it ends within is split, so that the node returned ends where the match does. Before the next
        `evict`, lock the node or let go of the pages.
        """
        text = as_bytes(tokens)
        self._root(namespace)
        node, within, _ = self._walk(text, namespace)
        node = self._split(node, within)
        pages = self._use(node, text, namespace, hit=True)
        if recording():
            step("radix.match", self, MATCHED, tokens=tokens, found=node, pages=pages, namespace=namespace)
        return Match(pages, node)

    # [/match]

    # [insert]
    def insert(self, tokens: Sequence[int], pages: Sequence[int], namespace: Hashable = None) -> Match:
        """Let the tree own `pages`, which hold `tokens`; return the tree's own pages for them, and the node at the end.

        Of a prefix that is there already the tree keeps its own pages: where the pages returned differ from those
        given, the ones given are still the caller's. ValueError, and no change, for tokens that are not whole pages
        or for a page that the tree owns in another place.
        """
        text, pages = as_bytes(tokens), list(pages)
        if len(text) != len(pages) * self._step:
            expected = len(pages) * self.page_size
            raise ValueError(f"{len(pages)} pages of {self.page_size} hold {expected} tokens, got {len(tokens)}")
        node, within, depth = self._walk(text, namespace)
        new = pages[depth // self._step :]
        if not self._owned.isdisjoint(new) or len(set(new)) < len(new):
            twice = {page for page in new if page in self._owned or new.count(page) > 1}
            raise ValueError(f"cannot insert pages {sorted(twice)}: the tree owns each page once")
        if node is _NOTHING:
            node = self._root(namespace)
        node = self._split(node, within)
        if new:
            leaf = Node(text[depth:], new, node, self.clock + 1)
            if self.log:
                self.log(Stored(namespace, node.pages[-1] if node.pages else None, tuple(leaf.tokens), tuple(new)))
            node.children[leaf.edge[: self._step]] = leaf
            self._owned.update(new)
            self.inserted += len(new)
            self.evictable += len(new)
            node = leaf
            for cut in self.policy.cuts(text, namespace):
                if cut * self._step > depth:
                    self._split(leaf, cut * self._step - depth)
                    depth = cut * self._step
        own = self._use(node, text, namespace, hit=False)
        if recording():
            step("radix.insert", self, INSERTED, tokens=tokens, pages=pages, new=new, own=own, namespace=namespace)
        return Match(own, node)

    # [/insert]

    # [split]
    def _split(self, node: Node, within: int) -> Node:
        """The node that ends after `within` bytes of the edge: the node itself, or a new one put above its rest."""
        if within == len(node.edge):
            return node
        parent, size = node.parent, self._step
        assert parent is not None
        count = within // size
        head = Node(node.edge[:within], node.pages[:count], parent, node.born)
        # Whoever needs the rest needs the head; handles keep meaning the end of the rest, so none is the head's.
        head.used, head.hits, head.locks, head.note = node.used, node.hits, node.locks, node.note
        parent.children[head.edge[:size]] = head
        node.edge, node.pages, node.parent = node.edge[within:], node.pages[count:], head
        head.children[node.edge[:size]] = node  # looked up by the first page of its own edge, which begins here
        step("radix.split", self, SPLIT, head=head.tokens, rest=node.tokens, locks=head.locks)
        return head

    # [/split]

    # [lock]
    def lock(self, node: Node) -> None:
        """Keep the node's prefix, that is its edge and all above it, until as many `unlock`s."""
        self._check(node)
        node.users += 1
        for above in upwards(node):
            if above.locks == 0:
                self.evictable -= len(above.pages)
            above.locks += 1
        step("radix.lock", self, LOCKED, node=node, locks=node.locks)

    def unlock(self, node: Node) -> None:
        """Take one lock back. ValueError, and no change, where none is held on this very node."""
        self._check(node)
        if node.users == 0:
            raise ValueError("cannot unlock a node that is not locked")
        node.users -= 1
        for above in upwards(node):
            above.locks -= 1
            if above.locks == 0:
                self.evictable += len(above.pages)
        self._enqueue(node)
        step("radix.unlock", self, UNLOCKED, node=node, locks=node.locks)

    # [/lock]

    # [evict]
    def evict(self, count: int) -> list[int]:
        """Remove `count` pages (fewer, if fewer are evictable) and return them: they are the caller's.

        The leaf that the policy values least goes first, from its end, page by page; then it may be its parent's turn.
        Only what is needed is removed. O(log n) a leaf.
        """
        if count < 0:
            raise ValueError(f"cannot evict {count} pages")
        gone: list[int] = []
        while len(gone) < count and self._heap:
            key, _, node = heapq.heappop(self._heap)
            if key != node.queued:
                continue  # its key fell since, and it was pushed again
            node.queued = None
            if node.parent is None or node.children or node.locks:
                continue  # no longer a free leaf: queued again when it becomes one
            if self.policy.key(node) > key:
                self._enqueue(node)  # its key rose since: not its turn yet
                continue
            keep = max(len(node.pages) - (count - len(gone)), 0)
            removed = self._shorten(node, keep)
            gone += reversed(removed)
            step("radix.evict", self, EVICTED, removed=removed, gone=gone, count=count, kept=keep)
        return gone

    def discard(self, node: Node) -> list[int]:
        """Remove a prefix as far as nobody else needs it, from its end upwards; its pages are the caller's."""
        gone: list[int] = []
        while node.parent is not None and not (node.children or node.locks):
            above = node.parent
            gone += reversed(self._shorten(node, 0))
            node = above
        return gone

    def _shorten(self, node: Node, keep: int) -> list[int]:
        """Cut a leaf's edge to `keep` pages, and the leaf off where nothing is kept; the pages removed."""
        removed = node.pages[keep:]
        self.evicted += len(removed)
        self._owned.difference_update(removed)
        self.evictable -= len(removed)
        if self.log:
            self.log(Removed(tuple(removed)))
        if keep:
            del node.pages[keep:]
            node.edge = node.edge[: keep * self._step]
            self._enqueue(node)
        else:
            parent, node.parent, node.locks = node.parent, None, -1
            assert parent is not None
            del parent.children[node.edge[: self._step]]
            self._enqueue(parent)
        return removed

    def _enqueue(self, node: Node) -> None:
        """Put a leaf that no one needs in the heap. A key that rose since is noticed when it is popped."""
        if not (node.children or node.locks or node.parent is None):
            key = self.policy.key(node)
            if node.queued is None or key < node.queued:
                node.queued = key
                heapq.heappush(self._heap, (key, next(self._order), node))

    # [/evict]

    def _use(self, node: Node, text: bytes, namespace: Hashable, hit: bool) -> list[int]:
        """Tell the policy of a use of the whole path, and collect its pages."""
        self.clock += 1
        path = list(upwards(node))[-2::-1]  # from the top, without the root
        pages: list[int] = []
        for each in path:
            pages += each.pages
            each.used = self.clock
            each.hits += hit
        self.policy.touch(path, text, namespace, hit)
        self._enqueue(node)
        return pages

    def _root(self, namespace: Hashable) -> Node:
        return self.roots.setdefault(namespace, Node(b"", [], None, self.clock))

    def _check(self, node: Node) -> None:
        if node.locks < 0:
            raise ValueError("this node was evicted from the tree")

    def nodes(self) -> Iterator[Node]:
        """Every node, parents before children, roots left out."""
        stack = [child for root in self.roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())


_NOTHING = Node(b"", [], None, 0)  # the root of every namespace that nothing was inserted in
