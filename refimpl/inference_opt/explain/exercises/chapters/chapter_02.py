"""Chapter 02: the paged KV cache."""

from collections.abc import Sequence
from inspect import unwrap
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from inference_opt.cache import paged
from inference_opt.cache.paged import PagedBatch, PagedCache, slots_of
from inference_opt.cache.pool import PagePool
from inference_opt.explain.exercises.chapters.chapter_01 import SEEDS, Text, check_batch
from inference_opt.explain.exercises.exercise import (
    Broken,
    Property,
    Repair,
    Write,
    expect,
    expect_close,
)
from inference_opt.explain.views.registry import last_line
from inference_opt.trace import emit_at

# The pool


def tell(function: Any, event: str, pool: PagePool, **data: Any) -> None:
    """A reader's function does not emit: what it has done is told at its last line."""
    code = unwrap(function).__code__
    if "emit" not in code.co_names:
        emit_at(code, last_line(code), event, pool, **data)


class Owners:
    """Calls of a pool, each held against a set: which pages are free, and the most that were ever in use."""

    def __init__(self, num_pages: int) -> None:
        self.pool, self.num_pages = PagePool(num_pages, 1), num_pages
        self.free, self.peak = set(range(num_pages)), 0

    def check(self) -> None:
        """The pool says of itself what the set says."""
        stack = self.pool.free_pages
        expect(sorted(stack), sorted(self.free), "each free page is on the stack once, and no other page is")
        for page in range(self.num_pages):
            expect(
                self.pool._is_free[page], int(page in self.free), f"`_is_free` says of page {page} whether it is free"
            )
        expect(self.pool.peak, self.peak, "`peak` is the largest number of pages that were in use at one time")

    def allocate(self, count: int) -> None:
        """Some pages, or an error."""
        before, possible = self.pool.free_pages, 0 <= count <= len(self.free)
        known = f"{len(before)} of {self.num_pages} pages are free"
        try:
            came = self.pool.allocate(count)
        except ValueError as error:
            tell(PagePool.allocate, "pool.allocate", self.pool, count=0, pages=[])
            self.check()
            if possible:
                right = list(before[::-1][:count])
                raise Broken(f"allocate({count}) is possible where {known}", error, right) from None
            return
        tell(PagePool.allocate, "pool.allocate", self.pool, count=count, pages=came)
        if not possible:
            raise Broken(f"allocate({count}) raises ValueError where {known}", came, "ValueError")
        right = list(before[::-1][:count])
        expect(came, right, f"allocate({count}) takes the pages from the end of the stack {before}, the last one first")
        self.free -= set(right)
        self.peak = max(self.peak, self.num_pages - len(self.free))
        self.check()

    def release(self, pages: Sequence[int], iterator: bool = False) -> None:
        """Pages back, or an error."""
        given = list(pages)
        allocated = set(range(self.num_pages)) - self.free
        possible = len(set(pages)) == len(pages) and set(pages) <= allocated
        known = f"the allocated pages are {sorted(allocated)}"
        try:
            self.pool.release(iter(given) if iterator else given)
        except ValueError as error:
            tell(PagePool.release, "pool.release", self.pool, pages=[])
            self.check()
            if possible:
                raise Broken(f"release({pages}) is possible where {known}", error, None) from None
            return
        tell(PagePool.release, "pool.release", self.pool, pages=pages)
        if not possible:
            raise Broken(f"release({pages}) raises ValueError where {known}", None, "ValueError")
        expect(given, list(pages), "the list of pages is the caller's: it stays as it is")
        self.free |= set(pages)
        self.check()


def owners_agree(num_pages: int, calls: list[tuple[str, Any]]) -> None:
    """The calls, one after the other."""
    owners = Owners(num_pages)
    owners.check()
    for verb, argument in calls:
        getattr(owners, verb)(argument)


def any_iterable(num_pages: int, count: int) -> None:
    """Allocate, and give back by an iterator: a generator, or the keys of a dict, say."""
    owners = Owners(num_pages)
    owners.allocate(min(count, num_pages))
    owners.release(sorted(set(range(num_pages)) - owners.free), iterator=True)


