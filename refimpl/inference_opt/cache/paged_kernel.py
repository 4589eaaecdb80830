"""The paged cache by kernels: the same pages and page tables, read where they lie, without a gather.

What a step needs to know is sent to the device once, when it is announced: positions, slots, page tables, and the plan
of who reads what (`kernels/plan.py`), which all layers share. Stems that neighbours of the batch have in common, as the
radix tree hands them out, are read once for all of them.

Latent attention comes absorbed: a kernel attends to the latents as they are.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.cache.paged import PagedCache
from inference_opt.cache.pictures import ATTENDED, attended
from inference_opt.kernels import Batch, common_stems, paged_attention, plan_batch, write_kv
from inference_opt.model.attention import Core, causal_attention
from inference_opt.trace import recording, step


class InPlaceCache(PagedCache):
    """`PagedCache`, answered by `inference_opt.kernels`: Triton on CUDA."""

    in_place = True

    def extend(
        self, tables: Sequence[Sequence[int]], lengths: Sequence[int], counts: Sequence[int]
    ) -> Int[Tensor, "tokens"]:
        """As the gathering cache's."""
        self.check(tables, lengths, counts)
        self.lengths, self.counts = list(lengths), list(counts)
        self.tables = [table[: -(-(n + count) // self.page_size)] for table, n, count in zip(tables, lengths, counts)]
        self.batch: Batch | None = None  # planned when the first layer says how many heads ask
        spans = [np.arange(n, n + count) for n, count in zip(lengths, counts)]
        slots = [
            np.asarray(table)[span // self.page_size] * self.page_size + span % self.page_size
            for table, span in zip(self.tables, spans)
        ]
        empty = np.zeros(0, dtype=np.int64)
        self.slots = torch.from_numpy(np.concatenate([empty, *slots])).to(self.device)
        return torch.from_numpy(np.concatenate([empty, *spans])).to(self.device)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads value_dim"] | None,
        scale: float,
        core: Core = causal_attention,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """Write the new keys and values into their slots, then let each new token attend through its page table."""
        if core is not causal_attention:
            raise ValueError("kernels attend to what is kept as it is: ask without a core (see KV.in_place)")
        if self.batch is None:
            table = torch.from_numpy(padded_table(self.tables))
            ends = [n + count for n, count in zip(self.lengths, self.counts)]
            stems = common_stems(self.tables, self.lengths, self.page_size)
            self.batch = plan_batch(table, ends, self.counts, self.keys[layer], q.shape[1], self.latent_dim, stems)
        values = None if self.values is None else self.values[layer]
        write_kv(k, v, self.keys[layer], values, self.slots)
        out = paged_attention(q, self.keys[layer], values, self.batch, scale, self.latent_dim)[0]
        if recording():
            ends = [n + count for n, count in zip(self.lengths, self.counts)]
            for mine, got, pages, end in zip(q.split(self.counts), out.split(self.counts), self.tables, ends):
                seen = {"cache": self, "layer": layer, "pages": pages, "end": end}
                step("paged.attend", attended, ATTENDED, **seen, q=mine, out=got, scale=scale)
        return out


def padded_table(tables: Sequence[Sequence[int]]) -> Int[np.ndarray, "batch width"]:
    """Page tables as rows of the longest's length, filled up with page 0, as kernels read them: int32."""
    table = np.zeros((len(tables), max(map(len, tables))), dtype=np.int32)
    for row, pages in zip(table, tables):
        row[: len(pages)] = pages
    return table


def cache_class(device: torch.device) -> type[PagedCache]:
    """Kernels on CUDA; elsewhere PyTorch's own attention over gathered pages is the faster answer."""
    return InPlaceCache if device.type == "cuda" else PagedCache
