"""A step that fails or is interrupted at any line loses nothing, strands no request and leaks no page."""

import os
import sys
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import inference_opt
from inference_opt import naive
from inference_opt.engine.engine import Engine
from inference_opt.engine.request import Pages
from inference_opt.lab.eviction.learned import Odds
from inference_opt.loading.tokenizer import Tokenizer
from inference_opt.radix.eviction import LRU
from inference_opt.sampling import SamplingParams
from inference_opt.speculative import rules
from inference_opt.speculative.drafter import Draft, Drafter
from inference_opt.speculative.lookup import PromptLookup
from inference_opt.speculative.models import SmallerModel
from tests.engine.invariants import Echo, assert_pages_hold_their_texts, assert_sound, expected
from tests.engine.test_speculation_law import tiny
from tests.toys import toy

PACKAGE = str(Path(inference_opt.__file__).parent)
EVERY = os.environ.get("HYPOTHESIS_PROFILE") == "long"
PROMPTS = ([1, 2, 3, 4, 5], [1, 2, 3, 1, 1], [2, 2, 2])
GREEDY = SamplingParams(max_new_tokens=5, ignore_eos=True)
EACH = (GREEDY, SamplingParams(5, temperature=3.0, seed=3, ignore_eos=True), GREEDY)
ENGINES = {
    "plain": lambda: {},
    "drafts": lambda: {"drafter": PromptLookup(2, 1), "gamma": 2, "rule": rules.coupled},
    "a drafter with a cache": lambda: {"drafter": SmallerModel(Echo(64, slips=3)), "gamma": 2, "rule": rules.coupled},
    "a policy that learns": lambda: {"policy": Odds(9, 2)},
    "no reuse": lambda: {"radix": False},
    "a pool that grows": lambda: {"num_pages": None},
}


def busy_engine(kind):
    """Three requests in nine pages: chunked prompts, shared prefixes, preemption, eviction."""
    engine = Engine(Echo(64), **{"page_size": 2, "num_pages": 9, "token_budget": 6} | ENGINES[kind]())
    return engine, [engine.add(prompt, params) for prompt, params in zip(PROMPTS, EACH)]


def finish(engine, limit=300):
    for _ in range(limit):
        if not engine.requests:
            return
        engine.step()
    raise AssertionError(f"{list(engine.requests)} are never done")


def assert_nothing_lost(engine, requests):
    assert_sound(engine)
    assert_pages_hold_their_texts(engine)
    finish(engine)
    assert_sound(engine)
    for request, prompt, params in zip(requests, PROMPTS, EACH):
        assert request.output == expected(prompt, params, 64)
        assert request.metrics.cached_tokens + request.metrics.prefill_tokens >= len(prompt)
    assert engine.pool.free + len(engine.tree) == engine.pool.num_pages
    assert engine.stats.cached_tokens == sum(request.metrics.cached_tokens for request in requests)


class Lines:
    """Calls `each(n, file, line)` before every line of the package that runs, n counting up."""

    def __init__(self, each):
        self.each, self.n = each, 0

    def __call__(self, frame, event, _):
        file = frame.f_code.co_filename
        if not file.startswith(PACKAGE) or f"{os.sep}steps{os.sep}" in file:
            return None
        if event == "line":
            self.n += 1
            self.each(self.n, file, frame.f_lineno)
        return self

    def during(self, call):
        before = sys.gettrace()
        sys.settrace(self)
        try:
            return call()
        finally:
            sys.settrace(before)


def interrupt_at(at):
    def each(n, *_):
        if n == at:
            sys.settrace(None)
            raise KeyboardInterrupt

    return Lines(each)


def lines_of(call):
    """(line event, file, line), in the order in which the lines run."""
    at = []
    Lines(lambda *place: at.append(place)).during(call)
    return at


def thinned(places):
    """Each line of the package in one of the places where it runs, and of these lines a quarter; or all places."""
    seen = {}
    for place, line in places:
        seen.setdefault(line, place)
    return [place for place, _ in places] if EVERY else [place for line, place in seen.items() if line[1] % 4 == 0]


@lru_cache
def places():
    """Where to interrupt: (kind of engine, step, line event)."""
    found = []
    for kind in ENGINES:
        engine, _ = busy_engine(kind)
        for step in range(100):
            if not engine.requests:
                break
            at = lines_of(engine.step)
            # The first time that a line runs, or the last.
            found += [((kind, step, n), (file, line)) for n, file, line in (at[::-1] if step % 2 else at)]
    return thinned(found)


