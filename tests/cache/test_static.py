"""Static batching on contiguous caches gives each prompt the tokens of `naive.generate` alone: in float64 always."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from inference_opt import naive
from inference_opt.cache import generate as static
from inference_opt.lab.agreement import compare, teacher_forced_greedy
from inference_opt.lab.exactness.gtest import g_statistic, p_value
from inference_opt.loading.checkpoint import GGUFFile
from inference_opt.loading.prompts import load_prompts
from inference_opt.loading.tokenizer import tokenizer_from_gguf
from inference_opt.model.attention import NoCache
from inference_opt.sampling import SamplingParams, probabilities, sample
from tests.toys import PARAMS, PROMPTS, SHAPES, toy


@given(SHAPES, st.lists(st.tuples(PROMPTS, PARAMS), min_size=1, max_size=4))
def test_every_prompt_of_a_batch_gets_its_naive_tokens(shape, requests):
    model = toy(**shape)
    prompts, params = [p for p, _ in requests], [q for _, q in requests]
    assert static.generate(model, prompts, params) == [naive.generate(model, p, q) for p, q in requests]


@given(SHAPES, PROMPTS, PARAMS)
@torch.inference_mode()
def test_naive_is_the_definition(shape, prompt, params):
    """Each token is the argmax of a whole forward of all before it, or one that the distribution there allows."""
    model = toy(**shape)
    text = naive.generate(model, prompt, params)
    for i, token in enumerate(text):
        before = [*prompt, *text[:i]]
        logits = model(torch.tensor(before), torch.arange(len(before)), NoCache([len(before)]))[-1]
        if params.temperature == 0:
            assert token == int(logits.argmax())
        else:
            assert probabilities(logits, params)[token] > 0
    assert 1 <= len(text) <= min(params.max_new_tokens, model.config.max_context - len(prompt) + 1)
    assert not any(t in model.config.eos_token_ids for t in text[:-1])
    if text[-1] not in model.config.eos_token_ids:
        assert len(text) == min(params.max_new_tokens, model.config.max_context - len(prompt) + 1)


def test_a_text_may_fill_the_context_and_no_more():
    model = toy()
    params = SamplingParams(max_new_tokens=100)
    full = [1] * model.config.max_context
    assert [len(t) for t in static.generate(model, [full, full[:-2], [1]], params)] == [1, 3, 24]
    assert len(naive.generate(model, full, params)) == 1


@pytest.mark.parametrize(
    ("prompt", "message"), [([], "empty"), ([13], "outside"), ([-1], "outside"), ([0] * 25, "context")]
)
def test_prompts_the_model_cannot_continue(prompt, message):
    for run in (naive.generate, lambda m, p, q: static.generate(m, [[1], p], q)):
        with pytest.raises(ValueError, match=message):
            run(toy(), prompt, SamplingParams())


def test_no_prompts_or_params_that_do_not_match():
    for prompts, params in (([], SamplingParams()), ([[1]], []), ([[1]], [SamplingParams()] * 2)):
        with pytest.raises(ValueError, match=r"one params for all|there are no prompts"):
            static.generate(toy(), prompts, params)


@pytest.fixture(scope="module")
def their_texts(apart, smollm2_path):
    return apart(texts_of_transformers, smollm2_path)


def texts_of_transformers(path):
    """What transformers makes of the real prompts: an independent reading of the file, and model, and `generate`."""
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = tokenizer_from_gguf(GGUFFile(path).fields)
    how = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "eos_token_id": [0, 2]}
    prompts = [p.ids(tokenizer) for p in load_prompts()]
    return [theirs.generate(torch.tensor([ids]), **how)[0, len(ids) :].tolist() for ids in prompts]


@pytest.fixture(scope="module")
def real_texts(smollm2):
    """Ten real prompts in one ragged batch, sixteen tokens each."""
    model, tokenizer = smollm2
    prompts = [p.ids(tokenizer) for p in load_prompts()]
    return prompts, static.generate(model, prompts, SamplingParams(max_new_tokens=16))


def test_the_real_model_agrees_with_transformers(their_texts, smollm2, real_texts):
    for prompt, text, other in zip(*real_texts, their_texts, strict=True):
        agreement = compare(smollm2[0], prompt, other, text)
        assert agreement.exact, agreement


def test_the_real_model_agrees_with_naive(smollm2, real_texts):
    model = smollm2[0]
    for prompt, text in zip(*real_texts):
        agreement = compare(model, prompt, teacher_forced_greedy(model, prompt, text), text)
        assert agreement.exact, agreement
        if len(prompt) < 60:  # token by token takes as many looks at the whole text as it has new tokens
            alone = naive.generate(model, prompt, SamplingParams(max_new_tokens=16))
            assert compare(model, prompt, alone, text).exact


def test_stop_strings_end_the_same_tokens(smollm2):
    model, tokenizer = smollm2
    prompt = load_prompts()[0].ids(tokenizer)
    params = SamplingParams(max_new_tokens=40, stop=("light",))
    slow = naive.generate(model, prompt, params, tokenizer)
    (fast,) = static.generate(model, [prompt], params, tokenizer)
    assert slow == fast
    assert "light" in tokenizer.decode(fast)
    assert "light" not in tokenizer.decode(fast[:-1])


@torch.inference_mode()
def test_the_sampler_s_distribution_is_the_model_s(smollm2):
    """Over many seeds the first token's frequencies follow the model's probabilities: one false alarm in 10⁶."""
    model, tokenizer = smollm2
    ids = load_prompts()[0].ids(tokenizer)
    last = torch.tensor([len(ids) - 1])
    logits = model(torch.tensor(ids), torch.arange(len(ids)), NoCache([len(ids)]), rows=last)[0]
    expected = probabilities(logits, SamplingParams(temperature=1.0, top_k=8))
    counts = torch.zeros_like(expected)
    for seed in range(4000):
        counts[sample(logits, SamplingParams(temperature=1.0, top_k=8, seed=seed), position=len(ids))] += 1
    assert p_value(g_statistic(counts.numpy(), expected.numpy()), cells=8) > 1e-6


def test_a_sequence_of_broken_logits_ends_alone():
    model = toy(3, max_context=24)
    with torch.no_grad():
        model.embed.weight[7] = float("nan")
    params, got = SamplingParams(6, ignore_eos=True), []
    with pytest.raises(ValueError, match=r"sequence 1 could not be continued: .*NaN"):
        got.extend(static.stream(model, [[1, 2, 1, 2], [1, 2, 7], [3, 1]], params))
    for i, prompt in ((0, [1, 2, 1, 2]), (2, [3, 1])):
        assert [each[i] for each in got] == naive.generate(model, prompt, params)
    assert not any(1 in each for each in got)
