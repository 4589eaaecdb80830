"""Chapter 09: techniques that meet. Here: the tree, the pool and drafts, at the cache manager's five verbs."""

from typing import Any

import torch
from hypothesis import strategies as st

from inference_opt.cache.pool import PagePool
from inference_opt.engine.cache_manager import CacheManager
from inference_opt.engine.engine import Engine
from inference_opt.engine.request import Request
from inference_opt.explain.exercises.exercise import Broken, Predict, Property, Question, Repair, Write, expect
from inference_opt.explain.record import record
from inference_opt.explain.scenarios.toys import ids, new, spell, toy
from inference_opt.explain.views import SENTENCES
from inference_opt.radix.node import upwards
from inference_opt.radix.tree import RadixTree
from inference_opt.sampling import SamplingParams, StopCheck
from inference_opt.trace import emit
from inference_opt.trace.trace import Trace

SENTENCES["exercise.turn"] = "{who}: {what}; its pages {table}, {shared} of them the tree’s; {computed:token} computed"

Text = tuple[int, ...]


class Desk:
    """Requests that share a pool and a tree, and a memory that remembers which text each slot was written for.

    It is what the engine does, without a model: whoever reads a slot must find the text that it expects there.
    """

    def __init__(self, texts: list[list[int]], page_size: int, pages: int, radix: bool) -> None:
        self.texts, self.size = texts, page_size
        self.pool, self.tree = PagePool(pages, page_size), RadixTree(page_size)
        self.cache = CacheManager(self.pool, self.tree, radix)
        self.running: dict[int, Request] = {}
        self.slots: dict[int, Text] = {}  # the text up to the token that was written there

    # What there is, read off the tree

    def known(self) -> dict[Text, int]:
        """{prefix of whole pages: its page in the tree}."""
        found = {}
        for node in self.tree.nodes():
            above = [token for each in reversed(list(upwards(node))[1:]) for token in each.tokens]
            text = above + node.tokens
            for i, page in enumerate(node.pages):
                found[tuple(text[: len(above) + (i + 1) * self.size])] = page
        return found

    def prefix(self, tokens: Any) -> list[int]:
        """The tree's pages for the beginning of a text."""
        known, pages = self.known(), list[int]()
        while (page := known.get(tuple(tokens[: (len(pages) + 1) * self.size]))) is not None:
            if len(tokens) < (len(pages) + 1) * self.size:
                break
            pages.append(page)
        return pages

    def check(self) -> None:
        """Each page has one owner, and whoever has a page finds there what it needs."""
        owners: dict[int, list[str]] = {page: [] for page in range(self.pool.num_pages)}
        for page in self.pool.free_pages:
            owners[page].append("the pool")
        for page in self.known().values():
            owners[page].append("the tree")
        for who, request in self.running.items():
            for page in request.table[request.pages.shared :]:
                owners.get(page, []).append(f"request {who} alone")
        for page, names in owners.items():
            if len(names) != 1:
                raise Broken(f"the owners of page {page}", names or ["nobody: it is lost"], "exactly one")
        users = {id(request.pages.node): request.pages.node for request in self.running.values()}
        for node in users.values():
            count = sum(request.pages.node is node for request in self.running.values())
            expect(
                node.users if node else None,
                count,
                "the locks on the node where a running request's shared pages end: one for each that ends there",
            )
        expect(sum(node.users for node in self.tree.nodes()) + sum(root.users for root in self.tree.roots.values()),
               len(self.running), "all locks: as many as running requests")  # fmt: skip
        for who, request in self.running.items():
            table, shared, text = request.table, request.pages.shared, request.tokens.tolist()
            if any(self.pool.is_free(page) for page in table):
                raise Broken(f"the page table of request {who} must not name a free page", table)
            expect(
                table[:shared],
                self.prefix(text[: shared * self.size]),
                f"the shared pages of request {who} are the tree's",
            )
            if request.computed > len(table) * self.size:
                raise Broken(
                    f"request {who} has pages for all that it computed", table, f"{request.computed} tokens of room"
                )
            self.read(who, request, request.computed)

    def read(self, who: int, request: Request, count: int) -> None:
        """The first tokens' slots must have been written for this very text."""
        for position in range(count):
            wanted, slot = tuple(request.tokens[: position + 1]), self.slot(request, position)
            if self.slots.get(slot) != wanted:
                was = list(self.slots[slot]) if slot in self.slots else "nothing"
                raise Broken(
                    f"request {who} reads token {position} of its text, and what lies there is another text's",
                    was,
                    list(wanted),
                )

    def slot(self, request: Request, position: int) -> int:
        """Where a token lies."""
        return request.table[position // self.size] * self.size + position % self.size

    def write(self, request: Request, tokens: list[int], start: int) -> None:
        """Compute these tokens behind the first `start` of the text."""
        text = request.tokens[:start].tolist() + tokens
        for position in range(start, len(text)):
            self.slots[self.slot(request, position)] = tuple(text[: position + 1])

    # What requests do

    def turn(self, verb: str, who: int, count: int) -> None:
        """One turn of one request, if it can be done."""
        if verb == "compute":
            self.compute(who, count)
        elif who in self.running:
            request = self.running[who]
            if verb == "publish":
                self.publish(who, request, min(request.computed, len(request.tokens) - 1, count or request.computed))
            elif verb == "draft":
                self.draft(who, request, count)
            elif verb == "end":
                self.publish(who, request, request.computed)
                self.tell(who, request, "ends")
                self.cache.release(request)
                del self.running[who]
        self.check()

    def tell(self, who: int, request: Request, what: str) -> None:
        """To whoever records."""
        pages = request.pages
        emit("exercise.turn", who=f"request {who}", what=what, table=pages.table, shared=pages.shared,
             computed=request.computed)  # fmt: skip

    def compute(self, who: int, count: int) -> None:
        """Begin or go on: find, make room, compute at most `count` known tokens; after the last one, a token is new."""
        params = SamplingParams(max_new_tokens=100, ignore_eos=True)
        request = self.running.get(who) or Request(who, list(self.texts[who]), params, StopCheck(params, (), 100))
        if who not in self.running and not self.fits(request):
            return
        if request.remaining > 1 or who not in self.running:
            self.attach(who, request)
            self.running[who] = request
        count = min(request.remaining, count)
        if not self.cache.reserve(request, request.computed + count):
            self.cache.release(request)
            del self.running[who]
            return
        self.write(request, request.tokens[request.computed : request.computed + count].tolist(), request.computed)
        self.read(who, request, request.computed + count)
        request.computed += count
        if not request.remaining:
            request.tokens.append(sum(request.tokens) % 2)
        self.tell(who, request, f"computes {count}")

    def draft(self, who: int, request: Request, count: int) -> None:
        """The last known token and `count` drafts are computed; half of them are right."""
        if request.remaining != 1 or not self.cache.reserve(request, request.computed + 1 + count):
            return
        right = count // 2
        follow = request.tokens.tolist()
        for _ in range(right + 1):
            follow.append(sum(follow) % 2)
        drafts = follow[len(request.tokens) : -1] + [9] * (count - right)
        self.write(request, [request.tokens[-1], *drafts], request.computed)
        self.read(who, request, request.computed + 1)
        request.computed += right + 1
        request.tokens.extend(follow[len(request.tokens) :])
        self.tell(who, request, f"drafts {count}, of which {right} are right")
        self.trim(who, request)

    # The verbs, each against what it must do

    def fits(self, request: Request) -> bool:
        """Asked, and held to what the answer must be."""
        before, found = self.known(), self.prefix(request.tokens[:-1].tolist())
        free = {page for node in self.tree.nodes() if not node.locks for page in node.pages}
        need = self.pool.pages_for(len(request.tokens)) - len(found)
        right = need <= self.pool.free + len(free - set(found))
        came = self.cache.fits(request)
        told = f"{need} pages are needed, {self.pool.free} are free, {len(free)} can be evicted now"
        kept = f"{len(free & set(found))} of these are found for it, and will be locked"
        expect(came, right, f"does request {request.id} fit? {told}; {kept}")
        expect(self.known(), before, "to ask whether a request fits changes nothing")
        return right

    def attach(self, who: int, request: Request) -> None:
        """What the tree has beyond what was computed."""
        text, was = request.tokens[:-1].tolist(), list(request.table)
        pages = self.prefix(text)
        found = len(pages) * self.size
        better = found > request.computed or request.pages.node is None
        right = found - request.computed if better else 0
        computed, shared = max(request.computed, found), len(pages) if better else request.pages.shared
        came = self.cache.attach(request)
        self.tell(who, request, f"attaches, and saves {came}")
        if request.remaining < 1:
            raise Broken(
                "at least one token must be left to compute",
                f"{request.computed} of {len(request.tokens)} are computed",
            )
        expect(came, right, f"attach returns how many tokens of request {who} need not be computed any more")
        expect(request.computed, computed, f"how many tokens of request {who} are computed")
        expect(request.pages.shared, shared, f"how many pages of request {who} are the tree's")
        expect(list(request.table), pages if better else was, f"the page table of request {who}, after attach")
        self.running[who] = request
        self.check()

    def publish(self, who: int, request: Request, count: int) -> None:
        """Full pages of the first tokens become the tree's."""
        full = count // self.size if self.cache.radix else 0
        before, table, shared = self.known(), list(request.table), request.pages.shared
        text = request.tokens.tolist()
        right = list(table)
        for i in range(full):
            right[i] = before.get(tuple(text[: (i + 1) * self.size]), table[i])
        self.cache.publish(request, count)
        self.tell(who, request, f"publishes the full pages of {count} tokens")
        missing = [i for i in range(full) if tuple(text[: (i + 1) * self.size]) not in self.known()]
        expect(missing, [], f"full pages of request {who} that the tree does not have")
        expect(len(self.known()), len(before.keys() | {tuple(text[: i * self.size]) for i in range(1, full + 1)}),
               "pages of the tree: those it had, and the full pages of these tokens")  # fmt: skip
        expect(list(request.table), right, f"the page table of request {who}: the tree's pages where it has them")
        expect(request.pages.shared, max(shared, full), f"how many pages of request {who} are the tree's")
        self.check()

    def trim(self, who: int, request: Request) -> None:
        """Pages behind the last known token go."""
        table, need = list(request.table), self.pool.pages_for(len(request.tokens))
        self.cache.trim(request)
        self.tell(who, request, "trims")
        expect(
            list(request.table),
            table[:need],
            f"the page table of request {who}: pages for {len(request.tokens)} known tokens",
        )
        self.check()


def keeps_books(
    texts: list[list[int]], turns: list[tuple[str, int, int]], page_size: int, pages: int, radix: bool
) -> None:
    """Turns of requests 0, 1, …, whose prompts are `texts`: (verb, request, number of tokens; 0: all)."""
    desk = Desk(texts, page_size, pages, radix)
    for verb, who, count in turns:
        desk.turn(verb, who % len(texts), count)


SAME, LONG = [[0, 1, 0, 1], [0, 1, 0, 1]], [[0, 1, 0, 1, 0], [0, 1, 0, 1, 0]]


def corner(
    texts: list[list[int]], *turns: tuple[str, int, int], page_size: int = 2, pages: int = 8, radix: bool = True
) -> dict[str, Any]:
    """An input that is tried first."""
    return {"texts": texts, "turns": list(turns), "page_size": page_size, "pages": pages, "radix": radix}


BOOKS = Property(
    "each page has one owner, and requests read their own text",
    st.fixed_dictionaries({
        "texts": st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=3),
        "turns": st.lists(st.tuples(st.sampled_from(["compute", "publish", "draft", "end"]), st.integers(0, 2),
                                    st.integers(1, 6)), max_size=12),
        "page_size": st.integers(1, 3), "pages": st.integers(5, 9), "radix": st.sampled_from([True, True, True, False]),
    }),
    keeps_books,
    (
        corner([[0, 1]], ("compute", 0, 2)),
        corner([[0, 1]], ("compute", 0, 2), ("draft", 0, 4)),
        corner([[0, 1, 0]], ("compute", 0, 2), ("publish", 0, 0)),
        corner([[0, 0, 0]], ("compute", 0, 1), ("compute", 0, 1), page_size=1),
        corner([[0]], *[("compute", 0, 1)] * 5, ("publish", 0, 0), ("compute", 0, 1), page_size=1, pages=5),
        corner([[1], [1, 0, 0, 0, 0]], ("compute", 0, 1), ("compute", 0, 1), ("publish", 0, 0), ("compute", 1, 1),
               page_size=1, pages=6),
        corner([[0, 1, 0]], ("compute", 0, 2), ("publish", 0, 0), ("end", 0, 0), ("compute", 0, 1), radix=False),
        corner(LONG, ("compute", 0, 4), ("publish", 0, 4), ("publish", 0, 2)),
        corner(LONG, ("compute", 1, 2), ("compute", 0, 2), ("publish", 0, 0), ("compute", 1, 1)),
        corner(LONG, ("compute", 1, 4), ("compute", 0, 4), ("publish", 0, 0), ("publish", 1, 0), ("compute", 1, 1)),
        corner([[0, 1, 0], [0, 1, 0]], ("compute", 0, 2), ("publish", 0, 0), ("compute", 1, 3), pages=2),
        corner([[0, 1], [0, 1, 0, 0, 0, 0, 0, 0, 0]], ("compute", 0, 2), ("end", 0, 0), ("compute", 1, 9), pages=4),
        corner(SAME, ("compute", 0, 4), ("end", 0, 0), ("compute", 1, 4)),
        corner(LONG, ("compute", 0, 4), ("compute", 1, 4), ("publish", 0, 0), ("publish", 1, 0), ("compute", 1, 1)),
        corner(LONG, ("compute", 1, 1), ("compute", 0, 5), ("publish", 0, 0), ("compute", 1, 4)),
        corner(LONG, ("compute", 0, 4), ("publish", 0, 0), ("compute", 0, 1), ("draft", 0, 1), ("end", 0, 0)),
        corner([[0, 1, 0, 1], [0, 1, 0, 1, 0, 0, 1]], ("compute", 0, 4), ("end", 0, 0), ("compute", 1, 7), pages=3),
        corner([[0, 1, 0, 1], [0, 1, 0, 1, 0]], ("compute", 0, 4), ("end", 0, 0), ("compute", 1, 5), ("compute", 0, 4),
               pages=3),
        corner([[0, 1, 0, 1], [1, 1, 1, 1, 1]], ("compute", 0, 4), ("end", 0, 0), ("compute", 1, 5), pages=3),
    ),
)  # fmt: skip


