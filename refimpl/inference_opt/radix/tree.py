"""RadixAttention's tree: which pages hold the keys and values of which prefix (SGLang, 2312.07104, §3).

A key or value depends on its token and on all tokens before it, so pages may be reused by any text that *begins* with
the same tokens. A radix tree finds them: a path from the root spells a prefix, an edge carries a run of tokens and the
pages that hold them, and a node stores the edge above it:

    insert [1 2 3 4 5 6], pages [10 11 12]          insert [1 2 3 4 8 9], pages [10 11 13]: the edge is split

    root ── 1 2 3 4 5 6 / 10 11 12                  root ── 1 2 3 4 / 10 11 ──┬── 5 6 / 12
                                                                              └── 8 9 / 13        (page_size = 2)

Edges are whole pages long, and the children of a node differ within their first page, by which they are looked up: a
page that begins alike and ends differently belongs to one text only. Tokens are kept as bytes, four each: an edge is
compared in place, by memcmp; one page of tokens is copied at each node, to look it up.

Invariants, after every call:
  · a page is in the tree once at most, and is the tree's as long as it is there;
  · no node but a root has an empty edge; a node that is not locked has no locked descendant;
  · `locks` of a node counts the locks held on it and below it; `evictable` is the number of pages on unlocked nodes,
    and `evict` can return every one of them, since leaves are evicted first and uncover their parents.
"""

from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise

from inference_opt.radix.eviction import LRU, Policy
from inference_opt.radix.leaves import Leaves
from inference_opt.radix.node import TOKEN_BYTES, Match, Node, as_bytes, common, upwards
from inference_opt.trace import emit, recording
from inference_opt.values import are_ints, integer


