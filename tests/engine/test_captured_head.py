"""The trained head drafts in an engine's captured steps: texts are the oracle's, as much is accepted as eagerly.

Under Triton's interpreter the steps are run; on CUDA the same tests capture and replay them.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_opt import Engine, SamplingParams, naive
from inference_opt.cache.paged_kernel import PagedKernelCache
from inference_opt.engine.eager_runner import EagerRunner
from inference_opt.engine.graph_runner import GraphRunner
from inference_opt.explain.views.schedule import sound_ownership
from inference_opt.kernels.shape import Shape
from inference_opt.model.attention import NoCache
from inference_opt.speculative import rules
from inference_opt.speculative.acceptance import LENGTHS, of_trees
from inference_opt.speculative.eagle import Eagle
from tests.engine.invariants import random_head
from tests.toys import toy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPT = st.lists(st.integers(0, 12), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def in_place(monkeypatch):
    """Kernels answer on every machine."""
    monkeypatch.setattr("inference_opt.engine.engine.cache_class", lambda device: PagedKernelCache)


def counting(seed, dtype=torch.float32, eos=()):
    """A model that mostly counts on from the last token, and a head that often knows it and reads all of the text."""
    model, generator = toy(seed=seed, dtype=dtype, max_context=40, eos=eos), torch.Generator().manual_seed(seed)
    head = random_head(model, reduced=11, seed=seed).to(dtype)
    with torch.no_grad():
        for p in model.layers.parameters():
            p.normal_(0, 0.22, generator=generator) if p.ndim > 1 else p.fill_(1)
        model.embed.weight.normal_(0, 1, generator=generator)
        model.head.weight.copy_(2 * model.embed.weight.roll(1, 0))
        for p in head.parameters():
            p.mul_(0.2) if p.ndim > 1 else p.fill_(1)
        head.join.weight[:, :16] += torch.eye(16)
        head.use_head_of(model, 12 - torch.arange(11))
    return model.to(DEVICE), head.to(DEVICE)


def engine_of(model, head, captured=True, **options):
    """With NaN wherever nothing was written; captured steps or eager ones."""
    engine = Engine(model, drafter=Eagle(head, confidence=0.0), **({"rule": rules.coupled} | options))
    assert isinstance(engine.runner, GraphRunner)
    if not captured:
        engine.runner = engine.runner.eager
        engine.scheduler.choose = engine.runner.choose
    for cache in (engine.cache, engine.speculation.drafter.cache):
        for pages in (*cache.keys, *cache.values):
            pages.fill_(torch.nan)
    return engine


def run(engine, prompts, params):
    requests = [engine.add(prompt, each) for prompt, each in zip(prompts, params)]
    while engine.requests:
        engine.step()
        assert all(sound_ownership(engine.scheduler).values())
    return requests


def assert_has_read_all(engine, request):
    """The head's state is the one that it has after reading the whole text alone."""
    drafter, tokens = engine.speculation.drafter, torch.tensor(request.tokens, device=DEVICE)
    if len(tokens) < 2 or not request.decoding or request.finished:
        return
    seen, positions, alone = tokens[:-1], torch.arange(len(tokens) - 1, device=DEVICE), NoCache([len(tokens) - 1])
    with torch.inference_mode():
        _, tapped = drafter.target.hidden_states(seen, positions, alone, taps=drafter.taps)
        embeds = drafter.target.embed(tokens[1:])
        right = drafter.head(drafter.head.fuse(tapped), embeds, positions, alone)[-1]
    torch.testing.assert_close(drafter.states([request])[0], right, rtol=1e-3, atol=1e-4)


@settings(max_examples=3)
@given(
    st.integers(0, 5), st.lists(PROMPT, min_size=1, max_size=2), st.integers(1, 4), st.sampled_from([1, 3, 9]),
    st.integers(1, 3), st.sampled_from([0.0, 0.8]),
)  # fmt: skip
def test_tokens_are_the_oracle_s_and_as_many_are_accepted_as_eagerly(seed, prompts, page, steps, gamma, temperature):
    model, head = counting(seed)
    params = [SamplingParams(9 + i, temperature, seed=seed + i, ignore_eos=True) for i in range(len(prompts))]
    engines = [
        engine_of(model, head, captured, page_size=page, num_pages=80, decode_steps=steps, gamma=gamma, radix=False)
        for captured in (True, False)
    ]
    mine, its = (run(engine, prompts, params) for engine in engines)
    exact = model.double()
    for a, b, prompt, each in zip(mine, its, prompts, params):
        assert a.output == b.output == naive.generate(exact, prompt, each)
        assert a.metrics.accepted_tokens == b.metrics.accepted_tokens
    assert engines[0].runner.captured.graphs


