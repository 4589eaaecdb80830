"""Grouped-query attention (Ainslie et al. 2023, 2305.13245): heads/kv_heads query heads share a key and value head.

Multi-head attention (kv_heads = heads) and multi-query attention (kv_heads = 1) are its extremes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inference_opt.model.attention import KV
from inference_opt.model.config import ModelConfig
from inference_opt.model.linear import Linear
from inference_opt.model.rope import rotate


class GroupedQueryAttention(nn.Module):
    """Projections of q, k and v (one product), optional norms of q and k heads, RoPE, `attend`, output projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.kv_heads
        self.head_dim = config.head_dim
        self.scale = config.attention_scale
        width = (config.heads + 2 * config.kv_heads) * config.head_dim
        self.qkv = Linear(config.dim, width, bias=config.qkv_bias)  # rows: all q heads, all k heads, all v heads
        self.out = Linear(config.heads * config.head_dim, config.dim, bias=config.out_bias)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def forward(
        self,
        x: Float[Tensor, "tokens dim"],
        rope: tuple[Float[Tensor, "tokens 1 head_dim"], Float[Tensor, "tokens 1 head_dim"]],
        layer: int,
        kv: KV,
    ) -> Float[Tensor, "tokens dim"]:
        """One layer's attention of the flat batch."""
        # [layer]
        heads = self.qkv(x).view(len(x), -1, self.head_dim)  # [tokens, heads + 2 kv_heads, d_h]
        qk, v = heads.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        # [/layer]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((self.heads, self.kv_heads), dim=1)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1)
        # [layer]
        q, k = rotate(qk, *rope).split((self.heads, self.kv_heads), dim=1)
        mixed = kv.attend(layer, q, k, v, scale=self.scale)
        return self.out(mixed.flatten(1))
        # [/layer]
