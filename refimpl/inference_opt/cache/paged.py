"""The paged KV cache: keys and values in pages, found through page tables.

    page_table [3, 1, 6], length 10        keys of layer l: [num_pages, page_size, kv_heads, d_h]
        gather   pages 3, 1, 6     →       [3 · page_size, kv_heads, d_h]
        cut      to the length     →       [10, kv_heads, d_h], in the order of the text

The tensors know nothing of who owns a page: `pool.py` and `radix/` know. This file is the plain PyTorch answer
to `attend`; `paged_kernel.py` is the same by kernels, which read the pages where they lie, without the gather.

Several sequences of one batch may list the same page. Each layer writes all new keys and values before any sequence
reads, so a sequence may even attend to what another one computes in the same batch.

A layout may store one vector a token instead of a key and a value: with `latent_dim`, the first `latent_dim` columns
of what is kept are the latent, as in Multi-head Latent Attention (2405.04434, §2.1.2). Then `values` is None.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from inference_opt.kernels.tree import TreeRows, sees
from inference_opt.model.attention import CacheBatch, LatentForms, causal_attention, masked_attention
from inference_opt.room import check_room
from inference_opt.values import integer


class PagedCache:
    """Keys and values of `num_pages` pages of `page_size` tokens, for every layer.

    `grows`: memory is not taken at once but as pages come to be used, at least twice as much each time. (Kernels' pages
    are taken at once: captured graphs know where they lie.) ValueError where pages taken at once do not fit in memory.
    """

    may_grow = True

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

        self.grows = grows and self.may_grow
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

    def _hold(self, pages: int) -> None:
        """Have memory for pages [0, pages), and keep what is in those held so far. All layers grow, or none does."""

        def grown(layers: list[Tensor]) -> list[Tensor]:
            new = [old.new_empty(pages, *old.shape[1:]) for old in layers]
            for old, more in zip(layers, new):
                more[: len(old)] = old
            return new

        # One assignment: an interrupt leaves either all old pages or all new ones.
        self.__dict__.update(keys=grown(self.keys), values=None if self.values is None else grown(self.values))

    def batch(
        self,
        tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        counts: Sequence[int],
        trees: Sequence[TreeRows | None] = (),
    ) -> CacheBatch:
        """The next batch: `counts[i]` new tokens of sequence i, behind its first `starts[i]`.

        `tables[i]` lists the sequence's pages, room for the new tokens included. ValueError, and no change, if not.
        `trees[i]`: where the new tokens are rows of a tree. A row's slot then follows from its place in the batch, and
        its position from its depth.
        """
        self.check(tables, starts, counts)
        last = max((max(table) for table in tables), default=-1)
        held = len(self.keys[0])
        if last >= held:
            self._hold(min(max(last + 1, 2 * held), self.num_pages))
        if any(trees):
            return TreeBatch(self, tables, starts, counts, trees)
        return PagedBatch(self, tables, starts, counts)

    @torch.inference_mode()
    def keep_paths(
        self, tables: Sequence[Sequence[int]], starts: Sequence[int], paths: Sequence[Sequence[int]]
    ) -> None:
        """Of the rows fed from slot `starts[i]` on, move those that `paths[i]` lists to the first slots, in all layers.

        What the other rows held there is lost.
        """
        sources, targets = [], []
        for table, start, path in zip(tables, starts, paths, strict=True):
            if moved := [(row, i) for i, row in enumerate(path) if row != i]:
                pages, (rows, places) = torch.tensor(table), torch.tensor(moved).T
                sources.append(slots_of(pages, start + rows, self.page_size))
                targets.append(slots_of(pages, start + places, self.page_size))
        if not sources:
            return
        from_, to = (torch.cat(each).to(self.device) for each in (sources, targets))
        for pages in (*self.keys, *(self.values or ())):
            slots = pages.flatten(0, 1)
            slots.index_copy_(0, to, slots[from_])  # all are read before any is written

    def values_of(self, layer: int) -> Float[Tensor, "pages page_size kv_heads head_dim"]:
        """A layer's values. ValueError where latents are kept in place of keys and values."""
        if self.values is None:
            raise ValueError("this cache keeps latents: it has no place for values")
        return self.values[layer]

    def latents_of(self, layer: int) -> Float[Tensor, "pages page_size 1 kept_dim"]:
        """A layer's latents. ValueError where keys and values are kept."""
        if self.values is not None:
            raise ValueError("this cache keeps keys and values: make it with latent_dim for latents")
        return self.keys[layer]

    def check(self, tables: Sequence[Sequence[int]], starts: Sequence[int], counts: Sequence[int]) -> None:
        """ValueError for sequences that do not fit their pages, and for pages outside the pool."""
        for i, (table, start, count) in enumerate(zip(tables, starts, counts, strict=True)):
            if count < 1 or start + count > len(table) * self.page_size:
                raise ValueError(
                    f"sequence {i} of the batch: {count} new tokens up to {start + count} do not fit its "
                    f"{len(table)} pages of {self.page_size}"
                )
            if not 0 <= min(table) <= max(table) < self.num_pages:
                raise ValueError(f"sequence {i} of the batch: pages {list(table)} are not all in [0, {self.num_pages})")

    def bytes_per_token(self) -> int:
        """Bytes one token takes, read off the tensors."""
        return sum(t.shape[2:].numel() * t.element_size() for t in (*self.keys, *(self.values or ())))


