"""The engine: schedule, run, commit.

    schedule   which tokens of which requests (scheduler.py), with pages for each (memory.py)
    run        the model once, over all of them laid end to end: prompts' chunks and single tokens alike
    commit     what was fed is now computed; requests whose last known token was fed get their next one

When is a sampled token written to a page? Not when it is sampled: it joins `tokens`, and its key and value are
computed, and written, by the next step, which feeds it. So the last token of a text never takes a slot.
"""

import itertools
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from inference_opt.engine.memory import Memory
from inference_opt.engine.request import Metrics, Request
from inference_opt.engine.scheduler import Chunk, Scheduler
from inference_opt.kv.paged import PagedCache
from inference_opt.kv.policies import Policy
from inference_opt.kv.pool import PagePool
from inference_opt.kv.radix import RadixTree
from inference_opt.model.tokenizer import Tokenizer
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams, StopCheck, sample


@dataclass(frozen=True)
class Output:
    """What a step did for one request: fed `count` tokens from `start` on and, if they were its last, sampled one."""

    request: Request
    start: int
    count: int
    token: int | None


@dataclass
class Stats:
    """Totals since the engine was made; a rate is of what was asked for."""

    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    cached_tokens: int = 0
    run_seconds: float = 0.0  # the model and sampling
    schedule_seconds: float = 0.0  # everything else of a step: scheduler, tree, pool, commit
    preemptions: int = 0
    evicted_pages: int = 0
    pages: int = 0  # in the pool
    pages_cached: int = 0  # of these, the tree's
    pages_private: int = 0  # and those that belong to one running request

    @property
    def hit_rate(self) -> float:
        """Share of the known tokens of admitted requests that were found and not computed."""
        asked = self.cached_tokens + self.prefill_tokens
        return self.cached_tokens / asked if asked else 0.0

    @property
    def occupancy(self) -> float:
        """Share of the pages in use now."""
        return (self.pages_cached + self.pages_private) / self.pages