CALLS = st.one_of(
    st.tuples(st.just("allocate"), st.integers(-1, 6)),
    st.tuples(st.just("release"), st.lists(st.integers(-1, 6), max_size=4)),
)
AGREES = Property(
    "a page is free or has an owner, whatever is called",
    st.fixed_dictionaries({"num_pages": st.integers(1, 6), "calls": st.lists(CALLS, max_size=8)}),
    owners_agree,
    (
        {"num_pages": 2, "calls": [("allocate", 2)]},
        {"num_pages": 2, "calls": [("allocate", 1), ("release", [0])]},
        {"num_pages": 3, "calls": [("allocate", 2), ("release", [0, 1]), ("allocate", 3)]},
        {"num_pages": 2, "calls": [("allocate", 1), ("allocate", 2)]},
        {"num_pages": 2, "calls": [("allocate", 2), ("allocate", 0), ("allocate", -1)]},
        {"num_pages": 2, "calls": [("allocate", 2), ("release", [0]), ("release", [0])]},
        {"num_pages": 2, "calls": [("allocate", 2), ("release", [0, 0])]},
        {"num_pages": 2, "calls": [("allocate", 1), ("release", [0, 1])]},
        {"num_pages": 2, "calls": [("allocate", 2), ("release", [-1])]},
        {"num_pages": 2, "calls": [("allocate", 2), ("release", [2])]},
    ),
)
ITERABLES = Property(
    "the pages may come from any iterable",
    st.fixed_dictionaries({"num_pages": st.integers(1, 6), "count": st.integers(0, 6)}),
    any_iterable,
)

# Where a token lies


