"""The paged KV cache: keys and values in pages, found through page tables.

    page_table [3, 1, 6], length 10        keys of layer l: [num_pages, page_size, kv_heads, d_h]
        gather   pages 3, 1, 6     →       [3 · page_size, kv_heads, d_h]
        cut      to the length     →       [10, kv_heads, d_h], in the order of the text

The tensors know nothing of who owns a page: `pool.py` and `radix.py` keep that. This file is the plain PyTorch answer
to `attend`; `paged_kernel.py` is the same by kernels, which read the pages where they lie, without the gather.

Several sequences of one batch may list the same page. Each layer writes all new keys and values before any sequence
reads, so a sequence may even attend to what another one computes in the same batch.

A layout may store one vector a token instead of a key and a value: with `latent_dim`, the first `latent_dim` columns
of the key are the value, as in Multi-head Latent Attention (2405.04434, §2.1.2), and `attend` is given v=None.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.cache.pictures import ATTENDED, attended
from inference_opt.model.attention import Core, causal_attention
from inference_opt.room import check_room
from inference_opt.trace import recording, step
from inference_opt.values import integer


class PagedCache:
    """Keys and values of `num_pages` pages of `page_size` tokens, for every layer.

    `grows`: memory is taken when pages are first used, twice as much each time, and not at once. (Kernels' pages are
    taken at once: captured graphs know where they lie.) ValueError where the pages taken at once do not fit in memory.
    """

    in_place = False

    def __init__(
        self,
        depth: int,
        kv_heads: int,
        head_dim: int,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        latent_dim: int | None = None,
        grows: bool = False,
    ) -> None:
        num_pages, page_size = integer("num_pages", num_pages), integer("page_size", page_size)
        if num_pages < 1 or page_size < 1:
            raise ValueError(
                f"a cache needs at least one page of at least one token, got {num_pages} pages of {page_size}"
            )
        if latent_dim is not None and not 1 <= integer("latent_dim", latent_dim) <= head_dim:
            raise ValueError(f"latent_dim must lie in [1, head_dim = {head_dim}], got {latent_dim}")

        self.grows = grows and not self.in_place
        self.num_pages, self.page_size, self.device = num_pages, page_size, device
        self.latent_dim = latent_dim

        def pages() -> list[Tensor]:  # [layer]: [pages held, page_size, kv_heads, d_h], uninitialised
            return [torch.empty(0, page_size, kv_heads, head_dim, dtype=dtype, device=device) for _ in range(depth)]

        self.keys = pages()
        self.values = None if latent_dim is not None else pages()
        if not self.grows:
            what = f"a KV cache of num_pages = {num_pages:,} pages of {page_size:,} tokens"
            check_room(num_pages * page_size * self.bytes_per_token(), device, what, "take fewer num_pages")
            self._hold(num_pages)
        self.extend([], [], [])

    def _hold(self, pages: int) -> None:
        """Have memory for pages [0, pages), and keep what is in those held so far. All layers grow, or none does."""

        def grown(layers: list[Tensor]) -> list[Tensor]:
            new = [old.new_empty(pages, *old.shape[1:]) for old in layers]
            for old, more in zip(layers, new):
                more[: len(old)] = old
            return new

        # One assignment: whoever interrupts finds the old pages, whole, or the new ones.
        self.__dict__.update(keys=grown(self.keys), values=None if self.values is None else grown(self.values))

    # [extend]
    def extend(
        self, tables: Sequence[Sequence[int]], lengths: Sequence[int], counts: Sequence[int]
    ) -> Int[Tensor, "tokens"]:
        """Announce the next batch, `counts[i]` new tokens behind `lengths[i]` of sequence i; return their positions.

        `tables[i]` lists the sequence's pages, room for the new tokens included. ValueError, and no change, if not.
        """
        self.check(tables, lengths, counts)
        last, held = max((max(table) for table in tables), default=-1), len(self.keys[0])
        if last >= held:
            self._hold(min(max(last + 1, 2 * held), self.num_pages))
        self.counts, ends = list(counts), [length + count for length, count in zip(lengths, counts)]
        self.ends = ends
        # Each sequence's pages up to its end: [ceil(end / page_size)]
        used = [-(-end // self.page_size) for end in ends]
        self.pages = [torch.tensor(table[:n], device=self.device) for table, n in zip(tables, used)]
        spans = [torch.arange(n, end, device=self.device) for n, end in zip(lengths, ends)]
        slots = [
            pages[span // self.page_size] * self.page_size + span % self.page_size
            for pages, span in zip(self.pages, spans)
        ]
        empty = torch.empty(0, dtype=torch.long, device=self.device)
        self.slots = torch.cat([empty, *slots])  # [tokens]: where each new key and value goes
        return torch.cat([empty, *spans])

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
        """Write the new keys and values into their slots, then let each new token attend through its page table."""
        if (v is None) != (self.values is None):
            raise ValueError("values are given exactly where the layout stores them (where latent_dim is None)")
        self.keys[layer].flatten(0, 1).index_copy_(0, self.slots, k)
        if self.values is not None and v is not None:
            self.values[layer].flatten(0, 1).index_copy_(0, self.slots, v)
        outputs = []
        for queries, pages, end in zip(q.split(self.counts), self.pages, self.ends):
            keys = self.keys[layer].index_select(0, pages).flatten(0, 1)[:end]  # [end, kv_heads, d_h]
            if self.values is not None:
                values = self.values[layer].index_select(0, pages).flatten(0, 1)[:end]
            else:
                values = keys[..., : self.latent_dim]
            outputs.append(core(queries, keys, values, scale))
            if recording():
                seen = {"cache": self, "layer": layer, "pages": pages.tolist(), "end": end}
                step("paged.attend", attended, ATTENDED, **seen, q=queries, out=outputs[-1], scale=scale)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    # [/attend]

    def check(self, tables: Sequence[Sequence[int]], lengths: Sequence[int], counts: Sequence[int]) -> None:
        """ValueError for sequences that their pages do not hold, and for pages that there are not."""
        for i, (table, length, count) in enumerate(zip(tables, lengths, counts, strict=True)):
            if count < 1 or length + count > len(table) * self.page_size:
                raise ValueError(
                    f"sequence {i} of the batch: {count} new tokens up to {length + count} do not fit its "
                    f"{len(table)} pages of {self.page_size}"
                )
            if not 0 <= min(table) <= max(table) < self.num_pages:
                raise ValueError(f"sequence {i} of the batch: pages {list(table)} are not all in [0, {self.num_pages})")

    def bytes_per_token(self) -> int:
        """Bytes one token takes, read off the tensors."""
        return sum(t.shape[2:].numel() * t.element_size() for t in (*self.keys, *(self.values or ())))
