"""Logits of tiny random DeepSeek-V2, V3 and GLM-4-MoE-Lite models against `transformers`, in float64, everywhere."""

import sys
from unittest.mock import patch

import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2

from inference_opt.cache.contiguous import ContiguousCache
from inference_opt.cache.paged import PagedCache
from inference_opt.model.attention import NoCache
from tests.model.test_architectures import CPU, EXACT, load_saved, widen
from tests.toys import run

CLASSES = {
    "deepseek_v2": (transformers.DeepseekV2Config, transformers.DeepseekV2ForCausalLM),
    "deepseek_v3": (transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM),
    "glm4_moe_lite": (transformers.Glm4MoeLiteConfig, transformers.Glm4MoeLiteForCausalLM),
}
CONTEXT = 80
PLAIN = st.fixed_dictionaries({"rope_type": st.just("default"), "rope_theta": st.sampled_from([100.0, 10_000.0])})
MSCALE = st.sampled_from([None, 0.707, 1.0])
YARN = st.fixed_dictionaries(
    {
        "rope_type": st.just("yarn"),
        "rope_theta": st.sampled_from([100.0, 10_000.0]),
        "factor": st.sampled_from([2.0, 40.0]),
        "original_max_position_embeddings": st.sampled_from([16, 64]),
        "mscale": MSCALE,
        "mscale_all_dim": MSCALE,
        "beta_fast": st.sampled_from([4, 32]),
        "beta_slow": st.sampled_from([1, 2]),
    }
).map(lambda d: {k: v for k, v in d.items() if v is not None})


@st.composite
def models(draw):
    arch = draw(st.sampled_from(sorted(CLASSES)))
    group, groups = draw(st.integers(2, 3)), draw(st.integers(1, 3))
    layers = draw(st.integers(1, 3))
    grouped = arch != "deepseek_v2" or draw(st.booleans())
    kept = draw(st.integers(1, groups))
    options = {"topk_method": "group_limited_greedy" if grouped else "greedy"} if arch == "deepseek_v2" else {}
    if arch != "deepseek_v2":
        options = {"rope_interleave": draw(st.booleans()), "norm_topk_prob": draw(st.booleans())}
    if arch == "glm4_moe_lite":
        kinds = st.lists(st.sampled_from(["dense", "sparse"]), min_size=layers, max_size=layers)
        options["mlp_layer_types"] = draw(st.none() | kinds)
    else:
        options["first_k_dense_replace"] = draw(st.integers(0, 2))
    heads = draw(st.integers(1, 4))
    make_config, make_model = CLASSES[arch]
    config = make_config(
        vocab_size=draw(st.integers(2, 40)),
        hidden_size=heads * draw(st.integers(1, 8)),
        intermediate_size=draw(st.integers(1, 24)),
        moe_intermediate_size=draw(st.integers(1, 12)),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        q_lora_rank=draw(st.sampled_from([None, 1, 6])),
        kv_lora_rank=draw(st.integers(1, 12)),
        qk_nope_head_dim=draw(st.integers(1, 8)),
        qk_rope_head_dim=2 * draw(st.integers(1, 4)),
        v_head_dim=draw(st.integers(1, 8)),
        n_routed_experts=group * groups,
        num_experts_per_tok=draw(st.integers(1, group * kept)),
        n_group=groups,
        topk_group=kept,
        n_shared_experts=draw(st.integers(1, 2)),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])),
        max_position_embeddings=CONTEXT,
        rms_norm_eps=draw(st.sampled_from([1e-6, 2e-3])),
        rope_parameters=draw(st.one_of(PLAIN, YARN)),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        experts_implementation="eager",
        **options,
    )
    return filled(make_model(config), draw(st.integers(0, 1000)))


@torch.no_grad()
def filled(model, seed):
    """With random weights, norms and corrections of the routing."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if "inv_freq" not in name:
            p.normal_(1.0 if "norm" in name else 0.0, 0.5, generator=generator)
    return model.eval()


class Torch:
    """torch, but for the attributes that are given."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __getattr__(self, name):
        return getattr(torch, name)