def next_letter() -> Any:
    """A transformer whose weights say one thing: after a comes b, after b c, after c d, and after d a."""
    model = toy()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        for letter in range(4):
            model.embed.weight[letter, letter] = model.head.weight[(letter + 1) % 4, letter] = 1
    return model


def reuse_and_drafts() -> tuple[dict[str, Any], Trace]:
    """A request with drafts, the same again, and the text that came out as the next prompt."""
    engine = Engine(next_letter(), drafter="prompt-lookup", gamma=4, page_size=4, num_pages=32, token_budget=64)
    with record("09.reuse", watch=[engine.scheduler, engine.pool, engine.tree], label=spell) as trace:
        first = engine.generate(ids("abcdabcdab"), new(11))
        steps, stats = engine.stats.steps, engine.stats
        kept = len(engine.tree)
        engine.generate(ids("abcdabcdab"), new(1))
        found = engine.stats.cached_tokens
        engine.generate([*ids("abcdabcdab"), *first.tokens], new(1))
    numbers = {
        "steps": steps, "accepted": stats.accepted_tokens, "pages": kept, "found again": found,
        "found of the whole": engine.stats.cached_tokens - found,
    }  # fmt: skip
    return numbers, trace


EXERCISES: tuple[Any, ...] = (
    Write(
        "09.attach",
        "use what others have computed",
        """
        A request asks the tree for pages of its tokens. It asks when it begins, and again while it is in prefill,
        since others may have published more meanwhile. What is found need not be computed.

        A request has `tokens`, `namespace`, `computed` (how many of its tokens have their keys and values in pages)
        and `pages`: a `Pages(table, shared, node)`, where `table` lists its pages, the first `shared` of them are the
        tree's, and `node` is the tree's node where these end. The node is locked as long as the request runs. `node`
        is None before it runs.

        If the request runs and has computed as many tokens as are found, or more, nothing changes, and 0 is returned.
        Otherwise its pages are exactly those that were found, all of them the tree's, and the node is locked, even if
        nothing was found. Its old pages and its old lock are given up: `self.release(request)` does that. The new
        lock is taken first, so that what was found cannot be evicted meanwhile.
        """,
        (
            "Which tokens may be looked up, if one must be left to compute?",
            "`self.tree.cached(text, namespace)` says how many tokens a match would find, and changes nothing. "
            "`self.tree.match(text, namespace)` gives `pages` and `node`; it may split an edge and counts as a use.",
            "text = `request.tokens[:-1]`. If `request.pages.node` is not None and `cached` is at most `computed`, "
            "return 0. Match, lock the node, release the request if it had one, then set `request.pages = "
            "Pages(match.pages, len(match.pages), match.node)` and `computed` to the tokens on these pages. Return "
            "how much more that is.",
        ),
        20,
        CacheManager,
        "attach",
        (BOOKS,),
    ),
    Write(
        "09.publish",
        "hand full pages to the tree",
        """
        A request has filled some pages. Others with the same beginning could use them, so they become the tree's.
        Only full pages of the first `tokens` tokens do.

        A request has `tokens`, `namespace` and `pages`: a `Pages(table, shared, node)`, where the first `shared`
        pages of `table` are the tree's already, the others the request's own, and `node` is the tree's node where the
        shared ones end, locked by the request.

        Another request with the same text may have been faster. Then the tree has a page for the same prefix already:
        this page replaces the request's own page, which goes back to the pool. Afterwards the request holds one lock,
        at the end of all its shared pages. `self.radix` says whether pages are shared at all; without it nothing is
        published.
        """,
        (
            "How many pages are full? If no more than `shared`, there is nothing to do.",
            "`self.tree.insert(tokens, pages, namespace)` takes the whole prefix, shared pages included, and "
            "returns the tree's own `pages` for it, and the `node` at its end. Where these differ from what you "
            "gave, yours are still yours.",
            "Insert the first `full` pages. Lock the new node, then unlock the old one. Release those of your own "
            "pages (`table[shared:full]`) that differ from the tree's at the same place. Put the tree's pages into "
            "the table, and set `shared` and `node`.",
        ),
        20,
        CacheManager,
        "publish",
        (BOOKS,),
    ),
    Write(
        "09.trim",
        "give back what rejected drafts took",
        """
        Drafts need room: pages were reserved for the last known token and all drafts after it. Some drafts were
        rejected. The pages that hold no known token are not needed now, and other requests may need them.

        The accepted drafts are among `request.tokens` already. The request's pages are in `request.pages.table`, in
        order. `self.pool.pages_for(n)` is the number of pages that n tokens take, and `self.pool.release(pages)`
        takes pages back.
        """,
        (
            "Which pages hold no known token: the first ones, or the last ones?",
            "A page with one known token stays. So the number that stays is rounded up.",
            "`need = self.pool.pages_for(len(request.tokens))`. Release `table[need:]`, and remove it from the table.",
        ),
        5,
        CacheManager,
        "trim",
        (BOOKS,),
    ),
    Repair(
        "09.fits",
        "a request that was let in too early",
        """
        A scheduler asks `fits` before it lets a request in, and relies on the answer. With long shared prompts and
        little memory, a request was let in now and then for which there were no pages: making room for it failed, and
        its page table was too short for its tokens.

        `self.tree.look(tokens, namespace)` says how many pages a match would find, and how many of these are
        evictable now. `self.available` is the number of pages that are free or can be evicted.

        The witness says what requests do. `texts` are the prompts of requests 0, 1, …, tokens 0 and 1. `turns` are
        ("compute", request, how many tokens), ("publish", request, 0), ("draft", request, how many drafts), and
        ("end", request, 0). A request begins with its first "compute", which asks `fits`. `page_size` is in tokens,
        `pages` is the size of the pool, and `radix` is True.
        """,
        (
            "The request needs pages for its tokens, less those that are found. Where do the others come from?",
            "Some pages that can be evicted now are just those that this request will use.",
            "The pages that are found will be locked: `idle` of them are counted in `available` now, and must not be.",
        ),
        10,
        CacheManager,
        "fits",
        (BOOKS,),
        (("self.available - idle", "self.available"),),
        corner([[0, 1, 0], [0, 1, 0, 0, 0]], ("compute", 0, 3), ("end", 0, 0), ("compute", 1, 5), pages=2),
    ),
    Predict(
        "09.reuse",
        "reuse and drafts together",
        """
        A model that knows the letters a to d: after a it says b, after b it says c, after c it says d, and after d it
        says a. The engine has pages of four letters (a token each), the tree, and prompt lookup with 4 drafts a step.
        Three requests, each after the end of the one before:

            1. prompt abcdabcdab, 11 new letters
            2. the same prompt, 1 new letter
            3. the prompt and the 11 new letters of the first as the prompt (21 letters), 1 new letter

        In the first step of a request its prompt is computed, and one letter comes out. Drafts begin with the second
        step. All drafts are right here. The last letter of a text is never computed.
        """,
        (
            "A step with 4 drafts, all of them right, gives 5 letters: the drafts, and the letter after them.",
            "The first request has 1 + 5 + 5 letters. When it ends, 20 of its 21 letters are computed, and its full"
            " pages stay in the tree.",
            "A look-up leaves at least one letter to compute, and finds whole pages: of 10 letters at most 9 may be"
            " found, so 2 pages; of 21 letters at most 20, so 5 pages.",
        ),
        10,
        {
            "steps": Question(
                "How many steps does the first request take?",
                ((11.0, "that is without drafts"), (4.0, "a step with 4 right drafts gives 5 letters, not 4"),
                 (2.0, "the prompt's step gives one letter, and there are no drafts in it")),
            ),
            "accepted": Question(
                "How many of its drafts are accepted?",
                ((10.0, "of the 5 letters of a step one is no draft: the model says it itself"),
                 (11.0, "the letters that the model says itself are no drafts"), (4.0, "that is one step's")),
            ),
            "pages": Question(
                "How many pages are in the tree when it has ended?",
                ((6.0, "only full pages are kept"), (2.0, "what it generated is kept, too"),
                 (3.0, "what it generated is kept, too")),
            ),
            "found again": Question(
                "How many letters of the second request are found?",
                ((10.0, "at least one is left to compute, and only whole pages are found"),
                 (9.0, "only whole pages are found"), (2.0, "these are pages; a page has four letters"),
                 (0.0, "the tree keeps pages when a request ends")),
            ),
            "found of the whole": Question(
                "How many letters of the third request are found?",
                ((21.0, "at least one is left to compute"), (8.0, "what the first request generated is found, too"),
                 (16.0, "20 letters of the first request were computed, drafts included: 5 full pages")),
            ),
        },
        reuse_and_drafts,
    ),
)  # fmt: skip
