"""Who owns which page: requests, the radix tree and the pool, through five verbs.

    attach    use what the tree has of a request's tokens
    reserve   make room for the next tokens, evicting from the tree if need be
    publish   hand full pages to the tree, so that others may use them
    trim      give back the pages that rejected drafts took
    release   stop running: the tree keeps its pages, the request's own go back to the pool

In prefill a page is published when it is *scheduled*, not when it is done: a layer writes all keys and values of a
batch before anyone reads (`cache/paged.py`), so whoever finds the page in the tree in the same step finds it filled
when it reads. Equal prompts that arrive together thus share one prefill. Until the step has run, the tree's new pages
are promises; if the step fails, `forget` breaks them all.

Invariant, between any two calls: every page is free, or the tree's, or in exactly one request's table beyond `shared`.
"""

from inference_opt.cache.pool import PagePool
from inference_opt.engine.request import Pages, Request
from inference_opt.model.transformer import Transformer
from inference_opt.radix.tree import RadixTree
from inference_opt.room import available_bytes


class CacheManager:
    """The pool and the tree, in terms of requests. Without `radix` nothing is published, so nothing is ever found."""

    def __init__(self, pool: PagePool, tree: RadixTree, radix: bool) -> None:
        self.pool, self.tree, self.radix = pool, tree, radix

    @property
    def available(self) -> int:
        """Pages that are free or could be freed by evicting."""
        return self.pool.free + self.tree.evictable

    def fits(self, request: Request) -> bool:
        """Whether there are pages for all known tokens of a waiting request. It does not count as a use.

        Requests that run need no pages of these: by the time this is asked, each has all that it needs for its tokens.
        """
        found, idle = self.tree.look(request.tokens[:-1], request.namespace)
        # While the request runs, the pages it finds are locked: those that are idle now can then not be evicted.
        return self.pool.pages_for(len(request.tokens)) - found <= self.available - idle

    def attach(self, request: Request) -> int:
        """Use what the tree has beyond what the request has computed; return how many tokens that saved.

        At least one token is left to compute, because its logits are needed. (A prompt that is found whole would
        otherwise leave a query of no tokens.)
        """
        text = request.tokens[:-1]
        if request.pages.node is not None and self.tree.cached(text, request.namespace) <= request.computed:
            return 0
        match = self.tree.match(text, request.namespace)
        self.tree.lock(match.node)
        if request.pages.node is not None:  # another request has published more than this one has computed
            self.release(request)
        found = len(match.pages) * self.pool.page_size
        saved = found - request.computed
        request.pages, request.computed = Pages(match.pages, len(match.pages), match.node), found
        return saved

    def reserve(self, request: Request, tokens: int) -> bool:
        """Give the request pages for its first `tokens` tokens. False, and no change, if there are too few."""
        need = self.pool.pages_for(tokens) - len(request.pages.table)
        if need <= 0:
            return True
        if need > self.available:
            return False
        if need > self.pool.free:
            self.pool.release(self.tree.evict(need - self.pool.free))
        request.pages.table += self.pool.allocate(need)
        return True

    def publish(self, request: Request, tokens: int) -> None:
        """Hand the full pages of the first `tokens` tokens to the tree, and keep a lock on them.

        Where the tree has a page for the same prefix already, that page replaces the request's own.
        """
        pages, full = request.pages, tokens // self.pool.page_size
        if not self.radix or full <= pages.shared:
            return
        assert pages.node is not None
        own = pages.table[pages.shared : full]
        match = self.tree.insert(request.tokens[: full * self.pool.page_size], pages.table[:full], request.namespace)
        self.tree.lock(match.node)
        self.tree.unlock(pages.node)
        self.pool.release(mine for mine, its in zip(own, match.pages[pages.shared :], strict=True) if mine != its)
        pages.table[:full], pages.shared, pages.node = match.pages, full, match.node

    def trim(self, request: Request) -> None:
        """Give back pages without a known token. They were reserved for drafts, or for steps that were not needed."""
        need = self.pool.pages_for(len(request.tokens))
        self.pool.release(request.pages.table[need:])
        del request.pages.table[need:]

    def release(self, request: Request) -> None:
        """The request stops running. The tree keeps its pages until it evicts them; the pool gets the others."""
        pages = request.pages
        assert pages.node is not None
        self.tree.unlock(pages.node)
        self.pool.release(pages.table[pages.shared :])
        request.pages = Pages()

    def discard(self, request: Request) -> None:
        """The request's logits were broken: release, and drop those pages of its text that nobody else uses."""
        node = request.pages.node
        self.release(request)
        assert node is not None
        self.pool.release(self.tree.discard(node))

    def forget(self) -> None:
        """A step failed, and the tree may hold promises that were not kept: every page is free again."""
        self.pool.clear()
        self.tree.clear()


def default_pages(model: Transformer, page_size: int) -> int:
    """For two texts of the model's full context, or as many as half of the free memory holds if that is fewer."""
    config, page_size = model.config, max(page_size, 1)  # the pool refuses a page_size below 1
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
