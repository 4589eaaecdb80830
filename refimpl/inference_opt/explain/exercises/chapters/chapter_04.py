"""Chapter 04: continuous batching."""

from array import array
from collections.abc import Sequence
from typing import Any, TypedDict

from hypothesis import strategies as st

from inference_opt.cache.pool import PagePool
from inference_opt.engine.cache_manager import CacheManager
from inference_opt.engine.engine import Engine
from inference_opt.engine.request import Request
from inference_opt.engine.scheduler import Scheduler
from inference_opt.engine.stats import Output
from inference_opt.explain.exercises.exercise import Broken, Predict, Property, Question, Repair, Write, expect
from inference_opt.explain.record import record
from inference_opt.explain.scenarios.toys import arrivals, spell, toy
from inference_opt.radix.tree import RadixTree
from inference_opt.sampling import SamplingParams, StopCheck
from inference_opt.trace import Trace, emit

NAMES = "ABCDEFGH"


def request(name: str, arrival: int, prompt: Sequence[int], new: int = 1, namespace: Any = None) -> Request:
    """A request that no end-of-sequence token ends."""
    params = SamplingParams(max_new_tokens=new, ignore_eos=True)
    made = Request(name, list(prompt), params, StopCheck(params, (), 1000), namespace)
    made.arrival = arrival
    return made


def scheduler(
    num_pages: int, page_size: int, budget: int = 8, max_running: int = 8, patience: int = 100, radix: bool = True
) -> Scheduler:
    """One without drafts, whose runner takes single steps."""
    return Scheduler(
        CacheManager(PagePool(num_pages, page_size), RadixTree(page_size), radix), token_budget=budget,
        max_running=max_running, patience=patience, draft_rows=0, gamma=lambda _: 0, choose=lambda _: None,
    )  # fmt: skip


def sampled(tokens: Sequence[int]) -> int:
    """In place of a model: the next token of a text."""
    return len(tokens) % 3


# What is there to judge by: the same rules on plain numbers, without pages, tables and trees.


class Simulated:
    """A request: what is known of its text, how much of that is computed, and how many pages it has."""

    def __init__(self, name: str, arrival: int, prompt: Sequence[int], new: int) -> None:
        self.name, self.arrival, self.tokens, self.end = name, arrival, list(prompt), len(prompt) + new
        self.prompt, self.computed, self.pages, self.overtaken = len(prompt), 0, 0, 0

    @property
    def left(self) -> int:
        """Known tokens that are not computed."""
        return len(self.tokens) - self.computed