@pytest.mark.parametrize("kind", ENGINES)
def test_an_interrupt_at_any_line_of_a_step_loses_nothing(kind):
    assert len(places()) > 50
    for _, steps, at in [place for place in places() if place[0] == kind]:
        engine, requests = busy_engine(kind)
        for _ in range(steps):
            engine.step()
        with pytest.raises(KeyboardInterrupt):
            interrupt_at(at).during(engine.step)
        assert_nothing_lost(engine, requests)


@pytest.mark.parametrize("kind", ["plain", "a policy that learns"])
@pytest.mark.parametrize("call", ["add", "abort", "forget"])
def test_an_interrupted_call_was_made_or_not(kind, call):
    def begun():
        engine, requests = busy_engine(kind)
        for _ in range(3):
            engine.step()
        return engine, requests

    def made(engine, requests):
        calls = {"add": lambda: engine.add([4, 4], GREEDY), "abort": lambda: engine.abort(requests[1].id)}
        return calls.get(call, engine.forget)()

    scene = begun()
    at = thinned([(n, (file, line)) for n, file, line in lines_of(lambda: made(*scene))])
    assert len(at) > 5
    for n in at:
        engine, requests = begun()
        with pytest.raises(KeyboardInterrupt):
            interrupt_at(n).during(lambda: made(engine, requests))  # noqa: B023
        assert_sound(engine)
        if requests[1].finished:
            requests[1].tokens.extend(expected(PROMPTS[1], EACH[1], 64)[len(requests[1].output) :])
        assert_nothing_lost(engine, requests)


class Fails:
    """A callback that raises at its n-th call."""

    def __init__(self, whole, at):
        self.whole, self.at, self.calls = whole, at, 0

    def __call__(self, *args):
        self.calls += 1
        if self.calls == self.at:
            raise OSError("disk full")
        return self.whole(*args)


class Letters(Tokenizer):
    """A tokenizer that is its own detokenizer, for stop strings."""

    def __init__(self, hook=lambda: None):
        self.text, self.hook = "", hook

    def detokenizer(self):
        return Letters(self.hook)

    def add(self, token):
        self.hook()
        self.text += "abcdef"[token]
        return "abcdef"[token]


CALLBACKS = ["LRU.touch", "LRU.key", "LRU.cuts", "Odds.touch", "Odds.key", "Odds.cuts", "Odds.worth"]
CALLBACKS += ["tokenizer", "drafter.propose", "drafter.observe"]


@pytest.mark.parametrize("place", CALLBACKS)
def test_a_callback_that_fails_at_any_call_loses_nothing(place):
    """In the small profile at the first calls and, the later the rarer, at others."""
    at, failed = 1, 0
    while True:
        owner, _, name = place.partition(".")
        policy = Odds(9, 2) if owner == "Odds" else LRU()
        letters, drafter = Letters(), PromptLookup(2, 1)
        engine = Engine(Echo(64), page_size=2, num_pages=9, token_budget=6, policy=policy, tokenizer=letters,
                        drafter=drafter if owner == "drafter" else None, gamma=2, rule=rules.coupled)  # fmt: skip
        if place == "tokenizer":
            fails = letters.hook = Fails(lambda: None, at)
        else:
            target = engine.speculation.drafter if owner == "drafter" else policy
            fails = Fails(getattr(target, name), at)
            setattr(target, name, fails)
        stopped = [SamplingParams(**{**vars(params), "stop": ("zz",)}) for params in EACH]
        requests = [engine.add(prompt, params) for prompt, params in zip(PROMPTS, stopped)]
        raised = 0
        for _ in range(300):
            if not engine.requests:
                break
            try:
                engine.step()
            except OSError:
                raised, fails.at = 1, None
                assert_sound(engine)
        fails.at = None  # checks call it, too
        assert_nothing_lost(engine, requests)
        if not raised:
            break
        failed += 1
        at += 1 if EVERY else 1 + at // 6
    assert failed >= 3


