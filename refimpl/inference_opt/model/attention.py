"""Attention of one sequence, and the seam behind which every cache hides.

    softmax(q kᵀ · scale + causal mask) v                          (Vaswani et al. 2017, 1706.03762, Eq. 1)

The model never sees a cache. A layer computes q, k, v for a flat batch of tokens (sequences laid end to end, no
padding) and asks `kv.attend(layer, q, k, v, scale)`. How it attends, and over what, is up to the `kv` object.
Latent attention keeps one vector a token in place of k and v, and asks `kv.attend_latents(layer, q, kept, forms)`.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

QUERY_BLOCK = 128  # queries scored at once: bounds the mask at QUERY_BLOCK · group · keys elements


def causal_attention(
    q: Float[Tensor, "queries heads head_dim"],
    k: Float[Tensor, "keys kv_heads head_dim"],
    v: Float[Tensor, "keys kv_heads value_dim"],
    scale: float,
) -> Float[Tensor, "queries heads value_dim"]:
    """One sequence: the queries are its last tokens, so query i stands at position keys − queries + i.

    The query heads that share a key head are laid out as further rows of it, so that each key is read once a group
    and not once a head.
    """
    (queries, heads, dim), (keys, kv_heads, _) = q.shape, k.shape
    if queries > QUERY_BLOCK:  # a block of queries at a time, over the keys that its last one may see
        starts = range(0, queries, QUERY_BLOCK)
        seen = [keys - max(queries - start - QUERY_BLOCK, 0) for start in starts]
        blocks = zip(q.split(QUERY_BLOCK), seen, strict=True)
        return torch.cat([causal_attention(block, k[:n], v[:n], scale) for block, n in blocks])
    mask = None  # a single query is the last token: it sees every key
    if queries > 1:
        position = torch.arange(keys - queries, keys, device=q.device).repeat_interleave(heads // kv_heads)
        mask = torch.arange(keys, device=q.device) <= position[:, None]  # [queries · group, keys]
    rows = q.view(queries, kv_heads, -1, dim).transpose(0, 1).reshape(1, kv_heads, -1, dim)
    out = nn.functional.scaled_dot_product_attention(
        rows, k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0), attn_mask=mask, scale=scale
    )  # [1, kv_heads, queries · group, value_dim]
    return out.view(kv_heads, queries, -1, v.shape[-1]).transpose(0, 1).reshape(queries, heads, -1)


def masked_attention(
    q: Float[Tensor, "queries heads head_dim"],
    k: Float[Tensor, "keys kv_heads head_dim"],
    v: Float[Tensor, "keys kv_heads value_dim"],
    scale: float,
    mask: Bool[Tensor, "queries keys"],
) -> Float[Tensor, "queries heads value_dim"]:
    """The same for a few queries that see the keys where their rows of the mask are true (`kernels/tree.py`)."""
    (queries, heads, dim), kv_heads = q.shape, k.shape[1]
    rows = q.view(queries, kv_heads, -1, dim).transpose(0, 1).reshape(1, kv_heads, -1, dim)
    out = nn.functional.scaled_dot_product_attention(
        rows,
        k.transpose(0, 1).unsqueeze(0),
        v.transpose(0, 1).unsqueeze(0),
        attn_mask=mask.repeat_interleave(heads // kv_heads, dim=0),
        scale=scale,
    )
    return out.view(kv_heads, queries, -1, v.shape[-1]).transpose(0, 1).reshape(queries, heads, -1)


@runtime_checkable
class LatentForms(Protocol):
    """What latent attention (`mla.py`) knows of the latents that it asks to be kept: how they are attended."""

    scale: float

    def over(
        self, q: Float[Tensor, "queries heads query_dim"], kept: Float[Tensor, "keys 1 kept_dim"]
    ) -> Float[Tensor, "queries heads value_dim"]:
        """One sequence's attention over its latents, in the form chosen or the cheaper."""
        ...

    def expand(
        self, kept: Float[Tensor, "keys 1 kept_dim"]
    ) -> tuple[Float[Tensor, "keys kv_heads query_dim"], Float[Tensor, "keys kv_heads value_dim"]]:
        """Keys and values of every head."""
        ...

    def absorb(self, q: Float[Tensor, "queries heads query_dim"]) -> Float[Tensor, "queries heads kept_dim"]:
        """Queries that meet the latents as they are."""
        ...

    def values(self, mixed: Float[Tensor, "queries heads latent_dim"]) -> Float[Tensor, "queries heads value_dim"]:
        """Values of mixtures of latents."""
        ...


@runtime_checkable
class KV(Protocol):
    """One batch, and whoever answers for its keys and values: `NoCache`, or what a cache's `batch(…)` returns.

    It knows where each sequence's past lies, for this one batch; a cache itself remembers no batch.
    """

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads value_dim"],
        scale: float,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """Attention of each new token over its own sequence's past, itself included; a cache keeps k and v."""
        ...

    def attend_latents(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        kept: Float[Tensor, "tokens 1 kept_dim"],
        forms: LatentForms,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """The same where one latent a token is all that is kept. By default keys and values are made."""
        return self.attend(layer, q, *forms.expand(kept), forms.scale)


@runtime_checkable
class CacheBatch(KV, Protocol):
    """What a cache's `batch(…)` returns: it knows the positions of the batch's new tokens, too."""

    positions: Int[Tensor, "tokens"]


class NoCache(KV):
    """The simplest one: nothing is remembered, the batch holds every sequence from its first token."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)  # tokens of each sequence, laid end to end

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads value_dim"],
        scale: float,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """Each sequence over itself."""
        parts = zip(q.split(self.lengths), k.split(self.lengths), v.split(self.lengths), strict=True)
        return torch.cat([causal_attention(*part, scale) for part in parts])

    def attend_latents(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        kept: Float[Tensor, "tokens 1 kept_dim"],
        forms: LatentForms,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """Each sequence over its own latents."""
        parts = zip(q.split(self.lengths), kept.split(self.lengths), strict=True)
        return torch.cat([forms.over(*part) for part in parts])