class Simulation:
    """The schedule by its rules. `num_pages` None: there are more than enough, and prefixes are reused."""

    def __init__(self, num_pages: int | None, size: int, budget: int, max_running: int, patience: int) -> None:
        self.free, self.size, self.budget, self.max_running = num_pages, size, budget, max_running
        self.patience = patience
        self.running, self.waiting = list[Simulated](), list[Simulated]()
        self.known = set[tuple[int, ...]]()  # prefixes of whole pages that somebody computes or has computed

    def cached(self, one: Simulated) -> int:
        """Tokens of the longest known prefix that leaves a token to compute."""
        ends = range(0, len(one.tokens), self.size)
        return max(end for end in ends if not end or tuple(one.tokens[:end]) in self.known)

    def publish(self, one: Simulated, tokens: int) -> None:
        """All prefixes of whole pages are known from now on."""
        if self.free is None:
            self.known |= {tuple(one.tokens[:end]) for end in range(self.size, tokens + 1, self.size)}

    def take(self, one: Simulated, tokens: int) -> bool:
        """Pages for so many tokens, if there are."""
        need = -(-tokens // self.size) - one.pages
        if self.free is not None and need > 0:
            if need > self.free:
                return False
            self.free, one.pages = self.free - need, one.pages + need
        return True

    def leave(self, one: Simulated) -> None:
        """It runs no more; its pages are free."""
        self.running.remove(one)
        if self.free is not None:
            self.free += one.pages
        one.pages = 0

    def found(self, one: Simulated) -> int:
        """Use what is known beyond what is computed."""
        saved = max(self.cached(one) - one.computed, 0)
        one.computed += saved
        return saved

    def part(self, one: Simulated, count: int, found: int) -> tuple[int, int, int]:
        """A request's part of the step: (first token, how many, found)."""
        if one.left > 1 or one.computed < one.prompt:
            self.publish(one, min(one.computed + count, len(one.tokens) - 1))
        return one.computed, count, found

    def schedule(self) -> dict[str, tuple[int, int, int]]:
        """{request: (first token, how many, found)}."""
        parts: dict[str, tuple[int, int, int]] = {}
        budget, thrown_out = self.budget, False
        decode = sorted((one for one in self.running if one.left == 1), key=lambda one: one.arrival)
        prefill = sorted((one for one in self.running if one.left > 1), key=lambda one: one.arrival)
        todo = decode + prefill
        while todo and budget:
            one, *todo = todo
            found = self.found(one) if one.left > 1 else 0
            count = min(one.left, budget)
            while one in self.running and not self.take(one, one.computed + count):
                victim = max([one, *todo], key=lambda each: each.arrival)
                self.leave(victim)
                victim.computed, thrown_out = 0, True
                self.waiting.append(victim)
                todo = [each for each in todo if each is not victim]
            if one in self.running:
                parts[one.name] = self.part(one, count, found)
                budget -= count
        while budget and self.waiting and not thrown_out and len(self.running) < self.max_running:
            oldest = sorted(self.waiting, key=lambda each: each.arrival)
            starved = [each for each in oldest if each.overtaken >= self.patience]
            one = starved[0] if starved else max(oldest, key=lambda each: (self.cached(each), -each.arrival))
            if self.free is not None and -(-len(one.tokens) // self.size) > self.free:
                break
            self.waiting.remove(one)
            self.running.append(one)
            for each in self.waiting:
                each.overtaken += each.arrival < one.arrival
            found = self.found(one)
            count = min(one.left, budget)
            self.take(one, one.computed + count)
            parts[one.name] = self.part(one, count, found)
            budget -= count
        return parts

    def commit(self, parts: dict[str, tuple[int, int, int]]) -> None:
        """The model has run."""
        for one in list(self.running):
            if one.name in parts:
                one.computed += parts[one.name][1]
                if one.left == 0:
                    one.tokens.append(sampled(one.tokens))
                    if len(one.tokens) == one.end:
                        self.publish(one, one.computed)
                        self.leave(one)


def commit(real: Scheduler, chunks: Sequence[Any], step: int) -> None:
    """What the engine does when the model has run, without drafts."""
    outputs = []
    for chunk in chunks:
        one = chunk.request
        one.computed = chunk.start + chunk.count
        new = [sampled(one.tokens)] if one.remaining == 0 else []
        outputs.append(Output(one, chunk.start, chunk.count, new, []))
        if new:
            one.tokens.append(new[0])
            one.decoding, one.finish_reason = True, one.check.after(new[0])
        if one.finished:
            real.remove(one)
        else:
            real.cache.trim(one)
    emit("engine.step", real, n=step, outputs=outputs)


def check_pages(real: Scheduler) -> None:
    """Every page has one owner."""
    pool, tree = real.cache.pool, real.cache.tree
    own = [page for one in real.running for page in one.table[one.pages.shared :]]
    owned = [*own, *(page for node in tree.nodes() for page in node.pages), *pool.free_pages]
    expect(sorted(owned), list(range(pool.num_pages)), "a page is free, the tree's, or one request's own")
    for one in real.waiting.values():
        expect(one.table, [], f"{one.id} waits, so it holds no page")


class Case(TypedDict):
    """A request: its prompt, how many new tokens it gets, and the step before which it arrives."""

    prompt: list[int]
    new: int
    arrives: int


def compare(real: Scheduler, plain: Simulation, cases: Sequence[Case], computed: Sequence[int]) -> None:
    """Step by step until all are done. `computed`: of the first requests, which run already where it is not 0."""
    order = sorted(range(len(cases)), key=lambda i: cases[i]["arrives"])
    for i, done in enumerate(computed):
        if done:
            one = request(NAMES[i], i, cases[i]["prompt"], cases[i]["new"])
            real.add(one)
            real._admit(one)
            real.cache.reserve(one, done)
            same = Simulated(NAMES[i], i, cases[i]["prompt"], cases[i]["new"])
            plain.take(same, done)
            plain.running.append(same)
            one.computed = same.computed = done
            order.remove(i)
    step = 0
    while order or plain.running or plain.waiting:
        while order and cases[order[0]]["arrives"] <= step:
            i = order.pop(0)
            real.add(request(NAMES[i], i, cases[i]["prompt"], cases[i]["new"]))
            plain.waiting.append(Simulated(NAMES[i], i, cases[i]["prompt"], cases[i]["new"]))
        step += 1
        right = plain.schedule()
        chunks = real.schedule()
        came = {chunk.request.id: (chunk.start, chunk.count) for chunk in chunks}
        expect(came, {name: part[:2] for name, part in right.items()},
               f"step {step}: who runs, {{request: (its first token in this step, how many)}}")  # fmt: skip
        expect(len(chunks), len(came), f"step {step}: each request has one chunk")
        found = {chunk.request.id: chunk.found for chunk in chunks}
        expect(found, {name: part[2] for name, part in right.items()}, f"step {step}: tokens found in the tree")
        for chunk in chunks:
            room, need = len(chunk.request.table) * real.cache.pool.page_size, chunk.start + chunk.count
            if room < need:
                raise Broken(f"step {step}: {chunk.request.id} has pages for all tokens of its chunk", room, need)
        running = [one.name for one in sorted(plain.running, key=lambda one: one.arrival)]
        expect([one.id for one in real.running], running, f"step {step}: who runs, in the order of arrival")
        waiting = [one.name for one in sorted(plain.waiting, key=lambda one: one.arrival)]
        expect([one.id for one in real.waiting.values()], waiting, f"step {step}: who waits, in the order of arrival")
        check_pages(real)
        commit(real, chunks, step)
        plain.commit(right)
        check_pages(real)
    expect(real.cache.tree.evictable, len(real.cache.tree), "when all have left, every page of the tree can be evicted")


def pages_run_out(
    prompts: list[int], new: list[int], computed: list[int], late: int, page_size: int, spare: int, budget: int,
    max_running: int,
) -> None:  # fmt: skip
    """Requests by tokens of their prompts. Where something is `computed`, they run; the last `late` are yet to come.

    The pool has room for the largest request, or for what is computed, and some spare pages.
    """
    there = max(len(prompts) - late, 1)
    done = [min(n, prompt - 1) for n, prompt in zip(computed, prompts[:there])]
    cases = [
        Case(prompt=[0] * n, new=more, arrives=max(i - there + 1, 0)) for i, (n, more) in enumerate(zip(prompts, new))
    ]
    largest = max(-(-(len(case["prompt"]) + case["new"] - 1) // page_size) for case in cases)
    pages = max(largest, sum(-(-n // page_size) for n in done)) + spare
    started = sum(n > 0 for n in done)
    real = scheduler(pages, page_size, max(budget, started), max(max_running, started), radix=False)
    compare(real, Simulation(pages, page_size, real.token_budget, real.max_running, 100), cases, done)


def prefixes_are_reused(requests: list[Case], page_size: int, budget: int, max_running: int, patience: int) -> None:
    """There are more than enough pages."""
    real = scheduler(200, page_size, budget, max_running, patience)
    cases = sorted(requests, key=lambda case: case["arrives"])
    compare(real, Simulation(None, page_size, budget, real.max_running, patience), cases, ())


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def cases(*each: tuple[list[int], int, int]) -> list[Case]:
    """(prompt, new tokens, arrives)."""
    return [Case(prompt=prompt, new=new, arrives=arrives) for prompt, new, arrives in each]


def four(least: int, most: int) -> st.SearchStrategy[list[int]]:
    """A number for each of four requests."""
    return st.lists(st.integers(least, most), min_size=4, max_size=4)


def tight(prompts: list[int], new: list[int], computed: Sequence[int] = (), **more: int) -> dict[str, Any]:
    """An input where pages of one token run out; `more` changes it."""
    given = {"late": 0, "page_size": 1, "spare": 0, "budget": 8, "max_running": 4} | more
    return {"prompts": prompts, "new": [*new, 1, 1, 1][:4], "computed": [*computed, 0, 0, 0, 0][:4], **given}


RUN_OUT = Property(
    "decode goes first, chunks fit the budget, and the latest arrival gives way",
    st.fixed_dictionaries({
        "prompts": st.lists(st.integers(1, 7), min_size=1, max_size=4), "new": four(1, 5), "computed": four(0, 6),
        "late": st.integers(0, 3), "page_size": st.integers(1, 3), "spare": st.integers(0, 5),
        "budget": st.integers(1, 8), "max_running": st.integers(1, 4),
    }),
    pages_run_out,
    (
        tight([1], [1]),
        tight([5], [1], budget=2),
        tight([2, 3], [1, 1], spare=5, budget=4),
        tight([1, 1], [1, 1], spare=5, max_running=1),
        tight([6, 1], [1, 3], late=1, spare=5, budget=3),
        tight([5, 2], [1, 2], [1, 1], spare=5, budget=3),
        tight([2, 2, 2], [1, 1, 1], [1, 1, 1]),
        tight([2, 3, 2], [1, 1, 1], [1, 1, 1], spare=1),
        tight([1, 1], [3, 3]),
        tight([1, 1, 1], [4, 4, 4], spare=1),
        tight([4, 2], [1, 3], [1, 1], spare=0, budget=8),
        tight([1, 3, 3], [1, 2, 2], [0, 2, 2], spare=0),
        tight([2, 3, 1], [4, 2, 1]),
    ),
)  # fmt: skip
REUSED = Property(
    "what the tree has is used, and whose prefix it has goes first",
    st.fixed_dictionaries({
        "requests": st.lists(
            st.fixed_dictionaries({"prompt": TOKENS, "new": st.integers(1, 4), "arrives": st.integers(0, 3)}),
            min_size=1, max_size=4,
        ),
        "page_size": st.integers(1, 2), "budget": st.integers(1, 8), "max_running": st.integers(1, 4),
        "patience": st.integers(0, 2),
    }),
    prefixes_are_reused,
    tuple(
        {"requests": cases(*each), "page_size": size, "budget": budget, "max_running": 2, "patience": 2}
        for budget, size, each in (
            (8, 1, (([1], 1, 0), ([1], 1, 0))),
            (8, 1, (([1, 2, 1], 1, 0), ([1, 2, 1], 1, 0))),
            (4, 1, (([1, 1, 1], 2, 0), ([2, 2], 1, 0), ([1, 1, 1, 2], 1, 0))),
            (2, 1, (([1], 2, 0), ([1, 1, 0], 1, 1))),
            (2, 1, (([1, 1], 2, 0), ([1, 1, 2, 0, 1, 1], 1, 1))),
            (3, 2, (([1, 1], 4, 0), ([1, 1, 2, 0, 1, 2, 1, 1], 1, 1))),
        )
    ),
)  # fmt: skip


def known_to(tree: RadixTree, pool: PagePool, texts: Sequence[Sequence[int]]) -> dict[tuple[int, ...], int]:
    """Insert texts; {prefix of whole pages: its last page}."""
    pages: dict[tuple[int, ...], int] = {}
    for text in texts:
        ends = range(tree.page_size, len(text) + 1, tree.page_size)
        for end in ends:
            if tuple(text[:end]) not in pages:
                pages[tuple(text[:end])] = pool.allocate(1)[0]
        tree.insert(text[: len(ends) * tree.page_size], [pages[tuple(text[:end])] for end in ends])
    return pages


def longest(text: Sequence[int], size: int, pages: dict[tuple[int, ...], int]) -> list[int]:
    """Pages of the longest known prefix that leaves a token to compute."""
    found: list[int] = []
    for end in range(size, len(text), size):
        if tuple(text[:end]) not in pages:
            break
        found.append(pages[tuple(text[:end])])
    return found


def goes_next(
    waiting: list[tuple[list[int], int]], cached: list[list[int]], crowd: int, page_size: int, patience: int
) -> None:
    """Those that wait: `crowd` requests of which nothing is cached, then [(prompt, how often overtaken)]."""
    real = scheduler(64, page_size, patience=patience)
    pages = known_to(real.cache.tree, real.cache.pool, cached)
    for n in range(crowd):
        real.add(request(f"other {n}", n, [9]))
    for i, (prompt, overtaken) in enumerate(waiting):
        one = request(NAMES[i], crowd + i, prompt)
        one.metrics.overtaken = overtaken
        real.add(one)
    oldest = list(real.waiting.values())[:64]
    starved = [one for one in oldest if one.metrics.overtaken >= patience]
    right = starved[0] if starved else oldest[0]
    for one in [] if starved else oldest:
        if len(longest(one.prompt, page_size, pages)) > len(longest(right.prompt, page_size, pages)):
            right = one
    clock, before = real.cache.tree.clock, list(real.waiting)
    came = real._next()
    if not isinstance(came, Request):
        raise Broken("a waiting request is returned", came, right.id)
    expect(came.id, right.id, "the next to be admitted")
    expect(real.cache.tree.clock, clock, "looking changes nothing: the tree has not been used")
    expect(list(real.waiting), before, "looking changes nothing: the same requests wait, in the same order")


def goes_next_by_namespace(prompt: list[int], cached_in: str, namespace: str) -> None:
    """The tree has the prompt of the second request, perhaps in another namespace."""
    real = scheduler(64, 1)
    real.cache.tree.insert(prompt, real.cache.pool.allocate(len(prompt)), cached_in)
    real.add(request("A", 0, [9, 9], namespace=namespace))
    real.add(request("B", 1, [*prompt, 9], namespace=namespace))
    right = "B" if cached_in == namespace else "A"
    expect(real._next().id, right, "a prefix counts in its own namespace only")


NEXT = Property(
    "who was overtaken too often goes first, then the longest cached prefix, then the first arrival",
    st.fixed_dictionaries({
        "waiting": st.lists(st.tuples(TOKENS, st.integers(0, 3)), min_size=1, max_size=4),
        "cached": st.lists(TOKENS, max_size=3), "crowd": st.sampled_from([0, 0, 0, 62]),
        "page_size": st.integers(1, 2), "patience": st.integers(1, 3),
    }),
    goes_next,
    (
        {"waiting": [([0], 0), ([0], 0)], "cached": [], "crowd": 0, "page_size": 1, "patience": 1},
        {"waiting": [([0, 0], 0), ([1, 1], 0)], "cached": [[1]], "crowd": 0, "page_size": 1, "patience": 1},
        {"waiting": [([1, 1], 0), ([1, 2, 1], 0)], "cached": [[1, 2]], "crowd": 0, "page_size": 1, "patience": 1},
        {"waiting": [([1, 1], 0), ([0, 0], 1)], "cached": [[1]], "crowd": 0, "page_size": 1, "patience": 1},
        {"waiting": [([0, 0], 1), ([1, 1], 1)], "cached": [[1]], "crowd": 0, "page_size": 1, "patience": 1},
        {"waiting": [([0, 0], 1), ([0, 0], 2)], "cached": [], "crowd": 0, "page_size": 1, "patience": 1},
        {"waiting": [([0, 2], 0), ([1, 1], 0)], "cached": [[0], [1, 1]], "crowd": 0, "page_size": 1, "patience": 1},
        {"waiting": [([1, 1], 0)], "cached": [[1]], "crowd": 63, "page_size": 1, "patience": 1},
        {"waiting": [([1, 1], 0)], "cached": [[1]], "crowd": 64, "page_size": 1, "patience": 1},
        {"waiting": [([0], 1)], "cached": [], "crowd": 64, "page_size": 1, "patience": 1},
    ),
)  # fmt: skip
NAMESPACES = Property(
    "namespaces share nothing",
    st.fixed_dictionaries({"prompt": TOKENS, "cached_in": st.sampled_from("xy"), "namespace": st.sampled_from("xy")}),
    goes_next_by_namespace,
)


def comes_back(waiting: list[int], back: int) -> None:
    """`waiting`: the arrivals of those that wait, in that order; the request that arrived as number `back` runs."""
    others = sorted(set(waiting) - {back})
    real = scheduler(8, 1)
    one = request(str(back), back, [0])
    real.cache.attach(one)
    real.running.append(one)
    for arrival in others:
        real.add(request(str(arrival), arrival, [0]))
    real._preempt(one)
    right = sorted([*others, back])
    expect(
        [each.arrival for each in real.waiting.values()], right, "the arrivals of those that wait, from the first on"
    )
    expect(list(real.waiting), right, "each is looked up by its arrival")


COMES_BACK = Property(
    "who is preempted waits at the place of its arrival",
    st.fixed_dictionaries({"waiting": st.lists(st.integers(0, 9), max_size=5), "back": st.integers(0, 9)}),
    comes_back,
)


def finds(cached: list[list[int]], prompt: list[int], page_size: int) -> None:
    """What a tree with these texts has of a prompt."""
    real = scheduler(64, page_size)
    manager, one = real.cache, request("A", 0, prompt)
    pages = known_to(manager.tree, manager.pool, cached)
    right = longest(prompt, page_size, pages)
    idle = manager.tree.evictable
    came = manager.attach(one)
    if one.remaining < 1:
        raise Broken("a token is left to compute: its logits say what comes next", one.remaining, 1)
    expect(came, len(right) * page_size, "how many tokens the tree saves")
    expect(one.computed, len(right) * page_size, "`computed` says how many tokens need not be computed")
    expect(list(one.table), right, "the page table has the tree's pages of the prefix")
    expect(one.pages.shared, len(right), "all of these pages are shared")
    expect(
        manager.tree.evictable, idle - len(right), "the pages are locked: they are not evicted while the request runs"
    )
    manager.release(one)
    expect(manager.tree.evictable, idle, "when the request has left, they can be evicted again")
    expect(one.tokens, array("i", prompt), "the request's tokens stay as they are")


ATTACHES = Property(
    "a request uses the longest cached prefix of whole pages, and has something left to compute",
    st.fixed_dictionaries({"cached": st.lists(TOKENS, max_size=3), "prompt": TOKENS, "page_size": st.integers(1, 2)}),
    finds,
)

BATCH, BUDGET = "sixsix: 3\nfives: 4\nthr: 2", 4


def count_steps() -> tuple[dict[str, Any], Trace]:
    """The engine itself, on a tiny model."""
    engine = Engine(toy(), page_size=4, num_pages=32, token_budget=BUDGET, max_running=3, radix=False)
    steps: list[dict[Any, tuple[int, int]]] = []  # {request: (tokens fed, tokens that came out)}
    with record("04.steps", watch=[engine.scheduler], label=spell, only=("schedule.", "engine.")) as trace:
        arrivals(engine, BATCH)
        while engine.requests:
            steps.append({out.request.id: (out.count, len(out.tokens)) for out in engine.step()})
    return {
        "B_in_2": steps[1].get("B", (0, 0))[0], "A_in_3": steps[2].get("A", (0, 0))[0],
        "C_in_4": steps[3].get("C", (0, 0))[0],
        "C_first": next(n for n, step in enumerate(steps, 1) if step.get("C", (0, 0))[1]),
        "steps": len(steps), "tokens": sum(fed for step in steps for fed, _ in step.values()),
    }, trace  # fmt: skip


EXERCISES: tuple[Any, ...] = (
    Predict(
        "04.steps",
        "who runs in which step",
        """
        Three requests arrive together. A has a prompt of 6 tokens and gets 3 new ones. B has 5 and gets 4. C has 3 and
        gets 2. A step has a budget of 4 tokens. There are pages enough, and no prefix is shared.

        In every step, requests in decode get their one token first. What is left of the budget goes to prompts, in the
        order of arrival. The step that feeds the last token of a prompt also gives the first new token. How does the
        schedule go on?
        """,
        (
            "Draw a table: a row for each request, a column for each step. The sum of a column is 4 at most.",
            "Step 1 is A with 4 tokens. In step 2 A needs 2, so 2 are left for B. From step 3 on A is in decode.",
            "A: 4, 2, 1, 1. B: 0, 2, 3, 1, 1, 1. C takes what is left: 2 tokens in step 4, the third in step 5, and "
            "one decode in step 6.",
        ),
        10,
        {
            "B_in_2": Question(
                "tokens of B in step 2",
                ((0, "A needs only 2 of the 4: the rest of the budget is B's"),
                 (4, "A goes first with the last 2 tokens of its prompt"),
                 (5, "a step has 4 tokens, and A needs 2 of them")),
            ),
            "A_in_3": Question(
                "tokens of A in step 3",
                ((0, "A has its first new token since step 2, and feeds it in step 3"),
                 (3, "new tokens come one by one: each is fed before the next is known")),
            ),
            "C_in_4": Question(
                "tokens of C in step 4",
                ((0, "A and B are in decode: they need one token each of the 4"),
                 (3, "A and B are in decode and take one token each"),
                 (4, "A and B are in decode and take one token each")),
            ),
            "C_first": Question(
                "the number of the step that gives C's first new token",
                ((4, "in step 4 C's prompt is not complete: one of its tokens is left"),
                 (6, "the step that feeds the last token of the prompt gives the first new token")),
            ),
            "steps": Question(
                "steps in all",
                ((5, "B and C have a token to get after step 5"),
                 (7, "in step 6 the last token of both comes out; it is not fed any more"),
                 (4, "a static batch's thinking: prompts alone take 14 tokens")),
            ),
            "tokens": Question(
                "tokens that go through the model, all steps together",
                ((23, "the last new token of each request is never fed"),
                 (24, "in the last steps less than the budget is needed"),
                 (14, "new tokens are fed as well, but for the last of each request")),
            ),
        },
        count_steps,
    ),
    Write(
        "04.next",
        "choose who is admitted next",
        """
        There is room for one more request. Which of those that wait is it? `self.waiting` has them by arrival, in that
        order: {arrival: request}.

        Only the oldest `LOOKAHEAD` of them are compared. A request that was overtaken at least `self.patience` times
        (`request.metrics.overtaken`) goes before all others; the first arrival goes first among these. Of the others
        the one with the longest cached prefix goes first; of equal ones the first arrival.

        `self.cache.tree.cached(tokens, namespace)` says how many tokens of a text the tree has. It is not a use:
        nothing changes. A request never uses the whole of its tokens: the last one is always computed, so do not
        ask for it.

        A counterexample lists those that wait, A, B, …, as pairs: the prompt, and how often it was overtaken. In front
        of them there may be a `crowd` of older requests of which nothing is cached.
        """,
        (
            "Write down the order as a tuple: what is compared first, second, third?",
            "min() with a key that returns a tuple. False is smaller than True, and the longest prefix must give the "
            "smallest number.",
            "The key is (not starved, −cached, arrival), where cached counts as 0 for a starved one. The candidates "
            "are itertools.islice(self.waiting.values(), LOOKAHEAD); the text is request.tokens[:-1], with "
            "request.namespace.",
        ),
        10,
        Scheduler,
        "_next",
        (NEXT, NAMESPACES),
    ),
    Write(
        "04.schedule",
        "schedule one step",
        """
        Put the next step together: which requests run, and how many tokens of each. `self.token_budget` bounds the
        tokens of the step.

        First come the requests in `self.running`: those with one token left to compute (`request.remaining`), then
        those with more, both in the order of arrival. Each gets what it needs or, if that is less, what is left of
        the budget. Before that, call `self.cache.attach(request)` if the request has more than one token left: it uses
        pages that the tree has, and returns how many tokens it found.

        `self.cache.reserve(request, tokens)` gives a request pages for its first `tokens` tokens, or returns False.
        Then the latest arrival of those that are not part of the step yet, this request included, gives up its pages
        (`self._preempt`), until there are enough. If it is the request itself, it does not run in this step.

        Then waiting requests join, while there is budget and fewer than `self.max_running` run; none joins in a step in
        which one was preempted. `self._next()` says who is next. If it does not fit (`self.cache.fits`), none joins.
        `self._admit` admits it and returns how many tokens were found; pages are reserved for its chunk.

        `self._chunk(request, count, found)` makes the part of a request. At the end, `self._add_drafts(chunks, budget)`
        shares what is left of the budget. Return what `self._grant_steps` makes of its result.

        A counterexample lists the requests A, B, … in the order of arrival: their `prompts`, how many `new` tokens each
        gets and, if some run already, how many tokens of each are `computed`. The last `late` of them arrive later, one
        before each step. `spare` counts the pages beyond those that the largest request needs.
        """,
        (
            "There are two loops: one over those that run, one over those that wait. Both end when the budget is used "
            "up.",
            "Sort self.running by (request.remaining > 1, request.arrival) into a list, and take from its front. Whom "
            "may you preempt? The request in hand and those that are still in the list.",
            "while not reserve(request, request.computed + count): victim = the latest of [request, *todo]; preempt "
            "it; if it is the request itself, break; otherwise remove it from todo. The else of that while makes the "
            "chunk. Remember that a request was preempted.",
        ),
        40,
        Scheduler,
        "schedule",
        (RUN_OUT, REUSED),
    ),
    Repair(
        "04.back",
        "the queue after a preemption",
        """
        Those that wait are kept in the order of arrival: `waiting` is an OrderedDict {arrival: request}. A request
        that is preempted waits again, at the place of its arrival.

        On a busy server with this `_wait` the order did not hold. Requests that had arrived first were served after
        later ones, and only on days when pages ran out. With one request in the queue, or none, nothing went wrong.

        The witness: the arrivals of those that wait, and the arrival of the one that comes back to them.
        """,
        (
            "Let 0 and 1 wait, and 2 come back. Follow the moves one by one.",
            "Each move puts one to the very front. Who must be moved last?",
            "The request comes first, then those before it from the last to the first: reversed.",
        ),
        5,
        Scheduler,
        "_wait",
        (COMES_BACK,),
        (("(request, *reversed(before))", "(request, *before)"),),
        {"waiting": [0, 1], "back": 2},
    ),
    Repair(
        "04.hit",
        "a prompt that was asked before",
        """
        A server with this `attach` answered every prompt once. When the same prompt came again, the step failed: the
        model was given a request without a single token. It did not happen to every prompt, and with larger pages it
        became rare.

        The witness: texts that are cached, a prompt, and the page size. Tokens are 0, 1 and 2.
        """,
        (
            "Which prompts fail when a page holds one token? And when it holds sixteen?",
            "The logits of the prompt's last token say what comes next. Can a cache of keys and values give them?",
            "At least one token must be left to compute. So do not look for the last one.",
        ),
        5,
        CacheManager,
        "attach",
        (ATTACHES, REUSED),
        (("text = request.tokens[:-1]", "text = request.tokens"),),
        {"cached": [[1, 2]], "prompt": [1, 2], "page_size": 1},
    ),
)  # fmt: skip
