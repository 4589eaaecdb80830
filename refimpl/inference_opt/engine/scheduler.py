"""The scheduler: which requests run in the next step, and how many tokens of each (continuous batching).

A static batch waits for its slowest text. Here the batch is put together anew for every step (Yu et al. 2022, Orca,
OSDI §3.2, "iteration-level scheduling"): a request leaves with its last token, and another joins at once.

    step        1    2    3    4    5    6
    request A   PPPP PP   D    D    ·    ·        P: a token of the prompt, computed (prefill)
    request B        PP   PPP  D    D    D        D: a token sampled before, fed back (decode)
    request C                       PPP  D        `token_budget` 4 a step: long prompts are cut into chunks
                                                  (Agrawal et al. 2023, Sarathi, 2308.16369), so that decodes go on

Within a step:
  1. Every request in decode gets its token. Then those in prefill get what is left of the budget. Both go in the order
     of arrival.
  2. Where pages run out, the latest arrival that is not yet part of the step is *preempted*: it gives up its pages, and
     later computes its tokens again, except those that the tree still has by then.
  3. Waiting requests join while there is budget, longest cached prefix first: the order of a depth-first walk of the
     tree, which reuses most (2312.07104, Theorem 3.1). So that nothing starves, a request that was overtaken
     `patience` times goes before all others, and nobody is admitted before it fits.
  4. Requests in decode may draft (speculation), with what is left of the budget, up to `draft_rows` rows a step in all,
     and in pages that are free or evictable. So speculation gives way under load.
  5. If the whole step is decodes, and the runner can repeat them without asking (`graph_runner.py`), it chooses for all
     of them how many drafts and how many steps in a row; each request is granted the tokens of these, while pages can
     be had. It may choose steps ahead, too: they are launched before the host has looked at those in front of them.

Progress: the request processed first can preempt all others or, if it is the last arrival, leaves its pages to them.
Either way one request has the pages it needs, since no request is admitted that could not run alone in the pool.
"""

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from inference_opt.engine.cache_manager import CacheManager
from inference_opt.engine.request import Request
from inference_opt.trace import emit

LOOKAHEAD = 64  # waiting requests, the oldest first, whose cached prefixes are compared


