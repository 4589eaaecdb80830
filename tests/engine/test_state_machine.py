"""Any sequence of calls keeps the engine sound, and every text is the one its prompt gives alone.

`make test-long` runs this machine and the tree's own (`tests/radix/test_radix.py`) for more than 200,000 steps.
"""

import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inference_opt.engine.engine import Engine
from inference_opt.sampling import SamplingParams
from inference_opt.speculative import rules
from inference_opt.speculative.eagle import Eagle
from inference_opt.speculative.lookup import NGram, PromptLookup
from inference_opt.speculative.models import FirstLayers, SmallerModel
from tests.engine.invariants import (
    Echo,
    assert_pages_hold_their_texts,
    assert_sound,
    content,
    dump,
    expected,
    random_head,
    watch_drafter,
)

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
ECHO = Echo()
DRAFTERS = {
    "none": None,
    "copies": PromptLookup(2, 1),
    "counts": NGram(3),
    "slips": SmallerModel(Echo(slips=3)),
    "is sure": SmallerModel(Echo()),
    "stops early": SmallerModel(Echo(slips=2), confidence=0.6),
    "first layer": FirstLayers(),
    "untrained": Eagle(random_head(ECHO)),
}
STEMS = [(1, 2, 1, 2, 1, 2, 1, 2, 1, 2), (1, 2, 1, 1, 3, 3, 3, 1, 2, 2), (4, 4, 4, 4, 4, 4, 4, 4, 4, 4)]
PROMPT = st.builds(
    lambda stem, cut, tail: [*STEMS[stem][:cut], *tail],
    st.integers(0, 2),
    st.integers(0, 10),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
NAMESPACE = st.sampled_from([None, None, "a", "b"])
PARAMS = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(1, 8),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    seed=st.integers(0, 2),
    ignore_eos=st.booleans(),
    gamma=st.sampled_from([None, None, 0, 1, 3]),
    logprobs=st.booleans(),
)


