"""The engine: schedule, run, commit.

    schedule   which tokens of which requests (scheduler.py), with pages for each (memory.py)
    draft      guesses behind the last token of those that decode (speculation.py)
    run        the model once, over all of them laid end to end: prompts' chunks, single tokens and drafts alike
    commit     what was fed and kept is now computed; requests whose last known token was fed get their next, or several

Plain decoding is speculation with no drafts: one step for both. (On CUDA, `ahead.py` runs steps that are all greedy.)

When is a sampled token written to a page? Not when it is sampled: it joins `tokens`, and its key and value are
computed, and written, by the next step, which feeds it. So the last token of a text never takes a slot.
"""

import itertools
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from inference_opt.engine.ahead import run_ahead
from inference_opt.engine.memory import Memory, default_pages
from inference_opt.engine.request import Metrics, Request, check_hashable
from inference_opt.engine.scheduler import Chunk, Scheduler
from inference_opt.engine.speculation import Rule, Speculation, logprobs
from inference_opt.engine.stats import FED, Output, Stats
from inference_opt.kv.in_place import cache_class
from inference_opt.kv.policies import Policy
from inference_opt.kv.pool import PagePool
from inference_opt.kv.radix import RadixTree
from inference_opt.model.tokenizer import Tokenizer
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams, StopCheck
from inference_opt.speculative.drafter import Draft, Drafter
from inference_opt.speculative.rules import token_wise
from inference_opt.steps import step

States = list[Tensor]  # the residual stream of one chunk, at each layer that the drafter taps


class Engine:
    """Continuous batching on a paged cache, with prefixes reused (`radix`) or not.

    `num_pages`: by default for two texts of the model's full context, or as many as half of the free memory holds if
    that is fewer; on a CPU they take memory as texts come to use them (`kv/paged.py`). `token_budget` bounds the tokens
    of a step, `max_running` the requests in it, `patience` how often a waiting request may be overtaken.
    With a `drafter` (`speculative/`), requests in decode speculate: `gamma` drafts a step (None: adapted to each),
    judged by `rule`, in steps of up to `draft_rows` rows. On CUDA greedy requests without a drafter decode up to
    `ahead` tokens a step (`ahead.py`). ValueError for values that no engine can have.
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
        self._arrivals, self._names = itertools.count(), itertools.count()
        self._totals = Stats(pages=pages)

    # [step]
    def step(self) -> list[Output]:
        """One step. If it fails or is interrupted, everyone waits again, nothing is lost, and the error is raised."""
        began = time.perf_counter()
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
        except BaseException:
            self.speculation.pending = []
            self.scheduler.restart(self.requests.values())
            raise
        ran = time.perf_counter()
        outputs = [self._commit(*each, began) for each in zip(chunks, drafts, emitted, logits, states)]
        self._totals.steps += 1
        self._totals.run_seconds += ran - drafted
        self._totals.draft_seconds += drafted - scheduled + observed - began
        self._totals.schedule_seconds += time.perf_counter() - ran + scheduled - observed
        step("engine.step", self.scheduler, "step {n} of the engine is done", n=self._totals.steps, outputs=outputs)
        return outputs

    def _run(self, chunks: list[Chunk], drafts: list[Draft]) -> tuple[list[list[int]], list[Tensor], list[States]]:
        """The model over all chunks and drafts laid end to end.

        For each chunk: what it emits; the logits behind its last token and behind each draft, [1 + drafts, vocab] (no
        row where there is prompt left); and the residual stream where the drafter taps it.
        """
        none: list[States] = [[] for _ in chunks]
        if self.ahead is not None and self.ahead.takes(chunks):
            return self.ahead.run(chunks, self.scheduler.memory), [torch.empty(0)] * len(chunks), none
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
        split = list(logits.split(wanted))
        return self.speculation.decide(chunks, split, drafts), split, states or none

    def _commit(
        self, chunk: Chunk, draft: Draft, emitted: list[int], logits: Tensor, states: States, began: float
    ) -> Output:
        """Write down what a step did for one request: every emitted token, up to the one that ends the text."""
        request, metrics, totals, now = chunk.request, chunk.request.metrics, self._totals, time.perf_counter()
        if metrics.admitted is None:
            metrics.admitted, metrics.admitted_step = began, totals.steps
        tokens, request.finish_reason = request.check.within(emitted)
        request.tokens.extend(tokens)
        if tokens and request.params.logprobs:
            request.logprobs += logprobs(logits, tokens)
        # Of the drafts, those emitted were read; the last token emitted never is (rejected drafts are overwritten).
        request.computed = len(request.tokens) - 1 if tokens else chunk.start + chunk.count
        kind: Literal["prompt", "decode", "end"] = "decode" if request.decoding else "prompt"
        if chunk.start >= len(request.prompt) and chunk.count == 1 and tokens:
            metrics.decode_steps += 1
            totals.decode_tokens += len(tokens)
        else:
            metrics.prefill_steps += 1
            metrics.prefill_tokens += chunk.count
            totals.prefill_tokens += chunk.count
        if tokens:
            metrics.first_token = metrics.first_token or now
            request.decoding = True
        self._count(request, len(draft.tokens), min(len(emitted) - 1, len(tokens)))
        if request.finished:
            metrics.finished = now
            kind = "end" if kind == "decode" else kind
        self.speculation.note(request, chunk.start, states, kind)
        output = Output(request, chunk.start, chunk.count, tokens, draft.tokens)
        step("engine.commit", self.scheduler, FED, id=request.id, output=output, tokens=tokens)
        if request.finished:
            self._leave(request)
        elif chunk.drafts:
            self.scheduler.memory.trim(request)
        return output

    def _count(self, request: Request, drafted: int, accepted: int) -> None:
        if request.adaptive is not None and request.decoding:
            request.adaptive.learn(drafted, accepted)
        if drafted:
            for counts in (request.metrics, self._totals):
                counts.drafted_tokens += drafted
                counts.accepted_tokens += accepted

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
        check_hashable("id", id)
        if id not in self.requests:
            raise ValueError(f"no unfinished request has the id {id!r}")
        request = self.requests[id]
        request.finish_reason = "abort"
        request.metrics.finished = time.perf_counter()
        if request.table:
            self.speculation.note(request, request.computed, [], "end")
        self._leave(request)
        return request

    def forget(self) -> None:
        """Forget every cached prefix, as changed weights ask for. Who runs waits again and loses no token."""
        self.speculation.pending = []
        self.scheduler.restart(self.requests.values())
        if self.ahead is not None:
            self.ahead.graphs.clear()  # they know where the weights lay

    # [/requests]

    def __reduce__(self) -> Any:
        raise TypeError("an Engine is not copied or saved: it holds a KV pool and requests; make another of its model")

    def _request(self, prompt: Sequence[int], params: SamplingParams, id: Any, namespace: Any) -> Request:
        config = self.model.config
        ids = config.check_prompt(prompt)
        if id is None:
            id = f"request-{next(self._names)}"
        check_hashable("id", id)
        check_hashable("namespace", namespace)
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
        """Yield, as they come, the new tokens of the prompts: {index of the prompt: token}.

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
                new = {index[o.request]: o.tokens for o in self.step() if o.request in index}
                for i in range(max(map(len, new.values()), default=0)):
                    yield {prompt: tokens[i] for prompt, tokens in new.items() if i < len(tokens)}
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
