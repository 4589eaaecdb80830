"""Steps that are launched ahead: the same tokens, whatever comes between, and nobody waits longer."""

import gc
import itertools
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from inference_opt import Engine, SamplingParams, naive
from inference_opt.cache.paged_kernel import PagedKernelCache
from inference_opt.engine import graph_runner
from inference_opt.explain.views.schedule import sound_ownership
from inference_opt.speculative.eagle import Eagle
from inference_opt.speculative.lookup import PromptLookup
from tests.engine.test_captured_head import PROMPT, counting
from tests.engine.test_graph_runner import DEVICE, MIXED, TEXT, decisive
from tests.toys import toy


@pytest.fixture(autouse=True)
def in_place(monkeypatch):
    """Kernels answer on every machine."""
    monkeypatch.setattr("inference_opt.engine.engine.cache_class", lambda device: PagedKernelCache)


def check(engine, requests, exact):
    """Texts that have ended are the oracle's; what the others have so far is the beginning of theirs."""
    for request in requests:
        right = naive.generate(exact, request.prompt, request.params)
        whole = request.finish_reason in ("length", "stop")
        assert request.output == right[: None if whole else len(request.output)]


def play(engine, calls, prompts, params):
    """Requests arrive, are aborted, lose what was computed; until all have ended."""
    for pages in (*engine.cache.keys, *(engine.cache.values or ())):
        pages.fill_(torch.nan)
    requests = []

    def fail(changes):
        raise RuntimeError("here")

    with pytest.MonkeyPatch.context() as patch:
        for i, call in enumerate(["add", *calls, *["step"] * 200]):
            if call == "add":
                which = len(requests) % len(prompts)
                own = replace(params[len(requests) % len(params)], seed=i)
                requests.append(engine.add(prompts[which], own))
            elif call == "abort" and engine.requests:
                engine.abort(next(iter(engine.requests)))
            elif call == "forget":
                engine.forget()
            elif call == "record" and engine.requests:
                with patch.context() as inner:
                    inner.setattr(graph_runner, "recording", lambda: True)
                    engine.step()
            elif call == "fail" and engine.requests:
                with patch.context() as inner:
                    inner.setattr(engine.speculation, "learn", fail)
                    with pytest.raises(RuntimeError, match="here"):
                        engine.step()
            elif call == "step":
                engine.step()
            assert all(sound_ownership(engine.scheduler).values())
    assert not engine.requests
    assert engine.pool.free + len(engine.tree) == engine.pool.num_pages, "nothing leaks"
    return requests


CALLS = st.lists(st.sampled_from(["add", *["step"] * 4, "abort", "forget", "fail", "record"]), min_size=4, max_size=24)


