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
from inference_opt.engine import streams
from inference_opt.engine.arguments import Name, checked
from inference_opt.engine.cache_manager import Memory, default_pages
from inference_opt.engine.change import Change, work_out
from inference_opt.engine.exclusive import exclusive
from inference_opt.engine.graph_runner import run_ahead
from inference_opt.engine.request import Metrics, Request, check_hashable
from inference_opt.engine.scheduler import Chunk, Scheduler
from inference_opt.engine.speculation import Rule, Speculation
from inference_opt.engine.stats import FED, Output, Stats
from inference_opt.loading.tokenizer import Tokenizer
from inference_opt.model.transformer import Transformer
from inference_opt.radix.eviction import Policy
from inference_opt.radix.tree import RadixTree
from inference_opt.sampling import SamplingParams, StopCheck, requests_of, seeded
from inference_opt.speculative.drafter import Draft, Drafter
from inference_opt.speculative.rules import token_wise
from inference_opt.trace import step

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
            step("engine.step", self.scheduler, "step {n} of the engine is done", n=totals.steps, outputs=outputs)
        except BaseException:
            if changes:  # worked out, and perhaps half written: write them whole
                self._write(changes, totals)
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
        none: list[States] = [[] for _ in chunks]
        if self.ahead is not None and self.ahead.takes(chunks):
            return self.ahead.run(chunks, self.scheduler.memory), [torch.empty(0, 0)] * len(chunks), none
        fed = [
            chunk.request.tokens[chunk.start : chunk.start + chunk.count].tolist() + draft.tokens
            for chunk, draft in zip(chunks, drafts)
        ]
        counts = [len(ids) for ids in fed]
        positions = self.cache.extend(
            [chunk.request.table for chunk in chunks], [chunk.start for chunk in chunks], counts
        )
        tokens = torch.tensor([token for ids in fed for token in ids], device=self.model.device)
        wanted = [1 + len(draft.tokens) if chunk.samples else 0 for chunk, draft in zip(chunks, drafts)]
        ends = itertools.accumulate(counts)
        rows = [row for end, count in zip(ends, wanted) for row in range(end - count, end)]
        with torch.inference_mode():
            h, tapped = self.model.stream(tokens, positions, self.cache, taps=self.speculation.taps)
            logits = self.model.logits(h[torch.tensor(rows, device=h.device).long()])
        states = [list(each) for each in zip(*(tap.split(counts) for tap in tapped))]
        split = logits.split(wanted)
        return self.speculation.decide(chunks, drafts, logits, split), list(split), states or none

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
        self.speculation.note(request, chunk.start, states, change.kind)
        output = Output(request, chunk.start, chunk.count, change.tokens, draft.tokens)
        step("engine.commit", self.scheduler, FED, id=request.id, output=output, tokens=change.tokens)
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
        self.requests = {id: request for id, request in self.requests.items() if not request.finished}
        self.scheduler.restart(self.requests.values())

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
        request = self._request(prompt, params, id, namespace)
        try:
            self._arrived += 1
            self.requests[request.id] = request
            self.scheduler.add(request)
        except BaseException:
            self.requests.pop(request.id, None)
            self.scheduler.waiting.pop(request.arrival, None)
            raise
        return request

    @exclusive
    def abort(self, id: Any) -> Request:
        """End a request now, by its id or its handle; what it has stays on the handle. ValueError if it is not here."""
        id = id.id if isinstance(id, Request) else id
        check_hashable("id", id)
        if id not in self.requests:
            raise ValueError(f"no unfinished request has the id {id!r}: give the handle that add() returned, or its id")
        request = self.requests[id]
        try:
            request.finish_reason = "abort"
            request.metrics.finished = time.perf_counter()
            if request.table:
                self.speculation.note(request, request.computed, [], "end")
            self._leave(request)
        except BaseException:
            self._begin_anew()
            raise
        return request

    @exclusive
    def forget(self) -> None:
        """Forget every cached prefix, as changed weights ask for. Who runs waits again and loses no token."""
        self._begin_anew()
        if self.ahead is not None:
            self.ahead.graphs.clear()  # they know where the weights lay

    # [/requests]

    def __reduce__(self) -> Any:
        raise TypeError("an Engine is not copied or saved: it holds a KV pool and requests; make another of its model")

    def _request(self, prompt: Sequence[int], params: SamplingParams, id: Any, namespace: Any) -> Request:
        """A handle, if it arrived now. Changes nothing."""
        config = self.model.config
        ids, params = config.check_prompt(prompt), seeded(params)
        id = Name(f"request-{self._arrived}") if id is None else id
        check_hashable("id", id)
        check_hashable("namespace", namespace)
        if id in self.requests:
            raise ValueError(f"request id {id!r} is taken by a request that is not finished")
        room = config.max_context - len(ids) + 1
        stream = self.tokenizer.stream() if self.tokenizer else None
        check = StopCheck(params, config.eos_token_ids, room, stream)
        metrics = Metrics(arrived_step=self._totals.steps, arrived=time.perf_counter())
        return Request(id, ids, params, check, self._arrived, metrics, namespace)

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
        return streams.stream(self, self._checked(prompts, params, n))

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams], n: int = 1
    ) -> list[list[int]]:
        """The new tokens of every prompt: `n` texts of the first, then `n` of the second, as `stream` has them."""
        each = self._checked(prompts, params, n)
        texts: list[list[int]] = [[] for _ in each]
        for emitted in streams.stream(self, each):
            for i, token in emitted.items():
                texts[i].append(token)
        return texts

    def _checked(self, prompts: Any, params: Any, n: int) -> list[tuple[list[int], SamplingParams]]:
        requests = [self._request(prompt, own, None, None) for prompt, own in requests_of(prompts, params, n)]
        for request in requests:
            self.scheduler.check(request)
        return [(request.prompt, request.params) for request in requests]

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
