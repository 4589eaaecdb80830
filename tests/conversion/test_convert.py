"""Conversion to latent attention: exact where nothing is cut off, best where something is, and what it refuses."""

import dataclasses
import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt import Engine, SamplingParams, naive
from inference_opt.conversion import convert
from inference_opt.conversion.convert import assemble, convert_to_mla, factorise
from inference_opt.model.attention import NoCache
from inference_opt.model.config import ExpertsShape, ModelConfig, RopeScaling
from inference_opt.model.mla import use_form
from inference_opt.model.rope import frequencies
from tests.toys import latent_toy, tokens_of, toy

TEXTS = [[1, 5, 3, 8, 2, 9, 4], [7, 7, 0, 12, 11], list(range(13)), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]]
SOURCES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 5),
        "kv_heads": st.sampled_from([1, 2, 4]),
        "head_dim": st.sampled_from([2, 4, 6]),
        "tied_embeddings": st.booleans(),
        "rope_scaling": st.sampled_from(
            [None, RopeScaling("linear", factor=3.0), RopeScaling("yarn", factor=4.0, original_context=8)]
        ),
        "rope_theta": st.sampled_from([10.0, 10_000.0]),
    }
)


@torch.inference_mode()
def logits(model, text=TEXTS[2]):
    return model(torch.tensor(text), torch.arange(len(text)), NoCache([len(text)]))


def error(a, b):
    return float((a - b).abs().max() / b.abs().max())


def fitting(model):
    """A model whose width lets the observed texts say everything of it."""
    return [[(7 * i * k + k) % 13 for i in range(20)] for k in range(1, 9)] + TEXTS


@given(SOURCES, st.sampled_from(["explicit", "absorbed"]))
def test_at_full_width_and_rank_nothing_changes(shape, form):
    model = toy(**shape)
    full = model.config.kv_heads * model.config.head_dim
    converted = convert_to_mla(model, min(full, model.config.dim), full, fitting(model))
    use_form(converted, form)
    if full <= model.config.dim:
        assert error(logits(converted), logits(model)) < 1e-7  # eigenvectors of a moment that texts hardly fill
        assert converted.config.kv_elements_per_token == model.config.kv_elements_per_token
    assert converted.config.latent.qk_rope_head_dim == full


@given(SOURCES, st.data())
def test_less_is_kept_and_the_engine_decodes_it_as_naive_does(shape, data):
    model = toy(**shape)
    c = model.config
    full = c.kv_heads * c.head_dim
    width = 2 * data.draw(st.integers(1, full // 2))
    rank = data.draw(st.integers(1, min(2 * full - width, c.dim)))
    converted = convert_to_mla(model, rank, width, TEXTS)
    engine = Engine(converted, page_size=3, num_pages=40)
    cache = engine.cache
    assert cache.bytes_per_token() == 8 * c.depth * (rank + width)
    params = SamplingParams(max_new_tokens=8)
    assert tokens_of(engine.generate(TEXTS, params)) == [naive.generate(converted, text, params) for text in TEXTS]


def attentive(**shape):
    """A model whose attention looks somewhere."""
    model = toy(**shape)
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.qkv.weight.mul_(20)
    return model


# A value of each field that is not its default, and what refuses it, if anything does.
FIELDS = {
    "vocab_size": (14, None),
    "dim": (20, None),
    "depth": (3, None),
    "heads": (2, None),
    "kv_heads": (4, None),
    "head_dim": (2, None),
    "ffn_dim": (9, None),
    "max_context": (48, None),
    "norm_eps": (0.3, None),
    "rope_theta": (10.0, None),
    "rope_scaling": (RopeScaling("linear", factor=3.0), None),
    "tied_embeddings": (True, None),
    "qkv_bias": (True, "biases"),
    "out_bias": (True, "biases"),
    "mlp_bias": (True, None),
    "qk_norm": (True, "norms on its keys"),
    "eos_token_ids": ((3, 7), None),
    "latent": (latent_toy().config.latent, "latent attention already"),
    "experts": (ExpertsShape(4, 2, 5, 1), None),
}
MADE_NEW = {"head_dim", "latent", "rope_scaling"}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelConfig)])
def test_no_field_of_a_model_is_lost(field):
    value, refusal = FIELDS[field]
    changes = {field: value} if field != "latent" else {"latent": value, "head_dim": latent_toy().config.head_dim}
    if field == "eos_token_ids":
        changes = {"eos": value}
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            convert_to_mla(toy(**changes), 4, 4, TEXTS)
        return
    model = attentive(**changes)
    full = model.config.kv_heads * model.config.head_dim
    converted = convert_to_mla(model, full, full, fitting(model))
    assert error(logits(converted), logits(model)) < 1e-7
    if field not in MADE_NEW:
        assert getattr(converted.config, field) == getattr(model.config, field) == value


