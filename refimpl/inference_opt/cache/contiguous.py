"""The contiguous KV cache: every sequence's keys and values, in one row of memory each.

A token's key and value in a layer depend on the tokens before it and on nothing after it (the mask is causal), so once
computed they never change. Keep them, and a step computes q, k, v for the new tokens only:

    sequence 0   k k k k k k k · · · · · · · · ·      capacity reserved, · not yet used
    sequence 1   k k k · · · · · · · · · · · · ·
                       ↑ new tokens are written at [length, length + count)

Invariant: rows [0, lengths[i]) of sequence i hold the keys and values of its first lengths[i] tokens, in order. What
lies beyond is never read. The price is the reservation: memory for the longest text that might come (pages mend that).
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.model.attention import CacheBatch, LatentForms, causal_attention
from inference_opt.values import integer


class ContiguousCache:
    """Keys and values of `len(capacity)` sequences, `capacity[i]` tokens at the most each."""

    def __init__(
        self,
        depth: int,
        kv_heads: int,
        head_dim: int,
        capacity: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        latent_dim: int | None = None,
    ) -> None:
        capacity = [integer("a capacity", n) for n in capacity]
        if min(capacity, default=0) < 1:
            raise ValueError(f"every sequence needs room for at least one token, got capacities {list(capacity)}")

        def rows(width: int) -> list[list[Tensor]]:  # [sequence][layer]: [capacity[i], kv_heads, width], uninitialised
            empty = partial(torch.empty, dtype=dtype, device=device)
            return [[empty(n, kv_heads, width) for _ in range(depth)] for n in capacity]

        self.keys = rows(head_dim)
        # Of latent attention (2405.04434, §2.1.2) one vector a token is kept, and no values.
        self.values = rows(head_dim) if latent_dim is None else None
        self.latent_dim = latent_dim
        self.capacity = list(capacity)
        self.lengths = [0] * len(capacity)
        self.device = device

    def batch(self, counts: Sequence[int]) -> "ContiguousBatch":
        """The next batch: `counts[i]` new tokens of sequence i (0: none), which get the next rows of that sequence.

        ValueError, and no change, where one would outgrow its capacity.
        """
        counts = [integer("a count", count) for count in counts]
        if len(counts) != len(self.lengths) or min(counts, default=0) < 0:
            raise ValueError(f"expected {len(self.lengths)} counts of new tokens, none negative, got {list(counts)}")
        for i, (length, count) in enumerate(zip(self.lengths, counts)):
            if length + count > self.capacity[i]:
                raise ValueError(f"sequence {i} holds {length} of {self.capacity[i]} tokens: no room for {count} more")
        starts = self.lengths
        self.lengths = [start + count for start, count in zip(starts, counts)]
        return ContiguousBatch(self, starts, counts)

    def bytes_per_token(self) -> int:
        """Bytes one token takes, read off the tensors."""
        stored = [*self.keys[0], *(self.values[0] if self.values else ())]
        return sum(t[0].numel() * t.element_size() for t in stored)


class ContiguousBatch(CacheBatch):
    """New tokens of some sequences of a cache, laid end to end: `counts[i]` of sequence i, from `starts[i]` on."""

    def __init__(self, cache: ContiguousCache, starts: list[int], counts: list[int]) -> None:
        self.cache = cache
        self.counts = [count for count in counts if count]
        self.rows = [(i, slice(n, n + count)) for i, (n, count) in enumerate(zip(starts, counts)) if count]
        spans = [torch.arange(new.start, new.stop, device=cache.device) for _, new in self.rows]
        self.positions: Int[Tensor, tokens] = torch.cat(spans or [torch.arange(0, device=cache.device)])

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads value_dim"],
        scale: float,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """Write the new keys and values behind the old ones, then let each new token attend to all of them."""
        if self.cache.values is None:
            raise ValueError("this cache keeps latents: it has no place for values")
        outputs = []
        for (i, new), queries, *own in zip(self.rows, q.split(self.counts), k.split(self.counts), v.split(self.counts)):
            keys, values = self.cache.keys[i][layer], self.cache.values[i][layer]
            keys[new], values[new] = own
            outputs.append(causal_attention(queries, keys[: new.stop], values[: new.stop], scale))
        return torch.cat(outputs)

    def attend_latents(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        kept: Float[Tensor, "tokens 1 kept_dim"],
        forms: LatentForms,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """The same with latents, one a token."""
        if self.cache.values is not None:
            raise ValueError("this cache keeps keys and values: make it with latent_dim for latents")
        outputs = []
        for (i, new), queries, own in zip(self.rows, q.split(self.counts), kept.split(self.counts)):
            latents = self.cache.keys[i][layer]
            latents[new] = own
            outputs.append(forms.over(queries, latents[: new.stop]))
        return torch.cat(outputs)