@dataclass(slots=True)
class Chunk:
    """A request's part of a step: `count` of its tokens, from `start` on. The pages for all of it are reserved.

    `found`: tokens that the tree saved this step from computing. `drafts`: how many guesses may be
    fed behind the tokens. `grant`: how many tokens may be decoded in a row, before the scheduler is asked again, and
    `steps`: in how many steps. `ahead`: how many more steps may be made before anyone looks at these. `queue`: whether
    other requests wait for a place.
    """

    request: Request
    start: int
    count: int
    found: int = 0
    drafts: int = 0
    grant: int = 1
    steps: int = 1
    ahead: int = 0
    queue: bool = False

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the last known token, so that the next one can be sampled."""
        return self.start + self.count == len(self.request.tokens)

    @property
    def decodes(self) -> bool:
        """Whether the last known token is all that is fed."""
        return self.count == 1 and self.samples

    @property
    def reach(self) -> int:
        """How many tokens may be decoded with the steps ahead."""
        return self.reach_of(self.ahead)

    def reach_of(self, ahead: int) -> int:
        """The same with so many steps ahead."""
        return min(self.grant + ahead * (1 + self.drafts), self.request.check.left)


class Repeat(NamedTuple):
    """What a runner would decode without asking: so many steps in a row, with so many drafts, and so many ahead."""

    drafts: int
    steps: int
    ahead: int = 0


class Scheduler:
    """Waiting and running requests. `running` is in the order of arrival.

    `gamma`: how many tokens a request would draft if there were room. `choose`: what the runner would decode in a row,
    or None (`Runner.choose`).
    """

    def __init__(
        self,
        cache: CacheManager,
        *,
        token_budget: int,
        max_running: int,
        patience: int,
        draft_rows: int,
        gamma: Callable[[Request], int],
        choose: Callable[[Sequence[Chunk]], Repeat | None],
    ) -> None:
        self.cache, self.token_budget, self.patience = cache, token_budget, patience
        self.max_running = min(max_running, token_budget)  # each needs a token a step
        self.draft_rows, self.gamma, self.choose = draft_rows, gamma, choose
        self.waiting: OrderedDict[int, Request] = OrderedDict()  # by arrival, in that order
        self.running: list[Request] = []
        self.preemptions = 0

    # [running]
    def schedule(self) -> list[Chunk]:
        """The next step's work. Every chunk has its pages; full pages of prefills are published."""
        chunks: list[Chunk] = []
        budget = self.token_budget
        # Decode first: a short text must not wait for a long prompt.
        todo = sorted(self.running, key=lambda request: (request.remaining > 1, request.arrival))
        preempted = False
        while todo and budget:
            request = todo.pop(0)
            found = self.cache.attach(request) if request.remaining > 1 else 0
            count = min(request.remaining, budget)
            while not self.cache.reserve(request, request.computed + count):
                victim = max([request, *todo], key=lambda each: each.arrival)
                self._preempt(victim)
                preempted = True
                if victim is request:
                    break
                todo.remove(victim)
            else:
                chunks.append(self._chunk(request, count, found))
                budget -= count
        # [/running]
        # [waiting]
        while budget and self.waiting and not preempted and len(self.running) < self.max_running:
            request = self._next()
            if not self.cache.fits(request):
                emit("schedule.refuse", self, id=request.id)
                break
            found = self._admit(request)
            count = min(request.remaining, budget)
            self.cache.reserve(request, request.computed + count)
            chunks.append(self._chunk(request, count, found))
            budget -= count
        return self._grant_steps(self._add_drafts(chunks, budget))
        # [/waiting]

    def _chunk(self, request: Request, count: int, found: int) -> Chunk:
        if request.remaining > 1 or request.computed < len(request.prompt):
            # Without the last known token: whoever finds the whole prompt computes its last page again, as its own.
            self.cache.publish(request, min(request.computed + count, len(request.tokens) - 1))
        event = "schedule.prefill" if request.remaining > 1 else "schedule.decode"
        emit(event, self, id=request.id, start=request.computed, count=count)
        return Chunk(request, request.computed, count, found, queue=bool(self.waiting))

    def _add_drafts(self, chunks: list[Chunk], budget: int) -> list[Chunk]:
        """Share the rows that are left among the requests in decode. The last token of a text needs no draft."""
        rows = min(budget, self.draft_rows - sum(chunk.count for chunk in chunks))
        asking = sum(chunk.request.decoding for chunk in chunks)
        for chunk in chunks:
            request = chunk.request
            if request.decoding:
                chunk.drafts = max(min(self.gamma(request), rows // asking, request.check.left - 1), 0)
                rows, asking = rows - chunk.drafts, asking - 1
        return chunks

    def _grant_steps(self, chunks: list[Chunk]) -> list[Chunk]:
        """Reserve pages for the drafts, or for several steps if all are decodes that the runner can repeat."""
        choice = self.choose(chunks) if chunks and all(each.decodes for each in chunks) else None
        for chunk in chunks:
            if choice is None and not chunk.drafts:
                continue
            most, chunk.steps, _ = choice or Repeat(chunk.drafts, 1)
            chunk.drafts = min(chunk.drafts, most)
            grant = min(chunk.steps * (1 + chunk.drafts), chunk.request.check.left)
            while grant > 1 and not self.cache.reserve(chunk.request, chunk.start + grant):
                grant -= 1
                chunk.drafts = min(chunk.drafts, grant - 1)
            if chunk.drafts:
                emit("schedule.draft", self, id=chunk.request.id, gamma=chunk.drafts)
            if choice:
                chunk.grant = grant
        if choice and choice.ahead:
            self._grant_ahead(chunks, choice.ahead)
        return chunks

    def _grant_ahead(self, chunks: list[Chunk], steps: int) -> None:
        """Reserve pages for steps ahead too, for all texts or for none."""
        if all(self.cache.reserve(each.request, each.start + each.reach_of(steps)) for each in chunks):
            for chunk in chunks:
                chunk.ahead = steps

    def _next(self) -> Request:
        """The next to admit: first, by arrival, those overtaken too often; then the longest cached prefix."""
        oldest = itertools.islice(self.waiting.values(), LOOKAHEAD)

        def place(request: Request) -> tuple[bool, int, int]:
            starved = request.metrics.overtaken >= self.patience
            cached = 0 if starved else self.cache.tree.cached(request.tokens[:-1], request.namespace)
            return not starved, -cached, request.arrival

        return min(oldest, key=place)

    def _admit(self, request: Request) -> int:
        """Admit a request whose pages can be had; return how many of its tokens were found."""
        found = self.cache.attach(request)
        del self.waiting[request.arrival]
        bisect.insort(self.running, request, key=_arrival)
        for other in itertools.takewhile(lambda each: each.arrival < request.arrival, self.waiting.values()):
            other.metrics.overtaken += 1
        emit("schedule.admit", self, id=request.id, saved=found)
        return found

    def _preempt(self, request: Request) -> None:
        """Take a request's pages. It waits again, at the place of its arrival."""
        self.cache.release(request)
        request.forget()
        self.running.remove(request)
        self._wait(request)
        request.metrics.preemptions += 1
        self.preemptions += 1
        emit("schedule.preempt", self, id=request.id)

    def _wait(self, request: Request) -> None:
        """At the place of its arrival. That is near the front: few of those that wait arrived earlier."""
        before = list(itertools.takewhile(lambda each: each.arrival < request.arrival, self.waiting.values()))
        self.waiting[request.arrival] = request
        for each in (request, *reversed(before)):
            self.waiting.move_to_end(each.arrival, last=False)

    def check(self, request: Request) -> None:
        """ValueError for a request that could never run, even with the whole pool to itself."""
        pool = self.cache.pool
        need = pool.pages_for(request.max_computed)
        if need > pool.num_pages:
            name = "it" if request.id is None else f"request {request.id!r}"
            raise ValueError(
                f"{name} can never fit: {request.max_computed} tokens need {need} pages of {pool.page_size}, "
                f"the pool has {pool.num_pages}; shorten it, lower max_new_tokens, or give the engine more num_pages"
            )

    def add(self, request: Request) -> None:
        """A request arrives. ValueError for one that could never run."""
        self.check(request)
        self.waiting[request.arrival] = request
        emit("schedule.arrive", self, id=request.id, tokens=len(request.tokens))

    def remove(self, request: Request) -> None:
        """A request leaves, done or aborted, whether it runs or waits."""
        if request.arrival in self.waiting:
            del self.waiting[request.arrival]
        else:
            self.running.remove(request)
            if request.finish_reason == "error":
                self.cache.discard(request)
            else:
                self.cache.publish(request, request.computed)  # what it computed stays until it is evicted
                self.cache.release(request)
        emit("schedule.leave", self, id=request.id, why=request.finish_reason)

    def restart(self, requests: Collection[Request]) -> None:
        """Trust nothing that was computed: a step failed. `requests` are all, by arrival; the unfinished ones wait."""
        self.running, self.waiting = [], OrderedDict()
        for request in requests:
            request.forget()
            if not request.finished:
                self.waiting[request.arrival] = request
        self.cache.forget()


def _arrival(request: Request) -> int:
    return request.arrival
