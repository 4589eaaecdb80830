"""Real models' shapes, for benchmarks on random weights: a step's time does not depend on the weights' values."""

from dataclasses import replace

import torch

from inference_opt.model.config import ExpertsShape, LatentShape, ModelConfig
from inference_opt.model.transformer import Transformer

_V2_LITE = ModelConfig(
    102_400, 2_048, 27, 16, 16, 192, 10_944, 8_192, norm_eps=1e-6,
    latent=LatentShape(512, 64, 128, 128), experts=ExpertsShape(64, 6, 1_408, 2, first_k_dense_replace=1),
)  # fmt: skip
_V3 = ModelConfig(
    129_280, 7_168, 3, 128, 128, 192, 18_432, 8_192, norm_eps=1e-6,
    latent=LatentShape(512, 64, 128, 128, q_lora_rank=1_536),
    experts=ExpertsShape(256, 8, 2_048, 1, 1, n_group=8, topk_group=4, routed_scaling_factor=2.5, norm_topk_prob=True,
                         corrected=True),
)  # fmt: skip
SHAPES = {
    "SmolLM2-135M": ModelConfig(49_152, 576, 30, 9, 3, 64, 1_536, 8_192, tied_embeddings=True, rope_theta=100_000.0),
    "Llama-3.2-1B": ModelConfig(
        128_256, 2_048, 16, 32, 8, 64, 8_192, 8_192, tied_embeddings=True, rope_theta=500_000.0
    ),
    "Llama-3.1-8B": ModelConfig(
        128_256, 4_096, 32, 32, 8, 128, 14_336, 8_192, tied_embeddings=False, rope_theta=500_000.0
    ),
    "DeepSeek-V2-Lite": _V2_LITE,
    "DeepSeek-V2-Lite dense": replace(_V2_LITE, experts=None),  # its latents alone: every layer as the first
    # Without latents, as large as with them: 12.6 million weights of attention in a layer, 13.8 with MLA.
    "DeepSeek-V2-Lite grouped-query": replace(_V2_LITE, latent=None, kv_heads=8, head_dim=128),
    # Of 61 layers those that fit on a card: one dense, two with experts (22.5 GB each). The difference is that of two.
    "DeepSeek-V3, 3 layers": _V3,
    "DeepSeek-V3, 1 layer": replace(_V3, depth=1),
}


def random_model(config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Transformer:
    """A model of this shape with random weights, made on the device. The same seed and device give the same weights."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # made in float32 first, a large model would need twice the memory
    try:
        with torch.device(device):
            model = Transformer(config).eval()
    finally:
        torch.set_default_dtype(usual)
    return model.init_weights(seed).pack().requires_grad_(False)