@settings(max_examples=6)
@given(
    st.integers(0, 5), st.lists(PROMPT, min_size=1, max_size=2), st.integers(1, 4), st.sampled_from([1, 3, 9]),
    st.sampled_from([1, 3, 5, 7]), st.sampled_from([0.0, 0.8]), st.sampled_from([0, 3]),
)  # fmt: skip
def test_with_trees_tokens_are_the_oracle_s_too(seed, prompts, page, steps, gamma, temperature, top_k):
    """The engine's own drafts are trees: the number of drafts is not named, but chosen by the test."""
    model, head = counting(seed)
    params = [
        SamplingParams(9 + i, temperature, top_k=top_k, seed=seed + i, ignore_eos=True) for i in range(len(prompts))
    ]
    engine = engine_of(model, head, rule=None, page_size=page, num_pages=80, decode_steps=steps, radix=False)
    engine.runner.eager.speculation.choice.best = lambda *given: (gamma, steps)
    requests = [engine.add(prompt, each) for prompt, each in zip(prompts, params)]
    while engine.requests:
        engine.step()
        for request in requests:
            assert_has_read_all(engine, request)
    exact = model.double()
    for request, prompt, each in zip(requests, prompts, params):
        assert request.output == naive.generate(exact, prompt, each)
    assert any(key[-1] == Shape(gamma, branches=True) for key in engine.runner.captured.graphs)


def test_what_a_tree_shows_of_all_numbers_of_drafts():
    """One step of seven drafts: the first, and what is behind it, were kept; and one that kept none."""
    tree = Shape(7, branches=True)
    path = [i for i in range(7) if tree.parents[i] in (-1, 0)][:2]
    assert [tree.parents[i] for i in path] == [-1, 0]
    steps = np.array([[7, 2, 3, sum(1 << i for i in path)], [7, 0, 1, 0], [3, 0, 1, 0]])
    tokens, taken = of_trees(steps, tree)
    assert tokens == 3 + 1, "the third was cut off at the end of a text"
    assert taken == [3 / (min(length, 2) + 1) + 1 for length in LENGTHS]
    assert of_trees(steps[2:], tree) is None


def test_texts_that_come_wait_and_go_on_are_read_whole():
    """Steps with and without drafts, eager ones with prompts, and preemption: after each, the head has read all."""
    model, head = counting(1)
    wishes, arrives = [3, 0, 2, None], [0, 0, 2, 3]
    prompts = [[1, 2, 3], [5, 4], [1, 2, 3, 9, 9, 9], [7]]
    params = [SamplingParams(11, 0.8 * (i % 2), seed=i, gamma=each, ignore_eos=True) for i, each in enumerate(wishes)]
    engine = engine_of(model, head, page_size=2, num_pages=12, decode_steps=2, radix=False)
    requests, step = [], 0
    while engine.requests or len(requests) < len(prompts):
        requests += [engine.add(prompts[i], params[i]) for i, at in enumerate(arrives) if at == step]
        engine.step()
        for request in engine.scheduler.running:
            assert_has_read_all(engine, request)
        step += 1
    assert engine.stats.preemptions
    exact = model.double()
    for request, prompt, each in zip(requests, prompts, params):
        assert request.output == naive.generate(exact, prompt, each)
    assert {key[-1].gamma > 0 for key in engine.runner.captured.graphs} == {True, False}, (
        "graphs of both kinds of steps"
    )
    assert requests[0].metrics.accepted_tokens


@pytest.mark.parametrize("gamma", [0, 2])
def test_pages_that_captured_steps_leave_in_the_tree_hold_the_head_s_keys(gamma):
    model, head = counting(2)
    engine = engine_of(model, head, page_size=2, num_pages=40, decode_steps=4)
    first = run(engine, [[1, 2, 3]], [SamplingParams(10, gamma=gamma, ignore_eos=True)])[0]
    text = first.tokens.tolist()
    for more in ([4, 5], []):
        second = engine.add(text + more, SamplingParams(6, gamma=2, ignore_eos=True))
        while engine.requests:
            engine.step()
            assert_has_read_all(engine, second)
        assert second.metrics.cached_tokens >= 10
        assert second.output == naive.generate(model, text + more, second.params)


def test_the_rule_is_that_of_captured_steps_unless_another_is_named():
    model, head = counting(0)
    drafter = Eagle(head)
    assert Engine(model, drafter=drafter, num_pages=9).speculation.rule is rules.coupled
    assert Engine(model, num_pages=9).speculation.rule is rules.coupled
    engine = Engine(model, drafter=drafter, rule=rules.token_wise, num_pages=20, gamma=2, decode_steps=4)
    for temperature, many in ((0.0, True), (0.8, False)):
        request = engine.add([1, 2, 3], SamplingParams(9, temperature, seed=1, ignore_eos=True))
        engine.step()
        assert (len(engine.step()[0].tokens) > 3) == many, "greedy requests only"
        while engine.requests:
            engine.step()
        if many:
            assert request.output == naive.generate(model, [1, 2, 3], request.params)
    packed = toy(dtype=torch.float64)
    assert isinstance(Engine(packed, drafter=Eagle(random_head(packed)), num_pages=9).runner, EagerRunner)
