"""Attention for training: rows of equal length, all at once, each token over its own row."""

from jaxtyping import Float
from torch import Tensor, nn

from inference_opt.model.attention import KV


class BlockDiagonalAttention(KV):
    """The `KV` of training: sequences of equal length, laid end to end. Nothing is kept."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads head_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads value_dim"],
        scale: float,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """Causal attention within each row."""
        q, k, v = (x.unflatten(0, (self.rows, -1)).transpose(1, 2) for x in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)
