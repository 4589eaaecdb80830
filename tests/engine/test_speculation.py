"""Speculation in the engine gives each prompt the tokens that it gets alone, whatever the drafter guesses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_opt import naive
from inference_opt.engine import eager_runner
from inference_opt.engine.engine import Engine
from inference_opt.model.attention import NoCache
from inference_opt.sampling import SamplingParams
from inference_opt.speculative import rules
from inference_opt.speculative.choice import Choice
from inference_opt.speculative.drafter import Draft, Drafter
from inference_opt.speculative.eagle import Eagle
from inference_opt.speculative.lookup import NGram, PromptLookup
from inference_opt.speculative.models import FirstLayers, SmallerModel
from inference_opt.speculative.traversal import traversal
from tests.engine.invariants import VOCAB, Echo, assert_sound, expected, random_head, watch_drafter
from tests.engine.test_engine import PROMPT
from tests.toys import PARAMS, SHAPES, toy

DRAFTERS = {
    "copies": lambda model: PromptLookup(2, 1),
    "copies seldom": lambda model: PromptLookup(),
    "counts": lambda model: NGram(3),
    "smaller": lambda model: SmallerModel(toy(9, depth=1)),
    "stops early": lambda model: SmallerModel(toy(9, depth=1), confidence=0.5),
    "the target": lambda model: SmallerModel(model),
    "first layer": lambda model: FirstLayers(),
    "untrained": lambda model: Eagle(random_head(model, reduced=9)),
}
RULES = st.sampled_from([None, rules.token_wise, rules.block, rules.coupled, rules.tree, rules.multi_draft])
GAMMA = st.sampled_from([None, None, 0, 1, 2, 5, 8])
REQUEST = st.fixed_dictionaries(
    {
        "prompt": PROMPT,
        "params": st.builds(replace, PARAMS, gamma=GAMMA, logprobs=st.booleans()),
        "arrives": st.integers(0, 5),  # before this step
    }
)
LIMITS = st.fixed_dictionaries(
    {
        "page_size": st.sampled_from([1, 3, 16]),
        "token_budget": st.sampled_from([1, 3, 7, 512, 512]),
        "draft_rows": st.sampled_from([4, 12, 64]),
        "radix": st.booleans(),
        "gamma": GAMMA,
        "rule": RULES,
    }
)


def served(engine, requests, arrives=()):
    """Serve requests (prompt, params), each before its step, checking every step."""
    watch_drafter(engine)
    handles, step = {}, 0
    while len(handles) < len(requests) or engine.requests:
        for i, (prompt, params) in enumerate(requests):
            if i not in handles and (not arrives or arrives[i] <= step):
                handles[i] = engine.add(prompt, params)
        engine.step()
        assert_sound(engine)
        step += 1
    return [handles[i] for i in range(len(requests))]


@pytest.mark.parametrize("kind", DRAFTERS)
@settings(suppress_health_check=[HealthCheck.large_base_example])
@given(SHAPES, st.lists(REQUEST, min_size=1, max_size=4), LIMITS, st.sampled_from([0, 1, 4, 60]))
def test_every_text_is_the_naive_one(kind, shape, drawn, limits, slack):
    model = toy(**shape)
    texts = [(r["prompt"], r["params"]) for r in drawn]
    if limits["rule"] not in (None, rules.coupled):  # the others keep the law, not the token
        texts = [(prompt, replace(params, temperature=0.0)) for prompt, params in texts]
    most = max(min(len(prompt) + params.max_new_tokens - 1, 24) for prompt, params in texts)
    pages = -(-most // limits["page_size"]) + slack  # from the least on
    engine = Engine(model, drafter=DRAFTERS[kind](model), num_pages=pages, **limits)
    requests = served(engine, texts, [r["arrives"] for r in drawn])
    for request, (prompt, params) in zip(requests, texts):
        assert request.output == naive.generate(model, prompt, params)
        assert not (params.gamma == 0 and request.metrics.drafted_tokens)
        if params.logprobs:  # the target's own, whoever guessed the token
            text = torch.tensor([*prompt, *request.output[:-1]])
            with torch.inference_mode():
                logits = model(text, torch.arange(len(text)), NoCache([len(text)]))[len(prompt) - 1 :]
            right = torch.log_softmax(logits, -1).gather(1, torch.tensor(request.output)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(request.logprobs, dtype=torch.float64), right, atol=1e-9)
        else:
            assert request.logprobs == []


@pytest.mark.parametrize("kind", ["copies", "smaller", "untrained"])
@given(SHAPES, st.lists(REQUEST, min_size=1, max_size=3), st.sampled_from([1, 3, 16]), st.integers(1, 12))
def test_trees_that_the_engine_chooses_give_what_the_seed_gives_without(kind, shape, drawn, page_size, most):
    """As large as any choice makes them."""
    model = toy(**shape)
    texts = [(r["prompt"], replace(r["params"], gamma=None)) for r in drawn]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Choice, "best", lambda self, texts, wanted, lefts, steps: (min(most, *wanted), steps))
        engine = Engine(model, drafter=DRAFTERS[kind](model), page_size=page_size)
        requests = served(engine, texts)
    for request, (prompt, params) in zip(requests, texts):
        assert request.output == naive.generate(model, prompt, params)


def test_what_is_observed_of_a_text_that_was_guessed():
    engine = Engine(Echo(max_context=64), drafter=SmallerModel(Echo(64, slips=3)), gamma=3)
    params = SamplingParams(max_new_tokens=20, ignore_eos=True, logprobs=True)
    requests = [engine.add(prompt, params) for prompt in ([1, 2, 3], [4, 4])]
    kept = drafted = 0
    while engine.requests:
        for output in engine.step():
            assert all(a == b for a, b in zip(output.tokens[:-1], output.drafted, strict=False))
            drafted += len(output.drafted)
            kept += sum(np.cumprod([a == b for a, b in zip(output.tokens, output.drafted)]))
    stats, each = engine.stats, [request.metrics for request in requests]
    assert (stats.drafted_tokens, stats.accepted_tokens) == (drafted, kept)
    assert drafted == sum(m.drafted_tokens for m in each)
    assert kept == sum(m.accepted_tokens for m in each)
    assert 0 < kept < drafted
    assert stats.acceptance == kept / drafted
    assert stats.decode_tokens == 2 * 19
    for request, m in zip(requests, each):
        assert request.output == expected(request.prompt, params, 64)
        assert m.decode_steps + m.accepted_tokens == 19
        assert (m.prefill_tokens, m.prefill_steps) == (len(request.prompt), 1)
    assert Engine(Echo()).stats.acceptance == 0


def test_the_engine_decides_where_a_request_does_not():
    for engine_gamma in (None, 2):
        engine = Engine(Echo(max_context=64), drafter=SmallerModel(Echo(64)), gamma=engine_gamma, draft_rows=64)
        most = SamplingParams(max_new_tokens=30, ignore_eos=True)
        requests = [engine.add([1, 2], replace(most, gamma=gamma)) for gamma in (None, 0, 1, 5)]
        longest = dict.fromkeys(requests, 0)
        while engine.requests:
            for output in engine.step():
                longest[output.request] = max(longest[output.request], len(output.drafted))
        # The drafter costs as much as the target here: adapted, its drafts are not worth their cost.
        assert [longest[r] for r in requests] == [engine_gamma or 0, 0, 1, 5]


class Cheap(SmallerModel):
    """A drafter that is taken to cost nothing."""

    def bind(self, target, cache):
        bound = super().bind(target, cache)
        bound.cost = 0.0
        return bound


@pytest.mark.parametrize(
    ("slips", "row", "drafts", "most"),
    [
        (0, 0.02, True, 0.4),  # always right, and cheap
        (0, 2.0, False, 1.15),  # a row costs more than a step
        (1, 0.3, False, 1.15),  # wrong
    ],
)
@pytest.mark.parametrize("rule", [None, rules.tree])
def test_as_many_drafts_as_pay_by_what_steps_have_cost(monkeypatch, slips, row, drafts, most, rule):
    clock = [0.0]
    monkeypatch.setattr(eager_runner, "perf_counter", lambda: clock[0])
    engine = Engine(Echo(max_context=256), drafter=Cheap(Echo(256, slips=slips)), rule=rule)
    read = engine.runner._read

    def priced(chunks, made):
        clock[0] += 1 + row * sum(len(draft.tokens) for draft in made)
        return read(chunks, made)

    monkeypatch.setattr(engine.runner, "_read", priced)
    engine.generate([1, 2], SamplingParams(max_new_tokens=200, ignore_eos=True))
    assert clock[0] <= most * 200
    by_drafts = engine.stats.steps_by_drafts
    assert (max(by_drafts, key=by_drafts.get) > 0) == drafts


@pytest.mark.parametrize(("draft_rows", "token_budget"), [(10, 9), (9, 20)])
def test_drafts_give_way_under_load(draft_rows, token_budget):
    engine = Engine(
        Echo(max_context=64), drafter=SmallerModel(Echo(64)), gamma=8, draft_rows=draft_rows, token_budget=token_budget
    )
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    requests = [engine.add([1, 2, 3, tail], params) for tail in (1, 2, 3, 4)]
    rows = []
    while engine.requests:
        outputs = engine.step()
        if any(o.drafted for o in outputs):
            rows.append(sum(o.count + len(o.drafted) for o in outputs))
    assert max(rows) == 9
    assert all(r.output == expected(r.prompt, params, 64) for r in requests)


def test_drafts_preempt_no_one():
    engine = Engine(Echo(max_context=64), drafter=SmallerModel(Echo(64, slips=2)), gamma=8, page_size=1, num_pages=24)
    params = SamplingParams(max_new_tokens=10, ignore_eos=True)
    requests = served(engine, [([1, 2, 3], params), ([4, 4, 4], params)])
    assert engine.stats.drafted_tokens > 0 == engine.stats.preemptions
    assert all(r.output == expected(r.prompt, params, 64) for r in requests)


class Fixed(Drafter):
    """Says what it is told to."""

    def __init__(self, say):
        self.say = say

    def propose(self, requests):
        return self.say(requests)


def probs(*weights):
    return np.array([*weights, *[0.0] * (VOCAB - len(weights))])


BAD_DRAFTS = {
    "0 drafts for 1 texts": lambda requests: [],
    "2 drafts for 1 texts": lambda requests: [Draft(), Draft()],
    "3 tokens and no distributions; at most 2": lambda requests: [Draft([1, 1, 1])],
    "1 tokens and 2 distributions": lambda requests: [Draft([1], [probs(0, 1), probs(0, 1)])],
    "token 0 is 6, which is not in the vocabulary": lambda requests: [Draft([VOCAB])],
    "token 1 is -1, which is not in the vocabulary": lambda requests: [Draft([1, -1])],
    r"probs\[0\] is not a distribution.*sum to 0.9": lambda requests: [Draft([1], [probs(0.4, 0.5)])],
    r"probs\[1\] is not a distribution.*sum to 1.0 with minimum -0.5": lambda requests: [
        Draft([1, 1], [probs(0, 1), probs(-0.5, 1.5)])
    ],
    r"probs\[0\] is not a distribution.*sum to nan": lambda requests: [Draft([1], [probs(0.5, np.nan)])],
    r"probs\[0\] is not a distribution.*got \(5,\)": lambda requests: [Draft([1], [probs(0, 1)[:5]])],
    "token 1 .2. has probability 0": lambda requests: [Draft([1, 2], [probs(0, 1), probs(0.5, 0.5)])],
}


@pytest.mark.parametrize("message", BAD_DRAFTS)
def test_a_draft_that_is_none_costs_no_request_its_text(message):
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    engine = Engine(Echo(), drafter=Fixed(BAD_DRAFTS[message]), gamma=2, page_size=2)
    request = engine.add([1, 2, 3], params)
    engine.step()
    with pytest.raises(ValueError, match=message):
        engine.step()
    assert_sound(engine)
    engine.speculation.drafter.say = lambda requests: [Draft([1], [probs(0, 1)]) for _ in requests]
    while engine.requests:
        engine.step()
        assert_sound(engine)
    assert request.output == expected([1, 2, 3], params)
    assert request.metrics.drafted_tokens > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drafter": PromptLookup(), "gamma": -1}, "gamma must be at least 0 .* got -1"),
        (
            {"drafter": PromptLookup(), "rule": traversal},
            "one of the rules token_wise, block, coupled, point_mass, tree, multi_draft",
        ),
        ({"drafter": PromptLookup(), "rule": rules.tree, "gamma": 64}, "at most 63 drafts, got gamma = 64"),
        ({"drafter": FirstLayers(1), "rule": rules.point_mass}, "FirstLayers draws its own"),
        ({"drafter": SmallerModel(toy())}, "the drafter's vocabulary has 13 tokens, the target's 6"),
        ({"drafter": SmallerModel(Echo(23))}, r"context \(23\) is shorter than the target's \(24\)"),
        ({"drafter": FirstLayers(2)}, "a draft by the first 2 of 2 layers"),
        ({"drafter": FirstLayers(0)}, "a draft by the first 0 of 2 layers"),
        ({"drafter": Eagle(random_head(toy()))}, "another target"),
        ({"drafter": Eagle(random_head(Echo(), taps=(1, 2)))}, "another target"),
        ({"draft_rows": -1}, "draft_rows must be at least 0, got -1"),
    ],
)
def test_drafters_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Engine(Echo(), **arguments)


BAD_TREES = {
    "2 tokens and 1 parents; expected a parent for each": Draft([1, 2], parents=[-1]),
    "token 1 follows draft 1: expected an earlier one": Draft([1, 2], parents=[-1, 1]),
    "token 0 follows draft -2": Draft([1], parents=[-2]),
    "follow the same draft are equal": Draft([1, 2, 2], parents=[-1, 0, 0]),
    "4 tokens and no distributions; at most 3": Draft([1, 2, 3, 4], parents=[-1] * 4),
    r"token 1 .2. has probability 0": Draft([1, 2], [probs(0, 1), probs(0, 1)], [-1, -1]),
}


class Trees(Fixed):
    trees = True


@pytest.mark.parametrize("message", BAD_TREES)
def test_a_tree_that_is_none_costs_no_request_its_text(message):
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    engine = Engine(Echo(), drafter=Trees(lambda _: [BAD_TREES[message]]), gamma=3, rule=rules.tree, page_size=2)
    request = engine.add([1, 2, 3], params)
    engine.step()
    with pytest.raises(ValueError, match=message):
        engine.step()
    assert_sound(engine)
    engine.speculation.drafter.say = lambda requests: [
        Draft([1, 2, 1][: r.gamma], None, [-1, -1, 0][: r.gamma]) for r in requests
    ]
    while engine.requests:
        engine.step()
        assert_sound(engine)
    assert request.output == expected([1, 2, 3], params)
    assert request.metrics.drafted_tokens > 0


@pytest.mark.parametrize(
    ("rule", "message"), [(rules.token_wise, "a chain was asked for"), (rules.multi_draft, "level 2 .* at most 1")]
)
def test_a_tree_that_was_not_asked_for_is_refused(rule, message):
    engine = Engine(Echo(), drafter=Trees(lambda _: [Draft([1, 2], None, [-1, 0])]), gamma=2, rule=rule)
    engine.add([1, 2, 3], SamplingParams(max_new_tokens=6, ignore_eos=True))
    engine.step()
    with pytest.raises(ValueError, match=message):
        engine.step()


def test_what_is_no_drafter_is_refused():
    with pytest.raises((ValueError, TypeError), match=r"Drafter|drafter"):
        Engine(Echo(), drafter=object())
    for gamma in (-1, 1.5):
        with pytest.raises((ValueError, TypeError), match="gamma"):
            SamplingParams(gamma=gamma)
