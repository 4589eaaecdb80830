"""What the schedule promises, step by step."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.engine.engine import Engine
from inference_opt.engine.runner import lefts
from inference_opt.engine.scheduler import Repeat
from inference_opt.lab.eviction.learned import FadingFrequency, Odds
from inference_opt.radix.eviction import FIFO, LFU
from inference_opt.sampling import SamplingParams
from tests.engine.invariants import Echo, assert_sound, expected


def queued(request):
    """Steps that were made without it before it first ran."""
    return request.metrics.admitted_step - request.metrics.arrived_step


def length(tokens):
    return SamplingParams(max_new_tokens=tokens, ignore_eos=True)


def run(engine):
    while engine.requests:
        preemptions, waiting = engine.stats.preemptions, set(engine.scheduler.waiting)  # arrivals
        outputs = engine.step()
        if engine.stats.preemptions > preemptions:  # nobody is let in while others are thrown out
            assert waiting.isdisjoint(out.request.arrival for out in outputs)
        assert_sound(engine)
        yield {(out.request.id, out.start): out.count for out in outputs}


def test_decodes_go_first_while_a_long_prompt_is_prefilled():
    engine = Engine(Echo(max_context=64), page_size=4, num_pages=40, token_budget=3, radix=False)
    late = engine.add([1] * 20, length(2), id="prompt")
    engine.step()
    engine.add([2], length(9), id="decode")  # the later arrival, and all the same
    seen = list(run(engine))
    while not late.finished:
        engine.step()
    decoding = [step for step in seen if any(id == "decode" and start > 0 for id, start in step)]
    assert len(decoding) == 8
    assert all(sum(step.values()) <= 3 for step in seen)
    first = next(i for i, step in enumerate(seen) if step in decoding)
    assert seen[first : first + 8] == decoding  # a token in every step, from its first to its last


def test_whoever_chooses_knows_what_is_left_of_the_texts_and_whether_others_wait():
    engine, known = Engine(Echo(max_context=64), page_size=4, num_pages=40, radix=False, max_running=2), []
    engine.scheduler.choose = lambda chunks: known.append(lefts(chunks)) or Repeat(0, 3)
    for tokens in (4, 9, 6):
        engine.add([1, 2], length(tokens))
    while engine.requests:
        engine.step()
    assert known[:4] == [None, None, None, [4, 5]], "the third waits until the first has four tokens"
    engine.add([1, 2], length(4))
    engine.step()
    assert [(each.steps, each.grant) for each in engine.scheduler.schedule()] == [(3, 3)]


def test_the_budget_goes_to_the_oldest_prompt_and_what_is_left_to_the_next():
    engine = Engine(Echo(max_context=64), page_size=4, num_pages=40, token_budget=8, radix=False)
    for name, tokens in (("a", 13), ("b", 6)):
        engine.add([3] * tokens, length(1), id=name)
    assert list(run(engine)) == [{("a", 0): 8}, {("a", 8): 5, ("b", 0): 3}, {("b", 3): 3}]


def test_the_latest_arrival_is_preempted_and_returns_to_its_place():
    # Three requests of 4 + 8 tokens, pages of 4: together they outgrow 7 pages, alone each fits in 3.
    engine = Engine(Echo(max_context=64), page_size=4, num_pages=7, radix=False, max_running=3)
    requests = [engine.add([i, 1, 2, i], length(9), id=i) for i in range(3)]
    steps = list(run(engine))
    assert [r.metrics.preemptions for r in requests] == [0, 0, requests[2].metrics.preemptions]
    assert requests[2].metrics.preemptions >= 1
    ends = [max(i for i, step in enumerate(steps) if any(id == name for id, _ in step)) for name in range(3)]
    assert ends[0] == ends[1] < ends[2]
    for request in requests:
        assert request.output == expected(request.prompt, request.params, max_context=64)


def test_what_a_neighbour_leaves_while_a_prompt_is_prefilled_is_used():
    # B's text, prompt and answer, begins A's prompt. When B ends, A is in the middle of its prefill.
    answer = expected([2, 2, 2], length(12), max_context=64)
    prompt = [2, 2, 2, *answer, 5, 5]
    engine = Engine(Echo(max_context=64), page_size=2, num_pages=40, token_budget=2, max_running=2)
    b = engine.add([2, 2, 2], length(12), id="b")
    while len(b.output) < 10:
        engine.step()
    a = engine.add(prompt, length(3), id="a")
    list(run(engine))
    assert a.metrics.cached_tokens > 2  # more than the page of B's prompt that was there when A came
    assert a.output == expected(prompt, a.params, max_context=64)


@pytest.mark.parametrize("radix", [True, False])
def test_equal_prompts_share_one_prefill_only_where_prefixes_are_reused(radix):
    engine = Engine(Echo(max_context=64), page_size=4, num_pages=40, radix=radix)
    engine.generate([[1, 2, 3, 4, 5, 1, 2, 3, 4]] * 3, length(2))
    assert engine.stats.prefill_tokens == (9 + 1 + 1 if radix else 27)


@pytest.mark.parametrize("policy", [FIFO, LFU, partial(FadingFrequency, 12, 2), partial(Odds, 12, 2)])
@given(
    texts=st.lists(st.tuples(st.lists(st.integers(1, 2), min_size=1, max_size=9), st.integers(1, 9)), min_size=1),
    token_budget=st.integers(1, 12),
)
def test_what_is_forgotten_changes_no_text(policy, texts, token_budget):
    engine = Engine(Echo(max_context=64), page_size=2, num_pages=12, token_budget=token_budget, policy=policy())
    requests = [engine.add(prompt, length(new)) for prompt, new in texts]
    list(run(engine))
    for request in requests:
        assert request.output == expected(request.prompt, request.params, max_context=64)


def test_what_was_observed_of_a_request_does_not_change_later():
    engine = Engine(Echo(max_context=64), page_size=4, num_pages=40, token_budget=4)
    request, later = engine.add([1] * 6, length(4)), engine.add([2] * 6, length(4))
    seen = []
    while engine.requests:
        engine.step()
        seen.append((request.metrics.admitted, request.metrics.first_token, len(request.output)))
    admitted, first, _ = zip(*seen)
    assert len(set(admitted)) == 1
    assert [time is None for time in first] == [count == 0 for *_, count in seen]
    assert len({time for time in first if time is not None}) == 1
    assert queued(request) == 0 < queued(later)
    assert request.metrics.arrived < admitted[0] < request.metrics.first_token < request.metrics.finished
