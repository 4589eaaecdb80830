"""Continuous batching over paged, shared pages gives each prompt the tokens of `naive.generate` alone."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_opt import load_model, naive
from inference_opt.engine.engine import Engine
from inference_opt.lab.agreement import compare
from inference_opt.loading.prompts import load_prompts
from inference_opt.model.attention import NoCache
from inference_opt.radix.eviction import LRU
from inference_opt.sampling import SamplingParams
from tests.engine.invariants import Echo, assert_sound, dump, expected
from tests.toys import PARAMS, SHAPES, tokens_of, toy

STEMS = st.sampled_from([[], [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 4, 4, 4, 4], [5] * 8])
PROMPT = st.tuples(STEMS, st.integers(0, 8), st.lists(st.integers(0, 12), min_size=1, max_size=4)).map(
    lambda drawn: [*drawn[0][: drawn[1]], *drawn[2]]
)
REQUEST = st.fixed_dictionaries(
    {
        "prompt": PROMPT,
        "params": PARAMS,
        "namespace": st.sampled_from([None, None, "a"]),
        "arrives": st.integers(0, 6),  # before this step
        "leaves": st.sampled_from([None, None, None, 1, 3, 6]),  # aborted so many steps later
    }
)
LIMITS = st.fixed_dictionaries(
    {
        "page_size": st.sampled_from([1, 2, 3, 4, 5, 16]),
        "token_budget": st.sampled_from([1, 2, 3, 7, 512]),
        "max_running": st.sampled_from([1, 2, 64]),
        "patience": st.sampled_from([0, 1, 16]),
        "radix": st.booleans(),
    }
)


@settings(suppress_health_check=[HealthCheck.large_base_example])
@given(SHAPES, st.lists(REQUEST, min_size=1, max_size=6), LIMITS, st.integers(0, 12))
def test_every_text_is_the_naive_one(shape, drawn, limits, slack):
    model = toy(**shape)
    most = max(min(len(r["prompt"]) + r["params"].max_new_tokens - 1, 24) for r in drawn)
    pages = -(-most // limits["page_size"]) + slack  # from the least on
    engine, requests, step = Engine(model, num_pages=pages, **limits), {}, 0
    while len(requests) < len(drawn) or engine.requests:
        for i, r in enumerate(drawn):
            if r["arrives"] == step:
                requests[i] = engine.add(r["prompt"], r["params"], namespace=r["namespace"])
            if r["leaves"] and r["arrives"] + r["leaves"] == step and not requests[i].finished:
                engine.abort(requests[i].id)
        engine.step()
        assert_sound(engine)
        step += 1
    for i, r in enumerate(drawn):
        text, oracle = requests[i].output, naive.generate(model, r["prompt"], r["params"])
        assert text == oracle[: len(text)]
        assert requests[i].finish_reason == "abort" or len(text) == len(oracle)
    if not limits["radix"]:
        assert engine.stats.cached_tokens == engine.stats.pages_cached == 0


@given(SHAPES, st.lists(st.tuples(PROMPT, PARAMS), min_size=1, max_size=4), LIMITS)
def test_streamed_tokens_are_the_generated_ones(shape, drawn, limits):
    model = toy(**shape)
    prompts, params = [p for p, _ in drawn], [q for _, q in drawn]
    texts = [[] for _ in prompts]
    engine = Engine(model, **limits)
    for new in engine.stream(prompts, params):
        assert new.tokens
        texts[new.index] += new.tokens
    assert texts == [naive.generate(model, p, q) for p, q in drawn]
    assert tokens_of(engine.generate(prompts, params)) == texts  # again, on a warm tree
    assert engine.requests == {}


def test_a_stream_left_early_aborts_its_own_requests_only():
    engine = Engine(Echo(), page_size=2)
    other = engine.add([4, 4], SamplingParams(max_new_tokens=20, ignore_eos=True))
    stream = engine.stream([[1, 2], [1, 3]], SamplingParams(max_new_tokens=10, ignore_eos=True))
    assert {next(stream).index, next(stream).index} == {0, 1}
    stream.close()
    assert list(engine.requests.values()) == [other]
    assert_sound(engine)
    while not other.finished:
        engine.step()
    assert other.output == expected([4, 4], SamplingParams(max_new_tokens=20, ignore_eos=True))


real_model = cache(load_model)  # in a process of its own


def test_stop_strings_end_the_same_tokens(apart, smollm2_path):
    apart(stop_strings_end_the_same_tokens, smollm2_path)


def stop_strings_end_the_same_tokens(path):
    model, tokenizer = real_model(path, dtype="float32")
    prompt = load_prompts()[0].ids(tokenizer)
    params = SamplingParams(max_new_tokens=40, stop=("light",))
    engine = Engine(model, tokenizer=tokenizer, num_pages=16)
    request = engine.add(prompt, params)
    while not request.finished:
        engine.step()
    assert request.finish_reason == "stop"
    assert "light" in tokenizer.decode(request.output)
    assert "light" not in tokenizer.decode(request.output[:-1])
    with pytest.raises(ValueError, match="tokenizer"):
        Engine(model, num_pages=16).add(prompt, params)


def test_the_real_model_agrees_with_naive_in_a_mixed_batch(apart, smollm2_path):
    apart(agrees_with_naive_in_a_mixed_batch, smollm2_path)


def agrees_with_naive_in_a_mixed_batch(path):
    model, tokenizer = real_model(path, dtype="float32")
    questions = [p.text for p in load_prompts()[:5]]
    questions += [f"{questions[i][:40]} {word}?" for i in range(2) for word in ("one", "two", "three", "four")]
    prompts = [tokenizer.chat(text) for text in (*questions, *questions[:3])]
    engine = Engine(model, page_size=16, num_pages=60, token_budget=128, max_running=8)
    for prompt, text in zip(prompts, tokens_of(engine.generate(prompts, SamplingParams(max_new_tokens=12)))):
        # What naive decoding says after each token of the text, in one pass: up to a first difference, its tokens.
        ids = torch.tensor([*prompt, *text[:-1]])
        with torch.inference_mode():
            logits = model(ids, torch.arange(len(ids)), NoCache([len(ids)]))[len(prompt) - 1 :]
        agreement = compare(model, prompt, logits.argmax(-1).tolist(), text)
        assert agreement.exact, agreement
        assert len(text) == 12 or text[-1] in model.config.eos_token_ids
    assert len(prompts) == 16
    assert engine.stats.cached_tokens > 0
    assert_sound(engine)


def crowd(patience, arrivals=40):
    """Steps until a stranger runs, while requests that find a long prefix keep arriving, two a step."""
    engine = Engine(Echo(max_context=64), page_size=2, num_pages=40, max_running=2, patience=patience)
    popular, short = [1, 2, 3] * 5, SamplingParams(max_new_tokens=1)
    tokens_of(engine.generate([popular], short))
    stranger = engine.add([5, 5, 5], short)
    for i in range(arrivals):
        for tail in (1, 2):
            engine.add([*popular, tail, i % 5], short)
        engine.step()
        assert_sound(engine)
        if stranger.finished:
            break
    return stranger


@pytest.mark.parametrize("patience", [0, 1, 4, 9])
def test_none_is_overtaken_more_often_than_patience_allows(patience):
    stranger = crowd(patience)
    assert stranger.finished
    assert stranger.metrics.overtaken == patience
    assert stranger.metrics.admitted_step - stranger.metrics.arrived_step == patience // 2


def test_without_the_bound_a_stranger_starves():
    stranger = crowd(patience=10**6)
    assert not stranger.finished
    assert stranger.metrics.overtaken == 80


def test_what_is_observed_of_two_prompts_that_share_a_stem():
    engine = Engine(Echo(), page_size=4, num_pages=20)
    params = SamplingParams(max_new_tokens=3, ignore_eos=True)
    first = engine.add([1, 2, 3, 4, 5, 1, 2, 3, 4], params)
    engine.step()
    second = engine.add([1, 2, 3, 4, 5, 1, 2, 3, 5, 5], params)
    while engine.requests:
        engine.step()
    for request, cached, computed in ((first, 0, 9), (second, 8, 2)):
        m = request.metrics
        assert (m.cached_tokens, m.prefill_tokens, m.prefill_steps) == (cached, computed, 1)
        assert (m.decode_steps, m.preemptions, m.overtaken, m.admitted_step) == (2, 0, 0, m.arrived_step)
        assert m.arrived <= m.admitted <= m.first_token <= m.finished
    assert (first.metrics.arrived_step, second.metrics.arrived_step) == (0, 1)
    stats = engine.stats
    assert (stats.steps, stats.prefill_tokens, stats.decode_tokens, stats.cached_tokens) == (4, 11, 4, 8)
    assert stats.hit_rate == 8 / 19
    # 11 and 12 tokens were computed: pages of 8 are common, the second has one more that is full.
    assert (stats.pages, stats.pages_cached, stats.pages_private) == (20, 3, 0)
    assert stats.run_seconds >= 0 <= stats.schedule_seconds
    assert Engine(Echo()).stats.hit_rate == 0


def test_totals_are_the_sums_of_the_requests():
    engine = Engine(Echo(), page_size=2, num_pages=9, token_budget=3)
    prompts = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 1, 2], [1, 2, 2, 2, 2], [1, 2, 3, 4, 1]]
    requests = [engine.add(prompt, SamplingParams(max_new_tokens=8, ignore_eos=True)) for prompt in prompts]
    fed = 0
    while engine.requests:
        fed += sum(output.count for output in engine.step())
        stats, each = engine.stats, [request.metrics for request in requests]
        assert fed == stats.prefill_tokens + stats.decode_tokens
        assert stats.prefill_tokens == sum(m.prefill_tokens for m in each)
        assert stats.decode_tokens == sum(m.decode_steps for m in each)
        assert stats.cached_tokens == sum(m.cached_tokens for m in each)
        assert stats.preemptions == sum(m.preemptions for m in each)
    assert stats.preemptions > 0 < stats.evicted_pages


def test_a_failed_step_is_survived():
    model = Echo()
    engine = Engine(model, page_size=2, num_pages=12)
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    requests = [engine.add([1, 2, 3, tail], params) for tail in (1, 2)]
    for fault in ("before", "between"):
        engine.step()
        model.fault = fault
        with pytest.raises(RuntimeError, match="broken"):
            engine.step()
        assert_sound(engine)
        assert (engine.scheduler.running, len(engine.tree)) == ([], 0)
    while engine.requests:
        engine.step()
    assert [r.output for r in requests] == [expected([1, 2, 3, tail], params) for tail in (1, 2)]


def test_an_interrupted_schedule_leaves_no_promise_in_the_tree():
    class Interrupted(LRU):
        uses = 0

        def touch(self, *use):
            self.uses += 1
            if self.uses == 3:  # the first request has its pages and its place in the tree, the second comes
                raise KeyboardInterrupt

    engine = Engine(Echo(), page_size=2, num_pages=16, policy=Interrupted())
    prompts, params = ([1, 2, 3, 4, 5], [3, 3, 3]), SamplingParams(max_new_tokens=3, ignore_eos=True)
    first, _ = [engine.add(prompt, params) for prompt in prompts]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.abort(first.id)
    assert tokens_of(engine.generate(prompts[:1], params)) == [expected(prompts[0], params)]
    assert_sound(engine)


LONG = SamplingParams(max_new_tokens=16)
BAD_CALLS = {
    "can never fit.*need 9 pages of 2, the pool has 4": lambda e: e.add([1, 2], LONG),
    "'first' is taken": lambda e: e.add([1], replace(LONG, max_new_tokens=1), id="first"),
    "prompt is empty": lambda e: e.add([], LONG),
    "outside the vocabulary": lambda e: e.add([1, 6], LONG),
    "context holds 24": lambda e: e.add([1] * 25, LONG),
    # A tuple says that it is hashable, even if what it holds is not.
    "id must be hashable": lambda e: e.add([1], replace(LONG, max_new_tokens=1), id=([],)),
    "namespace must be hashable": lambda e: e.add([1], replace(LONG, max_new_tokens=1), namespace=([],)),
    "need a tokenizer": lambda e: e.add([1], replace(LONG, max_new_tokens=1, stop=("x",))),
    "no unfinished request of this engine has the id 'nobody'": lambda e: e.abort("nobody"),
    "got 2 for 1": lambda e: e.generate([[1]], [LONG, LONG]),
    "got 1 for 2": lambda e: e.generate([[1], [2]], [LONG]),
    "there are no prompts": lambda e: e.generate([], []),
    "can never fit": lambda e: e.generate([[1], [2]], [replace(LONG, max_new_tokens=1), LONG]),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_calls_change_nothing(message):
    engine = Engine(Echo(), page_size=2, num_pages=4)
    engine.add([1, 2, 3], SamplingParams(max_new_tokens=4, ignore_eos=True), id="first")
    engine.step()
    before = dump(engine)
    with pytest.raises(ValueError, match=message):
        BAD_CALLS[message](engine)
    assert dump(engine) == before
    engine.step()
    assert_sound(engine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_pages": 0}, "at least one page"),
        ({"page_size": 0}, "at least one page"),
        ({"page_size": -2}, "at least one page"),
        ({"token_budget": 0}, "token_budget must be at least 1, got 0"),
        ({"max_running": 0}, "max_running must be at least 1, got 0"),
        ({"patience": -1}, "patience must be at least 0, got -1"),
    ],
)
def test_engines_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        Engine(Echo(), **change)


def test_an_id_is_free_again_when_its_request_is_done():
    engine = Engine(Echo())
    for _ in range(2):
        request = engine.add([1], SamplingParams(max_new_tokens=1), id="again")
        engine.step()
        assert request.finish_reason in ("length", "eos")
    assert engine.step() == []
