"""Decoding steps that stay on the device: captured once, and several in a row without asking the host.

A step of a small model takes the card a millisecond, and Python as long to launch it and longer to decide what comes
next. Two remedies:

    capture   the launches of a step, on buffers that stay where they are, become one CUDA graph for each size of batch;
              what a step needs to know is written into the buffers, and the graph is replayed
    ahead     greedy decoding needs no host to go on: the token of one step is the input of the next. So pages are taken
              for `steps` tokens, the graph is replayed as often, and the host looks once, at all of them

What is planned for the last of these steps serves all: a piece may reach further than its query can see, and stops at
the query's position (`kernels/attention.py`), which each step moves by one. Of a text that ends early the rest is
dropped; a row that has no room left writes nowhere (slot −1).
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from inference_opt.cache.fused_forward import can_fuse, fused_logits
from inference_opt.cache.paged import PagedCache
from inference_opt.cache.paged_kernel import PagedKernelBatch, PagedKernelCache, padded_table
from inference_opt.engine.cache_manager import Memory
from inference_opt.engine.request import Request
from inference_opt.engine.scheduler import Chunk
from inference_opt.kernels import Batch, shared_prefixes
from inference_opt.kernels.batch import cut, uses_triton
from inference_opt.kernels.graph import capture
from inference_opt.kernels.plan import Launch, Piece, TilePlan
from inference_opt.model.transformer import Transformer
from inference_opt.speculative.drafter import Drafter
from inference_opt.trace import recording


class Ahead:
    """Up to `steps` greedy tokens at a time for each of up to `most` requests."""

    def __init__(self, model: Transformer, cache: PagedKernelCache, steps: int, most: int) -> None:
        from inference_opt.kernels.greedy import Greedy  # Triton is there where it is used

        self.model, self.cache, self.steps = model, cache, steps
        config = model.config
        self.fused = can_fuse(model)
        most, pages = _bucket(most), -(-config.max_context // cache.page_size)
        self.greedy = Greedy(steps, most, cache.device)
        self.table = torch.zeros(most, pages, dtype=torch.int32, device=cache.device)
        self.offsets = torch.zeros(most + 1, dtype=torch.int32, device=cache.device)
        self.graphs: dict[tuple[object, ...], tuple[TilePlan, Callable[[], None]]] = {}
        self.pool = torch.cuda.graph_pool_handle() if cache.device.type == "cuda" else None

    def takes(self, chunks: Sequence[Chunk]) -> bool:
        """Whether a step is all plain greedy decoding: nobody wants to see the logits, or every step (a recording)."""
        plain = all(chunk.count == 1 and chunk.samples and _greedy(chunk.request) for chunk in chunks)
        return plain and not recording()

    # [run]
    def run(self, chunks: Sequence[Chunk], memory: Memory) -> list[list[int] | None]:
        """What each request emits next: as many tokens as it has room for, at most `steps`.

        Where logits hold NaN or infinity, the tokens before them; None where there are none.
        """
        rooms = []
        for chunk in chunks:
            room = min(self.steps, chunk.request.check.left)
            while room > 1 and not memory.reserve(chunk.request, chunk.start + room):
                room -= 1
            rooms.append(room)
        tables, starts = [chunk.request.table for chunk in chunks], [chunk.start for chunk in chunks]
        self.cache.check(tables, starts, rooms)
        work = self._plan(tables, starts, rooms)
        lists, replay = self._graph(len(chunks), work)
        self._fill(chunks, rooms, lists, work)
        for _ in range(max(rooms)):
            replay()
        tokens, tops = (each[:, : len(chunks)].T.cpu() for each in (self.greedy.chosen, self.greedy.tops))
        sound = tops.isfinite().long().cumprod(dim=1).sum(dim=1).tolist()  # steps before the first broken one
        return [row[: min(room, good)] or None for row, room, good in zip(tokens.tolist(), rooms, sound)]

    # [/run]

    def _plan(self, tables: list[list[int]], starts: list[int], rooms: list[int]) -> TilePlan:
        """The pieces of the last step, with the positions of the first."""
        prefixes = shared_prefixes(tables, starts, self.cache.page_size)
        ends = [start + room for start, room in zip(starts, rooms)]
        k_pages, heads = self.cache.keys[0], self.model.config.heads
        work = cut(ends, [1] * len(ends), prefixes, k_pages, heads, self.cache.latent_dim)
        own = work.launches[-1].columns  # those of shared prefixes, in front, stand still
        own.position.sub_(torch.tensor(rooms, dtype=torch.int32)[own.sequence] - 1)
        return work

    # [fill]
    def _fill(self, chunks: Sequence[Chunk], rooms: list[int], lists: TilePlan, work: TilePlan) -> None:
        """Write down for the graph what the next steps are about."""
        page, batch = self.cache.page_size, len(chunks)
        table = padded_table([chunk.request.table for chunk in chunks])
        start, last, step = np.array([chunk.start for chunk in chunks]), np.array(rooms) - 1, np.arange(self.steps)
        position = start + np.minimum(step[:, None], last)  # [steps, batch]
        slot = table[np.arange(batch), position // page].astype(np.int64) * page + position % page
        places = np.stack((position, np.where(step[:, None] <= last, slot, -1)), axis=1)
        offsets = np.full(len(self.offsets), work.num_states, dtype=np.int32)  # a row of none has no states
        offsets[: len(work.offsets)] = work.offsets
        self.greedy.begin(torch.tensor([chunk.request.tokens[-1] for chunk in chunks]), torch.from_numpy(places))
        self.offsets.copy_(torch.from_numpy(offsets))
        self.table[:batch, : table.shape[1]] = torch.from_numpy(table).to(self.table.device)
        lists.states[: len(work.states)] = work.states.to(lists.states.device)
        for mine, its in zip(lists.launches, work.launches):
            mine.pieces.zero_()  # pieces of no query
            mine.pieces[: len(its.pieces)] = its.pieces.to(mine.pieces.device)

    # [/fill]

    # [graph]
    def _graph(self, batch: int, work: TilePlan) -> tuple[TilePlan, Callable[[], None]]:
        """A step for so many rows, pieces and states, rounded up to powers of two; captured when first asked for.

        Without CUDA the run itself.
        """
        rows, num_states = _bucket(batch), _bucket(work.num_states)
        sizes = tuple((_bucket(len(launch.pieces)), launch.tile) for launch in work.launches)
        key = (rows, num_states, sizes)
        if key not in self.graphs:
            device = self.cache.device
            fields = len(Piece._fields)
            launches = [Launch(torch.zeros(n, fields, dtype=torch.int32, device=device), tile) for n, tile in sizes]
            states = torch.zeros(num_states, dtype=torch.int32, device=device)
            lists = TilePlan(tuple(launches), self.offsets[: rows + 1], states, num_states)
            none = torch.zeros(0, dtype=torch.int64)
            self.greedy.begin(none, none.expand(self.steps, 2, 0))  # capturing runs: it may write nowhere
            run = partial(self._step, rows, lists)
            self.graphs[key] = lists, run if self.pool is None else capture(run, self.pool).replay
        return self.graphs[key]

    @torch.inference_mode()
    def _step(self, rows: int, lists: TilePlan) -> None:
        """One step of `rows` rows, from the buffers to the buffers."""
        batch, tokens = Batch(self.table, [0] * rows, [1] * rows, lists), self.greedy.tokens[:rows]
        positions, slots = self.greedy.place[:, :rows]
        if self.fused:
            logits = fused_logits(self.model, tokens, positions, slots, self.cache, batch)
        else:
            kv = PagedKernelBatch(self.cache, positions, slots, lambda heads: batch)
            logits = self.model(tokens, positions, kv)
        self.greedy.end(logits)
        for launch in lists.launches:
            launch.columns.position.add_(1)

    # [/graph]


def _bucket(n: int) -> int:
    """The next power of two; 0 stays."""
    return 1 << (n - 1).bit_length() if n else 0


def _greedy(request: Request) -> bool:
    return request.params.temperature == 0 and not request.params.logprobs


def run_ahead(model: Transformer, cache: PagedCache, drafter: Drafter | None, steps: int, most: int) -> Ahead | None:
    """For what kernels answer for, where no drafter takes part, and no router, whose launches depend on the data. Ranks
    (`model/parallel.py`), which plan the same steps, do so together if they speak through NCCL: its sums are launches.

    ValueError for fewer steps than one.
    """
    if steps < 1:
        raise ValueError(f"ahead must be at least 1, got {steps}")
    if not isinstance(cache, PagedKernelCache) or not uses_triton(cache.keys[0]):
        return None
    if drafter is not None or model.config.experts:
        return None
    if model.is_cut and not (dist.is_initialized() and dist.get_backend() == "nccl"):
        return None
    return Ahead(model, cache, steps, most)
