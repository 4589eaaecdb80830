"""Who reads what: the work of one step's attention, cut into pieces, once for all layers.

A *piece* is what one program does for one key head: some rows (queries × the heads that share the key) of one sequence,
against a run of its keys. Three reasons to cut:

    rows    a prompt has more queries than one program holds: tiles of `rows`, each over the keys that its last row sees
    keys    a few long sequences would leave most of the machine idle: each is split over several programs, and the
            states are merged (FlashDecoding)
    shared  requests on one stem read the same pages: the stem's keys meet the rows of all of them at once (Hydragen
            2402.05099, cascade), and each request's own keys follow as pieces of their own

All three leave lists of states to merge a token, so that one kernel and one merge serve decode, verification, prefill
and shared prefixes. The lists depend on lengths only, which the scheduler knows: no look at the device is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.int64]

# What a piece says, one int32 each. Its query i stands at position + i and sees the keys up to there. Its output goes
# to token token0 + i, or, where state >= 0, as a partial result to state + i.
PIECE = ("sequence", "token0", "queries", "position", "row0", "first", "end", "state")
OVERHEAD = 64  # what beginning a piece costs, in keys read
SHARED_MEMORY = 220 * 1024  # bytes a program may have: 227 KiB on an H100, less what the kernel keeps besides


@dataclass(frozen=True)
class Runs:
    """Queries against keys, entry by entry: `queries` tokens from `token0` on, against keys [first, end) of the pages
    that row `sequence` of the page table lists. `position` is the first query's; a query sees no key behind its own."""

    sequence: Array
    token0: Array
    queries: Array
    position: Array
    first: Array
    end: Array


@dataclass(frozen=True)
class Tile:
    """What one program holds at a time: query rows, against `block` keys; and how many run on a multiprocessor."""

    rows: int
    block: int
    warps: int
    stages: int  # depth of the pipeline that loads the next blocks while one is computed
    resident: int
    hopper: str = ""  # by a kernel of that card's own: "mla" or "gqa" (hopper/mla.py, hopper/gqa.py)

    @property
    def looks_ahead(self) -> bool:
        """Whether pages are looked up a block ahead: worth their registers where blocks of keys are under way, too."""
        return self.stages > 2


@dataclass(frozen=True)
class Launch:
    """Pieces that one launch does."""

    pieces: Int[Tensor, "pieces 8"]
    tile: Tile


@dataclass(frozen=True)
class Work:
    """Launches, then a merge: token t joins states[offsets[t] : offsets[t + 1]], and none where it has none."""

    launches: tuple[Launch, ...]
    offsets: Int[Tensor, "tokens_and_1"]
    states: Int[Tensor, "listed"]
    num_states: int

    def to(self, device: torch.device) -> "Work":
        """The lists where the kernels read them."""
        launches = tuple(Launch(each.pieces.to(device), each.tile) for each in self.launches)
        return Work(launches, self.offsets.to(device), self.states.to(device), self.num_states)


def padded(dim: int, value_dim: int, shared: bool) -> tuple[int, int, int, int]:
    """Where a key is split, and the widths of the tiles for its two parts and for the value: powers of two, from 16."""
    split = value_dim if shared else 1 << (dim.bit_length() - 1)
    low, high, value = (max(1 << max(n - 1, 0).bit_length(), 16) for n in (split, dim - split, value_dim))
    return split, low, high, value


def tile_bytes(dim: int, value_dim: int | None, size: int) -> tuple[int, int]:
    """Of a key with its value, and of a query, as a program holds them; `value_dim`: where values lie in the keys."""
    split, low, high, value = padded(dim, value_dim or dim, shared=value_dim is not None)
    query = (low + (high if split < dim else 0)) * size
    return query + (0 if value_dim else value * size), query