class EngineMachine(RuleBasedStateMachine):
    steps = 0  # of all runs

    @initialize(
        page_size=st.integers(1, 4),
        slack=st.integers(0, 14),
        token_budget=st.sampled_from([1, 2, 3, 5, 8, 64]),
        max_running=st.sampled_from([1, 2, 3, 8]),
        patience=st.sampled_from([0, 1, 2, 16]),
        radix=st.sampled_from([True, True, True, False]),
        drafter=st.sampled_from(sorted(DRAFTERS)),
        gamma=st.sampled_from([None, 1, 2, 5]),
        rule=st.sampled_from([rules.token_wise, rules.block, rules.coupled, None, rules.tree, rules.multi_draft]),
        draft_rows=st.sampled_from([0, 3, 8, 64, 64]),
    )
    def start(self, page_size, slack, token_budget, max_running, patience, radix, drafter, gamma, rule, draft_rows):
        pages = -(-6 // page_size) + slack
        limits = {"token_budget": token_budget, "max_running": max_running, "patience": patience}
        drafts = {"gamma": gamma, "rule": rule, "draft_rows": draft_rows}
        self.engine = Engine(
            ECHO, radix=radix, drafter=DRAFTERS[drafter], page_size=page_size, num_pages=pages, **limits, **drafts
        )
        watch_drafter(self.engine)
        self.removed, self.batch = set(), None
        self.watch()
        self.texts = {}  # id: (request, the tokens it must give)
        ECHO.fault = None

    def watch(self):
        """Remember the pages that the tree gives up, and the last batch of the cache."""
        tree, cache = self.engine.tree, self.engine.cache

        def batch(*args, whole=cache.batch):
            self.batch = whole(*args)
            return self.batch

        def gives_up(whole):
            def call(*args):
                pages = whole(*args)
                self.removed |= set(pages)
                return pages

            return call

        cache.batch, tree.evict, tree.discard = batch, gives_up(tree.evict), gives_up(tree.discard)

    def refused(self, message, call, *args, **kwargs):
        before = dump(self.engine)
        with pytest.raises(ValueError, match=message):
            call(*args, **kwargs)
        assert dump(self.engine) == before, "an error changed something"

    @rule(prompt=PROMPT, params=PARAMS, namespace=NAMESPACE)
    def add(self, prompt, params, namespace):
        engine, name = self.engine, len(self.texts)
        if params.temperature and engine.speculation.rule is not rules.coupled:
            params = replace(params, gamma=0)  # other rules keep the law, not the token
        if engine.pool.pages_for(len(prompt) + params.max_new_tokens - 1) > engine.pool.num_pages:
            self.refused("never fit", engine.add, prompt, params, namespace=namespace)
        else:
            request = engine.add(prompt, params, id=name, namespace=namespace)
            self.texts[name] = request, expected(prompt, params)

    @rule(prompts=st.lists(PROMPT, min_size=2, max_size=5), params=PARAMS, namespace=NAMESPACE)
    def add_several(self, prompts, params, namespace):
        for prompt in prompts:
            self.add(prompt, params, namespace)

    def advance(self):
        busy, cached = bool(self.engine.requests), set(content(self.engine.tree))
        self.removed.clear()
        outputs = self.engine.step()
        if outputs:
            written = {slot // self.engine.pool.page_size for slot in self.batch.slots.tolist()}
            assert not written & (cached - self.removed), "a page that others read is never written again"
        assert bool(outputs) == busy, "a step of an engine with requests does something"
        scheduler, rows = self.engine.scheduler, sum(o.count + len(o.drafted) for o in outputs)
        assert rows <= scheduler.token_budget
        assert rows <= scheduler.draft_rows or not any(o.drafted for o in outputs)
        for o in outputs:
            assert len(o.tokens) <= len(o.drafted) + 1
            assert len(o.drafted) <= (5 if o.request.params.gamma is None else o.request.params.gamma) or (
                self.engine.speculation.fixed is None and len(o.drafted) <= 8
            )
            assert len(o.request.logprobs) == len(o.request.output) * o.request.params.logprobs
            if o.request.finished:
                request, text = self.texts[o.request.id]
                assert request.output == text
                assert request.metrics.cached_tokens + request.metrics.prefill_tokens >= len(request.prompt)

    @rule()
    def step(self):
        self.advance()

    @rule()
    def step_again(self):
        self.advance()

    @precondition(lambda self: self.engine.requests)
    @rule(fault=st.sampled_from(["before", "between"]))
    def step_that_fails(self, fault):
        ECHO.fault = fault
        with pytest.raises(RuntimeError, match="broken"):
            self.engine.step()
        assert not self.engine.scheduler.running
        assert len(self.engine.tree) == 0

    @precondition(lambda self: self.engine.requests)
    @rule()
    def step_of_broken_logits(self):
        """Whoever would have sampled ends with an error; the others go on.

        So does who had drafts: his rows are read again without them, and by then the fault has passed.
        """
        ECHO.fault = "nan"
        known = {request: len(request.tokens) for request in self.engine.requests.values()}
        for output in self.engine.step():
            request, text = self.texts[output.request.id]
            sampled = output.start + output.count == known[request]
            if not isinstance(self.engine.speculation.drafter, FirstLayers):  # these meet the fault before the target
                broken = sampled and not output.drafted
                assert (request.finish_reason == "error") == broken
                assert bool(output.tokens) == (sampled and not broken)
            assert request.output == text[: len(request.output)]
        ECHO.fault = None

    @precondition(lambda self: self.engine.requests and self.engine.speculation.drafter)
    @rule(
        where=st.sampled_from(["propose", "observe"]),
        when=st.sampled_from(["before", "after"]),
        error=st.sampled_from([RuntimeError, KeyboardInterrupt]),
    )
    def step_whose_drafter_fails(self, where, when, error):
        drafter = self.engine.speculation.drafter
        whole = getattr(drafter, where)

        def broken(given):
            if when == "after":
                whole(given)
            raise error("broken drafter")

        setattr(drafter, where, broken)
        try:
            self.engine.step()
        except error:
            assert not self.engine.scheduler.running
            assert len(self.engine.tree) == 0
        finally:
            setattr(drafter, where, whole)

    @precondition(lambda self: self.engine.requests and hasattr(self.engine.speculation.drafter, "model"))
    @rule(fault=st.sampled_from(["before", "between", "nan"]))
    def step_whose_drafter_breaks_midway(self, fault):
        model = self.engine.speculation.drafter.model
        model.fault = fault
        try:
            self.engine.step()
        except (RuntimeError, ValueError) as error:
            assert "broken" in str(error)  # noqa: PT017
            assert not self.engine.scheduler.running
        finally:
            model.fault = None

    @precondition(lambda self: self.engine.requests)
    @rule(data=st.data())
    def abort(self, data):
        name = data.draw(st.sampled_from(sorted(self.engine.requests)))
        assert self.engine.abort(name).finish_reason == "abort"

    @precondition(lambda self: self.engine.requests)
    @rule(prompt=PROMPT, params=PARAMS, data=st.data())
    def add_a_duplicate(self, prompt, params, data):
        name = data.draw(st.sampled_from(sorted(self.engine.requests)))
        self.refused("taken", self.engine.add, prompt, params, id=name)

    @rule()
    def abort_of_none(self):
        self.refused("no unfinished", self.engine.abort, "nobody")

    @precondition(lambda self: self.free_nodes())
    @rule(data=st.data())
    def unlock_without_lock(self, data):
        self.refused("not locked", self.engine.tree.unlock, data.draw(st.sampled_from(self.free_nodes())))

    def free_nodes(self):
        return [node for node in self.engine.tree.nodes() if node.users == 0]

    @precondition(lambda self: len(self.engine.tree))
    @rule(data=st.data())
    def insert_what_is_owned(self, data):
        page = data.draw(st.sampled_from(sorted(content(self.engine.tree))))
        self.refused("owns each page once", self.engine.tree.insert, [5] * self.engine.tree.page_size, [page])

    @rule(text=PROMPT, namespace=NAMESPACE)
    def ask(self, text, namespace):
        size, tree = self.engine.tree.page_size, self.engine.tree
        held, pages = {None: ()}, content(tree)  # each page's whole prefix, page by page
        for page, (_, before, tokens) in pages.items():  # pages stand behind those before them
            held[page] = held[before] + tokens
        prefixes = {(pages[page][0], prefix) for page, prefix in held.items() if page is not None}
        longest = 0
        while longest + size <= len(text) and (namespace, tuple(text[: longest + size])) in prefixes:
            longest += size
        assert tree.cached(text, namespace) == longest

    @invariant()
    def sound(self):
        if not hasattr(self, "engine"):
            return
        EngineMachine.steps += 1
        assert_sound(self.engine)
        assert_pages_hold_their_texts(self.engine)
        for request in self.engine.requests.values():
            text = self.texts[request.id][1]
            assert request.output == text[: len(request.output)]

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        ECHO.fault = None
        for _ in range(10_000):
            if not self.engine.requests:
                break
            self.advance()
            assert_sound(self.engine)
        assert not self.engine.requests, "the engine never comes to rest"
        for request, text in self.texts.values():
            if request.finish_reason in ("abort", "error"):
                assert request.output == text[: len(request.output)]
            else:
                assert request.output == text
        assert self.engine.pool.free + len(self.engine.tree) == self.engine.pool.num_pages
        assert self.engine.tree.evictable == len(self.engine.tree)


EngineMachine.TestCase.settings = settings(
    max_examples=1600 if LONG else 60,
    stateful_step_count=80 if LONG else 40,
    suppress_health_check=list(HealthCheck),
)
TestEngine = EngineMachine.TestCase
