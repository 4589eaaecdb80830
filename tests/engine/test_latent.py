"""The radix tree, the scheduler and speculation serve a latent model unchanged: its naive tokens, in every form."""

import copy
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_opt import naive
from inference_opt.cache import generate as static
from inference_opt.engine.engine import Engine
from inference_opt.model.mla import use_form
from inference_opt.sampling import SamplingParams
from inference_opt.speculative import rules
from inference_opt.speculative.lookup import PromptLookup
from inference_opt.speculative.models import FirstLayers, SmallerModel
from tests.engine.invariants import assert_sound
from tests.engine.test_engine import PROMPT
from tests.engine.test_speculation import served
from tests.toys import LATENT_SHAPES, PARAMS, PROMPTS, latent_toy, tokens_of, toy

FORM = st.sampled_from(["explicit", "absorbed", None])
GAMMA = st.integers(0, 4)
REQUEST = st.fixed_dictionaries(
    {"prompt": PROMPT, "params": st.builds(replace, PARAMS, gamma=GAMMA), "arrives": st.integers(0, 5)}
)
LIMITS = st.fixed_dictionaries(
    {
        "page_size": st.sampled_from([1, 3, 16]),
        "token_budget": st.sampled_from([1, 3, 7, 512]),
        "draft_rows": st.sampled_from([4, 64]),
        "radix": st.booleans(),
        "rule": st.sampled_from([rules.token_wise, rules.block, rules.coupled]),
    }
)
KINDS = {  # target, drafter
    "no drafts": lambda shape: (latent_toy(**shape), None),
    "copies": lambda shape: (latent_toy(**shape), PromptLookup(2, 1)),
    "first layer": lambda shape: (latent_toy(**shape), FirstLayers()),
    "latent for latent": lambda shape: (latent_toy(**shape), SmallerModel(latent_toy(9, depth=1))),
    "grouped-query for latent": lambda shape: (latent_toy(**shape), SmallerModel(toy(9, depth=1))),
    "latent for grouped-query": lambda shape: (toy(), SmallerModel(latent_toy(**shape | {"eos": ()}))),
}


def texts_of(drawn, rule=rules.coupled):
    """Requests; where a rule keeps the law and not the token, greedy ones."""
    texts = [(r["prompt"], r["params"]) for r in drawn]
    return texts if rule is rules.coupled else [(p, replace(q, temperature=0.0)) for p, q in texts]


def least_pages(texts, page_size):
    return -(-max(min(len(p) + q.max_new_tokens - 1, 24) for p, q in texts) // page_size)


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.large_base_example])
@given(LATENT_SHAPES, FORM, st.lists(REQUEST, min_size=1, max_size=4), LIMITS, st.sampled_from([0, 1, 4, 60]))
def test_every_text_is_the_naive_one(kind, shape, form, drawn, limits, slack):
    model, drafter = KINDS[kind](shape)
    texts = texts_of(drawn, limits["rule"])
    expected = [naive.generate(model, prompt, params) for prompt, params in texts]
    use_form(model, form)
    pages = least_pages(texts, limits["page_size"]) + slack  # from the least on
    engine = Engine(model, drafter=drafter, num_pages=pages, **limits)
    requests = served(engine, texts, [r["arrives"] for r in drawn])
    assert [request.output for request in requests] == expected
    for request, (_, params) in zip(requests, texts):
        assert not (params.gamma == 0 and request.metrics.drafted_tokens)


@given(LATENT_SHAPES, FORM, st.lists(st.tuples(PROMPTS, PARAMS), min_size=1, max_size=4))
def test_static_batches_give_the_naive_tokens(shape, form, requests):
    model = latent_toy(**shape)
    expected = [naive.generate(model, prompt, params) for prompt, params in requests]
    use_form(model, form)
    assert static.generate(model, [p for p, _ in requests], [q for _, q in requests]) == expected


@settings(suppress_health_check=[HealthCheck.large_base_example])
@given(LATENT_SHAPES, st.lists(REQUEST, min_size=1, max_size=3), st.sampled_from([1, 3, 16]), st.data())
def test_latents_outlive_the_form_that_wrote_them(shape, drawn, page_size, data):
    # What one form keeps, in private pages or the tree's, another reads: in the middle of a text, and of a prompt.
    model, texts = latent_toy(**shape), texts_of(drawn)
    expected = [naive.generate(model, prompt, params) for prompt, params in texts]
    engine = Engine(model, page_size=page_size, token_budget=data.draw(st.sampled_from([3, 512])))
    requests = [engine.add(*text) for text in texts]
    while engine.requests:
        use_form(model, data.draw(FORM))
        engine.step()
        assert_sound(engine)
    assert [request.output for request in requests] == expected


