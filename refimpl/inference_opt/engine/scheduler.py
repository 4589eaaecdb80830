"""The scheduler: which requests run in the next step, and how many tokens of each (continuous batching).

Static batching waits for the slowest text of a batch. Here the batch is put together anew for every step (Yu et al.
2022, Orca, OSDI §3.2, "iteration-level scheduling"): a request leaves with its last token and another joins at once.

    step        1    2    3    4    5    6
    request A   PPPP PP D D    D    ·    ·        P: a token of the prompt, computed (prefill)
    request B        PP PPP    D    D    D        D: a token sampled before, fed back (decode)
    request C                       PPPP D        `token_budget` 4 a step: long prompts are cut into chunks
                                                  (Agrawal et al. 2023, Sarathi, 2308.16369), so that decodes go on

Within a step:
  1. Every request in decode gets its token, then those in prefill get what is left of the budget, each in the order of
     arrival.
  2. Where pages run out, the latest arrival that is not part of the step yet is *preempted*: it gives up its pages and
     will be recomputed, but for what the tree still has of it by then.
  3. Waiting requests join while there is budget, longest cached prefix first: the order of a depth-first walk of the
     tree, which reuses most (2312.07104, Theorem 3.1). So that nothing starves, a request that was overtaken
     `patience` times goes before all that were not, and blocks the door until it fits.
  4. Requests in decode may draft (speculation): with what is left of the budget, up to `draft_rows` rows a step in all,
     and in pages that nobody needs. So speculation gives way under load.

Progress: the request processed first can preempt all others or, if it is the last arrival, leaves its pages to them;
in either case one request has what it needs, since no request is admitted that could not run alone in the pool.
"""

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from inference_opt.engine.cache_manager import Memory
from inference_opt.engine.request import Request
from inference_opt.trace import emit

LOOKAHEAD = 64  # waiting requests, the oldest first, whose cached prefixes are compared


