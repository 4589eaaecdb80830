"""Logits of tiny random Qwen3-MoE models against `transformers`, in float64; routings at the edge, for every router."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from inference_opt import Engine, SamplingParams, naive
from inference_opt.model.config import ExpertsShape
from inference_opt.model.experts import MixtureOfExperts, Router
from tests.model.test_architectures import EXACT, LINEAR, PLAIN, load_saved, our_logits
from tests.model.test_architectures import YARN as TRUNCATED_YARN
from tests.model.test_deepseek import CLASSES, CONTEXT, error, expected_logits, filled, prompts

QWEN = (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM)


@st.composite
def models(draw):
    kv_heads, experts = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    heads = kv_heads * draw(st.integers(1, 3))
    make_config, make_model = QWEN
    config = make_config(
        vocab_size=draw(st.integers(2, 40)),
        hidden_size=heads * draw(st.integers(1, 6)),
        intermediate_size=draw(st.integers(1, 24)),
        moe_intermediate_size=draw(st.integers(1, 12)),
        num_hidden_layers=draw(st.integers(1, 4)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 8)),
        num_experts=experts,
        num_experts_per_tok=draw(st.integers(1, min(experts, 8))),
        norm_topk_prob=draw(st.booleans()),
        decoder_sparse_step=draw(st.integers(1, 3)),
        mlp_only_layers=draw(st.none() | st.lists(st.integers(0, 4), max_size=3)),
        max_position_embeddings=CONTEXT,
        rms_norm_eps=draw(st.sampled_from([1e-6, 2e-3])),
        rope_parameters=draw(st.one_of(PLAIN, LINEAR, TRUNCATED_YARN)),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        use_sliding_window=draw(st.booleans()),
        sliding_window=CONTEXT,  # as long as the context: without effect
        experts_implementation="eager",
    )
    return filled(make_model(config), draw(st.integers(0, 1000)))


@given(st.data())
def test_qwens_experts_give_the_logits_of_transformers(data):
    model = data.draw(models())
    prompt = data.draw(prompts(model))
    ours = load_saved(model, torch.float64)
    sparse = [type(layer.mlp).__name__ == "Qwen3MoeSparseMoeBlock" for layer in model.model.layers]
    assert [isinstance(layer.mlp, MixtureOfExperts) for layer in ours.layers] == sparse
    assert error(our_logits(ours, prompt), expected_logits(model, prompt)) < EXACT


SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "experts_implementation": "eager",
}
LATENT = {"q_lora_rank": None, "kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 8, "v_head_dim": 7}
GROUPS = {"n_routed_experts": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
ROUTERS = {
    "qwen3_moe": (*QWEN, {"num_experts": 8}),
    "deepseek_v2": (*CLASSES["deepseek_v2"], LATENT | GROUPS | {"topk_method": "greedy", "first_k_dense_replace": 1}),
    "deepseek_v3": (*CLASSES["deepseek_v3"], LATENT | GROUPS | {"first_k_dense_replace": 1}),
    "glm4_moe_lite": (*CLASSES["glm4_moe_lite"], LATENT | GROUPS),
}


@pytest.mark.parametrize("top", [1, 2, 7, 8])
@pytest.mark.parametrize("arch", ROUTERS)
def test_all_rows_to_the_same_experts(monkeypatch, arch, top):
    make_config, make_model, options = ROUTERS[arch]
    model = filled(make_model(make_config(**SIZES | options, num_experts_per_tok=top)), 7)
    prompt = torch.full((20,), 3)
    ours = load_saved(model, torch.float64)
    chosen = []
    forward = Router.forward
    monkeypatch.setattr(Router, "forward", lambda *args: (chosen.append(r := forward(*args)), r)[1])
    assert error(our_logits(ours, prompt), expected_logits(model, prompt)) < EXACT
    assert chosen
    assert all(len(indices.unique()) == top for _, indices in chosen)  # the other experts: nobody chose them


@pytest.mark.parametrize("arch", ROUTERS)
def test_the_experts_of_a_layer_are_loaded_one_behind_the_other(arch):
    make_config, make_model, options = ROUTERS[arch]
    ours = load_saved(filled(make_model(make_config(**SIZES | options, num_experts_per_tok=2)), 7), torch.float64)
    mixtures = [layer.mlp for layer in ours.layers if isinstance(layer.mlp, MixtureOfExperts)]
    assert mixtures
    for mixture in mixtures:
        for part in ("gate_up", "down"):
            weights = [getattr(expert, part).weight for expert in mixture.experts]
            size = weights[0].numel() * weights[0].element_size()
            assert [w.data_ptr() - weights[0].data_ptr() for w in weights] == [i * size for i in range(8)]
            assert weights[0].untyped_storage().nbytes() == 8 * size  # and nothing else is there


@pytest.mark.parametrize("arch", ROUTERS)
def test_a_request_whose_router_gives_nan_fails_alone(arch):
    make_config, make_model, options = ROUTERS[arch]
    model = load_saved(filled(make_model(make_config(**SIZES | options, num_experts_per_tok=2)), 7), torch.float64)
    params = SamplingParams(4)
    whole = naive.generate(model, [1, 2, 3], params)
    routed = []
    model.layers[-1].mlp.router.register_forward_hook(lambda _, __, out: routed.append(out[0].isnan().any(-1)))
    with torch.no_grad():
        model.embed.weight[7] = float("nan")
    with pytest.warns(match="completion 1 ended after 0 tokens: .*NaN"):
        good, broken = Engine(model, page_size=2).generate([[1, 2, 3], [4, 7, 5]], params)
    assert any(rows.any() and not rows.all() for rows in routed)  # both were routed in one batch
    assert (good.tokens, good.error) == (whole, None)
    assert (broken.tokens, broken.finish_reason) == ([], "error")


@given(
    first=st.integers(0, 5),
    step=st.integers(1, 4),
    dense=st.lists(st.integers(0, 9), max_size=4),
    depth=st.integers(1, 8),
)
def test_the_layers_with_experts_are_counted_without_a_walk(first, step, dense, depth):
    shape = ExpertsShape(4, 2, 3, 1, first, decoder_sparse_step=step, mlp_only_layers=tuple(dense))
    assert shape.layers(depth) == sum(shape.in_layer(i) for i in range(depth))
    assert 0 <= shape.layers(10**18) <= 10**18
