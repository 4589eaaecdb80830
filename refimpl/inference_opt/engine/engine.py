"""The engine: schedule, draft, run, commit.

    schedule   which tokens of which requests, with pages for each                   scheduler.py, cache_manager.py
    draft      guesses behind the last token of those that decode                    speculation.py
    run        the model over all of them at once, prompts' chunks, single tokens    eager_runner.py, graph_runner.py
               and drafts alike; and what each request emits
    commit     the tokens that were fed and kept now count as computed; a request    change.py
               whose last known token was fed has its next token, or several

Plain decoding is speculation with no drafts: there is one step for both.

When is a sampled token written to a page? Not when it is sampled: it joins `tokens`, and the next step, which feeds it,
computes and writes its key and value. So the last token of a text needs no slot.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from inference_opt.cache.paged_kernel import cache_class
from inference_opt.cache.pool import PagePool
from inference_opt.elsewhere import Elsewhere, elsewhere
from inference_opt.engine.arguments import ARGUMENTS, METHODS, Name, checked
from inference_opt.engine.cache_manager import CacheManager, default_pages
from inference_opt.engine.change import Change, work_out
from inference_opt.engine.collector import undisturbed
from inference_opt.engine.exclusive import exclusive
from inference_opt.engine.graph_runner import runner_for
from inference_opt.engine.observer import Counted, Observer, StepTimer
from inference_opt.engine.progress import bar
from inference_opt.engine.prompts import Prompt
from inference_opt.engine.request import Request, check_hashable, made
from inference_opt.engine.runner import Result
from inference_opt.engine.scheduler import Chunk, Scheduler
from inference_opt.engine.speculation import Rule, Speculation
from inference_opt.engine.stats import Output, Stats
from inference_opt.engine.streams import Stream
from inference_opt.loading.tokenizer import Tokenizer
from inference_opt.model.transformer import Transformer
from inference_opt.radix.eviction import Policy
from inference_opt.radix.tree import RadixTree
from inference_opt.sampling import SamplingParams, sampling_params
from inference_opt.speculative.drafter import Draft, Drafter
from inference_opt.trace import emit
from inference_opt.values import shown, switch

Params = SamplingParams | Sequence[SamplingParams] | None


class Engine(Elsewhere):
    """Continuous batching on a paged cache, with prefixes reused (`radix`) or not.

    With a `tokenizer`, prompts may be texts and chats, and what comes back has text.
    `num_pages`: by default enough for two texts of the model's full context, but at most half of the free memory; on a
    CPU a page takes memory only when a text first uses it (`cache/paged.py`). `token_budget` bounds the tokens of a
    step, `max_running` the requests in it, `patience` how often a waiting request may be overtaken.
    With a `drafter` (an object, see `speculative/`, or a name in `DRAFTERS`), requests in decode speculate: `gamma`
    drafts a step (None: as many as pay), judged by `rule`, as long as the step has fewer than `draft_rows` rows (None:
    64; any number where steps are captured). `rule` None is `coupled`: the text is the one of plain decoding. Its
    drafts are then trees, if `gamma` is None too and the drafter can make trees. With
    `rules.tree` a step's drafts are a tree of at most 63, with `rules.multi_draft` candidates for the next token.
    Drafts that are found, not drawn, are judged by the target's own draw (`rules.coupled`), unless `rule` is
    `point_mass` or one of these two. On CUDA, requests decode up to `decode_steps` steps in a row (`graph_runner.py`),
    and with drafts a few more, without a drafter or with one that can draft on the card. The first of them are
    looked at while the others run. With another rule of chains than `coupled`, only greedy requests draft in
    such steps. ValueError for values that no engine can have.
    """

    ELSEWHERE = METHODS

    @elsewhere(**ARGUMENTS)
    def __init__(
        self,
        model: Transformer,
        *,
        tokenizer: Tokenizer | None = None,
        radix: bool = True,
        drafter: Drafter | str | None = None,
        page_size: int = 16,
        num_pages: int | None = None,
        token_budget: int = 512,
        max_running: int = 64,
        patience: int = 16,
        policy: Policy | None = None,
        gamma: int | None = None,
        rule: Rule | None = None,
        draft_rows: int | None = None,
        decode_steps: int = 32,
    ) -> None:
        page_size, num_pages, gamma, limits = checked(**locals())
        self.model, self.tokenizer = model, tokenizer
        pages = default_pages(model, page_size) if num_pages is None else num_pages
        size: dict[str, Any] = {"num_pages": pages, "page_size": page_size, "grows": num_pages is None}
        self.cache = cache_class(model.device)(**model.config.kv_shape, **size, dtype=model.dtype, device=model.device)
        self.pool, self.tree = PagePool(pages, page_size), RadixTree(page_size, policy)
        self.speculation = Speculation(drafter, rule, gamma, model, self.cache)
        rows = min(limits["max_running"], limits["token_budget"])
        self.runner = runner_for(model, self.cache, self.speculation, limits.pop("decode_steps"), rows)
        if limits["draft_rows"] is None:
            limits["draft_rows"] = self.runner.draft_rows
        self.scheduler = Scheduler(
            CacheManager(self.pool, self.tree, radix),
            gamma=self.speculation.gamma,
            choose=self.runner.choose,
            **limits,
        )
        self.observer = Observer(pages)
        self.requests: dict[Hashable, Request] = {}  # those that are not finished
        self.calls: dict[str, object] = {}  # the call under way, if there is one (exclusive.py)
        self._abandoned: list[Request] = []  # by a stream that was dropped during a call
        self._arrived = 0

    @exclusive
    @undisturbed()
    def step(self) -> list[Output]:
        """One step. If it fails or is interrupted at any line, nothing is lost: unfinished requests wait again, and the
        error is raised.

        A request whose logits hold NaN or infinity fails alone: its `finish_reason` is "error", its `error` says why.
        """
        timer = StepTimer()
        try:
            self._abort_abandoned()
            chunks = self.scheduler.schedule()
            if not chunks:
                return []
            timer.mark("schedule")
            drafts = self.runner.propose(chunks)
            timer.mark("draft")
            results = self.runner.run(chunks, drafts)
            timer.mark("run")
            return self._commit(chunks, drafts, results, timer)
        except BaseException:
            self._begin_anew()
            raise

    def _commit(
        self, chunks: list[Chunk], drafts: list[Draft], results: list[Result], timer: StepTimer
    ) -> list[Output]:
        """Work out all that the step changes, then write it. If one change is written, all are, whatever happens."""
        changes = [work_out(*each) for each in zip(chunks, drafts, results)]
        writes: list[Change | Counted] = [*changes, self.observer.count(changes, timer)]
        try:
            for each in writes:
                each.write()
            self.speculation.learn(changes)  # while every request still has its pages
            timer.mark("draft")
            outputs = [self._conclude(change) for change in changes]
        except BaseException:
            for each in writes:
                each.write()
            raise
        timer.mark("schedule")
        self.observer.spend(timer)
        emit("engine.step", self.scheduler, n=self.observer.totals.steps, outputs=outputs)
        return outputs

    def _conclude(self, change: Change) -> Output:
        """After a change is written: give back the pages that its request no longer needs."""
        request, chunk = change.request, change.chunk
        output = Output(request, chunk.start, chunk.count, change.tokens, change.draft.tokens)
        emit("engine.commit", self.scheduler, id=request.id, output=output, tokens=change.tokens)
        if request.finished:
            self._leave(request)
        elif not chunk.ahead:  # steps that were launched ahead write the pages behind the known tokens
            self.scheduler.cache.trim(request)
        return output

    def _leave(self, request: Request) -> None:
        self.scheduler.remove(request)
        self.requests.pop(request.id)

    def _begin_anew(self) -> None:
        """Trust nothing that was computed. Unfinished requests wait again, with the tokens that were written down."""
        self.scheduler.restart(self.requests.values())
        self.requests = {request.id: request for request in self.scheduler.waiting.values()}

    @exclusive
    def add(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        id: Any = None,
        namespace: Any = None,
        **named: Any,
    ) -> Request:
        """A request arrives; the handle that is returned collects its tokens.

        `prompt`, `params` and their fields by name: as in `generate`. `Completion.of(handle)` is its text so far.
        `handle.params` has the seed that the request runs with. `id`: anything hashable, for `abort`; a request without
        one is aborted by its handle. `namespace`: anything hashable; prefixes are shared only within one namespace.
        ValueError, and no change, for a prompt that the model cannot continue, a request that could never fit in the
        pool, or the `id` of a request that is not finished.
        """
        return self._enter(self.request(prompt, sampling_params(params, named), id, namespace))

    @exclusive
    def enter(self, request: Request) -> None:
        """Let in a handle that `stream` made."""
        self._enter(request)

    def request(self, prompt: Prompt, params: SamplingParams, id: Any, namespace: Any) -> Request:
        """The handle of a request that has not arrived. ValueError if it could not. Changes nothing."""
        request = made(self.model.config, self.tokenizer, prompt, params, id, namespace)
        if id in self.requests:
            raise ValueError(f"request id {shown(id)} is taken by a request that is not finished")
        self.scheduler.check(request)
        return request

    def _enter(self, request: Request) -> Request:
        try:
            request.arrival = self._arrived
            self._arrived += 1
            if request.id is None:
                request.id = Name(f"request-{request.arrival}")
            self.observer.arrived(request)
            self.requests[request.id] = request
            self.scheduler.add(request)
        except BaseException:
            self.requests.pop(request.id, None)
            self.scheduler.waiting.pop(request.arrival, None)
            request.arrival = -1  # it has not arrived
            raise
        return request

    @exclusive
    def abort(self, id: Any) -> Request:
        """End a request now, by its id or its handle, which keeps its tokens. ValueError if it is not here."""
        name = id.id if isinstance(id, Request) else id
        check_hashable("id", name)
        if name not in self.requests or (isinstance(id, Request) and self.requests[name] is not id):
            hint = "give the handle that add() returned, or the id that you gave to add()"
            raise ValueError(f"no unfinished request of this engine has the id {shown(name)}: {hint}")
        return self._abort(self.requests[name])

    def _abort(self, request: Request) -> Request:
        try:
            request.finish_reason = "abort"
            self.observer.aborted(request)
            self.speculation.end(request)  # while it still has its pages
            self._leave(request)
        except BaseException:
            self._begin_anew()
            raise
        finally:
            request.notify()
        return request

    def abandon(self, requests: Sequence[Request]) -> None:
        """Abort requests whose caller is gone: now, or at the beginning of the next step if a call is under way."""
        self._abandoned += requests
        if not self.calls:
            self._sweep()

    def _abort_abandoned(self) -> None:
        while self._abandoned:
            if self.requests.get(self._abandoned[-1].id) is self._abandoned[-1]:
                self._abort(self._abandoned[-1])
            self._abandoned.pop()

    _sweep = exclusive(_abort_abandoned)

    @exclusive
    def forget(self) -> None:
        """Forget every cached prefix, as after a change of weights. Running requests wait again and lose no token.

        (After a change of dtype or device make another engine: the pages are of the old one.)
        """
        try:
            self._begin_anew()
        except BaseException:  # interrupted
            self._begin_anew()
            raise
        self.runner.forget()

    def stream(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None, n: int | None = None, **named: Any
    ) -> Stream:
        """Yield what is new of the texts as it comes, one `Delta` after another. None is lost if others call step().

        Prompts, parameters and `n` are those of `generate`. A delta's `index` is that of its text: sample j of prompt i
        is number i · n + j. The prompts arrive with the first `next`. `close()`, the end of a `with` block, or dropping
        the last reference aborts what is unfinished. An interrupt loses nothing: call `next` again. A request whose
        logits are broken ends with a delta whose `finish_reason` is "error". ValueError as from `add`, at once and
        before any prompt is taken.
        """
        return Stream(self, prompts, sampling_params(params, named), n)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        n: int | None = None,
        *,
        progress: bool = False,
        **named: Any,
    ) -> Any:
        """Continue prompts. One prompt gives a `Completion`. A list of prompts, or `n`, gives a list, even of one.

        A prompt is a text (continued as it stands), a chat (messages with a role and a content each) or token ids.
        `params`: one object for all prompts, or a list with one for each. Or give its fields by name: `temperature=1`.
        Requests that share one params object get a seed each (`SamplingParams.split`); objects with equal seeds draw
        the same noise. `n`: samples of each prompt; those of the first prompt come first. `progress`: a bar on standard
        error. ValueError as from `add`, before any prompt is taken. A request whose logits are broken fails alone, with
        a warning: its `finish_reason` is "error". An interrupt aborts all requests of the call.
        """
        shown = switch("progress", progress)
        with (
            Stream(self, prompts, sampling_params(params, named), n) as stream,
            bar(len(stream.requests), shown) as tell,
        ):
            completions = stream.completions(tell)
        return completions[0] if stream.one else completions

    @property
    def stats(self) -> Stats:
        """Totals so far and the pool as it stands."""
        return replace(
            self.observer.totals,
            steps_by_drafts=dict(sorted(self.speculation.steps.items())),
            why=self.speculation.why,
            preemptions=self.scheduler.preemptions,
            evicted_pages=self.tree.evicted,
            pages_cached=len(self.tree),
            pages_private=self.pool.num_pages - self.pool.free - len(self.tree),
        )

    def __repr__(self) -> str:
        waiting, drafter = len(self.scheduler.waiting), self.speculation.drafter
        pages = f"{self.pool.num_pages} pages of {self.pool.page_size} tokens, {len(self.tree)} with cached prefixes"
        requests = f"{len(self.requests) - waiting} running, {waiting} waiting"
        return f"<Engine on {self.model.device}: {pages}; drafter {drafter}; {requests}>"

    def __reduce__(self) -> Any:
        raise TypeError("an Engine is not copied or saved: it holds a KV pool and requests; make another of its model")