class RadixTree:
    """Prefixes to pages. A `namespace` (of a model, an adapter, a tenant) shares nothing with another.

    An error that the policy raises is raised by the call. It leaves a sound tree, though a node may have been split or
    marked as used, and the pages that a failed `evict` removed are nobody's. After an interruption (Ctrl-C), `clear` is
    due. ValueError for a policy that cannot serve this tree.
    """

    def __init__(self, page_size: int, policy: Policy | None = None) -> None:
        self.page_size = page_size = integer("page_size", page_size, 1)
        self.page_bytes = page_size * TOKEN_BYTES  # of a page's tokens
        self.policy = LRU() if policy is None else policy
        if not isinstance(self.policy, Policy):
            raise ValueError(f"expected a policy (radix/eviction.py), made for this tree, got {policy!r}")
        self.policy.serve(self)
        self.clock = 0  # counts uses
        self.inserted = 0  # pages that ever came in
        self.clear()

    def clear(self) -> None:
        """Forget everything, locked or not; the pages are the caller's again, and every handle is void.

        Whatever an error or an interruption left half done, the tree is empty and sound afterwards.
        """
        self._life = object()  # of every node from now on
        self._owned: set[int] = set()
        self.roots: dict[Hashable, Node] = {}  # of the namespaces that have a page or a lock
        self.leaves = Leaves(self.policy)
        self.evictable = 0  # pages on unlocked nodes
        self.evicted = self.inserted  # pages that left, in whatever way: by `evict`, `discard` or `clear`

    def __len__(self) -> int:
        """Pages that the tree owns."""
        return len(self._owned)

    def nodes(self) -> Iterator[Node]:
        """Every node, parents before children, roots left out."""
        stack = [child for root in self.roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _walk(self, text: bytes, namespace: Hashable) -> tuple[Node, int, int]:
        """Follow `text` down: (the last node reached, bytes matched of its edge, bytes matched in all)."""
        size = self.page_bytes
        node, depth = self._root(namespace), 0
        while (child := node.children.get(text[depth : depth + size])) is not None:
            node = child
            edge = node.edge
            if not text.startswith(edge, depth):  # the match ends within this edge, after one whole page at least
                within = common(edge, text, depth) // size * size
                return node, within, depth + within
            depth += len(edge)
        return node, len(node.edge), depth

    def cached(self, tokens: Sequence[int], namespace: Hashable = None) -> int:
        """How many tokens a match would find. Changes nothing, so a scheduler may ask about requests that wait."""
        return self._walk(as_bytes(tokens), namespace)[2] // TOKEN_BYTES

    def look(self, tokens: Sequence[int], namespace: Hashable = None) -> tuple[int, int]:
        """How many pages a match would find, and how many of these are evictable now. Changes nothing."""
        node, within, depth = self._walk(as_bytes(tokens), namespace)
        size = self.page_bytes
        idle = [len(above.pages) for above in upwards(node) if above.locks == 0]
        if node.locks == 0:  # of the last edge only its beginning is found
            idle[0] = within // size
        return depth // size, sum(idle)

    def match(self, tokens: Sequence[int], namespace: Hashable = None) -> Match:
        """The longest cached prefix, in whole pages; this counts as a use of them.

        The edge that it ends within is split, so that the node returned ends where the match does. Before the next
        `evict`, lock the node or let go of the pages.
        """
        text = as_bytes(tokens)
        node, within, _ = self._walk(text, namespace)
        node = self._split(node, within)
        pages = self._use(node, text, namespace, hit=True)
        if recording():
            emit("radix.match", self, tokens=tokens, found=node, pages=pages, namespace=namespace)
        return Match(pages, node)

    def insert(self, tokens: Sequence[int], pages: Sequence[int], namespace: Hashable = None) -> Match:
        """Let the tree own `pages`, which hold `tokens`; return the tree's own pages for them, and the node at the end.

        Of a prefix that is there already the tree keeps its own pages: where the pages returned differ from those
        given, the ones given are still the caller's (if they were). ValueError, and no change, for tokens that are not
        whole pages or for a new page that the tree owns already.
        """
        text, pages, size = as_bytes(tokens), list(pages), self.page_bytes
        if len(text) != len(pages) * size:
            expected, got = len(pages) * self.page_size, len(text) // TOKEN_BYTES
            raise ValueError(f"{len(pages)} pages of {self.page_size} hold {expected} tokens, got {got}")
        node, within, depth = self._walk(text, namespace)
        start = depth // size
        new = pages[start:]
        if not are_ints(new) or min(new, default=0) < 0:
            new = [integer("a page", page, 0) for page in new]
        if not self._owned.isdisjoint(new) or len(set(new)) < len(new):
            twice = {page for page in new if page in self._owned or new.count(page) > 1}
            raise ValueError(f"cannot insert pages {sorted(twice)}: the tree owns each page once")
        ends = {*self.policy.cuts(text, namespace), len(pages)} if new else ()
        chain = [self._split(node, within)]  # then come the new nodes; they are not in the tree yet
        for end in sorted(end for end in ends if start < end <= len(pages)):
            chain.append(Node(text[start * size : end * size], pages[start:end], chain[-1], self.clock + 1))
            start = end
        own = self._use(chain[-1], text, namespace, hit=False)
        if new:
            top = chain[0]
            self.leaves.count += bool(top.children) or top.parent is None
            if top.parent is None:
                self.roots[namespace] = top
            for above, below in pairwise(chain):
                above.children[below.edge[:size]] = below
            self._owned.update(new)
            self.inserted += len(new)
            self.evictable += len(new)
        if recording():
            emit("radix.insert", self, tokens=tokens, pages=pages, new=new, own=own, namespace=namespace)
        return Match(own, chain[-1])

    def _split(self, node: Node, within: int) -> Node:
        """The node that ends after `within` bytes of the edge: the node itself, or a new one put above its rest."""
        if within == len(node.edge):
            return node
        parent, size = node.parent, self.page_bytes
        assert parent is not None
        count = within // size
        head = Node(node.edge[:within], node.pages[:count], parent, node.born)
        # Locks on the rest also hold the head. Old handles still mean the end of the rest, so head.users is 0.
        head.used, head.hits = node.used, node.hits
        head.locks, head.policy_state = node.locks, node.policy_state
        parent.children[head.edge[:size]] = head
        node.edge, node.pages, node.parent = node.edge[within:], node.pages[count:], head
        head.children[node.edge[:size]] = node  # looked up by the first page of its own edge, which begins here
        emit("radix.split", self, head=head.tokens, rest=node.tokens, locks=head.locks)
        return head

    def lock(self, node: Node) -> None:
        """Keep the node's prefix, that is its edge and all above it, until as many `unlock`s."""
        node = self._checked(node)
        if node.parent is None:
            self.roots[node.namespace] = node
        node.users += 1
        for above in upwards(node):
            if above.locks == 0:
                self.evictable -= len(above.pages)
            above.locks += 1
        emit("radix.lock", self, node=node, locks=node.locks)

    def unlock(self, node: Node) -> None:
        """Take one lock back. ValueError, and no change, where none is held on this very node."""
        node = self._checked(node)
        if node.users == 0:
            raise ValueError("cannot unlock a node that is not locked")
        if node.locks == 1:
            self.leaves.push(node)
        node.users -= 1
        for above in upwards(node):
            above.locks -= 1
            if above.locks == 0:
                self.evictable += len(above.pages)
        self._leave(above)
        emit("radix.unlock", self, node=node, locks=node.locks)

    def evict(self, count: int) -> list[int]:
        """Remove `count` pages (fewer, if fewer are evictable) and return them: they are the caller's.

        The leaf that the policy values least goes first, from its end, page by page; its parent may follow.
        Only what is needed is removed. O(log n) a leaf.
        """
        count = integer("count", count, 0)
        gone: list[int] = []
        while len(gone) < count and (node := self.leaves.least()):
            keep = max(len(node.pages) - (count - len(gone)), 0)
            removed = node.pages[keep:]
            self._cut(node, keep)
            gone += reversed(removed)
            emit("radix.evict", self, removed=removed, gone=gone, count=count, kept=keep)
        return gone

    def discard(self, node: Node) -> list[int]:
        """Remove a prefix as far as nobody else needs it, from its end upwards; its pages are the caller's.

        ValueError, and no change, for a node that is not in this tree.
        """
        node = self._checked(node)
        gone: list[int] = []
        while node.parent is not None and not (node.children or node.locks):
            above = node.parent
            gone += reversed(node.pages)
            self._cut(node, 0)
            node = above
        return gone

    def _cut(self, leaf: Node, keep: int) -> None:
        """Keep an unlocked leaf's first `keep` pages; if that is 0, remove the leaf."""
        parent, removed = leaf.parent, leaf.pages[keep:]
        assert parent is not None
        if keep:
            leaf.pages, leaf.edge = leaf.pages[:keep], leaf.edge[: keep * self.page_bytes]
        else:
            if len(parent.children) == 1 and not parent.locks:
                self.leaves.push(parent)
            del parent.children[leaf.edge[: self.page_bytes]]
            leaf.parent = leaf.life = leaf.queued = None  # its entry in the heap is stale
            self.leaves.count -= bool(parent.children) or parent.parent is None
            self._leave(parent)
        self._owned.difference_update(removed)
        self.evicted += len(removed)
        self.evictable -= len(removed)

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
        if not (node.children or node.locks):
            self.leaves.push(node)
        return pages

    def _root(self, namespace: Hashable) -> Node:
        """The root of a namespace: the tree's, or a new one that joins the tree with its first page or lock."""
        try:
            root = self.roots.get(namespace)
        except TypeError:
            raise ValueError(f"namespace must be hashable, got {namespace!r}") from None
        return root or Node(b"", [], None, 0, self._life, namespace)

    def _leave(self, node: Node) -> None:
        """A root with neither page nor lock leaves the tree."""
        if not (node.children or node.locks or node.parent):
            self.roots.pop(node.namespace, None)

    def _checked(self, node: Node) -> Node:
        """The node, if it is this tree's. Any root that a namespace ever had stands for its present one."""
        if not isinstance(node, Node) or node.life is not self._life:
            raise ValueError("this node was evicted, or belongs to another tree")
        return self.roots.get(node.namespace, node) if node.parent is None else node
