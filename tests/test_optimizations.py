"""The one-class front: the user's own example, equality with the oracle, and what it refuses."""

import dataclasses
from functools import partial
from typing import ClassVar

import pytest
import torch
from jaxtyping import config

from inference_opt import TransformerWithOptimizations, naive
from inference_opt.lab.agreement import compare
from inference_opt.loading.tokenizer import Detokenizer, Tokenizer
from inference_opt.sampling import SamplingParams
from inference_opt.speculative.lookup import NGram


def test_the_example_of_the_readme():
    model = TransformerWithOptimizations(dim=512, depth=6, heads=8)
    input_ids = torch.tensor([[1, 2, 3, 4]])
    output = model.generate(input_ids, max_length=100)
    assert output.shape == (1, 100)
    assert torch.equal(output[:, :4], input_ids)
    with torch.inference_mode():  # what the oracle says behind each token of the text
        expected = model(output)[0, 3:-1].argmax(-1)
    assert compare(model.model, [1, 2, 3, 4], expected.tolist(), output[0, 4:].tolist()).exact


def test_rows_are_the_oracle_s_tokens_greedy_and_seeded():
    model = TransformerWithOptimizations(
        dim=32, depth=2, heads=4, kv_heads=2, vocab_size=50, max_context=64, dtype="float64", seed=3
    )
    ids = torch.tensor([[1, 2, 3], [9, 8, 7]])
    for sampling in ({}, {"temperature": 1.2, "seed": 5, "top_p": 0.9}):
        out = model.generate(ids, max_length=20, **sampling)
        for prompt, row, own in zip(ids.tolist(), out.tolist(), SamplingParams(17, **sampling).split(2)):
            assert row == prompt + naive.generate(model.model, prompt, own)


def test_forward_predicts_what_generate_emits():
    model = TransformerWithOptimizations(dim=32, depth=1, heads=2, vocab_size=50, dtype="float64")
    ids = torch.tensor([[4, 5, 6], [6, 5, 4]])
    logits = model(ids)
    assert logits.shape == (2, 3, 50)
    assert torch.equal(logits[:, -1].argmax(-1), model.generate(ids, max_length=4)[:, -1])


def test_pretrained_rows_that_end_early_are_filled_with_their_end(apart, smollm2_path):
    apart(rows_that_end_early_are_filled, smollm2_path)


def rows_that_end_early_are_filled(smollm2_path):
    model = TransformerWithOptimizations.from_pretrained(smollm2_path)
    prompts = [model.tokenizer.chat(m)[-40:] for m in ("Say only the word yes.", "Count from one to ten in words.")]
    width = min(map(len, prompts))
    out = model.generate(torch.tensor([p[-width:] for p in prompts]), max_length=width + 48)
    ends = [(row == 2).nonzero().flatten().tolist() for row in out[:, width:]]
    assert any(end and end == list(range(end[0], out.shape[1] - width)) for end in ends)


def test_latent_attention_is_a_switch():
    model = TransformerWithOptimizations(dim=32, depth=2, heads=4, vocab_size=50, use_mla=True, dtype="float64")
    shape = model.model.config.latent
    assert (shape.kv_lora_rank, shape.qk_rope_head_dim, shape.qk_nope_head_dim, shape.v_head_dim) == (32, 4, 8, 8)
    out = model.generate(torch.tensor([[1, 2, 3]]), max_length=12)
    assert out[0].tolist() == [1, 2, 3, *naive.generate(model.model, [1, 2, 3], SamplingParams(max_new_tokens=9))]
    small = TransformerWithOptimizations(dim=32, depth=2, heads=4, vocab_size=50, use_mla=True, mla_latent_dim=6)
    assert small.model.config.kv_elements_per_token == 2 * (6 + 4)


def test_latent_attention_of_a_pretrained_model_goes_with_the_other_switches(apart, smollm2_path):
    apart(latent_attention_goes_with_the_other_switches)