SCALINGS = {
    "linear": RopeScaling("linear", factor=4.0),
    "llama3": RopeScaling("llama3", factor=8.0, original_context=16),
    "yarn": RopeScaling("yarn", factor=4.0, original_context=16),
    "yarn with mscale": RopeScaling("yarn", factor=40.0, original_context=4, mscale=1.5, mscale_all_dim=0.5),
    "yarn for queries of a latent": RopeScaling("yarn", factor=40.0, original_context=4, mscale_all_dim=1.0),
    "factors": RopeScaling("factors", factors=(1.0, 3.0)),
    "frequencies": RopeScaling("frequencies", 1.7, factors=(1.0, 0.3)),
}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_scaling_of_the_angles_is_carried_to_every_position(scaling):
    model = attentive(rope_scaling=SCALINGS[scaling], max_context=64)
    converted = convert_to_mla(model, 8, 8, fitting(model))
    text = [(5 * i * i + i) % 13 for i in range(60)]
    assert error(logits(converted, text), logits(model, text)) < 1e-9


@pytest.mark.parametrize(("rank", "width"), [(8, 8), (10, 4), (5, 2)])
def test_what_is_not_rotated_is_as_sharp_as_what_is(rank, width):
    """Queries and keys multiplied by YaRN's factor, and rotated without it, are the same model."""
    yarn = SCALINGS["yarn"]
    model = attentive(rope_scaling=yarn)
    frequency = tuple(frequencies(model.config).tolist())
    plain = attentive(rope_scaling=RopeScaling("frequencies", factors=frequency))
    with torch.no_grad():
        for layer in plain.layers:
            layer.attention.qkv.weight[: 6 * 4].mul_(yarn.attention_factor)  # four heads of queries, two of keys
    a, b = (logits(convert_to_mla(each, rank, width, fitting(model))) for each in (model, plain))
    assert error(a, b) < 1e-5  # angles are float32, and the factor is rounded with them in one and not in the other


def test_errors_fall_with_rank():
    """Each rank is the best one of its kind for what was observed: a larger one leaves less of the metric's error."""
    model = toy(kv_heads=4, head_dim=4)
    left = []
    for rank in (2, 6, 10, 14, 16):
        factors = factorise(model, rank, 8, fitting(model))
        left.append(error(logits(assemble(model, factors)), logits(model)))
    reference = left[-1]  # what unrotated components cost, at a rank that holds all
    assert left[0] > left[2] > reference
    assert left[1] > reference


def test_mixing_commutes_with_the_rotation():
    """Real mixing of halves would not: conjugating on the wrong side must show."""
    source = "basis[i, :, j].conj()"
    text = inspect.getsource(convert._factorise)
    assert source in text
    space = dict(vars(convert))
    exec(text.replace(source, "basis[i, :, j]"), space)
    model = toy(kv_heads=2, head_dim=4, rope_theta=10.0)
    with torch.no_grad():  # attention that looks somewhere
        for layer in model.layers:
            layer.attention.qkv.weight.mul_(20)
    good = factorise(model, 8, 8, fitting(model))
    right = convert._factorise
    try:
        convert._factorise = space["_factorise"]
        bad = factorise(model, 8, 8, fitting(model))
    finally:
        convert._factorise = right
    assert error(logits(assemble(model, good)), logits(model)) < 1e-7
    assert error(logits(assemble(model, bad)), logits(model)) > 1e-2


def test_the_source_is_left_as_it_was():
    model = toy()
    before = {name: p.clone() for name, p in model.named_parameters()}
    convert_to_mla(model, 4, 4, TEXTS)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("source", "rank", "width", "texts", "culprit"),
    [
        (toy(), 17, 4, TEXTS, r"kv_lora_rank must lie in \[1, 12\].*got 17"),
        (toy(), 0, 4, TEXTS, "kv_lora_rank"),
        (toy(), 4, 3, TEXTS, r"qk_rope_head_dim must be even.*got 3"),
        (toy(), 4, 10, TEXTS, r"qk_rope_head_dim must be even and in \[2, kv_heads · head_dim = 8\], got 10"),
        (toy(qk_norm=True), 4, 4, TEXTS, "norms on its keys"),
        (toy(qkv_bias=True), 4, 4, TEXTS, "biases"),
        (latent_toy(), 4, 4, TEXTS, "latent attention already"),
        (toy(), 4, 4, [], "at least one text"),
        (toy(), 4, 4, [[99]], "token id 99 is outside the vocabulary"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(source, rank, width, texts, culprit):
    with pytest.raises(ValueError, match=culprit):
        convert_to_mla(source, rank, width, texts)
