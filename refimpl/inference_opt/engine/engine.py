"""The engine: schedule, run, commit.

    schedule   which tokens of which requests (scheduler.py), with pages for each (cache_manager.py)
    draft      guesses behind the last token of those that decode (speculation.py)
    run        the model once, over all of them laid end to end: prompts' chunks, single tokens and drafts alike
    commit     what was fed and kept is now computed; requests whose last known token was fed get their next, or several
               (worked out first, then written: change.py)

Plain decoding is speculation with no drafts: one step for both. (On CUDA, `graph_runner.py` runs greedy ones.)

When is a sampled token written to a page? Not when it is sampled: it joins `tokens`, and its key and value are
computed, and written, by the next step, which feeds it. So the last token of a text never takes a slot.
"""

import itertools
import time
from collections.abc import Hashable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from inference_opt.cache.paged_kernel import cache_class
from inference_opt.cache.pool import PagePool
from inference_opt.engine.arguments import Name, checked
from inference_opt.engine.cache_manager import Memory, default_pages
from inference_opt.engine.change import Change, work_out
from inference_opt.engine.exclusive import exclusive
from inference_opt.engine.graph_runner import run_ahead
from inference_opt.engine.request import Request, check_hashable
from inference_opt.engine.scheduler import Chunk, Scheduler
from inference_opt.engine.speculation import Rule, Speculation
from inference_opt.engine.stats import Output, Stats
from inference_opt.engine.streams import Stream
from inference_opt.loading.tokenizer import Tokenizer
from inference_opt.model.transformer import Transformer
from inference_opt.radix.eviction import Policy
from inference_opt.radix.tree import RadixTree
from inference_opt.sampling import SamplingParams, StopCheck, requests_of, seeded
from inference_opt.speculative.drafter import Draft, Drafter
from inference_opt.speculative.rules import token_wise
from inference_opt.trace import emit, watched
from inference_opt.values import shown

States = list[Tensor]  # the residual stream of one chunk, at each layer that the drafter taps