# [tile]
def choose_tile(rows: int, key_bytes: int, query_bytes: int, hopper: str = "") -> Tile:
    """A tile for so many rows of `query_bytes`, of keys that take `key_bytes` with their values.

    Tensor cores take 16 rows at the least; more than 64 leave too few registers for what is summed. The blocks are as
    long as shared memory lets two programs share a multiprocessor, one of them loading while the other computes;
    latents have one to themselves. Found by trying, on an H100 (chapter 08). Widths that no model has may need a
    smaller one: the queries and the blocks in the pipeline must fit. `hopper`: the Gluon kernel that knows the pages;
    it is for many rows.
    """
    height = min(max(16, 1 << (rows - 1).bit_length()), 64)
    if hopper == "mla" and rows > 16:
        return Tile(64, 128, 8, 1, 1, hopper)
    if hopper == "gqa" and rows > 64:
        return Tile(128, 64, 8, 2, 1, hopper)
    if key_bytes <= 512:  # keys and values of 128 numbers in half precision
        tile = Tile(height, 32 if height == 16 else 64, 4, 3, 2)
    elif 1024 < key_bytes <= 1280:  # latents in half precision
        tile = Tile(height, 64, 8, 3 if height < 64 else 2, 1)
    else:
        block, stages = {16: (16, 2), 32: (32, 2), 64: (16, 3)}[height]
        tile = Tile(height, block, 4, stages, 2)
    while tile.stages > 1:
        blocks = tile.stages - (tile.rows < 64)  # products of 64 rows read theirs where it is, while the next arrive
        if tile.rows * query_bytes + blocks * tile.block * key_bytes <= SHARED_MEMORY:
            break
        smaller = tile.rows > 16
        tile = replace(tile, rows=tile.rows // 2) if smaller else replace(tile, stages=tile.stages - 1)
    return tile


# [/tile]


# [chunk]
def chunk_size(keys: Array, heads: int, programs: int, block: int) -> int:
    """Keys a piece so that `programs` at a time are done soonest: rounds · (keys + OVERHEAD) is least.

    `keys`: of every tile of rows, each cut for each of `heads`.
    """
    longest = max(int(keys.max(initial=1)), 1)
    sizes = np.unique(-(-longest // np.arange(1, 129)) + block - 1) // block * block  # an n-th of the longest
    rounds = np.maximum(1.0, (-(-keys[:, None] // sizes)).sum(0) * heads / programs)
    rounds = np.where(rounds < 8, np.ceil(rounds), rounds)  # of many rounds the last one's gaps are filled
    return int(sizes[(rounds * (sizes + OVERHEAD)).argmin()])


# [/chunk]


def spread(counts: Array) -> tuple[Array, Array]:
    """counts [2, 0, 3] → owners [0, 0, 2, 2, 2] and their indices [0, 1, 0, 1, 2]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


# [plan]
def plan(
    groups: Sequence[tuple[Runs, Tile]],
    group: int,
    kv_heads: int,
    tokens: int,
    processors: int,
) -> Work:
    """Cut runs into pieces, each group of runs with a tile of its own; `group` query heads share a key head.

    A token whose keys all lie in one piece is written where it belongs; any other gets a list of states. The lists are
    on the host.
    """
    reads = np.zeros(tokens, dtype=int)  # of how many runs each token is part
    for runs, _ in groups:
        owner, i = spread(runs.queries)
        np.add.at(reads, runs.token0[owner] + i, 1)
    launches, listed, num_states = [], [np.zeros((0, 2), dtype=int)], 0
    for runs, tile in groups:
        height = tile.rows
        # Rows: blocks of whole queries, or, where a query has more heads than a tile has rows, several tiles a query.
        each, tiles = max(height // group, 1), -(-group // height)
        owner, i = spread(-(-runs.queries // each))
        token0, position = runs.token0[owner] + i * each, runs.position[owner] + i * each
        queries = np.minimum(each, runs.queries[owner] - i * each)
        first, end = runs.first[owner], np.minimum(runs.end[owner], position + queries)
        # Keys: pieces of one size.
        keys = np.maximum(end - first, 0)
        size = chunk_size(keys, kv_heads * tiles, processors * tile.resident, tile.block)
        cuts = np.maximum(-(-keys // size), 1)
        cut, c = spread(cuts)
        partial = np.where((cuts > 1) | (reads[token0] > 1), queries, 0)[cut]  # states that a piece writes
        state = np.where(partial > 0, num_states + np.cumsum(partial) - partial, -1)
        begin = first[cut] + c * size
        stop = np.minimum(begin + size, end[cut])
        fields = [runs.sequence[owner][cut], token0[cut], queries[cut], position[cut], begin, stop, state]
        pieces = np.stack(fields, axis=1).repeat(tiles, axis=0)
        row0 = np.tile(np.arange(tiles) * height, len(cut))
        launches.append(Launch(int32(np.insert(pieces, 4, row0, axis=1)), tile))
        piece, j = spread(partial)
        listed.append(np.stack((token0[cut][piece] + j, state[piece] + j), axis=1))
        num_states += int(partial.sum())
    pairs = np.concatenate(listed)
    pairs = pairs[pairs[:, 0].argsort(kind="stable")]
    offsets = np.concatenate(([0], np.cumsum(np.bincount(pairs[:, 0], minlength=tokens))))
    return Work(tuple(launches), int32(offsets), int32(pairs[:, 1]), num_states)


# [/plan]


def int32(values: Array) -> Tensor:
    """As kernels read it."""
    return torch.from_numpy(values.astype(np.int32))