@dataclass(frozen=True)
class Chunk:
    """A request's part of a step: `count` of its tokens from `start` on, and up to `drafts` guesses behind them.

    `found`: tokens before `start` that the tree had, and that the step saves.
    """

    request: Request
    start: int
    count: int
    found: int = 0
    drafts: int = 0

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the last known token, so that the next one can be sampled."""
        return self.start + self.count == len(self.request.tokens)


class Scheduler:
    """Waiting and running requests. `running` is in the order of arrival."""

    def __init__(
        self,
        memory: Memory,
        token_budget: int,
        max_running: int,
        patience: int,
        gamma: Callable[[Request], int],
        draft_rows: int,
    ) -> None:
        """`gamma`: how many tokens a request would have drafted, were there room."""
        for name, value, least in (
            ("token_budget", token_budget, 1),
            ("max_running", max_running, 1),
            ("patience", patience, 0),
            ("draft_rows", draft_rows, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.gamma, self.draft_rows = gamma, draft_rows
        self.memory, self.token_budget, self.patience = memory, token_budget, patience
        self.max_running = min(max_running, token_budget)  # each needs a token a step
        self.waiting: OrderedDict[int, Request] = OrderedDict()  # by arrival, in that order
        self.running: list[Request] = []
        self.preemptions = 0

    # [schedule]
    def schedule(self) -> list[Chunk]:
        """The next step's work. Every chunk has its pages; prefixes to be computed are in the tree already."""
        chunks: list[Chunk] = []
        budget = self.token_budget
        # Decode first: a short text must not wait for a long prompt.
        todo = sorted(self.running, key=lambda request: (request.remaining > 1, request.arrival))
        preempted = False
        while todo and budget:
            request = todo.pop(0)
            found = self.memory.attach(request) if request.remaining > 1 else 0
            count = min(request.remaining, budget)
            while not self.memory.reserve(request, request.computed + count):
                victim = max([request, *todo], key=lambda each: each.arrival)
                self._preempt(victim)
                preempted = True
                if victim is request:
                    break
                todo.remove(victim)
            else:
                chunks.append(self._chunk(request, count, found))
                budget -= count
        while budget and self.waiting and not preempted and len(self.running) < self.max_running:
            request = self._next()
            if not self.memory.fits(request):
                emit("schedule.refuse", self, id=request.id)
                break
            found = self._admit(request)
            count = min(request.remaining, budget)
            self.memory.reserve(request, request.computed + count)
            chunks.append(self._chunk(request, count, found))
            budget -= count
        return self._add_drafts(chunks, budget)

    def _chunk(self, request: Request, count: int, found: int) -> Chunk:
        if request.remaining > 1 or request.computed < len(request.prompt):
            # All but the last known token: whoever finds a prompt whole computes its last page again, in its own copy.
            self.memory.publish(request, min(request.computed + count, len(request.tokens) - 1))
        event = "schedule.prefill" if request.remaining > 1 else "schedule.decode"
        emit(event, self, id=request.id, start=request.computed, count=count)
        return Chunk(request, request.computed, count, found)

    # [/schedule]

    # [drafts]
    def _add_drafts(self, chunks: list[Chunk], budget: int) -> list[Chunk]:
        """Shares of the room that is left, for those that decode. The last token of a text needs no draft."""
        room = min(budget, self.draft_rows - sum(chunk.count for chunk in chunks))
        asking = sum(chunk.request.decoding for chunk in chunks)
        for i, chunk in enumerate(chunks):
            request = chunk.request
            if not request.decoding:
                continue
            gamma = max(min(self.gamma(request), room // asking, request.check.left - 1), 0)
            while gamma and not self.memory.reserve(request, request.computed + 1 + gamma):
                gamma -= 1
            chunks[i] = replace(chunk, drafts=gamma)
            if gamma:
                emit("schedule.draft", self, id=request.id, gamma=gamma)
            room, asking = room - gamma, asking - 1
        return chunks

    # [/drafts]

    # [admit]
    def _next(self) -> Request:
        """Who is first at the door: the patient ones by arrival, then the longest cached prefix."""
        door = [request for request, _ in zip(self.waiting.values(), range(LOOKAHEAD))]

        def place(request: Request) -> tuple[bool, int, int]:
            starved = request.metrics.overtaken >= self.patience
            cached = 0 if starved else self.memory.tree.cached(request.tokens[:-1], request.namespace)
            return not starved, -cached, request.arrival

        return min(door, key=place)

    def _admit(self, request: Request) -> int:
        """Let a request in whose pages can be had; return how many tokens of it were found."""
        found = self.memory.attach(request)
        del self.waiting[request.arrival]
        bisect.insort(self.running, request, key=_arrival)
        for other in itertools.takewhile(lambda each: each.arrival < request.arrival, self.waiting.values()):
            other.metrics.overtaken += 1
        emit("schedule.admit", self, id=request.id, saved=found)
        return found

    # [/admit]

    # [preempt]
    def _preempt(self, request: Request) -> None:
        """Take a request's pages; it waits again, at the place of its arrival."""
        self._release(request)
        self.running.remove(request)
        self._wait(request)
        request.metrics.preemptions += 1
        self.preemptions += 1
        emit("schedule.preempt", self, id=request.id)

    def _release(self, request: Request) -> None:
        self.memory.release(request)
        request.forget()

    def _wait(self, request: Request) -> None:
        """At the place of its arrival, which is near the front: only what it had overtaken stands before it."""
        before = list(itertools.takewhile(lambda each: each.arrival < request.arrival, self.waiting.values()))
        self.waiting[request.arrival] = request
        for each in (request, *reversed(before)):
            self.waiting.move_to_end(each.arrival, last=False)

    # [/preempt]

    def check(self, request: Request) -> None:
        """ValueError where it could never run, though it had the pool to itself."""
        pool = self.memory.pool
        need = pool.pages_for(request.most)
        if need > pool.num_pages:
            name = "it" if request.id is None else f"request {request.id!r}"
            raise ValueError(
                f"{name} can never fit: {request.most} tokens need {need} pages of {pool.page_size}, "
                f"the pool has {pool.num_pages}; shorten it, lower max_new_tokens, or give the engine more num_pages"
            )

    def add(self, request: Request) -> None:
        """A request arrives. ValueError where it could never run."""
        self.check(request)
        self.waiting[request.arrival] = request
        emit("schedule.arrive", self, id=request.id, tokens=len(request.tokens))

    def remove(self, request: Request) -> None:
        """A request leaves, done or aborted, wherever it is."""
        if request.arrival in self.waiting:
            del self.waiting[request.arrival]
        else:
            self.running.remove(request)
            if request.finish_reason == "error":
                self.memory.discard(request)
            else:
                self.memory.publish(request, request.computed)  # what it computed stays as long as there is room
                self.memory.release(request)
        emit("schedule.leave", self, id=request.id, why=request.finish_reason)

    def restart(self, requests: Iterable[Request]) -> None:
        """A step failed, wherever it was: all `requests` wait again, and nothing that was computed is trusted."""
        self.waiting = OrderedDict((each.arrival, each) for each in sorted(requests, key=_arrival))
        self.running = []
        for request in self.waiting.values():
            request.forget()
        self.memory.forget()


def _arrival(request: Request) -> int:
    return request.arrival