def latent_attention_goes_with_the_other_switches():
    """The healed factors by name; and the oracle's tokens with prefix reuse and speculation on."""
    model = TransformerWithOptimizations.from_pretrained(
        "smollm2-135m",
        use_mla=True,
        use_radix_attention=True,
        use_speculative_decoding=True,
        speculative_model=NGram(),
        dtype="bfloat16",
    )
    assert 3 * model.model.config.kv_elements_per_token == 30 * 2 * 3 * 64  # layers, keys and values, heads, widths
    ids = model.tokenizer.chat("Why is the sky blue?")
    for _ in range(2):
        out = model.generate(torch.tensor([ids]), max_length=len(ids) + 16)[0].tolist()
        got, params = out[len(ids) :], SamplingParams(max_new_tokens=16)
        assert compare(model.model, ids, naive.generate(model.model, ids, params), got).exact
    assert model.engine.stats.cached_tokens > 0


def test_a_pretrained_model_is_converted_at_the_rank_that_is_asked_for(apart, smollm2_path):
    apart(is_converted_at_the_rank_that_is_asked_for, smollm2_path)


def is_converted_at_the_rank_that_is_asked_for(smollm2_path):
    pretrained = partial(TransformerWithOptimizations.from_pretrained, smollm2_path, use_mla=True, dtype="float32")
    assert pretrained(mla_latent_dim=160).model.config.kv_elements_per_token == 30 * (160 + 32)
    with pytest.raises(ValueError, match=r"kv_lora_rank must lie in \[1, 352\]"):
        pretrained(mla_latent_dim=353)


SIZES = {"dim": 32, "depth": 4, "heads": 4, "vocab_size": 50, "max_context": 64, "dtype": "float64"}


@pytest.mark.parametrize("radix", [False, True])
@pytest.mark.parametrize("speculative_model", ["none", "front", "transformer", "drafter"])
def test_speculation_is_a_switch_that_changes_no_greedy_token(speculative_model, radix):
    smaller = TransformerWithOptimizations(**SIZES | {"depth": 1, "seed": 1})
    given = {"none": None, "front": smaller, "transformer": smaller.model, "drafter": NGram()}[speculative_model]
    model = TransformerWithOptimizations(
        use_radix_attention=radix, use_speculative_decoding=True, speculative_model=given, **SIZES
    )
    with torch.no_grad():  # an untrained model holds no token probable enough to be drafted
        for each in (model.model, smaller.model):
            each.head.weight.mul_(60)
    ids = torch.tensor([[1, 2, 3], [9, 8, 7]])
    for _ in range(2):
        out = model.generate(ids, max_length=40)
        for prompt, row in zip(ids.tolist(), out.tolist()):
            assert row == prompt + naive.generate(model.model, prompt, SamplingParams(max_new_tokens=37))
    assert model.engine.stats.drafted_tokens > 0


def test_a_smaller_model_must_fit():
    other = TransformerWithOptimizations(**SIZES | {"vocab_size": 51})
    model = TransformerWithOptimizations(use_speculative_decoding=True, speculative_model=other, **SIZES)
    with pytest.raises(ValueError, match=r"vocabulary has 51 tokens, the target's 50"):
        model.generate(torch.tensor([[1]]), max_length=3)
    with pytest.raises(ValueError, match="first 1 of 1 layers"):
        TransformerWithOptimizations(use_speculative_decoding=True, **SIZES | {"depth": 1}).generate(
            torch.tensor([[1]]), max_length=3
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 30, "heads": 4}, "multiple"),
        ({"dim": 0}, "dim"),
        ({"depth": 0}, "depth"),
        ({"heads": 0}, "heads"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"dim": 6, "heads": 2}, "even"),
        ({"dtype": "float16"}, "dtype"),
        ({"device": "abacus"}, "device"),
        ({"mla_latent_dim": 64}, "mla_latent_dim"),
        ({"speculative_model": "x"}, "speculative_model"),
        ({"speculative_model": "x", "use_speculative_decoding": True}, "speculative_model must be a model"),
    ],
)
def test_impossible_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransformerWithOptimizations(**arguments)


def test_an_unknown_option_is_an_error():
    with pytest.raises(TypeError, match="use_magic"):
        TransformerWithOptimizations(use_magic=True)