def lies_in_its_page(table: list[int], page_size: int, positions: list[int]) -> None:
    """Against the definition, token by token."""
    room = len(table) * page_size
    asked = [position % room for position in positions]
    came = slots_of(torch.tensor(table), torch.tensor(asked, dtype=torch.long), page_size)
    right = [table[position // page_size] * page_size + position % page_size for position in asked]
    expect_close(came, torch.tensor(right, dtype=torch.long), f"the slots of tokens {asked}")


SLOTS = Property(
    "each token has the slot that the page table gives it",
    st.fixed_dictionaries({
        "table": st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True), "page_size": st.integers(1, 5),
        "positions": st.lists(st.integers(0, 24), max_size=6),
    }),
    lies_in_its_page,
    ({"table": [3, 1], "page_size": 4, "positions": [0, 3, 4, 7]},),
)  # fmt: skip

# Attention through page tables, on random numbers in float64

LAYERS, HEADS, KV_HEADS, DIM, PAGES = 2, 2, 1, 2, 12


class PagedText(Text):
    """A text and its page table."""

    def __init__(self, name: str, generator: torch.Generator, tokens: int, table: list[int]) -> None:
        super().__init__(name, generator, tokens, HEADS, KV_HEADS)
        self.table = table


def new_cache(page_size: int) -> PagedCache:
    """Every slot holds NaN: whoever reads one that was not written will see it."""
    cache = PagedCache(LAYERS, KV_HEADS, DIM, PAGES, page_size, torch.float64, torch.device("cpu"))
    for layer in (*cache.keys, *(cache.values or ())):
        layer.fill_(torch.nan)
    return cache


def run_batch(cache: PagedCache, layer: int, texts: list[PagedText], counts: list[int]) -> None:
    """One batch of one layer: `counts[i]` new tokens of text i. What comes out and what is kept, against the texts."""
    batch = cache.batch([text.table for text in texts], [text.done for text in texts], counts)

    def kept(i: int) -> tuple[Tensor, Tensor]:
        size, text = cache.page_size, texts[i]
        slots = [text.table[t // size] * size + t % size for t in range(text.done)]
        return cache.keys[layer].flatten(0, 1)[slots], cache.values_of(layer).flatten(0, 1)[slots]

    check_batch(batch, layer, texts, counts, kept)


def attends_in_any_batches(batches: list[list[int]], page_size: int, layer: int, seed: int) -> None:
    """Several texts, some new tokens of each in every batch. A text's pages lie anywhere."""
    generator = torch.Generator().manual_seed(seed)
    totals = [sum(batch[i] for batch in batches) for i in range(len(batches[0]))]
    free = torch.randperm(PAGES, generator=generator).tolist()
    tables = [[free.pop() for _ in range(-(-total // page_size))] for total in totals]
    texts = [PagedText(*each) for each in zip("ABC", [generator] * 3, totals, tables)]
    cache = new_cache(page_size)
    for counts in batches:
        run_batch(cache, layer, texts, counts)
    other = torch.cat([x[1 - layer].flatten() for x in (cache.keys, cache.values or [])])
    if not other.isnan().all():
        raise Broken(f"layer {layer} was asked: the other layer's pages stay as they are")


def shares_within_a_batch(shared: int, own: int, reader_first: bool, page_size: int, seed: int) -> None:
    """Text A writes all of its tokens, text B only those behind the pages that it shares with A, in one batch."""
    generator = torch.Generator().manual_seed(seed)
    common = shared * page_size
    a, b = (PagedText("AB"[n], generator, common + own, [*range(shared), shared + n, 8 + n]) for n in (0, 1))
    b.k[:common], b.v[:common], b.done = a.k[:common], a.v[:common], common
    texts = [b, a] if reader_first else [a, b]
    counts = [len(text.q) - text.done for text in texts]
    run_batch(new_cache(page_size), 0, texts, counts)


def finds_its_keys(table: list[int], page_size: int, tokens: int, seed: int) -> None:
    """One text in these pages: all of its tokens are fed at once."""
    generator = torch.Generator().manual_seed(seed)
    run_batch(new_cache(page_size), 0, [PagedText("A", generator, tokens, table)], [tokens])


def gathers_in_order(table: list[int], page_size: int, tokens: int) -> None:
    """Numbers 0, 1, 2, …, slot by slot."""
    layer = torch.arange(PAGES * page_size, dtype=torch.float64).view(PAGES, page_size, 1, 1)
    came = paged.gather(layer, torch.tensor(table), tokens)
    right = [float(table[t // page_size] * page_size + t % page_size) for t in range(tokens)]
    expect_close(came, torch.tensor(right, dtype=torch.float64)[:, None, None], f"what the pages {table} hold")


@st.composite
def one_text(draw: Any) -> dict[str, Any]:
    """A page table and as many tokens as fit its pages, none left out."""
    table = draw(st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=4, unique=True))
    size = draw(st.integers(1, 3))
    tokens = len(table) * size - draw(st.integers(0, size - 1))
    return {"table": table, "page_size": size, "tokens": tokens}


BATCHES = Property(
    "every new token attends to its own text, up to itself",
    st.fixed_dictionaries({
        "batches": st.integers(1, 3).flatmap(
            lambda n: st.lists(st.lists(st.integers(1, 3), min_size=n, max_size=n), min_size=1, max_size=3)
        ),
        "page_size": st.integers(3, 4), "layer": st.integers(0, 1), "seed": SEEDS,
    }),
    attends_in_any_batches,
    (
        {"batches": [[1]], "page_size": 3, "layer": 1, "seed": 0},
        {"batches": [[2]], "page_size": 3, "layer": 0, "seed": 0},
        {"batches": [[1], [1]], "page_size": 3, "layer": 0, "seed": 0},
        {"batches": [[1, 2]], "page_size": 3, "layer": 0, "seed": 0},
    ),
)  # fmt: skip
SHARED = Property(
    "a text may read pages that another text of the same batch fills",
    st.fixed_dictionaries({
        "shared": st.integers(1, 3), "own": st.integers(1, 2), "reader_first": st.booleans(),
        "page_size": st.integers(1, 3), "seed": SEEDS,
    }),
    shares_within_a_batch,
    ({"shared": 1, "own": 1, "reader_first": True, "page_size": 1, "seed": 0},),
)  # fmt: skip
FINDS = Property(
    "a text finds its keys in any pages",
    st.builds(lambda text, seed: text | {"seed": seed}, one_text(), SEEDS),
    finds_its_keys,
    ({"table": [0, 1], "page_size": 2, "tokens": 3, "seed": 0},),
)
GATHERS = Property("the rows come in the order of the text", one_text(), gathers_in_order)

EXERCISES: tuple[Any, ...] = (
    Write(
        "02.allocate",
        "take pages from the pool",
        """
        The pool knows in two ways which pages are free. `self._free` is a stack: the list of the free pages, whose last
        one is taken next. `self._is_free` says the same page by page: entry p is 1 while page p is free, else 0. Both
        must agree after every call.

        `self.peak` is the largest number of pages that were ever in use at one time. `self.num_pages` is the number
        of all pages. A negative `count` is an error, and so is one that is too large. After an error the pool is as
        before.
        """,
        (
            "What has to be checked before anything changes?",
            "Take the pages from the end of `self._free`, the last one first. Then bring `_is_free` and `peak` up to "
            "date.",
            "If not 0 <= count <= len(self._free), raise ValueError. Pop `count` times. Set self._is_free[page] = 0 "
            "for each page popped, and peak to the larger of itself and num_pages − len(self._free).",
        ),
        5,
        PagePool,
        "allocate",
        (AGREES,),
    ),
    Write(
        "02.release",
        "give pages back to the pool",
        """
        The other direction. The pages join the list `self._free`, in any order, and `self._is_free[page]` becomes 1 for
        each of them.

        A page that is given back twice would be handed out twice, and two texts would write over each other. So three
        things are errors: a page that is free already, a number that is no page of this pool (its pages are 0 to
        `self.num_pages` − 1), and the same page twice in one call. After an error the pool is as before: not one of the
        pages has become free.
        """,
        (
            "`pages` is any iterable. How often can you go through a generator?",
            "First make a list of the pages and check all of them, then change anything. What does the index −1 of a "
            "list mean in Python?",
            "pages = list(pages). Raise ValueError if some page is not in range(self.num_pages), if _is_free[page] is "
            "1, or if len(set(pages)) < len(pages). Then set the flags to 1 and extend the stack.",
        ),
        10,
        PagePool,
        "release",
        (AGREES, ITERABLES),
    ),
    Write(
        "02.slots",
        "find the slot of a token",
        """
        All pages of a layer lie one after the other in memory. A *slot* is the place of one token: page 0 has the
        slots 0 to page_size − 1, page 1 has the next ones, and so on.

        `pages` lists the pages of one text in the order of its tokens: the first page_size tokens lie in page
        pages[0]. `positions` are the numbers of some of its tokens, counted from 0. Both are tensors of integers. So
        is the result, which has one slot for each position.
        """,
        (
            "With pages of 4, in which page of its text does token 9 lie, and at which place of that page?",
            "t // page_size is the number of its page *within the text*. The page table says which page of the pool "
            "that is.",
            "The page is pages[positions // page_size]. Its first slot is that times page_size. Add positions % "
            "page_size.",
        ),
        3,
        paged,
        "slots_of",
        (SLOTS,),
    ),
    Write(
        "02.attend",
        "attend through page tables",
        """
        A batch has some new tokens of each of several texts, laid end to end. `q`, `k` and `v` are the queries, keys
        and values of these new tokens, of all texts together.

        The batch knows four things. `self.counts`: how many of the new tokens belong to each text. `self.slots`:
        where each new token's key and value go. `self.pages`: for each text a tensor of its pages. `self.ends`: the
        length of each text, its new tokens included. The cache `self.cache` has `keys[layer]` and `values_of(layer)`,
        each of shape [pages, page_size, kv_heads, head_dim]. `flatten(0, 1)` of either is a view with one row for
        each slot.

        Keep the new keys and values. Then let every new token attend to its own text, up to itself. For one text,
        `gather(x, pages, end)` returns the first `end` rows, and `causal_attention(q, k, v, scale)` does the rest.

        Two texts may list the same page, and one may read what the other writes in this very batch.
        """,
        (
            "There are two halves: writing and reading. How much must be written before the first text is read?",
            "Write all new rows at once, into the rows self.slots of the flattened keys and values. Then loop over "
            "the texts: `q.split(self.counts)` has the queries of each.",
            "key_pages.flatten(0, 1)[self.slots] = k, and the same for v. Then for queries, pages, end in "
            "zip(q.split(self.counts), self.pages, self.ends): causal_attention(queries, gather(key_pages, pages, "
            "end), gather(value_pages, pages, end), scale). torch.cat joins the results.",
        ),
        15,
        PagedBatch,
        "attend",
        (BATCHES, SHARED),
    ),
    Repair(
        "02.gather",
        "answers that become nonsense after an hour",
        """
        A server with this `gather` passed its tests. It answered correctly for an hour; then long answers became
        nonsense. After a restart it was correct again, for another hour. Texts of no more than a page were never wrong.

        The witness is one text: its page table (pages 0 to 11), the page size, how many tokens the text has (all of its
        pages are needed), and a seed for the numbers.
        """,
        (
            "Which page table does the first request get after the start of a server? And which one when pages have "
            "been given back in another order?",
            "What is the second page of the table [5, 2]? What does this function read second?",
            "A page table is in the order of the text. It must not be sorted.",
        ),
        5,
        paged,
        "gather",
        (FINDS, GATHERS),
        (("layer.index_select(0, pages)", "layer.index_select(0, pages.sort().values)"),),
        {"table": [5, 2], "page_size": 1, "tokens": 2, "seed": 0},
    ),
)  # fmt: skip
