"""The plan of one step's attention: which program reads which keys for which queries. Made once for all layers.

A *piece* is what one program does for one key head: some rows (queries × the heads that share the key head) of one
sequence, against a range of its keys. There are three reasons to cut attention into pieces:

    rows      A prompt has more queries than one program holds: it is cut into tiles of `rows`, each over the keys that
              its last row sees.
    keys      A few long sequences would leave most of the machine idle: the keys of each are split over several
              programs, and their states are merged (Flash-Decoding).
    prefixes  Requests with a shared prefix read the same pages: the prefix's keys meet the rows of all requests at once
              (Hydragen, 2402.05099; cascade attention), and each request's own keys follow in pieces of their own.

All three leave lists of states that are merged for each token. So one kernel and one merge serve decoding,
verification, prefill and shared prefixes. A plan depends on lengths only, which the scheduler knows: making it needs no
look at the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from inference_opt.kernels.transfer import sent

Array = NDArray[np.int64]
Field = Any  # an int32 of one piece, or a column of them: a tensor, or an array

# Times, in those that a program takes to read a key. Found by trying, on an H200.
PIECE_TIME = 128  # to start a piece
MERGE_TIME = 64  # to merge states, however few
TURN_TIME = 4  # to take in one more state of the same row
STATE_TIME = 6  # to write and read the state of one row; states are shared out among the multiprocessors
GQA_WIDTHS = ((64, 64), (128, 128), (192, 128))  # of keys and values, for the Gluon kernel of many rows
SHARED_MEMORY = 220 * 1024  # bytes a program may use: 227 KiB on an H100, less what the kernel needs for itself


class Piece(NamedTuple):
    """What a program reads about its piece, in this order.

    Query i of the piece is token token0 + i, at position + i of its sequence. It sees the keys up to its position.
    In `Launch.columns` each field is that of all pieces.
    """

    sequence: Field  # row of the page table
    token0: Field  # its first query, as a token of the batch
    queries: Field  # number of queries
    position: Field  # of the first query in its sequence
    row0: Field  # its first row; each query has a row for each head that shares the key head
    first: Field  # first key
    end: Field  # the key after the last
    state: Field  # query i's result is the state with number state + i; below 0: it is final, no state


@dataclass(frozen=True)
class Segments:
    """Queries against keys, one entry a segment, before it is cut into pieces. The fields mean what `Piece` says."""

    sequence: Array
    token0: Array
    queries: Array
    position: Array
    first: Array
    end: Array

    def __getitem__(self, index: Array) -> "Segments":
        return Segments(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Tile:
    """What one program holds at a time: query rows, against `block` keys."""

    rows: int
    block: int
    warps: int
    stages: int  # depth of the pipeline that loads the next blocks while one is computed
    resident: int  # programs that run on one multiprocessor at a time
    hopper: str = ""  # the Gluon kernel that does it, "mla" or "gqa" (hopper/), or none of them

    @property
    def looks_ahead(self) -> bool:
        """Whether pages are looked up a block ahead. It takes registers, and pays where blocks are in flight."""
        return self.stages > 2


@dataclass(frozen=True)
class Launch:
    """The pieces of one launch, a row each, and their tile."""

    pieces: Int[Tensor, "pieces 8"]
    tile: Tile
    seen: Int[Tensor, "tokens"] | None = None  # if there are trees: which of the last keys each token sees (tree.py)

    @property
    def columns(self) -> Piece:
        """The columns, by name: views, so writing into one changes the pieces."""
        return Piece(*(self.pieces[:, i] for i in range(len(Piece._fields))))

    @property
    def rows(self) -> list[Piece]:
        """The pieces, one by one."""
        return [Piece(*row) for row in self.pieces.tolist()]


@dataclass(frozen=True)
class TilePlan:
    """Launches, then one merge: token t joins the states[offsets[t] : offsets[t + 1]], if it has any."""

    launches: tuple[Launch, ...]
    offsets: Int[Tensor, "tokens_and_1"]
    states: Int[Tensor, "listed"]
    num_states: int

    def to(self, device: torch.device) -> "TilePlan":
        """The plan with its lists on `device`."""
        launches = tuple(
            Launch(sent(each.pieces, device), each.tile, None if each.seen is None else sent(each.seen, device))
            for each in self.launches
        )
        return TilePlan(launches, sent(self.offsets, device), sent(self.states, device), self.num_states)


def padded(dim: int, value_dim: int, values_in_keys: bool) -> tuple[int, int, int, int]:
    """Where a key is split in two, and the widths of the tiles for both parts and for the value.

    Widths of tiles are powers of two, 16 at least: 576 = 512 + 64.
    """
    split = value_dim if values_in_keys else 1 << (dim.bit_length() - 1)
    low, high, value = (max(1 << max(n - 1, 0).bit_length(), 16) for n in (split, dim - split, value_dim))
    return split, low, high, value


def tile_bytes(dim: int, value_dim: int | None, element_size: int, v_dim: int | None = None) -> tuple[int, int]:
    """Bytes of one key with its value, and of one query, as a program holds them.

    `value_dim` is given where the values are the keys' first columns, `v_dim` where others are not as wide as the keys.
    """
    split, low, high, value = padded(dim, value_dim or v_dim or dim, values_in_keys=value_dim is not None)
    query_bytes = (low + (high if split < dim else 0)) * element_size
    value_bytes = 0 if value_dim else value * element_size
    return query_bytes + value_bytes, query_bytes


def choose_tile(rows: int, key_bytes: int, query_bytes: int, hopper: str = "") -> Tile:
    """The tile for `rows` rows, where a key and its value take `key_bytes` and a query takes `query_bytes`.

    `hopper`: the Gluon kernel that knows these pages. It is for many rows. All sizes were found by trying, on an H100
    (chapter 08).
    """
    # Tensor cores multiply 16 rows at least. More than 64 leave too few registers for the sums.
    height = min(max(16, 1 << (rows - 1).bit_length()), 64)
    if hopper == "mla" and rows > 16:
        return Tile(64, 128, 8, 1, 1, hopper)
    if hopper == "gqa" and rows > 64:
        return Tile(128, 128, 8, 2, 1, hopper)

    # Blocks are as long as shared memory allows with two programs on a multiprocessor, or more if these are small, so
    # that one loads while another computes. Latents are wide: a program has the multiprocessor to itself.
    if key_bytes <= 512:  # keys and values of 128 numbers in half precision
        resident = 2 * (1 + (height == 16)) * (1 + (key_bytes <= 256))
        tile = Tile(height, 32 if height == 16 else 64, 4, 3, resident)
    elif key_bytes == 640 and height == 64:  # keys of 192 and values of 128: a prompt's, made of latents
        tile = Tile(64, 64, 4, 2, 2)
    elif 1024 < key_bytes <= 1280:  # latents in half precision
        tile = Tile(height, 64, 8, 3 if height < 64 else 2, 1)
    else:
        block, stages = {16: (16, 2), 32: (32, 2), 64: (16, 3)}[height]
        tile = Tile(height, block, 4, stages, 2)

    # The queries and the blocks in flight must fit into shared memory. Widths that no model has may need less.
    while tile.stages > 1:
        blocks = tile.stages - (tile.rows < 64)  # with 64 rows the tensor cores read a block where it was loaded
        if tile.rows * query_bytes + blocks * tile.block * key_bytes <= SHARED_MEMORY:
            break
        smaller = tile.rows > 16
        tile = replace(tile, rows=tile.rows // 2) if smaller else replace(tile, stages=tile.stages - 1)
    return tile


def chunk_size(keys: Array, rows: Array, merged: NDArray[np.bool_], heads: int, processors: int, tile: Tile) -> int:
    """The number of keys a piece with which everything ends soonest.

    `keys` and `rows`: of each tile, to be cut for each of `heads`. `merged`: whether its rows have states anyway,
    since they meet other keys elsewhere. The machine begins the longest pieces first. So all programs are busy until
    the last round, which consists of the shortest pieces and may be partly empty. The end cannot come before all rounds
    of full pieces have ended. Then states are merged:

        time = max(rounds of full pieces, work / programs + empty part of the last round · shortest piece) + merge
    """
    block, programs = tile.block, processors * tile.resident
    if not len(keys):
        return block
    # Candidates: the longest divided by 1, 2, … 128, rounded up to whole blocks.
    longest = max(int(keys.max()), 1)
    sizes = np.unique(-(-longest // np.arange(1, 129)) + block - 1) // block * block

    # [chunk]
    pieces = np.maximum(-(-keys[:, None] // sizes), 1)
    work = (keys[:, None] + pieces * PIECE_TIME).sum(0) * heads
    shortest = (keys[:, None] - (pieces - 1) * sizes + PIECE_TIME).min(0)
    rounds = pieces.sum(0) * heads / programs
    time = work / programs + (np.ceil(rounds) - rounds) * shortest
    full = np.maximum(np.ceil((keys[:, None] // sizes).sum(0) * heads / programs), 1)
    time = np.maximum(time, full * (np.minimum(sizes, longest) + PIECE_TIME))
    # A tile that is one piece has no states, unless its rows meet other keys elsewhere.
    states = np.where((pieces > 1) | merged[:, None], pieces * rows[:, None], 0).sum(0) * heads
    time += np.where(states > 0, MERGE_TIME + TURN_TIME * pieces.max(0), 0) + STATE_TIME * states / processors
    return int(sizes[time.argmin()])
    # [/chunk]


def spread(counts: Array) -> tuple[Array, Array]:
    """For counts [2, 0, 3]: the owners [0, 0, 2, 2, 2], and the index within each owner, [0, 1, 0, 1, 2]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def cut_rows(segments: Segments, most: int) -> Segments:
    """Cut the queries of each segment into blocks of `most`, the last one perhaps smaller.

    Causality: a block needs no key after its own last query.
    """
    owner, i = spread(-(-segments.queries // most))
    blocks = segments[owner]
    position, queries = blocks.position + i * most, np.minimum(most, blocks.queries - i * most)
    end = np.minimum(blocks.end, position + queries)
    return replace(blocks, token0=blocks.token0 + i * most, queries=queries, position=position, end=end)


def plan(
    groups: Sequence[tuple[Segments, Tile]],
    group_size: int,
    kv_heads: int,
    tokens: int,
    processors: int,
) -> TilePlan:
    """Cut groups of segments into pieces, one launch a group, each with its own tile. The plan is on the host.

    `group_size` query heads share a key head. A token whose keys all lie in one piece gets its result from there; any
    other token gets a list of states.
    """
    # A token in several segments (a shared prefix and its own keys) must be merged even if no segment is split.
    segments_of = np.zeros(tokens, dtype=int)
    for segments, _ in groups:
        owner, i = spread(segments.queries)
        np.add.at(segments_of, segments.token0[owner] + i, 1)

    launches: list[Launch] = []
    pairs = [np.zeros((0, 2), dtype=int)]  # (token, state)
    num_states = 0
    for segments, tile in groups:
        # Cut the rows into blocks of whole queries.
        blocks = cut_rows(segments, max(tile.rows // group_size, 1))

        # Where a query has more heads than a tile has rows, it takes several tiles.
        tiles = -(-group_size // tile.rows)

        # Cut the keys of each block into chunks of one size.
        keys = np.maximum(blocks.end - blocks.first, 0)
        rows = np.minimum(blocks.queries * group_size, tile.rows)
        merged = segments_of[blocks.token0] > 1
        size = chunk_size(keys, rows, merged, kv_heads * tiles, processors, tile)
        chunks = np.maximum(-(-keys // size), 1)
        block, c = spread(chunks)
        first = blocks.first[block] + c * size

        # Number the states: a piece writes one for each query, unless it alone has all keys of its tokens.
        partial = np.where((chunks > 1) | merged, blocks.queries, 0)[block]
        state = np.where(partial > 0, num_states + np.cumsum(partial) - partial, -1)
        num_states += int(partial.sum())

        # One row of the plan for each chunk and tile: all that a program reads about its piece.
        chunk, t = spread(np.full(len(block), tiles))
        columns = Piece(
            sequence=blocks.sequence[block][chunk],
            token0=blocks.token0[block][chunk],
            queries=blocks.queries[block][chunk],
            position=blocks.position[block][chunk],
            row0=t * tile.rows,
            first=first[chunk],
            end=np.minimum(first + size, blocks.end[block])[chunk],
            state=state[chunk],
        )
        # The longest begin first. Pieces of about one length keep their order: neighbours may read the same keys.
        lengths = columns.end - columns.first
        longest_first = np.argsort(-np.round(16 * lengths / max(lengths.max(initial=1), 1)), kind="stable")
        launches.append(Launch(int32(np.stack(columns, axis=1)[longest_first]), tile))

        # Note which token each state belongs to.
        chunk, i = spread(partial)
        pairs.append(np.stack((blocks.token0[block][chunk] + i, state[chunk] + i), axis=1))

    # Sort the states by token: token t's are states[offsets[t] : offsets[t + 1]].
    listed = np.concatenate(pairs)
    listed = listed[listed[:, 0].argsort(kind="stable")]
    offsets = np.concatenate(([0], np.cumsum(np.bincount(listed[:, 0], minlength=tokens))))
    return TilePlan(tuple(launches), int32(offsets), int32(listed[:, 1]), num_states)


def int32(values: Array) -> Tensor:
    """A tensor of 32-bit integers, on the host."""
    return torch.from_numpy(values.astype(np.int32))