def test_what_a_failed_step_found_is_not_counted():
    model = Echo(64)
    engine = Engine(model, page_size=2, num_pages=40)
    one = SamplingParams(max_new_tokens=1, ignore_eos=True)
    engine.generate([[1, 2, 3, 4, 5]], one)
    request = engine.add([1, 2, 3, 4, 4], one)
    model.fault = "before"
    with pytest.raises(RuntimeError, match="broken"):
        engine.step()
    finish(engine)
    assert (request.metrics.cached_tokens, request.metrics.prefill_tokens) == (0, 5)
    assert engine.stats.hit_rate == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", [None, PromptLookup(2, 1)])
def test_a_request_of_broken_logits_fails_alone(temperature, drafter):
    model = toy(3, max_context=24)
    with torch.no_grad():
        model.embed.weight[7] = float("nan")  # whoever reads this token gets NaN
    params = SamplingParams(6, temperature=temperature, seed=1, ignore_eos=True)
    engine = Engine(model, page_size=2, drafter=drafter, rule=rules.coupled)
    good, bad, late = (engine.add(prompt, params, id=name) for name, prompt in
                       (("good", [1, 2, 1, 2]), ("bad", [1, 2, 7]), ("late", [1, 2, 7, 3])))  # fmt: skip
    finish(engine)
    assert_sound(engine)
    assert good.output == naive.generate(model, [1, 2, 1, 2], params)
    for request in (bad, late):
        assert (request.finish_reason, request.output) == ("error", [])
        assert "NaN or infinity" in request.error
    assert good.error is None
    # Nothing that was computed of the broken text is kept: with sound weights it is computed anew.
    with torch.no_grad():
        model.embed.weight[7] = 1.0
    again = engine.add([1, 2, 7, 3], params)
    finish(engine)
    assert again.output == naive.generate(model, [1, 2, 7, 3], params)


def test_a_call_has_all_of_the_others_and_says_which_was_broken():
    model = toy(3, max_context=24)
    with torch.no_grad():
        model.embed.weight[7] = float("nan")
    engine = Engine(model, page_size=2)
    whole = naive.generate(model, [1, 2, 1, 2], GREEDY)
    with pytest.warns(match="completion 1 ended after 0 tokens: .*NaN"):
        good, broken = engine.generate([[1, 2, 1, 2], [1, 2, 7]], GREEDY)
    assert (good.tokens, broken.tokens) == (whole, [])
    assert good.error is None
    assert broken.finish_reason == "error"
    assert "NaN" in broken.error
    deltas = list(engine.stream([[1, 2, 1, 2], [1, 2, 7]], GREEDY))
    assert [token for new in deltas if new.index == 0 for token in new.tokens] == whole
    (last,) = (new for new in deltas if new.index == 1)
    assert (last.tokens, last.finish_reason, last.error) == ([], "error", broken.error)
    assert not engine.requests


class Sevens(Drafter):
    """Always guesses the token that breaks the model."""

    found = True

    def propose(self, requests):
        return [Draft([7] * each.gamma) for each in requests]


@pytest.mark.parametrize("rule", [rules.token_wise, rules.coupled, rules.point_mass])
def test_a_draft_into_broken_logits_harms_its_text_only_if_it_is_accepted(rule):
    model, drafted, ended, accepted = toy(3, max_context=24), 0, set(), 0
    with torch.no_grad():
        model.embed.weight[7] = float("nan")
    for seed in range(12):
        for temperature in (0.0, 3.0):
            params = SamplingParams(6, temperature=temperature, seed=seed, ignore_eos=True)
            engine = Engine(model, page_size=2, drafter=Sevens(), rule=rule, gamma=2)
            request = engine.add([1, 2, 1], params)
            finish(engine)
            drafted += request.metrics.drafted_tokens
            ended.add(request.finish_reason)
            assert 7 not in request.output[:-1]
            accepted += request.metrics.accepted_tokens
            assert (request.finish_reason == "error") == (7 in request.output and len(request.output) < 6)
            if rule is rules.coupled or temperature == 0:
                oracle = naive.stream(model, [1, 2, 1], params)
                assert request.output == [next(oracle) for _ in request.output]
    assert drafted > 0
    assert accepted > 0, "a draft that is kept counts as accepted, though the row behind it is broken"
    assert ended == {"error", "length"}