class Engine:
    """Continuous batching on a paged cache, with prefixes reused (`radix`) or not.

    `num_pages` defaults to pages for two texts of the model's full context. `token_budget` bounds the tokens of a
    step, `max_running` the requests in it, `patience` how often a waiting request may be overtaken. ValueError for
    values that no engine can have; NotImplementedError for a `drafter` (speculative decoding is not in this version).
    """

    def __init__(
        self,
        model: Transformer,
        radix: bool = True,
        drafter: Any = None,
        page_size: int = 16,
        num_pages: int | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        token_budget: int = 512,
        max_running: int = 64,
        patience: int = 16,
        policy: Policy | None = None,
    ) -> None:
        if drafter is not None:
            raise NotImplementedError("drafter: speculative decoding is not in this version yet")
        config = model.config
        if num_pages is None:
            num_pages = 2 * -(-config.max_context // max(page_size, 1))
        self.model, self.tokenizer = model, tokenizer
        self.pool = PagePool(num_pages, page_size)
        self.tree = RadixTree(page_size, policy)
        self.scheduler = Scheduler(Memory(self.pool, self.tree, radix), token_budget, max_running, patience)
        self.cache = PagedCache(
            config.depth, config.kv_heads, config.head_dim, num_pages, page_size, model.dtype, model.device
        )
        self.requests: dict[Hashable, Request] = {}  # those that are not finished
        self._arrivals, self._names = itertools.count(), itertools.count()
        self._totals = Stats(pages=num_pages)

    # [step]
    def step(self) -> list[Output]:
        """One step. If it fails or is interrupted, everyone waits again, nothing is lost, and the error is raised."""
        began = time.perf_counter()
        try:
            chunks = self.scheduler.schedule()
            if not chunks:
                return []
            scheduled = time.perf_counter()
            tokens = self._sample(chunks, self._run(chunks))
        except BaseException:
            self.scheduler.restart(self.requests.values())
            raise
        ran = time.perf_counter()
        outputs = self._commit(chunks, tokens, began)
        self._totals.run_seconds += ran - scheduled
        self._totals.schedule_seconds += time.perf_counter() - ran + scheduled - began
        return outputs

    def _run(self, chunks: list[Chunk]) -> Tensor:
        """The model over all chunks laid end to end; logits behind the last token of each that samples."""
        positions = self.cache.extend(
            [chunk.request.table for chunk in chunks],
            [chunk.start for chunk in chunks],
            [chunk.count for chunk in chunks],
        )
        fed = [chunk.request.tokens[chunk.start : chunk.start + chunk.count].tolist() for chunk in chunks]
        tokens = torch.tensor([token for ids in fed for token in ids], device=self.model.device)
        ends = itertools.accumulate(chunk.count for chunk in chunks)
        rows = [end - 1 for chunk, end in zip(chunks, ends) if chunk.samples]
        with torch.inference_mode():
            return self.model(tokens, positions, self.cache, rows=torch.tensor(rows, device=self.model.device).long())

    def _sample(self, chunks: list[Chunk], logits: Tensor) -> list[int | None]:
        """The next token of each chunk's request, None for those with prompt left."""
        row = iter(logits)
        return [
            sample(next(row), chunk.request.params, position=len(chunk.request.tokens)) if chunk.samples else None
            for chunk in chunks
        ]

    def _commit(self, chunks: list[Chunk], tokens: list[int | None], began: float) -> list[Output]:
        now = time.perf_counter()
        totals = self._totals
        for chunk, token in zip(chunks, tokens):
            request, start, count = chunk.request, chunk.start, chunk.count
            metrics = request.metrics
            if metrics.admitted is None:
                metrics.admitted, metrics.admitted_step = began, totals.steps
            request.computed = start + count
            if start >= len(request.prompt) and token is not None and count == 1:
                metrics.decode_steps += 1
                totals.decode_tokens += 1
            else:
                metrics.prefill_steps += 1
                metrics.prefill_tokens += count
                totals.prefill_tokens += count
            if token is not None:
                request.tokens.append(token)
                metrics.first_token = metrics.first_token or now
                request.finish_reason = request.check.after(token)
            if request.finished:
                metrics.finished = now
                self._leave(request)
        totals.steps += 1
        return [Output(c.request, c.start, c.count, token) for c, token in zip(chunks, tokens)]

    # [/step]

    def _leave(self, request: Request) -> None:
        self.scheduler.remove(request)
        del self.requests[request.id]
        self._totals.cached_tokens += request.metrics.cached_tokens

    # [requests]
    def add(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        id: Any = None,
        namespace: Any = None,
    ) -> Request:
        """A request arrives; the handle that is returned collects its tokens.

        `namespace`: prefixes are shared within one only. ValueError, and no change, for a prompt that the model cannot
        continue, a request that could never fit in the pool, or the `id` of one that is not finished.
        """
        request = self._request(prompt, params, id, namespace)
        self.scheduler.add(request)
        self.requests[request.id] = request
        return request

    def abort(self, id: Any) -> Request:
        """End a request now; what it has stays on its handle. ValueError if there is none of this id."""
        _check_hashable("id", id)
        if id not in self.requests:
            raise ValueError(f"no unfinished request has the id {id!r}")
        request = self.requests[id]
        request.finish_reason = "abort"
        request.metrics.finished = time.perf_counter()
        self._leave(request)
        return request

    # [/requests]

    def _request(self, prompt: Sequence[int], params: SamplingParams, id: Any, namespace: Any) -> Request:
        config = self.model.config
        ids = config.check_prompt(prompt)
        if id is None:
            id = f"request-{next(self._names)}"
        _check_hashable("id", id)
        _check_hashable("namespace", namespace)
        if id in self.requests:
            raise ValueError(f"request id {id!r} is taken by a request that is not finished")
        room = config.max_context - len(ids) + 1
        stream = self.tokenizer.stream() if self.tokenizer else None
        check = StopCheck(params, config.eos_token_ids, room, stream)
        metrics = Metrics(arrived_step=self._totals.steps, arrived=time.perf_counter())
        return Request(id, ids, params, check, next(self._arrivals), metrics, namespace)

    # [generate]
    def stream(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> Iterator[dict[int, int]]:
        """Yield, step by step, the new tokens of the prompts: {index of the prompt: token}.

        `params`: one for all, or one a prompt. Left early, it aborts what is unfinished. ValueError as of `add`,
        before any prompt is taken.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if not prompts or len(each) != len(prompts):
            raise ValueError(f"expected one params for each of one or more prompts, got {len(each)} for {len(prompts)}")
        requests: list[Request] = []
        try:
            for prompt, one in zip(prompts, each):
                requests.append(self.add(prompt, one))
            index = {request: i for i, request in enumerate(requests)}
            while not all(request.finished for request in requests):
                new = {index[o.request]: o.token for o in self.step() if o.request in index and o.token is not None}
                if new:
                    yield new
        finally:
            for request in requests:
                if not request.finished:
                    self.abort(request.id)

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[list[int]]:
        """The new tokens of every prompt."""
        texts: list[list[int]] = [[] for _ in prompts]
        for emitted in self.stream(prompts, params):
            for i, token in emitted.items():
                texts[i].append(token)
        return texts

    # [/generate]

    @property
    def stats(self) -> Stats:
        """Totals so far and the pool as it stands."""
        live = sum(request.metrics.cached_tokens for request in self.requests.values())
        return replace(
            self._totals,
            cached_tokens=self._totals.cached_tokens + live,
            preemptions=self.scheduler.preemptions,
            evicted_pages=self.tree.evicted,
            pages_cached=len(self.tree),
            pages_private=self.pool.num_pages - self.pool.free - len(self.tree),
        )


def _check_hashable(name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(f"{name} must be hashable, got {value!r} ({error})") from None
