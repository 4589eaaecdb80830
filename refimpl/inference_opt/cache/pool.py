"""The page pool: memory for keys and values, cut into pages of equal size that are handed out one by one.

A contiguous cache reserves room for the longest text that might come. Pages are taken when they are needed, from
anywhere, and a request's *page table* lists them in the order of its tokens (Kwon et al. 2023, PagedAttention,
2309.06180, §4.1, where a page is called a block):

    pool           0  1  2  3  4  5  6  7        page_size = 4
    request A      ·  a  ·  a  ·  ·  a  ·        page_table [3, 1, 6]: its tokens 0–3 lie in page 3, 4–7 in 1, 8– in 6
    request B      b  ·  b  ·  ·  ·  ·  ·        page_table [2, 0]

Token t of a request lies in page page_table[t // page_size] at offset t % page_size, its *slot* being
page · page_size + offset. At most page_size − 1 slots a request are wasted.

Invariant: a page is free, or has exactly one owner: a single request, or the radix tree, which lends it to
any number of requests (the tree's locks count them: one count a node stands for all the pages on its edge).
"""

from collections.abc import Iterable

from inference_opt.trace import emit
from inference_opt.values import are_ints, integer


class PagePool:
    """Which of `num_pages` pages are free. It holds no tensors: those are `PagedCache`'s."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        num_pages, page_size = integer("num_pages", num_pages), integer("page_size", page_size)
        if num_pages < 1 or page_size < 1:
            raise ValueError(
                "a pool needs at least one page of at least one token, in whole numbers: "
                f"got {num_pages!r} pages of {page_size!r}"
            )
        self.num_pages, self.page_size = num_pages, page_size
        self.peak = 0  # most pages in use at any one time
        self.clear()

    def clear(self) -> None:
        """Every page is free, whoever had it, and whatever was left half done."""
        self._free = list(range(self.num_pages - 1, -1, -1))  # a stack: page 0 is on top
        self._is_free = bytearray([1]) * self.num_pages  # the same by page: what is on the stack has a 1

    @property
    def free_pages(self) -> tuple[int, ...]:
        """Pages without an owner; the last is taken next."""
        return tuple(self._free)

    @property
    def free(self) -> int:
        """How many pages are free."""
        return len(self._free)

    def is_free(self, page: int) -> bool:
        """Whether no one owns the page."""
        return bool(self._is_free[page])

    def pages_for(self, tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages; they are the caller's from now on. ValueError, and no change, if there are fewer."""
        if not 0 <= (count := integer("count", count)) <= len(self._free):
            raise ValueError(f"cannot allocate {count!r} pages: {len(self._free)} of {self.num_pages} are free")
        pages = [self._free.pop() for _ in range(count)]
        self.peak = max(self.peak, self.num_pages - len(self._free))
        for page in pages:
            self._is_free[page] = 0
        emit("pool.allocate", self, count=count, pages=pages)
        return pages

    def release(self, pages: Iterable[int]) -> None:
        """Give pages back. ValueError, and no change, where one is free already or is no page of this pool."""
        pages = list(pages)
        if not are_ints(pages):
            pages = [integer("a page", page) for page in pages]
        for page in pages:
            if not 0 <= page < self.num_pages or self._is_free[page]:
                raise ValueError(f"cannot release page {page!r}: not an allocated page of this pool")
        if len(set(pages)) < len(pages):
            raise ValueError(f"cannot release a page twice: {pages}")
        for page in pages:
            self._is_free[page] = 1
        self._free.extend(pages)
        if pages:
            emit("pool.release", self, pages=pages)