@pytest.mark.parametrize(
    ("ids", "length", "sampling", "message"),
    [
        ([[1, 2]], 2, {}, "max_length"),
        ([[1, 2]], 0, {}, "max_length"),
        ([[1, 2]], -5, {}, "max_length"),
        ([[1, 99]], 9, {}, "vocabulary"),
        ([[]], 9, {}, "empty"),
        ([[1]], 9, {"temperature": float("nan")}, "temperature"),
        ([[1]], 9, {"top_p": 0.0}, "top_p"),
        ([[1] * 70], 99, {}, "context"),
    ],
)
def test_what_cannot_be_continued(ids, length, sampling, message):
    model = TransformerWithOptimizations(dim=8, depth=1, heads=2, vocab_size=50, max_context=64)
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor(ids, dtype=torch.long), max_length=length, **sampling)


def test_radix_attention_reuses_earlier_calls_and_gives_the_same_tokens():
    sizes = {"dim": 32, "depth": 2, "heads": 4, "vocab_size": 50, "max_context": 64, "dtype": "float64", "seed": 3}
    plain = TransformerWithOptimizations(**sizes)
    radix = TransformerWithOptimizations(use_radix_attention=True, page_size=4, num_pages=40, **sizes)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9, 9]])
    for sampling in ({}, {"temperature": 1.2, "seed": 5}):
        assert torch.equal(radix.generate(ids, 20, **sampling), plain.generate(ids, 20, **sampling))
    assert radix.engine.stats.cached_tokens == 3 * 4  # a page by the second row, one by each row of the second call
    assert (radix.engine.pool.page_size, radix.engine.pool.num_pages) == (4, 40)


def test_changed_weights_are_never_answered_from_old_pages():
    model = TransformerWithOptimizations(
        dim=32, depth=2, heads=4, vocab_size=50, max_context=64, dtype="float64", use_radix_attention=True, page_size=2
    )
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    model.generate(ids, 20)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5).add_(0.01)
    prompt = ids[0].tolist()
    expected = prompt + naive.generate(model.model, prompt, SamplingParams(max_new_tokens=14))
    assert model.generate(ids, 20)[0].tolist() == expected


def test_text_is_no_tensor():
    model = TransformerWithOptimizations(dim=8, depth=1, heads=2, vocab_size=50, max_context=64)
    config.update("jaxtyping_disable", True)  # as a user calls it
    try:
        with pytest.raises(ValueError, match=r"must be a \[batch, length\] tensor of integers, got 'The sky'"):
            model.generate("The sky", max_length=9)
    finally:
        config.update("jaxtyping_disable", False)


def test_a_prompt_that_the_pool_cannot_hold_is_refused():
    model = TransformerWithOptimizations(
        dim=32, depth=1, heads=2, vocab_size=50, use_radix_attention=True, page_size=4, num_pages=2
    )
    with pytest.raises(ValueError, match="never fit"):
        model.generate(torch.tensor([[1, 2, 3, 4, 5, 6]]), 20)
    assert model.generate(torch.tensor([[1, 2, 3]]), 6).shape == (1, 6)


class Letters(Tokenizer):
    """Token t is the t-th letter."""

    special_ids: ClassVar = {}

    def __init__(self):
        pass

    def decode(self, ids):
        return "".join(chr(97 + token) for token in ids)

    def detokenizer(self):
        return Detokenizer(self)


@pytest.mark.parametrize("radix", [False, True])
@pytest.mark.parametrize("ends", [(), (25, 24)])
def test_a_row_that_a_stop_string_ends_is_filled_with_an_end(radix, ends):
    model = TransformerWithOptimizations(dim=32, depth=2, heads=4, vocab_size=26, seed=2, use_radix_attention=radix)
    model.model.config = dataclasses.replace(model.model.config, eos_token_ids=ends)
    with torch.no_grad():
        model.model.head.weight.mul_(60)
    model.tokenizer = Letters()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    whole = model.generate(ids, 30, ignore_eos=True)[:, 3:]
    stop = "".join(chr(97 + t) for t in whole[0, 3:5].tolist())
    rows = model.generate(ids, 30, ignore_eos=True, stop=stop)[:, 3:].tolist()
    letters = ["".join(chr(97 + t) for t in row) for row in whole.tolist()]
    lengths = [text.index(stop) + 2 if stop in text else 27 for text in letters]
    longest = max(lengths)
    expected = [
        row[:n] + [ends[0] if ends and row[n - 1] not in ends else row[n - 1]] * (longest - n)
        for row, n in zip(whole.tolist(), lengths)
    ]
    assert rows == expected
    assert min(lengths) < longest
