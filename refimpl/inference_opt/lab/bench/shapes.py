"""Real models' shapes, for benchmarks on random weights: a step's time does not depend on the weights' values."""

import torch

from inference_opt.model.config import ModelConfig
from inference_opt.model.transformer import Transformer

SHAPES = {
    "SmolLM2-135M": ModelConfig(49_152, 576, 30, 9, 3, 64, 1_536, 8_192, tied_embeddings=True, rope_theta=100_000.0),
    "Llama-3.2-1B": ModelConfig(
        128_256, 2_048, 16, 32, 8, 64, 8_192, 8_192, tied_embeddings=True, rope_theta=500_000.0
    ),
}
# These, and a shape that takes 16 GB in bfloat16: for those who choose one.
ALL_SHAPES = SHAPES | {"Llama-3.1-8B": ModelConfig(128_256, 4_096, 32, 32, 8, 128, 14_336, 4_096, rope_theta=500_000.0)}


def random_model(config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Transformer:
    """A model of this shape with random weights, made on the device. The same seed and device give the same weights."""
    with torch.device(device):
        model = Transformer(config).to(dtype).eval()
    return model.init_weights(seed).pack().requires_grad_(False)
