"""What is planned once a step: the batch is checked, its shared prefixes are found, and it is cut into pieces."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels.plan import GQA_WIDTHS, Segments, TilePlan, choose_tile, plan, tile_bytes
from inference_opt.kernels.transfer import sent

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class SharedPrefix(NamedTuple):
    """Neighbours in a batch whose first `keys` keys lie in the same pages: sequences first … first + members − 1."""

    first: int
    members: int
    keys: int


@dataclass(frozen=True)
class Batch:
    """Sequences of lengths[i] tokens, whose last counts[i] tokens are queries. The kernels have a plan for it."""

    page_table: Int[Tensor, "batch width"]
    lengths: list[int]
    counts: list[int]
    plan: TilePlan | None  # none where the reference does it
    seen: Int[Tensor, "tokens"] | None = None  # of trees, for the reference; a plan has its own


def uses_triton(tensor: Tensor) -> bool:
    """Whether kernels do it: on CUDA, or under Triton's interpreter, in the precisions that they know."""
    placed = tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return placed and tensor.dtype in KERNEL_DTYPES


def plan_batch(
    page_table: Int[Tensor, "batch width"],
    lengths: Sequence[int],
    counts: Sequence[int],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    heads: int,
    value_dim: int | None = None,
    prefixes: Sequence[SharedPrefix] = (),
    v_dim: int | None = None,
    seen: Sequence[int] | None = None,
) -> Batch:
    """Check a batch and cut it into pieces, for any number of layers with pages like `k_pages`.

    `value_dim` is given where the values are the keys' first columns, `v_dim` where they have pages of their own and
    another width than keys. `prefixes`, in the order of the batch, are read once for all of their members. `seen`: with
    trees of drafts, the bits of each query (`tree.py`). A page table on the host spares a wait for the device.

    ValueError for lengths beyond the table, pages outside the pool and prefixes that are not shared.
    """
    num_pages, page_size, kv_heads, _ = k_pages.shape
    width = page_table.shape[1]
    lengths, counts = list(lengths), list(counts)
    if not len(lengths) == len(counts) == len(page_table):
        raise ValueError(f"{len(page_table)} page tables for {len(lengths)} lengths and {len(counts)} counts")
    if page_table.dtype != torch.int32:
        raise ValueError(f"page tables are int32, got {page_table.dtype}")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads evenly")

    # A kernel reads whatever the page table says: each page in use must be one of the pool.
    table = page_table.cpu().numpy()
    for i, (length, count) in enumerate(zip(lengths, counts)):
        if not 0 <= length <= width * page_size or count < 0:
            raise ValueError(
                f"sequence {i}: {count} queries on {length} keys, but its table holds {width} pages of {page_size}"
            )
        used = table[i, : -(-length // page_size)]
        if len(used) and not 0 <= used.min() <= used.max() < num_pages:
            raise ValueError(f"sequence {i}: pages {used.tolist()} are not all in [0, {num_pages})")

    # A shared prefix is attended without a mask: its keys come before every query, and lie in the same pages for all.
    cached = np.array(lengths, dtype=np.int64) - np.array(counts, dtype=np.int64)
    free = 0  # the first sequence that no prefix has claimed yet
    for first, members, keys in prefixes:
        group = slice(first, first + members)
        inside = free <= first and members > 0 and first + members <= len(table) and 0 < keys <= cached[group].min()
        if not inside or (table[group, : -(-keys // page_size)] != table[first, : -(-keys // page_size)]).any():
            raise ValueError(f"sequences {first} to {first + members - 1} do not share {keys} cached keys")
        free = first + members

    if seen is not None and len(seen) != sum(counts):
        raise ValueError(f"{len(seen)} rows of a tree mask for {sum(counts)} queries")
    bits = None if seen is None else torch.tensor(seen, dtype=torch.int64)
    page_table = page_table if page_table.device == k_pages.device else sent(page_table, k_pages.device)
    if not uses_triton(k_pages):
        return Batch(page_table, lengths, counts, None, None if bits is None else bits.to(k_pages.device))
    tiles = cut(lengths, counts, prefixes, k_pages, heads, value_dim, v_dim, bits)
    return Batch(page_table, lengths, counts, tiles.to(k_pages.device))


def cut(
    lengths: Sequence[int],
    counts: Sequence[int],
    prefixes: Sequence[SharedPrefix],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    heads: int,
    value_dim: int | None = None,
    v_dim: int | None = None,
    seen: Int[Tensor, "tokens"] | None = None,
) -> TilePlan:
    """The plan of a batch, on the host; the arguments are those that `plan_batch` takes and has checked.

    Shared prefixes, if any, are the first launch; every sequence's own keys are the last.
    """
    kv_heads, dim = k_pages.shape[2:]
    group_size = heads // kv_heads
    sizes = tile_bytes(dim, value_dim, k_pages.element_size(), v_dim)

    # The Gluon kernels load parts of whole pages: so each run of keys must begin with a page.
    aligned = all(keys % k_pages.shape[1] == 0 for _, _, keys in prefixes)
    hopper = hopper_kernel(k_pages, value_dim, v_dim) if aligned else ""
    own_hopper = hopper if seen is None else ""  # they know no trees

    # Each sequence's queries against its own keys: those after its shared prefix.
    length, count = np.array(lengths, dtype=np.int64), np.array(counts, dtype=np.int64)
    sequence, token0 = np.arange(len(length)), np.cumsum(count) - count
    first = np.zeros_like(length)
    for start, members, keys in prefixes:
        first[start : start + members] = keys
    own = Segments(sequence, token0, count, length - count, first, length)
    groups = [(own, choose_tile(int(count.max(initial=1)) * group_size, *sizes, own_hopper))]

    # Each prefix's keys against the queries of all its members, as if they were one sequence's: they are neighbours in
    # the flat batch, and all of them stand after the prefix, so no key is masked.
    if prefixes:
        start, members, keys = np.array(prefixes, dtype=np.int64).T
        queries = np.array([count[s : s + m].sum() for s, m in zip(start, members)])
        shared = Segments(start, token0[start], queries, keys, np.zeros_like(keys), keys)
        groups.insert(0, (shared, choose_tile(int(queries.max()) * group_size, *sizes, hopper)))
    planned = plan(groups, group_size, kv_heads, int(count.sum()), processors_of(k_pages.device))
    *shared_keys, own_keys = planned.launches  # a shared prefix is context: all of its keys are seen
    return replace(planned, launches=(*shared_keys, replace(own_keys, seen=seen)))


def hopper_kernel(k_pages: Tensor, value_dim: int | None, v_dim: int | None = None) -> str:
    """The Gluon kernel that knows such pages, if any: on a Hopper card, in half precision, of widths that it knows.

    Latents are loaded 64 tokens at once, from one page; other keys in parts of 8 tokens or more.
    """
    hopper = k_pages.is_cuda and torch.cuda.get_device_capability(k_pages.device)[0] == 9
    if not hopper or k_pages.element_size() != 2:
        return ""
    page = k_pages.shape[1]
    if value_dim is not None:
        return "mla" if page % 64 == 0 and k_pages.shape[2:] == (1, 576) and value_dim == 512 else ""
    dim = k_pages.shape[3]
    return "gqa" if page % 8 == 0 and (dim, v_dim or dim) in GQA_WIDTHS else ""


def processors_of(device: torch.device) -> int:
    """The number of multiprocessors to keep busy. Under the interpreter any number serves."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def shared_prefixes(
    tables: Sequence[Sequence[int]], cached: Sequence[int], page_size: int, min_keys: int = 256
) -> list[SharedPrefix]:
    """Neighbours whose page tables begin alike, as the radix tree makes them, for `min_keys` keys or more.

    `cached`: the number of keys of each sequence that are computed already. Only whole pages are shared.
    """
    prefixes: list[SharedPrefix] = []
    first = 0
    while first < len(tables):
        # Take in one neighbour after the other, as long as what all of them share stays long enough.
        members, pages = 1, cached[first] // page_size
        for other in range(first + 1, len(tables)):
            limit = min(pages, cached[other] // page_size)
            alike = next((i for i in range(limit) if tables[other][i] != tables[first][i]), limit)
            if alike * page_size < min_keys:
                break
            members, pages = members + 1, alike
        if members > 1:
            prefixes.append(SharedPrefix(first, members, pages * page_size))
        first += members
    return prefixes
