"""What is planned once a step: the batch, checked and cut into pieces, and the stems that its sequences share."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels.plan import Runs, Work, choose_tile, plan, tile_bytes

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Stem = tuple[int, int, int]  # first sequence, how many from there on, keys that all of them share


@dataclass(frozen=True)
class Batch:
    """Sequences whose last counts[i] of lengths[i] tokens attend; `work` where kernels do it."""

    page_table: Int[Tensor, "batch width"]
    lengths: list[int]
    counts: list[int]
    work: Work | None


def uses_triton(tensor: Tensor) -> bool:
    """On CUDA in the precisions that the kernels know; on the CPU under Triton's interpreter only."""
    placed = tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return placed and tensor.dtype in KERNEL_DTYPES


# [batch]
def plan_batch(
    page_table: Int[Tensor, "batch width"],
    lengths: Sequence[int],
    counts: Sequence[int],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    heads: int,
    value_dim: int | None = None,
    stems: Sequence[Stem] = (),
) -> Batch:
    """Check a batch and cut it into pieces, for any number of layers with pages like `k_pages`.

    `value_dim`: where the values lie in the keys. `stems`: neighbours whose first keys lie in the same pages: those
    are read once for all of them. A page table on the host spares a wait for the device. ValueError for lengths beyond
    the table, pages outside the pool and stems that are none.
    """
    (num_pages, page_size, kv_heads, _), width = k_pages.shape, page_table.shape[1]
    lengths, counts = list(lengths), list(counts)
    if not len(lengths) == len(counts) == len(page_table):
        raise ValueError(f"{len(page_table)} page tables for {len(lengths)} lengths and {len(counts)} counts")
    if page_table.dtype != torch.int32:
        raise ValueError(f"page tables are int32, got {page_table.dtype}")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads evenly")
    table = page_table.cpu().numpy()
    for i, (length, count) in enumerate(zip(lengths, counts)):
        if not 0 <= length <= width * page_size or count < 0:
            raise ValueError(
                f"sequence {i}: {count} queries on {length} keys, but its table holds {width} pages of {page_size}"
            )
        used = table[i, : -(-length // page_size)]
        if len(used) and not 0 <= used.min() <= used.max() < num_pages:
            raise ValueError(f"sequence {i}: pages {used.tolist()} are not all in [0, {num_pages})")
    cached = np.array(lengths, dtype=np.int64) - np.array(counts, dtype=np.int64)
    taken = 0
    for first, members, keys in stems:
        group = slice(first, first + members)
        inside = taken <= first and members > 0 and first + members <= len(table) and 0 < keys <= cached[group].min()
        if not inside or (table[group, : -(-keys // page_size)] != table[first, : -(-keys // page_size)]).any():
            raise ValueError(f"sequences {first} to {first + members - 1} do not share {keys} cached keys")
        taken = first + members
    page_table = page_table.to(k_pages.device)
    if not uses_triton(k_pages):
        return Batch(page_table, lengths, counts, None)
    work = cut(lengths, counts, stems, k_pages, heads, value_dim)
    return Batch(page_table, lengths, counts, work.to(k_pages.device))


def cut(
    lengths: Sequence[int],
    counts: Sequence[int],
    stems: Sequence[Stem],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    heads: int,
    value_dim: int | None = None,
) -> Work:
    """The pieces of a batch: every sequence's own keys; and each stem's, against the rows of all that share it.

    The lists are on the host: arguments as `plan_batch` takes and has checked them.
    """
    kv_heads, dim = k_pages.shape[2:]
    group, sizes = heads // kv_heads, tile_bytes(dim, value_dim, k_pages.element_size())
    length, count = np.array(lengths, dtype=np.int64), np.array(counts, dtype=np.int64)
    sequence, token0, first = np.arange(len(length)), np.cumsum(count) - count, np.zeros_like(length)
    for who, members, keys in stems:
        first[who : who + members] = keys
    own = Runs(sequence, token0, count, length - count, first, length)
    hopper = hopper_kernel(k_pages, value_dim)
    groups = [(own, choose_tile(int(count.max(initial=1)) * group, *sizes, hopper))]
    if stems:
        who, members, keys = np.array(stems, dtype=np.int64).T
        rows = np.array([count[w : w + m].sum() for w, m in zip(who, members)])
        shared = Runs(who, token0[who], rows, keys, 0 * keys, keys)  # each row stands behind every key of the stem
        groups.insert(0, (shared, choose_tile(int(rows.max()) * group, *sizes, hopper)))
    return plan(groups, group, kv_heads, int(count.sum()), processors_of(k_pages.device))


def hopper_kernel(k_pages: Tensor, value_dim: int | None) -> str:
    """The Gluon kernel that knows such pages, if any: half precision, a multiple of 64 tokens, a Hopper card."""
    hopper = k_pages.is_cuda and torch.cuda.get_device_capability(k_pages.device)[0] == 9
    if not hopper or k_pages.element_size() != 2 or k_pages.shape[1] % 64:
        return ""
    if value_dim is not None:
        return "mla" if k_pages.shape[2:] == (1, 576) and value_dim == 512 else ""
    return "gqa" if k_pages.shape[3] in (64, 128) else ""


def processors_of(device: torch.device) -> int:
    """Multiprocessors to fill; under the interpreter any number serves."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def common_stems(
    tables: Sequence[Sequence[int]], cached: Sequence[int], page_size: int, least: int = 256
) -> list[Stem]:
    """Neighbours whose page tables begin alike, as the radix tree makes them: stems of at least `least` keys.

    `cached`: keys of each sequence that are computed already. Only whole pages are shared.
    """
    stems: list[Stem] = []
    first = 0
    while first < len(tables):
        members, pages = 1, cached[first] // page_size
        for table, keys in zip(tables[first + 1 :], cached[first + 1 :]):
            most = min(pages, keys // page_size)
            alike = next((i for i in range(most) if table[i] != tables[first][i]), most)
            if alike * page_size < least:
                break
            members, pages = members + 1, alike
        if members > 1:
            stems.append((first, members, pages * page_size))
        first += members
    return stems


# [/batch]
