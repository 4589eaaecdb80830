"""Conversion to latent attention: exact where nothing is cut off, best where something is, and what it refuses."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt import Engine, SamplingParams, naive
from inference_opt.model import convert
from inference_opt.model.attention import NoCache
from inference_opt.model.config import RopeScaling
from inference_opt.model.convert import assemble, convert_to_mla, factorise
from inference_opt.model.latent import use_form
from tests.toys import latent_toy, toy

TEXTS = [[1, 5, 3, 8, 2, 9, 4], [7, 7, 0, 12, 11], list(range(13)), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]]
SOURCES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 5),
        "kv_heads": st.sampled_from([1, 2, 4]),
        "head_dim": st.sampled_from([2, 4, 6]),
        "tied_embeddings": st.booleans(),
        "rope_scaling": st.sampled_from([None, RopeScaling("linear", factor=3.0)]),
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


@given(SOURCES, st.sampled_from(["explicit", "absorbed", "training"]))
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
    assert engine.generate(TEXTS, params) == [naive.generate(converted, text, params) for text in TEXTS]


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
