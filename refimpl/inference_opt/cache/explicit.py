"""Which form long prompts of latent attention take on the card, and the plan of those in the explicit form.

The two forms of `model/mla.py`, for m new tokens of a sequence of n. A token sees no later one, so there are
p = m n − m (m − 1) / 2 pairs of a query and a key:

    explicit   n · n_k (d_h + d_v) d_c + SLOWER · p · n_h (d_h + d_R + d_v)
    absorbed   m · n_h (d_h + d_v) d_c +          p · n_h (2 d_c + d_R)

multiplications. SLOWER: how many times longer a multiplication takes in the kernel for keys and values than in the one
for latents. The explicit form wins for many new tokens; keys and values of a cached prefix must be made for each chunk
anew, so a prefix moves the crossing (`bench mla` measures it). What more launches take is counted as LAUNCHES
multiplications, once for a batch.

Keys and values are made page by page: each page of the sequences becomes one of a pool that lives as long as one layer.
So attention is the same kernel, with page tables that number these pages.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from inference_opt.cache.paged_kernel import PagedKernelBatch, padded_table
from inference_opt.kernels import Batch, plan_batch, shared_prefixes
from inference_opt.model.config import ModelConfig

SLOWER = 2.0
LAUNCHES = 2.5e9  # 10 µs at 250 · 10¹² multiplications a second
MOST = 2**30  # numbers of keys and values that are made at a time


class Explicit(NamedTuple):
    """The sequences at the end of a batch that are attended in the explicit form."""

    token: int  # the first of their tokens, in the flat batch
    pages: Int[Tensor, "listed"]  # their pages in the pool
    batch: Batch  # over keys and values of these pages, numbered as listed


def multiplications(config: ModelConfig, new: int, keys: int) -> tuple[float, float]:
    """What the explicit and the absorbed form take for the last `new` of `keys` tokens, by the equations above."""
    s, heads, kv_heads = config.latent, config.heads, config.kv_heads
    assert s is not None
    pairs = heads * (new * keys - new * (new - 1) // 2)
    made = (s.qk_nope_head_dim + s.v_head_dim) * s.kv_lora_rank
    width = s.qk_nope_head_dim + s.qk_rope_head_dim + s.v_head_dim
    explicit = keys * kv_heads * made + SLOWER * pairs * width
    return explicit, float(new * heads * made + pairs * (2 * s.kv_lora_rank + s.qk_rope_head_dim))


def first_explicit(config: ModelConfig, starts: Sequence[int], counts: Sequence[int]) -> int:
    """The first sequence from which on all take the explicit form; the number of sequences if none does."""
    s = config.latent
    assert s is not None
    width = config.kv_heads * (s.qk_nope_head_dim + s.qk_rope_head_dim + s.v_head_dim)
    first, saved, made = len(counts), -LAUNCHES, 0
    # Prompts come behind the requests that decode (`engine/scheduler.py`).
    for i in reversed(range(len(counts))):
        keys = starts[i] + counts[i]
        explicit, absorbed = multiplications(config, counts[i], keys)
        if explicit >= absorbed or made + keys * width > MOST:
            break
        first, saved, made = i, saved + absorbed - explicit, made + keys * width
    return first if saved > 0 else len(counts)


def plan_forms(config: ModelConfig, batch: PagedKernelBatch) -> tuple[Batch, Explicit | None]:
    """The plan of the sequences that are attended as the cache keeps them, and of those behind them, if there are."""
    starts, counts = batch.starts, batch.counts
    first = len(counts) if config.latent is None else first_explicit(config, starts, counts)
    if first == len(counts):
        return batch.plan(config.heads), None
    cache, tables = batch.cache, batch.tables[first:]
    padded = padded_table(tables)
    listed = np.unique(padded)
    like = cache.keys[0].new_empty(1).expand(len(listed), cache.page_size, config.kv_heads, config.head_dim)
    explicit = plan_batch(
        torch.from_numpy(np.searchsorted(listed, padded).astype(np.int32)),
        [start + count for start, count in zip(starts[first:], counts[first:])],
        counts[first:],
        like,
        config.heads,
        prefixes=shared_prefixes(tables, starts[first:], cache.page_size),
    )
    pages = torch.from_numpy(listed).to(cache.device)
    ahead = cache.plan(batch.tables[:first], starts[:first], counts[:first], config.heads)
    return ahead, Explicit(sum(counts[:first]), pages, explicit)