@settings(max_examples=20)
@given(
    CALLS,
    st.lists(TEXT, min_size=1, max_size=4),
    st.lists(MIXED, min_size=4, max_size=4),
    st.integers(8, 14),
    st.integers(1, 4),
    st.integers(0, 8),
    st.booleans(),
    st.booleans(),
)
def test_whatever_comes_between_two_looks_texts_are_the_oracle_s(
    calls, prompts, mixed, steps, page_size, slack, radix, drafts
):
    """Arrivals, aborted texts, steps that fail, recorded ones, preemption, new weights; with drafts now and then."""
    model = decisive(toy(eos=(3,), dtype=torch.float32)).to(DEVICE)
    params = [replace(each, max_new_tokens=2 * each.max_new_tokens + 3) for each in mixed]
    most = max(len(prompt) + each.max_new_tokens for prompt, each in zip(prompts * 4, params))
    drafter = PromptLookup(2, 1) if drafts else None
    pages = -(-most // page_size) + 1 + slack
    engine = Engine(model, radix=radix, page_size=page_size, num_pages=pages, decode_steps=steps, drafter=drafter)
    requests = play(engine, calls, prompts, params)
    check(engine, requests, model.double())


@settings(max_examples=60 if DEVICE == "cuda" else 4)
@given(
    CALLS.map(lambda calls: calls[:8]),
    st.integers(0, 5),
    st.lists(PROMPT, min_size=1, max_size=2),
    st.lists(st.integers(3, 14), min_size=3, max_size=3),
    st.sampled_from([0.0, 0.8]),
    st.integers(8, 10),
    st.integers(1, 4),
    st.integers(0, 8),
    st.sampled_from(["trees", "a chain", "found", "changing"]),
)
def test_steps_with_drafts_run_ahead_too(calls, seed, prompts, lengths, temperature, steps, page_size, slack, kind):
    """The texts grow by different numbers of tokens, which the host does not know when it launches."""
    model, head = counting(seed, eos=(3,))
    params = [SamplingParams(n, temperature, logprobs=n % 2 > 0, ignore_eos=n % 3 > 0) for n in lengths]
    pages = -(-(max(map(len, prompts)) + max(lengths)) // page_size) + 1 + slack
    size = {"page_size": page_size, "num_pages": pages, "decode_steps": steps}
    drafter = PromptLookup(2, 1) if kind == "found" else Eagle(head, confidence=0.0)
    engine = Engine(model, drafter=drafter, gamma=2 if kind in ("a chain", "found") else None, **size)
    turns = itertools.count()
    if kind in ("trees", "changing"):
        choice = engine.runner.eager.speculation.choice
        choice.best = lambda *given: (2 if kind == "trees" or next(turns) % 5 < 3 else 0, steps)
    requests = play(engine, calls, prompts, params)
    for request in requests:
        event(f"{kind}: {request.finish_reason}")
    check(engine, requests, model.double())


def test_a_run_with_drafts_is_followed_by_one_of_the_length_that_is_wanted_then():
    """The longest length that was named leaves with its request."""
    model, head = counting(0)
    engine = Engine(model, page_size=4, decode_steps=8, drafter=Eagle(head, confidence=0.0))
    send, sent = engine.runner._send, []
    engine.runner._send = lambda chunks, shape, *rest: (
        sent.append((len(chunks), shape.gamma)) or send(chunks, shape, *rest)
    )
    for gamma, length in ((3, 6), (1, 24)):
        engine.add([1, 2, 3 + gamma], SamplingParams(length, gamma=gamma, ignore_eos=True))
    while engine.requests:
        engine.step()
    alone = [gamma for texts, gamma in sent if texts == 1]
    assert (2, 3) in sent
    assert len(alone) > 2
    assert set(alone) == {1}


def test_texts_behind_one_that_ended_move_to_its_row_and_go_on():
    model, head = counting(0)
    engine = Engine(model, page_size=4, num_pages=80, decode_steps=8, drafter=Eagle(head, confidence=0.0), gamma=2)
    go_on, moved = engine.runner.drafts.go_on, []
    engine.runner.drafts.go_on = lambda letter, rows, *rest: (
        moved.append(rows is not None) or go_on(letter, rows, *rest)
    )
    requests = [
        engine.add([1, 2, i], SamplingParams(n, ignore_eos=True)) for i, n in ((3, 5), (7, 30), (11, 30), (2, 30))
    ]
    while engine.requests:
        engine.step()
    assert any(moved)
    check(engine, requests, model.double())


def test_a_text_of_which_all_but_the_last_token_was_found_has_drafts_from_its_second_token_on():
    """Before its first token there is nothing to draft from, and no reason to decode many without drafts."""
    model, head = counting(0)
    engine = Engine(model, page_size=4, decode_steps=8, drafter=Eagle(head, confidence=0.0))
    engine.runner.eager.speculation.choice.best = lambda *given: (2, 8)
    params = SamplingParams(20, ignore_eos=True)
    engine.generate([[1, 2, 3, 4, 5]], params)  # its first page stays in the tree
    time, times = engine.runner.clock.time, []
    engine.runner.clock.time = lambda step, count: times.append(count) or time(step, count)
    (text,) = engine.generate([[1, 2, 3, 4, 5]], params)
    assert times[:2] == [1, 4]
    times.clear()
    engine.generate([[1, 2, 3, 4, 5]], SamplingParams(20, ignore_eos=True, gamma=0))
    assert times[:2] == [4, 4], "one that never drafts"
    assert text.tokens == naive.generate(model.double(), [1, 2, 3, 4, 5], params)


def test_with_drafts_as_many_steps_run_ahead_as_may_be_needed():
    """Not a part of `decode_steps`: a text that lacks a few tokens after it costs one more look."""
    model, head = counting(0)
    engine = Engine(model, page_size=4, decode_steps=8, drafter=Eagle(head, confidence=0.0))
    engine.runner.on_card = engine.runner.captured.on_card = False  # no prices are measured in between
    time, times = engine.runner.clock.time, []
    engine.runner.clock.time = lambda step, count: times.append(count) or time(step, count)
    # Three more than under way the third time, and none after it.
    wanted = iter([9, 5 + 3, 3, 1, 1, 1])
    engine.runner._best = lambda chunks, going=0: (1, next(wanted))
    request = engine.add([1, 2, 3], SamplingParams(40, ignore_eos=True))
    for _ in range(4):
        engine.step()
    assert times[:3] == [4, 5, 3]
    check(engine, [request], model.double())


@pytest.mark.parametrize(
    ("wanted", "looks"),
    [
        ([0, 0, 0, 0, 0], 0),
        ([0, 2, 0, 0, 0], 1),  # drafts seemed to pay, and then did not: plain steps began anew for nothing
        ([0, 2, 2, 0, 0], 1),  # they had begun, and the look at their end is one that plain steps had to wait for
        ([0, 2, 2, 2, 2], 0),  # they go on
    ],
)
def test_a_look_that_plain_steps_had_to_wait_for_counts_against_drafts(wanted, looks):
    model, head = counting(0)
    engine = Engine(model, page_size=4, decode_steps=8, drafter=Eagle(head, confidence=0.0))
    engine.runner.on_card = engine.runner.captured.on_card = False  # no prices are measured in between
    paused = []
    engine.runner.eager.speculation.choice.paused = paused.append
    turns = itertools.chain(wanted, itertools.repeat(wanted[-1]))
    engine.runner._best = lambda chunks, going=0: ((gamma := next(turns)), 2 if gamma else 8)
    requests = [engine.add([1, 2, i], SamplingParams(60, ignore_eos=True)) for i in (3, 4)]
    while engine.requests:
        engine.step()
    assert paused == [2] * looks
    check(engine, requests, model.double())


def test_texts_begin_with_plain_steps_unasked_a_few_times_after_these_were_best():
    """Then the card does not wait for the choice, which is made while they run."""
    model, head = counting(0)
    engine = Engine(model, page_size=4, decode_steps=8, drafter=Eagle(head, confidence=0.0))
    runner, asked, drafts, requests = engine.runner, [], [0], []
    assert runner.part
    runner._best = lambda chunks, going=0: asked.append(len(chunks[0].request.output)) or (drafts[0], 8)

    def begins(tokens):
        asked.clear()
        requests.append(engine.add([1, 2, 3], SamplingParams(tokens, ignore_eos=True)))
        while engine.requests:
            engine.step()
        return asked[0] if asked else None

    assert [begins(3) for _ in range(graph_runner.TRUSTED + 2)] == [1, *[None] * graph_runner.TRUSTED, 1]
    assert begins(12) == 1 + runner.part, "the choice is made while the next part runs"
    drafts[0] = 2  # they pay now: this is found while plain steps run, and the next text begins with them
    assert begins(14) == 1 + runner.part
    assert begins(4) == 1
    assert engine.stats.steps_by_drafts[2] > 0
    check(engine, requests, model.double())


def test_the_next_steps_are_launched_before_the_host_looks(monkeypatch):
    """And never so many that a text that arrives would wait for more than `decode_steps` of them."""
    model, said = toy(dtype=torch.float32).to(DEVICE), []
    engine = Engine(model, page_size=4, decode_steps=8)
    time, read_back = engine.runner.clock.time, graph_runner.read_back
    monkeypatch.setattr(engine.runner.clock, "time", lambda step, times: said.append(times) or time(step, times))

    def noting(tensors):
        found = read_back(tensors)
        return lambda: said.append("look") or found()

    monkeypatch.setattr(graph_runner, "read_back", noting)
    request = engine.add([1, 2, 3], SamplingParams(max_new_tokens=19, ignore_eos=True))
    while not request.finished:
        engine.step()
    assert said == [4, 4, "look", 4, "look", 4, "look", 2, "look", "look"], "and one token after the prompt"
    assert request.output == naive.generate(model.double(), request.prompt, request.params)


def test_what_ran_ahead_for_texts_that_are_not_alone_any_more_is_dropped():
    model = toy(dtype=torch.float32).to(DEVICE)
    engine = Engine(model, page_size=4, decode_steps=8)
    first = engine.add([1, 2, 3], SamplingParams(max_new_tokens=19, ignore_eos=True))
    engine.step()
    engine.step()
    assert engine.runner.flight.serves(engine.scheduler.schedule())
    kept = first.pages
    first.pages = replace(kept)
    assert not engine.runner.flight.serves(engine.scheduler.schedule()), "it wrote other pages"
    first.pages = kept
    second = engine.add([5, 6, 7], SamplingParams(max_new_tokens=9, ignore_eos=True))
    engine.step()
    assert engine.runner.flight is None
    assert second.output, "it did not wait"
    while engine.requests:
        engine.step()
    check(engine, [first, second], model.double())


def test_a_text_that_breaks_in_the_middle_of_a_run_does_not_go_on_from_the_run_ahead():
    """Its first run emits the tokens before the broken step. What ran ahead begins behind it."""
    model = toy(dtype=torch.float32).to(DEVICE)
    right = naive.generate(model.double(), [1, 2, 3], SamplingParams(max_new_tokens=16, ignore_eos=True))
    for steps in (2, 8):
        engine = Engine(model.float(), page_size=4, decode_steps=steps)
        inner = engine.runner.captured.logits

        def broken(tokens, positions, *rest, inner=inner):
            logits = inner(tokens, positions, *rest)
            return logits.masked_fill((positions == 5)[:, None], torch.inf)

        engine.runner.captured.logits = broken
        request = engine.add([1, 2, 3], SamplingParams(max_new_tokens=16, ignore_eos=True))
        while not request.finished:
            engine.step()
        assert (request.finish_reason, request.output) == ("error", right[:3])


def test_where_others_wait_nothing_runs_ahead():
    """Whoever ends makes room at once."""
    model, launched = toy(dtype=torch.float32).to(DEVICE), []
    engine = Engine(model, page_size=4, decode_steps=8, max_running=2)
    launch = engine.runner._launch
    engine.runner._launch = lambda *given: launched.append(len(given) > 3) or launch(*given)
    requests = [engine.add([1, i], SamplingParams(max_new_tokens=9, ignore_eos=True)) for i in range(5)]
    while engine.scheduler.waiting:
        engine.step()
    assert launched
    assert not any(launched)
    while engine.requests:
        engine.step()
    check(engine, requests, model.double())


def test_a_step_of_a_larger_batch_does_not_price_a_smaller_one():
    engine = Engine(toy(dtype=torch.float32).to(DEVICE), page_size=4, decode_steps=8, drafter=PromptLookup(3, 3))
    requests = [engine.add([i, 5, 6], SamplingParams(max_new_tokens=19, ignore_eos=True)) for i in range(4)]
    while engine.runner.flight is None:
        engine.step()
    for request in requests[:3]:
        engine.abort(request)
    engine.step()
    costs = engine.speculation.choice.costs
    assert costs.measured(4, 0)
    assert not costs.measured(1, 0)


def test_a_run_that_is_never_looked_at_keeps_no_request_alive():
    engine = Engine(toy(dtype=torch.float32).to(DEVICE), page_size=4, decode_steps=8)
    request = engine.add([1, 2, 3], SamplingParams(max_new_tokens=19, ignore_eos=True))
    while engine.runner.flight is None:
        engine.step()
    engine.abort(request)
    ended = weakref.ref(request)
    del request
    gc.collect()
    assert ended() is None


def test_no_garbage_is_collected_during_a_step(monkeypatch):
    """Then it is, if it was: also after a step that fails."""
    engine, seen = Engine(toy(dtype=torch.float32).to(DEVICE), page_size=4), []
    engine.add([1, 2, 3], SamplingParams(max_new_tokens=4))
    schedule = engine.scheduler.schedule
    monkeypatch.setattr(engine.scheduler, "schedule", lambda: seen.append(gc.isenabled()) or schedule())
    for before in (True, False):
        (gc.enable if before else gc.disable)()
        try:
            engine.step()
            with monkeypatch.context() as patch:
                patch.setattr(engine.runner, "run", None)
                with pytest.raises(TypeError):
                    engine.step()
            assert gc.isenabled() == before
        finally:
            gc.enable()
    assert seen == [False] * 4