class Engine:
    """Continuous batching on a paged cache, with prefixes reused (`radix`) or not.

    `num_pages`: by default for two texts of the model's full context, or as many as half of the free memory holds if
    that is fewer; on a CPU they take memory as texts come to use them (`cache/paged.py`). `token_budget` bounds the
    tokens of a step, `max_running` the requests in it, `patience` how often a waiting request may be overtaken.
    With a `drafter` (`speculative/`), requests in decode speculate: `gamma` drafts a step (None: adapted to each),
    judged by `rule`, in steps of up to `draft_rows` rows. On CUDA greedy requests without a drafter decode up to
    `ahead` tokens a step (`graph_runner.py`). ValueError for values that no engine can have.
    """

    def __init__(
        self,
        model: Transformer,
        radix: bool = True,
        drafter: Drafter | None = None,
        page_size: int = 16,
        num_pages: int | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        token_budget: int = 512,
        max_running: int = 64,
        patience: int = 16,
        policy: Policy | None = None,
        gamma: int | None = None,
        rule: Rule = token_wise,
        draft_rows: int = 64,
        ahead: int = 32,
    ) -> None:
        page_size, num_pages, token_budget, max_running, patience, gamma, draft_rows, ahead = checked(**locals())
        self.model, self.tokenizer = model, tokenizer
        pages = default_pages(model, page_size) if num_pages is None else num_pages
        size: dict[str, Any] = {"num_pages": pages, "page_size": page_size, "grows": num_pages is None}
        self.cache = cache_class(model.device)(**model.config.kv_shape, **size, dtype=model.dtype, device=model.device)
        self.pool, self.tree = PagePool(pages, page_size), RadixTree(page_size, policy)
        self.ahead = run_ahead(model, self.cache, drafter, ahead, min(max_running, token_budget))
        self.speculation = Speculation(drafter, rule, gamma, model, self.cache)
        self.scheduler = Scheduler(
            Memory(self.pool, self.tree, radix), token_budget, max_running, patience, self.speculation.gamma, draft_rows
        )
        self.requests: dict[Hashable, Request] = {}  # those that are not finished
        self.calls: dict[str, object] = {}  # the one under way, if there is one (exclusive.py)
        self._abandoned: list[Request] = []  # by a stream that was dropped during a call
        self._arrived = 0
        self._totals = Stats(pages=pages)

    # [step]
    @exclusive
    def step(self) -> list[Output]:
        """One step. If it fails or is interrupted at any line, nothing is lost: unfinished requests wait again, and the
        error is raised.

        A request whose logits hold NaN or infinity fails alone: its `finish_reason` is "error", its `error` says why.
        """
        began = time.perf_counter()
        changes: list[Change] = []
        try:
            self._abort_abandoned()
            self.speculation.observe()
            observed = time.perf_counter()
            chunks = self.scheduler.schedule()
            if not chunks:
                return []
            scheduled = time.perf_counter()
            drafts = self.speculation.propose(chunks)
            drafted = time.perf_counter()
            emitted, logits, states = self._run(chunks, drafts)
            ran = time.perf_counter()
            totals = copy(self._totals)
            made = [work_out(*each, began, totals) for each in zip(chunks, drafts, emitted, logits)]
            totals.steps += 1
            totals.run_seconds += ran - drafted
            totals.draft_seconds += drafted - scheduled + observed - began
            changes = made
            self._write(changes, totals)
            outputs = [self._conclude(*each) for each in zip(chunks, drafts, changes, states)]
            totals.schedule_seconds += time.perf_counter() - ran + scheduled - observed
            emit("engine.step", self.scheduler, n=totals.steps, outputs=outputs)
        except BaseException:
            try:
                if changes:  # worked out, and perhaps half written: write them whole
                    self._write(changes, totals)
            finally:
                self._begin_anew()
            raise
        return outputs

    def _run(
        self, chunks: list[Chunk], drafts: list[Draft]
    ) -> tuple[list[list[int] | None], list[Tensor], list[States]]:
        """The model over all chunks and drafts laid end to end.

        For each chunk: what it emits (None: its logits are broken); the logits behind its last token and behind each
        draft, [1 + drafts, vocab] (no row where there is prompt left); the residual stream where the drafter taps it.
        """
        if self.ahead is not None and self.ahead.takes(chunks):
            none: list[States] = [[] for _ in chunks]
            return self.ahead.run(chunks, self.scheduler.memory), [torch.empty(0, 0)] * len(chunks), none
        logits, split, states = self._read(chunks, drafts)
        emitted = self.speculation.decide(chunks, drafts, logits, split)
        # A draft that breaks the model spoils the rows in front of it, too (0 · NaN): these are read again without it.
        again = [i for i, each in enumerate(emitted) if each is None and drafts[i].tokens]
        if again:
            few, theirs = [chunks[i] for i in again], [drafts[i] for i in again]
            logits, rows, fewer = self._read(few, [Draft()] * len(few))
            alone = self.speculation.decide(few, theirs, logits, rows)
            for i, each, row, state in zip(again, alone, rows, fewer):
                emitted[i], split[i], states[i] = each, row, state
        return emitted, split, states

    def _read(self, chunks: list[Chunk], drafts: list[Draft]) -> tuple[Tensor, list[Tensor], list[States]]:
        """Logits of all rows wanted, the same by chunk, and the residual stream where the drafter taps it."""
        fed = [
            chunk.request.tokens[chunk.start : chunk.start + chunk.count].tolist() + draft.tokens
            for chunk, draft in zip(chunks, drafts)
        ]
        counts = [len(ids) for ids in fed]
        batch = self.cache.batch([chunk.request.table for chunk in chunks], [chunk.start for chunk in chunks], counts)
        tokens = torch.tensor([token for ids in fed for token in ids], device=self.model.device)
        wanted = [1 + len(draft.tokens) if chunk.samples else 0 for chunk, draft in zip(chunks, drafts)]
        ends = itertools.accumulate(counts)
        rows = [row for end, count in zip(ends, wanted) for row in range(end - count, end)]
        with torch.inference_mode():
            h, tapped = self.model.hidden_states(tokens, batch.positions, watched(batch), taps=self.speculation.taps)
            logits = self.model.logits(h[torch.tensor(rows, device=h.device).long()])
        states = [list(each) for each in zip(*(tap.split(counts) for tap in tapped))]
        return logits, list(logits.split(wanted)), states or [[] for _ in chunks]

    def _write(self, changes: list[Change], totals: Stats) -> None:
        """The step has happened. Written twice, it has happened once."""
        for change in changes:
            change.write()
        self._totals = totals

    def _conclude(self, chunk: Chunk, draft: Draft, change: Change, states: States) -> Output:
        """What follows from a change: what the drafter learns, and whose pages are free."""
        request = chunk.request
        if request.adaptive is not None and request.decoding:
            request.adaptive.learn(len(draft.tokens), change.accepted)
        self.speculation.learn(request, chunk.start, states, change.kind)
        output = Output(request, chunk.start, chunk.count, change.tokens, draft.tokens)
        emit("engine.commit", self.scheduler, id=request.id, output=output, tokens=change.tokens)
        if request.finished:
            self._leave(request)
        elif chunk.drafts:
            self.scheduler.memory.trim(request)
        return output

    # [/step]

    def _leave(self, request: Request) -> None:
        self.scheduler.remove(request)
        self.requests.pop(request.id)

    def _begin_anew(self) -> None:
        """Nothing that was computed is trusted; who is not finished waits again, with the tokens written down."""
        self.speculation.pending = []
        for request in self.requests.values():
            request.forget()
        unfinished = [request for request in self.requests.values() if not request.finished]
        self.scheduler.restart(unfinished)
        self.requests = {request.id: request for request in unfinished}

    # [requests]
    @exclusive
    def add(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        id: Any = None,
        namespace: Any = None,
    ) -> Request:
        """A request arrives; the handle that is returned collects its tokens.

        `params` of the handle has the seed that the request runs with. `id`, `namespace`: as keys of a dict, told apart
        by ==; prefixes are shared within one namespace only. ValueError, and no change, for a prompt that the model
        cannot continue, a request that could never fit in the pool, or the `id` of one that is not finished.
        """
        return self._enter(self._request(prompt, params, id, namespace))

    @exclusive
    def enter(self, request: Request) -> None:
        """Let in a handle that `stream` made."""
        self._enter(request)

    def _enter(self, request: Request) -> Request:
        try:
            request.arrival = self._arrived
            self._arrived += 1
            if request.id is None:
                request.id = Name(f"request-{request.arrival}")
            request.metrics.arrived_step, request.metrics.arrived = self._totals.steps, time.perf_counter()
            self.requests[request.id] = request
            self.scheduler.add(request)
        except BaseException:
            self.requests.pop(request.id, None)
            self.scheduler.waiting.pop(request.arrival, None)
            request.arrival = -1  # it is not here
            raise
        return request

    @exclusive
    def abort(self, id: Any) -> Request:
        """End a request now, by its id or its handle; what it has stays on the handle. ValueError if it is not here."""
        name = id.id if isinstance(id, Request) else id
        check_hashable("id", name)
        if name not in self.requests or (isinstance(id, Request) and self.requests[name] is not id):
            hint = "give the handle that add() returned, or its id"
            raise ValueError(f"no unfinished request of this engine has the id {shown(name)}: {hint}")
        return self._abort(self.requests[name])

    def _abort(self, request: Request) -> Request:
        try:
            request.finish_reason = "abort"
            request.metrics.finished = time.perf_counter()
            if request.table:
                self.speculation.learn(request, request.computed, [], "end")
            self._leave(request)
        except BaseException:
            self._begin_anew()
            raise
        finally:
            request.heard()
        return request

    def abandon(self, requests: Sequence[Request]) -> None:
        """Their caller is gone: abort them, now, or when the next step begins if a call is under way."""
        self._abandoned += requests
        if not self.calls:
            self._sweep()

    @exclusive
    def _sweep(self) -> None:
        self._abort_abandoned()

    def _abort_abandoned(self) -> None:
        while self._abandoned:
            if self.requests.get(self._abandoned[-1].id) is self._abandoned[-1]:
                self._abort(self._abandoned[-1])
            self._abandoned.pop()

    @exclusive
    def forget(self) -> None:
        """Forget every cached prefix, as changed weights ask for. Who runs waits again and loses no token.

        (After a change of dtype or device make another engine: the pages are of the old one.)
        """
        try:
            self._begin_anew()
        except BaseException:  # interrupted
            self._begin_anew()
            raise
        if self.ahead is not None:
            self.ahead.graphs.clear()  # they know where the weights lay

    # [/requests]

    def __reduce__(self) -> Any:
        raise TypeError("an Engine is not copied or saved: it holds a KV pool and requests; make another of its model")

    def _request(self, prompt: Sequence[int], params: SamplingParams, id: Any, namespace: Any) -> Request:
        """A handle that has not arrived. Changes nothing."""
        config = self.model.config
        ids, params = config.check_prompt(prompt), seeded(params)
        check_hashable("id", id)
        check_hashable("namespace", namespace)
        if id in self.requests:
            raise ValueError(f"request id {shown(id)} is taken by a request that is not finished")
        room = config.max_context - len(ids) + 1
        stream = self.tokenizer.detokenizer() if self.tokenizer else None
        request = Request(id, ids, params, StopCheck(params, config.eos_token_ids, room, stream), namespace)
        self.scheduler.check(request)
        return request

    # [generate]
    def stream(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams], n: int = 1
    ) -> Iterator[dict[int, int]]:
        """Yield, as they come, the new tokens of the prompts: {index: token}. Whoever makes a step, none is left out.

        `params`: one for all, or one a prompt; either way each request has a seed of its own (`SamplingParams.split`).
        `n` samples a prompt, those of the first prompt before those of the second: sample j of prompt i has the index
        i · n + j. The prompts arrive with the first `next`. Left early, it aborts what is unfinished. ValueError as of
        `add`, at once and before any prompt is taken.
        """
        return Stream(self, self._handles(prompts, params, n))

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams], n: int = 1
    ) -> list[list[int]]:
        """The new tokens of every prompt: `n` texts of the first, then `n` of the second, as `stream` has them.

        ValueError as of `stream`: at once, or when all is done for a request of broken logits (`add` and `step` give
        the others' texts all the same).
        """
        stream = Stream(self, handles := self._handles(prompts, params, n))
        try:
            for _ in stream:
                pass
        finally:
            stream.close()
        return [request.output for request in handles]

    def _handles(self, prompts: Any, params: Any, n: int) -> list[Request]:
        handles: list[Request] = []
        for prompt, own in requests_of(prompts, params, n):
            try:
                handles.append(self._request(prompt, own, None, None))
            except ValueError as error:
                raise ValueError(f"prompt {len(handles) // n}: {error}") from error
        return handles

    # [/generate]

    @property
    def stats(self) -> Stats:
        """Totals so far and the pool as it stands."""
        return replace(
            self._totals,
            preemptions=self.scheduler.preemptions,
            evicted_pages=self.tree.evicted,
            pages_cached=len(self.tree),
            pages_private=self.pool.num_pages - self.pool.free - len(self.tree),
        )
