"""Memory is asked before it is taken: how much a model and a pool need, and what is said where there is less."""

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt import Engine, SamplingParams, TransformerWithOptimizations, naive, room
from inference_opt.loading import checkpoint
from inference_opt.loading.checkpoint import Checkpoint, build
from inference_opt.model.transformer import Transformer, count_weights
from inference_opt.speculative.models import SmallerModel
from tests.toys import LATENT_SHAPES, SHAPES, latent_toy, toy

CPU = torch.device("cpu")


@given(st.one_of(SHAPES.map(lambda shape: toy(**shape)), LATENT_SHAPES.map(lambda shape: latent_toy(**shape))))
def test_weights_are_counted_without_building_any(model):
    assert count_weights(model.config) == sum(p.numel() for p in model.parameters())


@given(st.fixed_dictionaries({n: st.booleans() for n in ("tied_embeddings", "out_bias", "mlp_bias", "qk_norm")}))
def test_whatever_options_they_have(options):
    model = toy(**options)
    assert count_weights(model.config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "sizes",
    [
        {"dim": 10**6},
        {"dim": 8, "heads": 2, "vocab_size": 2**62},
        {"dim": 8, "heads": 2, "ffn_dim": 2**62},
        {"dim": 8, "heads": 2, "depth": 10**9},
        {"dim": 8, "heads": 2, "max_context": 2**24, "depth": 10**8},
    ],
)
def test_a_model_that_memory_does_not_hold_is_refused_before_it_is_built(sizes):
    with pytest.raises(ValueError, match=r"a model of [\d,]+ weights .* GiB left: choose smaller sizes"):
        TransformerWithOptimizations(**sizes)


def test_so_is_one_that_is_loaded_in_the_dtype_that_is_asked_for(monkeypatch):
    config = toy().config
    needed = 4 * (count_weights(config) + 2 * config.max_context * config.rope_dim) + 25_000 * config.depth
    monkeypatch.setattr(room, "available_bytes", lambda device: needed)

    class Stored(Checkpoint):
        """Has every tensor in any shape, until one is asked for."""

        def shape(self, name):
            return next(asked)

        def tensor(self, name):
            raise KeyError("a tensor was asked for")

        def unused(self, used):
            return set()

    monkeypatch.setattr(checkpoint, "_counted", lambda config: [])
    for dtype, error, message in (
        (torch.float64, ValueError, "in torch.float64, would take"),
        (torch.float32, KeyError, "was asked for"),
    ):
        with torch.device("meta"):
            asked = iter([s for _, _, parts in checkpoint._places(Transformer(config)) for s in parts.values()])
        with pytest.raises(error, match=message):
            build(Stored(), config, dtype, CPU)


def test_pages_that_are_asked_for_must_fit():
    with pytest.raises(ValueError, match=r"a KV cache of num_pages = 1,000,000,000,000 .* take fewer num_pages"):
        Engine(toy(), num_pages=10**12)


def stored(cache):
    return sum(t.untyped_storage().nbytes() for t in (*cache.keys, *(cache.values or ())))


@pytest.mark.parametrize("make", [toy, latent_toy])
def test_a_pool_takes_memory_as_texts_come_to_use_it(make):
    model = make(max_context=4096)
    engine = Engine(model, page_size=4, drafter=SmallerModel(make(1, max_context=4096)))
    caches = engine.cache, engine.speculation.drafter.cache
    assert engine.pool.num_pages == 2048
    assert [stored(cache) for cache in caches] == [0, 0]
    prompts = [[(i * k) % 13 for i in range(7 * k)] for k in range(1, 9)]
    params = SamplingParams(max_new_tokens=6)
    for few in (prompts[:1], prompts, prompts):  # while pages of the tree are alive
        assert engine.generate(few, params) == [naive.generate(model, prompt, params) for prompt in few]
        for cache in caches:
            used = engine.pool.peak * 4 * cache.bytes_per_token()
            assert 0 < stored(cache) <= 2 * used
    assert engine.stats.cached_tokens > 0


def test_pages_that_are_said_are_there_at_once():
    engine = Engine(toy(), num_pages=10, page_size=2)
    assert stored(engine.cache) == 20 * engine.cache.bytes_per_token()


def test_by_default_a_pool_has_half_of_what_is_left_at_most(monkeypatch):
    monkeypatch.setattr("inference_opt.engine.cache_manager.available_bytes", lambda device: 2**20)
    model = toy(max_context=4096)
    engine = Engine(model, page_size=4)
    assert engine.pool.num_pages == 2**19 // (4 * engine.cache.bytes_per_token()) < 2048
    with pytest.raises(ValueError, match="num_pages"):
        engine.add([1] * 4000, SamplingParams(max_new_tokens=90))


def test_what_a_system_does_not_say_limits_nothing():
    room.check_room(10**30, torch.device("meta"), "a model", "take a smaller one")
    assert 0 < room.available_bytes(CPU) < 2**50
    with torch.device("meta"):
        assert Transformer(toy().config).device.type == "meta"


def test_a_page_larger_than_memory_is_refused():
    with pytest.raises(ValueError, match=r"page_size = 1,000,000,000,000 .* more than half of the memory"):
        Engine(toy(), page_size=10**12)


def test_an_engine_that_nobody_names_frees_its_pool_and_its_model_at_once():
    """Without the garbage collector, which would run too late for a next engine as large as the card."""
    engine = Engine(toy())
    engine.generate([[1, 2, 3]], SamplingParams(max_new_tokens=3))
    left = [weakref.ref(each) for each in (engine.cache, engine.model)]
    gc.disable()
    try:
        del engine
        assert [each() for each in left] == [None, None]
    finally:
        gc.enable()