WIDE = Torch(float32=torch.float64, float=torch.float64)
# torch.polar rounds a cosine's last bit otherwise than torch.cos, which DeepSeek's own code and V3 here take.
PLAIN_COSINE = Torch(polar=lambda radius, angle: torch.complex(radius * angle.cos(), radius * angle.sin()))


def widened(module, function):
    def call(*args, **kwargs):
        wide = patch.object(torch.Tensor, "float", lambda x: x.double().clone())
        with wide, patch.object(module, "torch", WIDE):
            return function(*args, **kwargs)

    return call


@torch.inference_mode()
def expected_logits(model, prompt):
    """`transformers` rounds to float32 in norms, rotations and routing, whatever the dtype: here it is kept from it."""
    widen(model)
    for module in model.modules():
        if type(module).__name__.endswith("Router"):
            module.forward = widened(sys.modules[type(module).__module__], module.forward)
    rotate = patch.object(v2, "apply_rotary_emb", widened(v2, v2.apply_rotary_emb))
    with rotate, patch.object(v2, "torch", PLAIN_COSINE):
        return model(input_ids=prompt[None]).logits[0]


@st.composite
def prompts(draw, model):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    length = draw(st.integers(1, CONTEXT))
    if draw(st.booleans()):  # one token again and again: all rows are equal, and go to the same experts
        return torch.full((length,), draw(st.integers(0, model.config.vocab_size - 1)))
    return torch.randint(model.config.vocab_size, (length,), generator=generator)


def error(ours, expected):
    """The largest, of all positions, each measured by its own largest logit."""
    assert ours.shape == expected.shape
    return float(((ours - expected).abs().amax(-1) / expected.abs().amax(-1)).max())


def use(model, form):
    for layer in model.layers:
        layer.attention.form = form


def test_the_correction_of_routing_keeps_its_float32():
    make_config, make_model = CLASSES["deepseek_v3"]
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "moe_intermediate_size": 4}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None}
    latent = {"kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4}
    experts = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
    model = make_model(make_config(**sizes, **heads, **latent, **experts, first_k_dense_replace=0))
    bias = torch.tensor([1.0, 1.0 + 2**-20, 1.0 + 2**-19, 1.0 + 3 * 2**-20])
    model.model.layers[0].mlp.gate.e_score_correction_bias.copy_(bias)
    ours = load_saved(model, torch.bfloat16)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours.layers[0].mlp.router.correction, bias)


FORMS = st.sampled_from(["explicit", "absorbed", None])


@given(st.data())
def test_logits_of_transformers_whole_and_in_chunks(data):
    model = data.draw(models())
    prompt = data.draw(prompts(model))
    ours = load_saved(model, torch.float64)
    use(ours, data.draw(FORMS))
    expected = expected_logits(model, prompt)
    n = len(prompt)
    with torch.inference_mode():
        assert error(ours(prompt, torch.arange(n), NoCache([n])), expected) < EXACT
        # token by token, or in chunks
        cuts = data.draw(st.one_of(st.just(set(range(1, n))), st.sets(st.integers(1, n), max_size=4)))
        cuts = sorted(cuts | {n})
        if data.draw(st.booleans()):
            cache = ContiguousCache(**ours.config.kv_shape, capacity=[n], dtype=ours.dtype, device=CPU)
            batch = lambda a, b: cache.batch([b - a])  # noqa: E731
        else:
            size = data.draw(st.sampled_from([1, 3, 16]))
            pages = data.draw(st.permutations(range(-(-n // size) + 1)))
            cache = PagedCache(
                **ours.config.kv_shape, num_pages=len(pages), page_size=size, dtype=ours.dtype, device=CPU
            )
            batch = lambda a, b: cache.batch([pages], [a], [b - a])  # noqa: E731
        logits = torch.cat([run(ours, prompt[a:b], batch(a, b)) for a, b in zip([0, *cuts], cuts)])
    assert error(logits, expected) < EXACT
