"""Requests that are asked for together draw independently of each other, and a seed repeats them all."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_opt import TransformerWithOptimizations, naive
from inference_opt.cache import generate as static
from inference_opt.engine.engine import Engine
from inference_opt.lab.exactness.gtest import g_statistic, p_value, power
from inference_opt.sampling import SamplingParams
from inference_opt.speculative.models import SmallerModel
from tests.engine.test_speculation_law import model_law, tiny
from tests.toys import tokens_of, toy

HOT = SamplingParams(max_new_tokens=8, temperature=1.5, ignore_eos=True)
SEEDS = st.integers(0, 2**64 - 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SEEDS, SEEDS)
def test_split_seeds_repeat_extend_and_do_not_meet(untyped, seed, other):
    params = SamplingParams(seed=seed, temperature=0.5, stop="x")
    each = params.split(6)
    assert each[0] == params
    assert params.split(3) == each[:3]
    assert {own.temperature for own in each} == {0.5}
    for neighbour in {other, (seed + 1) % 2**64, seed ^ 2**32} - {seed}:
        theirs = SamplingParams(seed=neighbour).split(6)
        assert len({own.seed for own in (*each, *theirs)}) == 12


def test_split_gives_the_numbers_of_numpy_s_seed_sequence():
    # Fixed for good: a seed that somebody wrote down gives the same texts in the next release.
    assert [own.seed for own in SamplingParams(seed=1).split(3)] == [1, 4042681867674859579, 1275975541612323131]


def test_parameters_without_a_seed_are_equal_and_each_request_draws_its_own():
    assert SamplingParams() == SamplingParams()
    engine = Engine(toy())
    requests = [engine.add([1, 2], HOT) for _ in range(9)]
    assert len({request.params.seed for request in requests}) == 9
    while engine.requests:
        engine.step()
    assert len({tuple(request.output) for request in requests}) > 1
    for request in requests:
        assert request.output == naive.generate(engine.model, [1, 2], request.params)
    assert len({tuple(naive.generate(engine.model, [1, 2], HOT)) for _ in range(9)}) > 1


def ways(model):
    """Everything that takes several prompts with one params."""

    def front(prompts, params, n=1):
        fields = {"temperature": params.temperature, "seed": params.seed, "ignore_eos": True}
        whole = TransformerWithOptimizations(dim=8, depth=1, heads=2, vocab_size=13)
        whole.model = model
        rows = whole.generate(torch.tensor(prompts), len(prompts[0]) + params.max_new_tokens, n=n, **fields)
        return [row[len(prompts[0]) :] for row in rows.tolist()]

    return {
        "engine": lambda *asked, **more: tokens_of(Engine(model, page_size=2).generate(*asked, **more)),
        "static": lambda *asked, **more: static.generate(model, *asked, **more),
        "front": front,
    }


@pytest.mark.parametrize("way", ways(None))
@pytest.mark.parametrize("n", [1, 3])
def test_every_sample_of_every_prompt_has_the_text_of_its_own_seed(way, n):
    model, prompts = toy(3), [[1, 2, 3], [4, 5, 6], [1, 2, 3]]
    generate = ways(model)[way]
    seeded = SamplingParams(max_new_tokens=6, temperature=2.0, seed=11, ignore_eos=True)
    texts = generate(prompts, seeded, n=n)
    laid_out = [prompt for prompt in prompts for _ in range(n)]
    assert texts == [naive.generate(model, p, own) for p, own in zip(laid_out, seeded.split(3 * n), strict=True)]
    assert texts[0] == naive.generate(model, prompts[0], seeded)
    assert len({tuple(text) for text in texts}) > n
    assert generate(prompts, seeded, n=n) == texts
    drawn = generate([[1, 2, 3]] * 6, HOT, n=n)
    assert len({tuple(text) for text in drawn}) > 1
    greedy = SamplingParams(max_new_tokens=6, ignore_eos=True)
    assert generate(prompts, greedy, n=n) == [naive.generate(model, prompt, greedy) for prompt in laid_out]


def test_parameters_for_each_prompt_are_split_for_its_samples():
    model, each = toy(3), [SamplingParams(4, 2.0, seed=seed) for seed in (5, 6)]
    texts = tokens_of(Engine(model).generate([[1], [2]], each, n=2))
    pairs = zip([[1], [1], [2], [2]], (own for params in each for own in params.split(2)))
    assert texts == [naive.generate(model, prompt, own) for prompt, own in pairs]


@pytest.mark.parametrize("n", [0, -1, True, 1.0, "2"])
def test_a_number_of_samples_is_an_integer_from_one_on(n, untyped):
    for generate in ways(toy()).values():
        with pytest.raises(ValueError, match="n must be"):
            generate([[1, 2]], HOT, n=n)


def test_requests_of_one_params_are_independent_and_each_has_its_law(untyped):  # quicker so
    # A draft has room only where neighbours are gone, so its length depends on what they drew: with common noise the
    # law would be biased, and the texts would be alike.
    model, prompt, pairs, together, alarm = tiny(3, 2), [1, 0, 1], 400, 20, 1e-4
    object.__setattr__(model.config, "eos_token_ids", (0,))
    one = model_law(model, prompt, SamplingParams(max_new_tokens=3, temperature=1.0))
    cells = list(itertools.product(one, one))
    law = [one[a] * one[b] for a, b in cells]
    alike = [0.75 * p + 0.25 * one[a] * (a == b) for p, (a, b) in zip(law, cells)]  # one pair in four
    assert pairs * min(law) > 5
    assert power(law, alike, pairs, alarm) > 0.9
    drafter = SmallerModel(tiny(7, 2, depth=1))
    engine = Engine(
        model, radix=False, drafter=drafter, page_size=2, num_pages=80, gamma=1, token_budget=24, draft_rows=12
    )
    counts = dict.fromkeys(cells, 0)
    for seed in range(2 * pairs // together):
        texts = [tuple(t) for t in tokens_of(engine.generate([prompt], SamplingParams(3, 1.0, seed=seed), n=together))]
        for pair in zip(texts[::2], texts[1::2]):
            counts[pair] += 1
    assert sum(counts.values()) == pairs
    assert engine.stats.drafted_tokens > pairs / 10
    assert p_value(g_statistic(list(counts.values()), law), len(cells)) > alarm
