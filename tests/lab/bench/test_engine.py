"""What `bench engine` computes without a card: bytes of a step, and the peers' configurations of our shapes."""

import random

import pytest
import torch

from inference_opt.lab.bench.engine import layer_seconds
from inference_opt.lab.bench.engine_peers import _shape, has_vllm
from inference_opt.lab.bench.shapes import SHAPES, random_model
from inference_opt.lab.bench.work import work
from inference_opt.loading.formats import config_from_hf
from inference_opt.model.transformer import Transformer
from tests.toys import toy


@pytest.mark.parametrize("name", [name for name, config in SHAPES.items() if config.latent])
def test_a_peer_s_configuration_of_latents_is_our_shape(name):
    """As `load_model` reads it: so that both have the same layers."""
    ours, theirs = SHAPES[name], config_from_hf(_shape(SHAPES[name]).to_dict())
    with torch.device("meta"):
        a, b = Transformer(ours), Transformer(theirs)
    assert {n: p.shape for n, p in a.named_parameters()} == {n: p.shape for n, p in b.named_parameters()}
    assert a.layers[-1].mlp.__class__ is b.layers[-1].mlp.__class__
    if ours.experts:
        assert ours.experts == theirs.experts


def test_grouped_queries_with_experts_have_no_peer():
    config = SHAPES["DeepSeek-V2-Lite grouped-query"]
    assert not has_vllm(config)
    with pytest.raises(ValueError, match="no model of this shape"):
        _shape(config)


def test_a_layer_s_time_is_the_difference_of_two_depths():
    deep, flat = "DeepSeek-V3, 3 layers", "DeepSeek-V3, 1 layer"
    rows = [
        {"shape": shape, "batch": batch, "inference-opt": {"decode": batch / taken}, "limit": batch / least}
        for shape, batch, taken, least in [(deep, 1, 0.009, 0.005), (flat, 1, 0.003, 0.001), (flat, 8, 0.1, 0.1)]
    ]
    (found,) = layer_seconds([*rows, rows[0] | {"shape": "DeepSeek-V2-Lite"}])
    assert found == {
        "shape": deep, "batch": 1, "layers": 2, "seconds": pytest.approx(0.003), "least": pytest.approx(0.002)
    }  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_bytes_of_experts_are_those_of_the_chosen_on_average(batch):
    """By drawing: the mean over many steps of the distinct experts that `batch` tokens choose."""
    config = SHAPES["DeepSeek-V2-Lite"]
    shape, layers = config.experts, config.depth - config.experts.first_k_dense_replace
    rng = random.Random(0)
    steps = [
        {
            expert
            for _ in range(batch)
            for expert in rng.sample(range(shape.n_routed_experts), shape.num_experts_per_tok)
        }
        for _ in range(4000)
    ]
    mean = sum(map(len, steps)) / len(steps)
    each = 2 * 3 * config.dim * shape.moe_intermediate_size
    with torch.device("meta"):
        everything = Transformer(config).to(torch.bfloat16).weight_bytes()
    unread = layers * (shape.n_routed_experts - mean) * each

    def moved(context):
        return work(config, 2, batch, 1, context).moved

    assert moved(0) == pytest.approx(everything - unread, rel=0.01)
    assert moved(100) - moved(0) == pytest.approx(batch * 100 * 2 * config.kv_elements_per_token)


def test_a_random_model_is_made_in_its_dtype():
    config = toy().config
    for dtype in (torch.float32, torch.bfloat16):
        model = random_model(config, dtype, torch.device("cpu"), seed=3)
        again = Transformer(config).to(dtype).eval().init_weights(3)
        assert all(p.dtype == dtype for p in model.parameters())
        model.unpack()
        for mine, theirs in zip(model.parameters(), again.parameters()):
            assert torch.equal(mine, theirs)
    assert torch.get_default_dtype() == torch.float32