class PagedBatch(CacheBatch):
    """New tokens of some sequences, laid end to end: `counts[i]` of sequence i from `starts[i]` on, and their slots."""

    def __init__(
        self, cache: PagedCache, tables: Sequence[Sequence[int]], starts: Sequence[int], counts: Sequence[int]
    ) -> None:
        self.cache, self.counts = cache, list(counts)
        self.ends = [start + count for start, count in zip(starts, counts)]
        # Each sequence's pages up to its end: [ceil(end / page_size)]
        size, device = cache.page_size, cache.device
        self.pages = [torch.tensor(table[: -(-end // size)], device=device) for table, end in zip(tables, self.ends)]
        spans = [torch.arange(start, end, device=device) for start, end in zip(starts, self.ends)]
        slots = [slots_of(pages, span, size) for pages, span in zip(self.pages, spans)]
        none = torch.empty(0, dtype=torch.long, device=device)
        self.positions: Int[Tensor, tokens] = torch.cat([none, *spans])
        self.slots: Int[Tensor, tokens] = torch.cat([none, *slots])  # where each new key and value goes

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads value_dim"],
        scale: float,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """Write the new keys and values into their slots, then let each new token attend through its page table."""
        key_pages, value_pages = self.cache.keys[layer], self.cache.values_of(layer)
        key_pages.flatten(0, 1).index_copy_(0, self.slots, k)
        value_pages.flatten(0, 1).index_copy_(0, self.slots, v)
        outputs = []
        for queries, pages, end in zip(q.split(self.counts), self.pages, self.ends):
            keys, values = gather(key_pages, pages, end), gather(value_pages, pages, end)
            outputs.append(causal_attention(queries, keys, values, scale))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def attend_latents(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        kept: Float[Tensor, "tokens 1 kept_dim"],
        forms: LatentForms,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """The same with latents, one a token."""
        latent_pages = self.cache.latents_of(layer)
        latent_pages.flatten(0, 1).index_copy_(0, self.slots, kept)
        parts = zip(q.split(self.counts), self.pages, self.ends)
        outputs = [forms.over(queries, gather(latent_pages, pages, end)) for queries, pages, end in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class TreeBatch(PagedBatch):
    """New tokens, of which some are rows of trees: each row sees the context, its ancestors and itself."""

    def __init__(
        self,
        cache: PagedCache,
        tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        counts: Sequence[int],
        trees: Sequence[TreeRows | None],
    ) -> None:
        super().__init__(cache, tables, starts, counts)
        device = cache.device
        parts = list(self.positions.split(self.counts))  # of each sequence: as yet its slots, in the order of the text
        self.masks: list[Bool[Tensor, "rows keys"] | None] = [None] * len(parts)
        for i, (tree, span, end) in enumerate(zip(trees, parts, self.ends, strict=True)):
            if tree:
                bits = torch.tensor(tree.seen, device=device)
                self.masks[i] = sees(bits, span, torch.arange(end, device=device))
                parts[i] = torch.tensor(tree.positions, device=device)
        self.positions = torch.cat(parts)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads value_dim"],
        scale: float,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """Write all rows, then let each attend to what its mask shows."""
        return self._attend(q, (self.cache.keys[layer], k), (self.cache.values_of(layer), v), scale)

    def attend_latents(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads query_dim"],
        kept: Float[Tensor, "tokens 1 kept_dim"],
        forms: LatentForms,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        """The same with latents, which the queries meet as they are."""
        latents = self.cache.latents_of(layer), kept
        return forms.values(self._attend(forms.absorb(q), latents, None, forms.scale))

    def _attend(
        self, q: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor] | None, scale: float
    ) -> Tensor:
        """Attention over pages into which new rows are written first. Without values, they begin the keys (latents)."""
        for pages, new in filter(None, (keys, values)):
            pages.flatten(0, 1).index_copy_(0, self.slots, new)
        outputs = []
        for queries, pages, end, mask in zip(q.split(self.counts), self.pages, self.ends, self.masks):
            k = gather(keys[0], pages, end)
            v = gather(values[0], pages, end) if values else k[..., : self.cache.latent_dim]
            if mask is None:  # no tree: a prompt, or a chain
                outputs.append(causal_attention(queries, k, v, scale))
            else:
                outputs.append(masked_attention(queries, k, v, scale, mask))
        return torch.cat(outputs)


def slots_of(pages: Int[Tensor, "used"], positions: Int[Tensor, "new"], page_size: int) -> Int[Tensor, "new"]:
    """Where a sequence's tokens lie: each in its page, page_size slots a page. `pages` is the sequence's page table."""
    return pages[positions // page_size] * page_size + positions % page_size


def gather(
    layer: Float[Tensor, "pages page_size kv_heads dim"], pages: Int[Tensor, "used"], end: int
) -> Float[Tensor, "end kv_heads dim"]:
    """What a sequence's pages hold of its first `end` tokens, in the order of the text."""
    return layer.index_select(0, pages).flatten(0, 1)[:end]
