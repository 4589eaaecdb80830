"""Tiny random models in float64, where nothing but equality will do, and the strategies that draw them."""

import torch
from hypothesis import strategies as st

from inference_opt.model.config import ModelConfig
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams


def toy(seed=0, eos=(), dtype=torch.float64, **changes):
    sizes = {"vocab_size": 13, "dim": 16, "depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "ffn_dim": 24}
    config = ModelConfig(**(sizes | {"max_context": 24, "eos_token_ids": tuple(eos)} | changes))
    model = Transformer(config).init_weights(seed).to(dtype).eval()
    with torch.no_grad():  # sharper laws than an untrained model's, so that a wrong token shows
        model.head.weight.mul_(60)
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
PROMPTS = st.lists(st.integers(0, 12), min_size=1, max_size=12)
PARAMS = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(1, 16),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    seed=st.integers(0, 3),
)
