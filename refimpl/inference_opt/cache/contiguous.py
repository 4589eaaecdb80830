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

from inference_opt.model.attention import Core, causal_attention
from inference_opt.values import integer


class ContiguousCache:
    """Keys and values of `len(capacity)` sequences, `capacity[i]` tokens at the most each."""

    in_place = False

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
        # Of latent attention (2405.04434, §2.1.2) one vector a token is kept: the values are a view of the keys.
        if latent_dim is None:
            self.values = rows(head_dim)
        else:
            self.values = [[keys[..., :latent_dim] for keys in layers] for layers in self.keys]
        self.latent_dim = latent_dim
        self.capacity = list(capacity)
        self.lengths = [0] * len(capacity)
        self.counts = [0] * len(capacity)
        self.device = device

    # [extend]
    def extend(self, counts: Sequence[int]) -> Int[Tensor, "tokens"]:
        """Announce the next batch, `counts[i]` new tokens of sequence i (0: it sits out), and return their positions.

        ValueError, and no change, where one would outgrow its capacity.
        """
        counts = [integer("a count", count) for count in counts]
        if len(counts) != len(self.lengths) or min(counts, default=0) < 0:
            raise ValueError(f"expected {len(self.lengths)} counts of new tokens, none negative, got {list(counts)}")
        for i, (length, count) in enumerate(zip(self.lengths, counts)):
            if length + count > self.capacity[i]:
                raise ValueError(f"sequence {i} holds {length} of {self.capacity[i]} tokens: no room for {count} more")
        positions = [torch.arange(n, n + c, device=self.device) for n, c in zip(self.lengths, counts)]
        self.counts = list(counts)
        self.lengths = [n + c for n, c in zip(self.lengths, counts)]
        return torch.cat(positions)

    # [/extend]

    # [attend]
    def attend(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads value_dim"] | None,
        scale: float,
        core: Core = causal_attention,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """Write the new keys and values behind the old ones, then let each new token attend to all of them."""
        if (v is None) != (self.latent_dim is not None):
            raise ValueError("values are given exactly where the layout stores them (where latent_dim is None)")
        outputs, start = [], 0
        for i, (length, count) in enumerate(zip(self.lengths, self.counts)):
            if count == 0:
                continue
            keys, values = self.keys[i][layer], self.values[i][layer]
            new = slice(start, start + count)
            keys[length - count : length] = k[new]
            if v is not None:
                values[length - count : length] = v[new]
            outputs.append(core(q[new], keys[:length], values[:length], scale))
            start += count
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    # [/attend]

    def rewind(self, sequence: int, length: int) -> None:
        """Forget a sequence's tokens from `length` on. ValueError where it is not that long."""
        sequence, length = integer("sequence", sequence), integer("length", length)
        if not 0 <= sequence < len(self.lengths):
            raise ValueError(f"there is no sequence {sequence!r}, there are {len(self.lengths)}")
        if not 0 <= length <= self.lengths[sequence]:
            raise ValueError(f"cannot rewind sequence {sequence} of {self.lengths[sequence]} tokens to {length!r}")
        self.lengths[sequence] = length

    def bytes_per_token(self) -> int:
        """Bytes one token takes, read off the tensors."""
        stored = [*self.keys[0], *(self.values[0] if self.latent_dim is None else ())]
        return sum(t[0].numel() * t.element_size() for t in stored)
