"""Who holds which page: requests, the radix tree and the pool, through five verbs.

    attach    take from the tree what it has of a request's tokens
    reserve   make room for the next tokens, evicting from the tree if need be
    trim      give back what rejected drafts took
    publish   hand full pages to the tree, so that others may use them
    release   leave: pages to whom they belong, the tree's to the tree and the request's own to the pool

A page is published when its computation is *scheduled*, not when it is done: a layer writes all keys and values of a
batch before anyone reads (`cache/paged.py`), so whoever finds the page in the tree in the same step finds it filled
when it looks. Equal prompts that arrive together thus share one prefill. The tree's pages are promises until the step
has run; if the step fails, `forget` breaks them all.

Invariant, between any two calls: every page is free, the tree's, or in exactly one request's table beyond `shared`.
"""

from inference_opt.cache.pool import PagePool
from inference_opt.engine.request import Request
from inference_opt.model.transformer import Transformer
from inference_opt.radix.tree import RadixTree
from inference_opt.room import available_bytes


class Memory:
    """The pool and the tree, in terms of requests. Without `radix` nothing is published, so nothing is ever found."""

    def __init__(self, pool: PagePool, tree: RadixTree, radix: bool) -> None:
        self.pool, self.tree, self.radix = pool, tree, radix

    @property
    def available(self) -> int:
        """Pages that are free or could be freed by evicting."""
        return self.pool.free + self.tree.evictable

    # [fits]
    def fits(self, request: Request) -> bool:
        """Whether a request that waits can have pages for all of its known tokens. Asked of the tree without a use.

        Those that run have theirs by now: none is left with a part of its prompt while there is budget.
        """
        found, idle = self.tree.look(request.tokens[:-1], request.namespace)
        # What it finds is locked while it runs, so idle pages among it can no longer be evicted for the rest.
        return self.pool.pages_for(len(request.tokens)) - found <= self.available - idle

    # [/fits]

    # [attach]
    def attach(self, request: Request) -> int:
        """Use what the tree has beyond what the request has computed; return how many tokens that saved.

        At least one token is left to compute: its logits are what the request is here for. (A prompt that is found
        whole would otherwise leave a query of no tokens.)
        """
        text = request.tokens[:-1]
        if request.node is not None and self.tree.cached(text, request.namespace) <= request.computed:
            return 0
        match = self.tree.match(text, request.namespace)
        self.tree.lock(match.node)
        if request.node is not None:  # a neighbour ended meanwhile and left more: its pages replace those begun here
            self.release(request)
        found = len(match.pages) * self.pool.page_size
        saved = found - request.computed
        request.node, request.table, request.shared, request.computed = match.node, match.pages, len(match.pages), found
        return saved

    # [/attach]

    # [reserve]
    def reserve(self, request: Request, tokens: int) -> bool:
        """Give the request pages for its first `tokens` tokens; False, and no change, if there are too few."""
        need = self.pool.pages_for(tokens) - len(request.table)
        if need > self.available:
            return False
        if need > self.pool.free:
            self.pool.release(self.tree.evict(need - self.pool.free))
        if need > 0:
            request.table += self.pool.allocate(need)
        return True

    # [/reserve]

    # [publish]
    def publish(self, request: Request, tokens: int) -> None:
        """Hand the full pages of the first `tokens` tokens to the tree, and keep a lock on them.

        Where the tree has a page for the same prefix already, its page takes the place of the request's own.
        """
        full = tokens // self.pool.page_size
        if not self.radix or full <= request.shared:
            return
        assert request.node is not None
        own = request.table[request.shared : full]
        match = self.tree.insert(request.tokens[: full * self.pool.page_size], request.table[:full], request.namespace)
        self.tree.lock(match.node)
        self.tree.unlock(request.node)
        self.pool.release(mine for mine, its in zip(own, match.pages[request.shared :], strict=True) if mine != its)
        request.table[:full], request.shared, request.node = match.pages, full, match.node

    # [/publish]

    # [trim]
    def trim(self, request: Request) -> None:
        """Give back the pages that hold no known token: rejected drafts lay there."""
        need = self.pool.pages_for(len(request.tokens))
        self.pool.release(request.table[need:])
        del request.table[need:]

    # [/trim]

    # [release]
    def release(self, request: Request) -> None:
        """The request stops running: the tree keeps its pages as long as there is room, the pool gets the others."""
        assert request.node is not None
        self.tree.unlock(request.node)
        self.pool.release(request.table[request.shared :])
        request.node, request.table, request.shared = None, [], 0

    # [/release]

    def discard(self, request: Request) -> None:
        """The request's numbers are broken: leave, and keep nothing of its text that nobody else needs."""
        node = request.node
        self.release(request)
        assert node is not None
        self.pool.release(self.tree.discard(node))

    def forget(self) -> None:
        """A step failed, and the tree may hold promises that were not kept: begin anew, whatever anyone held."""
        self.pool.clear()
        self.tree.clear()


def default_pages(model: Transformer, page_size: int) -> int:
    """For two texts of the model's full context, or as many as half of the free memory holds if that is fewer."""
    config, page_size = model.config, max(page_size, 1)  # what is no size, the pool refuses
    wanted, free = 2 * -(-config.max_context // page_size), available_bytes(model.device)
    page_bytes = page_size * config.kv_elements_per_token * model.dtype.itemsize
    if free is None:
        return wanted
    if free // 2 < page_bytes:
        raise ValueError(
            f"one page of page_size = {page_size:,} tokens takes {page_bytes:,} bytes, more than half of the memory "
            "that is free: take a smaller page_size, or give num_pages"
        )
    return min(wanted, free // 2 // page_bytes)
