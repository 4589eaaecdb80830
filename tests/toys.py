"""Tiny random models in float64, where nothing but equality will do, and the strategies that draw them."""

import torch
from hypothesis import strategies as st

from inference_opt.model.config import ExpertsShape, LatentShape, ModelConfig, RopeScaling
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams


def toy(seed=0, eos=(), dtype=torch.float64, **changes):
    sizes = {"vocab_size": 13, "dim": 16, "depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "ffn_dim": 24}
    config = ModelConfig(**(sizes | {"max_context": 24, "eos_token_ids": tuple(eos)} | changes))
    model = Transformer(config).init_weights(seed).to(dtype).eval()
    with torch.no_grad():  # sharper laws than an untrained model's, so that a wrong token shows
        model.head.weight.mul_(60)
    return model


WIDTHS = {"kv_lora_rank": 6, "qk_rope_head_dim": 4, "qk_nope_head_dim": 3, "v_head_dim": 5, "q_lora_rank": None}


def latent_toy(seed=0, eos=(), dtype=torch.float64, **changes):
    """`toy` with latent attention; `changes` are those of LatentShape, too."""
    latent = LatentShape(**{n: changes.pop(n, w) for n, w in WIDTHS.items()}, normed=changes.pop("normed", True))
    head_dim = latent.qk_nope_head_dim + latent.qk_rope_head_dim
    model = toy(seed, eos, dtype, latent=latent, head_dim=head_dim, **changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # far from where training begins: there positions, norms and routes hardly show
        for name, p in model.named_parameters():
            p.copy_(torch.empty(p.shape).normal_(1.0 if "norm" in name else 0.0, 0.4, generator=generator))
        model.head.weight.mul_(4)
    return model


SHAPES = st.fixed_dictionaries(  # arguments of toy()
    {
        "seed": st.integers(0, 5),
        "eos": st.sampled_from([(), (3,), (3, 7)]),
        "kv_heads": st.sampled_from([1, 2, 4]),
        "qk_norm": st.booleans(),
        "qkv_bias": st.booleans(),
    }
)
YARN = st.builds(
    RopeScaling,
    kind=st.just("yarn"),
    factor=st.sampled_from([2.0, 40.0]),
    original_context=st.sampled_from([4, 16]),
    beta_fast=st.sampled_from([2.0, 32.0]),
    mscale=st.sampled_from([None, 0.707]),
    mscale_all_dim=st.sampled_from([None, 0.707, 1.0]),
)
EXPERTS = st.builds(
    ExpertsShape,
    n_routed_experts=st.sampled_from([4, 6]),
    num_experts_per_tok=st.integers(1, 2),
    moe_intermediate_size=st.integers(1, 8),
    n_shared_experts=st.integers(0, 1),
    first_k_dense_replace=st.integers(0, 1),
    n_group=st.sampled_from([1, 2]),
    routed_scaling_factor=st.sampled_from([1.0, 2.5]),
    norm_topk_prob=st.booleans(),
    corrected=st.booleans(),
)
LATENT_SHAPES = st.fixed_dictionaries(  # arguments of latent_toy()
    {
        "seed": st.integers(0, 5),
        "eos": st.sampled_from([(), (3,), (3, 7)]),
        "kv_heads": st.sampled_from([1, 2, 4]),
        "kv_lora_rank": st.integers(1, 9),
        "qk_rope_head_dim": st.sampled_from([2, 4, 6]),
        "qk_nope_head_dim": st.integers(1, 6),
        "v_head_dim": st.integers(1, 6),
        "q_lora_rank": st.sampled_from([None, None, 1, 5]),
        "normed": st.booleans(),
        "rope_scaling": st.one_of(st.none(), YARN),
        "experts": st.one_of(st.none(), EXPERTS),
        "qkv_bias": st.booleans(),
        "out_bias": st.booleans(),
    }
)
PROMPTS = st.lists(st.integers(0, 12), min_size=1, max_size=12)
PARAMS = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(1, 16),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    seed=st.integers(0, 3),
)


def run(model, tokens, batch, **more):
    """A model over the next batch of a cache."""
    return model(tokens, batch.positions, batch, **more)


def tokens_of(completions):
    """The tokens of each."""
    return [completion.tokens for completion in completions]
