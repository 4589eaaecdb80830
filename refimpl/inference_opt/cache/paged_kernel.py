"""The paged cache by kernels: the same pages and page tables, read where they lie, without a gather.

What a batch needs to know is sent to the device once, when it is made: positions, slots, page tables, and the plan of
who reads what (`kernels/plan.py`), which all layers share. Prefixes that neighbours of the batch share, as the radix
tree hands them out, are read once for all of them.

Latents are attended as they are: latent attention comes absorbed.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.cache.paged import PagedCache
from inference_opt.kernels import Batch, paged_attention, plan_batch, shared_prefixes, write_kv
from inference_opt.kernels.plan import spread
from inference_opt.kernels.transfer import sent
from inference_opt.kernels.tree import CHAIN, TreeRows
from inference_opt.model.attention import CacheBatch, LatentForms


class PagedKernelCache(PagedCache):
    """`PagedCache`, answered by `inference_opt.kernels`: Triton on CUDA."""

    may_grow = False  # captured graphs know where the pages lie

    def batch(
        self,
        tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        counts: Sequence[int],
        trees: Sequence[TreeRows | None] = (),
    ) -> CacheBatch:
        """The next batch: `counts[i]` new tokens of sequence i, behind its first `starts[i]`; or rows of a tree."""
        self.check(tables, starts, counts)
        used = [table[: -(-(start + count) // self.page_size)] for table, start, count in zip(tables, starts, counts)]
        rows, steps = spread(np.array(counts, dtype=np.int64))
        positions = np.array(starts, dtype=np.int64)[rows] + steps
        slots = self.slots(padded_table(used), rows, positions)
        seen = None
        if any(trees):
            ends = [start + count for start, count in zip(starts, counts)]
            seen = [bits for tree, count in zip(trees, counts) for bits in (tree.seen if tree else [CHAIN] * count)]
            places = [tree.positions if tree else range(start, end) for tree, start, end in zip(trees, starts, ends)]
            positions = np.concatenate(places).astype(np.int64)
        plan = partial(self.plan, used, starts, counts, seen=seen)
        on_device = [sent(torch.from_numpy(each), self.device) for each in (positions, slots)]
        batch = PagedKernelBatch(self, on_device[0], on_device[1], plan)
        batch.tables, batch.starts, batch.counts = used, starts, counts
        return batch

    def plan(
        self,
        tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        counts: Sequence[int],
        heads: int,
        seen: Sequence[int] | None = None,
    ) -> Batch:
        """The plan of a batch whose tables list no page behind its new tokens. `seen`: as `plan_batch` takes it."""
        ends = [start + count for start, count in zip(starts, counts)]
        prefixes = shared_prefixes(tables, starts, self.page_size)
        table = torch.from_numpy(padded_table(tables))
        return plan_batch(table, ends, counts, self.keys[0], heads, self.latent_dim, prefixes, seen=seen)

    def slots(self, table: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Where keys and values at these positions lie. `table[rows]` lists the pages of their sequences."""
        size = self.page_size
        return table[rows, positions // size].astype(np.int64) * size + positions % size


class PagedKernelBatch(CacheBatch):
    """New tokens laid end to end: their positions, the slots of their keys and values, and the plan of who reads what.

    `plan`: a function of the number of query heads, which the first layer knows; it is asked once. A batch that a cache
    made has tables, starts and counts of its sequences, too.
    """

    tables: Sequence[Sequence[int]]
    starts: Sequence[int]
    counts: Sequence[int]

    def __init__(
        self,
        cache: PagedKernelCache,
        positions: Int[Tensor, "tokens"],
        slots: Int[Tensor, "tokens"],
        plan: Callable[[int], Batch],
    ) -> None:
        self.cache, self.positions, self.slots = cache, positions, slots
        self.plan = lru_cache(plan)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads value_dim"],
        scale: float,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """Write the new keys and values into their slots, then let each new token attend through its page table."""
        keys, values = self.cache.keys[layer], self.cache.values_of(layer)
        plan = self.plan(q.shape[1])
        write_kv(k, v, keys, values, self.slots)  # an ordinary launch after the plan: attention may start early
        return paged_attention(q, keys, values, plan, scale, pdl=True)[0]

    def attend_latents(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        kept: Float[Tensor, "tokens 1 kept_dim"],
        forms: LatentForms,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """The same with latents, which the queries meet as they are."""
        latents = self.cache.latents_of(layer)
        plan = self.plan(q.shape[1])
        write_kv(kept, None, latents, None, self.slots)
        mixed, _ = paged_attention(forms.absorb(q), latents, None, plan, forms.scale, self.cache.latent_dim, pdl=True)
        return forms.values(mixed)


def padded_table(tables: Sequence[Sequence[int]]) -> Int[np.ndarray, "batch width"]:
    """Page tables as rows of the longest's length, filled up with page 0, as kernels read them: int32."""
    table = np.zeros((len(tables), max(map(len, tables), default=0)), dtype=np.int32)
    for row, pages in zip(table, tables):
        row[: len(pages)] = pages
    return table


def cache_class(device: torch.device) -> type[PagedCache]:
    """Kernels on CUDA; elsewhere PyTorch's own attention over gathered pages is the faster answer."""
    return PagedKernelCache if device.type == "cuda" else PagedCache
