"""Rotary position embeddings (Su et al. 2021, 2104.09864).

Each head is cut into d/2 pairs. Pair i of the token at position m is turned by the angle m·ω_i, ω_i = θ^(−2i/d):

    [x1]    [cos mω  −sin mω] [x1]
    [x2] ↦  [sin mω   cos mω] [x2]

so the product of a query at m and a key at n depends on m − n alone. Here a pair is (x_i, x_{i + d/2}), "half-split",
as in Llama's Hugging Face weights and in Qwen. (The paper, and GGUF files of Llama, pair neighbours: `checkpoint.py`
puts those rows in our order.)

Angles are computed in float32, as in every implementation: the weights were trained with exactly these angles.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.model.config import ModelConfig, RopeScaling


def frequencies(config: ModelConfig) -> Float[Tensor, "half"]:
    """ω_i of every pair of a head, in radians a token, scaled for long contexts if the configuration says so."""
    pair = torch.arange(0, config.rope_dim, 2, dtype=torch.int64, device="cpu").float()
    period = config.rope_theta ** (pair / config.rope_dim)
    if config.rope_scaling is None:
        return 1.0 / period
    if config.rope_scaling.kind == "yarn":
        return _yarn(period, config.rope_theta, config.rope_scaling)
    return _scaled(1.0 / period, config.rope_scaling)


def _scaled(omega: Float[Tensor, "half"], scaling: RopeScaling) -> Float[Tensor, "half"]:
    if scaling.kind == "linear":
        return omega / scaling.factor
    if scaling.kind == "frequencies":
        return torch.tensor(scaling.factors, dtype=torch.float32, device="cpu")
    if scaling.kind == "factors":
        return omega / torch.tensor(scaling.factors, dtype=torch.float32, device="cpu")
    wavelength = 2 * math.pi / omega
    # 1 if a pair turns at least high_freq_factor times within the original context, 0 if at most low_freq_factor times.
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((scaling.original_context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * omega / scaling.factor + keep * omega


def _yarn(period: Float[Tensor, "half"], theta: float, scaling: RopeScaling) -> Float[Tensor, "half"]:
    """Slow pairs are divided by the factor, fast ones are not; a ramp between (Peng et al. 2023, 2309.00071, §3.2)."""
    d = 2 * len(period)

    def pair(turns: float) -> float:
        """The index of the pair, as a real number, that turns this often within the original context."""
        return d * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = float(max(low, 0)), float(min(high, d - 1))
    if low == high:
        high += 0.001  # a ramp needs a width
    unscaled = 1 - ((torch.arange(len(period), dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    return 1.0 / (scaling.factor * period) * (1 - unscaled) + 1.0 / period * unscaled


class RopeTable:
    """cos and sin of the angle of every position and pair, computed once.

    With a table, the same position has the same bits in every batch. The first half of `sin` includes the minus sign
    of the rotation matrix's upper right corner, so that a rotation takes three operations.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        angle = torch.outer(torch.arange(config.max_context, device="cpu").float(), frequencies(config))  # m·ω_i
        factor = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
        cos, sin = angle.cos() * factor, angle.sin() * factor  # [max_context, d/2]
        self.cos = torch.cat((cos, cos), dim=-1).to(device=device, dtype=dtype)  # [max_context, d]
        self.sin = torch.cat((-sin, sin), dim=-1).to(device=device, dtype=dtype)

    def at(
        self, positions: Int[Tensor, "tokens"]
    ) -> tuple[Float[Tensor, "tokens 1 head_dim"], Float[Tensor, "tokens 1 head_dim"]]:
        """The rows of these positions, with an axis to broadcast over heads."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(
    x: Float[Tensor, "tokens heads head_dim"],
    cos: Float[Tensor, "tokens 1 head_dim"],
    sin: Float[Tensor, "tokens 1 head_dim"],
) -> Float[Tensor, "tokens heads head_dim"]:
    """[x1, x2] ↦ [x1 cos − x2 sin, x2 cos + x1 sin]. Rolling by half a head puts each pair's other member in place."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