STEM = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 1, 2, 3]
LONG = SamplingParams(max_new_tokens=5, ignore_eos=True)


@pytest.mark.parametrize("page_size", [1, 3, 16])
@settings(max_examples=8)
@given(LATENT_SHAPES, FORM, st.sampled_from([2, 5, 512]))
def test_prompts_with_one_stem_share_its_latents(page_size, shape, form, token_budget):
    model = latent_toy(**shape)
    prompts = [[*STEM, tail] for tail in range(5)] + [[*STEM[:7], 12, 12], [*STEM, 1]]
    expected = [naive.generate(model, prompt, LONG) for prompt in prompts]
    use_form(model, form)
    engine = Engine(model, page_size=page_size, token_budget=token_budget, num_pages=-(-100 // page_size))
    assert tokens_of(engine.generate(prompts[:1], LONG)) == expected[:1]
    assert engine.stats.cached_tokens == 0
    assert tokens_of(engine.generate(prompts[1:], LONG)) == expected[1:]
    stem = len(STEM) // page_size * page_size
    assert engine.stats.cached_tokens >= 5 * stem + 7 // page_size * page_size
    plain = Engine(model, radix=False, page_size=page_size, token_budget=token_budget)
    assert tokens_of(plain.generate(prompts, LONG)) == expected
    assert plain.stats.cached_tokens == 0


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(LATENT_SHAPES, FORM)
def test_a_preempted_text_goes_on_as_if_nothing_had_been(kind, shape, form):
    model, drafter = KINDS[kind](shape)
    params = SamplingParams(max_new_tokens=12, ignore_eos=True, temperature=1.0, seed=1, gamma=3)
    prompts = [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [7, 8, 9], [1, 2, 3, 9]]
    expected = [naive.generate(model, prompt, params) for prompt in prompts]
    use_form(model, form)
    engine = Engine(model, drafter=drafter, page_size=3, num_pages=8, token_budget=7, rule=rules.coupled)
    requests = served(engine, [(prompt, params) for prompt in prompts])
    assert [request.output for request in requests] == expected
    assert engine.stats.preemptions > 0


@given(LATENT_SHAPES, FORM, FORM, st.lists(PROMPT, min_size=1, max_size=3), st.integers(1, 4))
def test_the_target_in_another_form_guesses_every_token(shape, form, other, prompts, gamma):
    model = latent_toy(**shape)
    drafter = copy.deepcopy(model)
    use_form(model, form)
    use_form(drafter, other)
    params = SamplingParams(max_new_tokens=9, ignore_eos=True, temperature=0.8, seed=2)
    expected = [naive.generate(model, prompt, params) for prompt in prompts]
    engine = Engine(model, drafter=SmallerModel(drafter), gamma=gamma, page_size=3, rule=rules.coupled)
    assert [r.output for r in served(engine, [(prompt, params) for prompt in prompts])] == expected
    assert engine.stats.acceptance == 1
    assert engine.stats.drafted_tokens > 0


def test_a_latent_model_s_own_first_layers_are_believed_at_times():
    model, params = latent_toy(3, depth=3), SamplingParams(max_new_tokens=18, ignore_eos=True)
    prompts = [[a, b, a] for a in range(5) for b in range(4)]
    engine = Engine(model, drafter=FirstLayers(2), gamma=4, num_pages=64, page_size=3)
    assert tokens_of(engine.generate(prompts, params)) == [naive.generate(model, prompt, params) for prompt in prompts]
    assert 0.05 < engine.stats.acceptance < 0.95


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_a_drafter_s_pages_have_its_own_shape(heads):
    latent, grouped = latent_toy(kv_heads=heads), toy(kv_heads=heads)
    for target, drafter in ((latent, grouped), (grouped, latent)):
        engine = Engine(target, drafter=SmallerModel(drafter), page_size=3, num_pages=9)
        for cache, model in ((engine.cache, target), (engine.speculation.drafter.cache, drafter)):
            assert cache.bytes_per_token() == 8 * model.config.kv_elements_per_token
            assert (cache.num_pages, cache.page_size, cache.latent_dim) == (9, 3, model.config.kv_shape["latent_dim"])