def test_judging_a_draft_as_far_as_its_rows_are_sound_keeps_the_distribution():
    """Of a draft [7, x] the row behind 7 is broken: what is emitted in front of it has the target's distribution."""
    model = tiny(3, 2)
    engine = Engine(model, drafter=SmallerModel(tiny(7, 2, depth=1)), gamma=1, page_size=2, num_pages=16)
    params, rng, counts = SamplingParams(4, temperature=1.0, seed=0), np.random.default_rng(0), Counter()
    p, q = np.array([0.3, 0.7]), np.array([0.6, 0.4])
    for i in range(4_000):
        request = engine.request([1, 0, 1], replace(params, seed=i), None, None)
        draft = Draft([int(rng.random() >= q[0])], [q])
        counts[engine.speculation.accept(request, torch.tensor(np.log(p))[None], draft)[0]] += 1
    # A false alarm in 10,000; dropping the draft's 0 instead gives χ² over 500.
    assert chisquare([counts[0], counts[1]], 4_000 * p).pvalue > 1e-4


def test_a_drafter_of_broken_logits_drafts_less():
    small, model = toy(5, max_context=24), toy(3, max_context=24)
    with torch.no_grad():
        small.embed.weight[2] = float("nan")
    engine = Engine(model, page_size=2, drafter=SmallerModel(small), gamma=2)
    requests = [engine.add(prompt, GREEDY) for prompt in ([1, 2, 1], [3, 1, 4])]
    finish(engine)
    for request in requests:
        assert request.output == naive.generate(model, request.prompt, GREEDY)
    assert requests[1].metrics.drafted_tokens > 0


def test_calls_from_inside_a_step_and_from_another_thread_are_refused():
    class Meddles(LRU):
        engine = None

        def touch(self, *use):
            if self.engine is not None:
                self.call(self.engine)

    calls = {
        "step": lambda e: e.step(),
        "add": lambda e: e.add([1], GREEDY),
        "abort": lambda e: e.abort("request-0"),
    }
    for name, call in calls.items():
        policy = Meddles()
        engine = Engine(Echo(64), page_size=2, num_pages=9, policy=policy)
        request = engine.add(PROMPTS[0], GREEDY)
        policy.engine, policy.call = engine, call
        with pytest.raises(RuntimeError, match=rf"{name}\(\) was called while another call"):
            engine.step()
        policy.engine = None
        finish(engine)
        assert request.output == expected(PROMPTS[0], GREEDY, 64)


def test_a_handle_ends_its_own_request_and_no_other():
    one, other = (Engine(Echo(64), page_size=2, num_pages=20) for _ in range(2))
    mine, its = one.add([1, 2], GREEDY), other.add([1, 2], GREEDY)
    with pytest.raises(ValueError, match="no unfinished request of this engine"):
        other.abort(mine)
    done = one.add([3], SamplingParams(1), id="x")
    one.step()
    again = one.add([3], GREEDY, id="x")
    with pytest.raises(ValueError, match="no unfinished request of this engine"):
        one.abort(done)
    assert one.abort("x") is again
    assert not its.finished


def test_an_error_while_a_step_is_recovered_strands_nobody():
    engine = Engine(Echo(64), page_size=2, num_pages=20)
    held, free = engine.add([1, 2, 3], GREEDY), engine.add([4, 4], GREEDY)
    engine.step()
    view = memoryview(held.tokens)  # tokens cannot grow as long as somebody looks at their memory
    with pytest.raises(BufferError):
        engine.step()
    assert_sound(engine)
    view.release()
    finish(engine)
    assert [held.output, free.output] == [expected(r.prompt, GREEDY, 64) for r in (held, free)]


def test_what_is_finished_holds_no_page_and_no_notes():
    engine = Engine(Echo(64), page_size=2, num_pages=20, drafter=SmallerModel(Echo(64)), gamma=2)
    handles = [engine.add(prompt, GREEDY) for prompt in PROMPTS]
    finish(engine)
    for request in handles:
        assert (request.pages, request.drafter_state) == (Pages(), None)


def test_a_request_that_ends_in_its_first_step_keeps_nothing_of_the_drafter():
    engine = Engine(toy(3, max_context=24), page_size=2, drafter=SmallerModel(toy(5, max_context=24)), gamma=2)
    request = engine.add([1, 2, 1], SamplingParams(1, ignore_eos=True))
    finish(engine)
    assert request.finish_reason == "length"
    assert request.drafter_state is None
