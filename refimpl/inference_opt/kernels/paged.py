"""The kernels' front: checks, the choice between Triton and plain PyTorch, and the plan that a step shares.

    batch = plan_batch(page_table, lengths, counts, ...)    once a step: checked, and who reads what (plan.py)
    write_kv(k, v, k_pages, v_pages, slots)                 a layer: new keys and values into their pages
    paged_attention(q, k_pages, v_pages, batch, scale)      a layer: each new token over its own sequence's past

`paged_decode` and `paged_prefill` are the same in one call. A bad index would be a fault on the card that takes the
whole process with it, so lengths and page tables are checked where the lists are still at hand, before any launch.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels import reference
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


# [attention]
def paged_attention(
    q: Float[Tensor, "tokens heads dim"],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"] | None,
    batch: Batch,
    scale: float,
    value_dim: int | None = None,
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "tokens heads"]]:
    """Outputs and log-sum-exps of a planned batch; without values they are the keys' first `value_dim` columns."""
    value_dim = _check(q, k_pages, v_pages, sum(batch.counts), value_dim)
    if batch.work is None:
        values = k_pages[..., :value_dim] if v_pages is None else v_pages
        return reference.attend(q, k_pages, values, batch.page_table, batch.lengths, batch.counts, scale)
    from inference_opt.kernels import attention  # Triton is there where it is used

    return attention.attend(q.contiguous(), k_pages, v_pages, batch.page_table, batch.work, scale, value_dim)


# [/attention]


def _check(q: Tensor, k_pages: Tensor, v_pages: Tensor | None, tokens: int, value_dim: int | None) -> int:
    tensors = [q, k_pages] if v_pages is None else [q, k_pages, v_pages]
    if len({(t.dtype, t.device) for t in tensors}) > 1:
        raise ValueError(f"q and pages must agree, got {', '.join(f'{t.dtype} on {t.device}' for t in tensors)}")
    if q.ndim != 3 or len(q) != tokens or q.shape[-1] != k_pages.shape[-1]:
        raise ValueError(f"expected queries [{tokens}, heads, {k_pages.shape[-1]}], got {list(q.shape)}")
    if any(not t.is_contiguous() for t in tensors[1:]):
        raise ValueError("pages must be contiguous: a kernel computes the address of each token itself")
    if v_pages is None:
        if value_dim is None or not 1 <= value_dim <= q.shape[-1]:
            raise ValueError(f"without v_pages, value_dim must lie in [1, {q.shape[-1]}], got {value_dim}")
        return value_dim
    if v_pages.shape[:3] != k_pages.shape[:3] or value_dim not in (None, v_pages.shape[-1]):
        raise ValueError(f"keys {list(k_pages.shape)} and values {list(v_pages.shape)} lie in different pages")
    return v_pages.shape[-1]


def paged_prefill(
    q: Float[Tensor, "tokens heads dim"],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"] | None,
    page_table: Int[Tensor, "batch width"],
    seq_lens: Int[Tensor, "batch"],
    counts: Sequence[int],
    scale: float,
    *,
    value_dim: int | None = None,
    return_lse: bool = False,
    stems: Sequence[Stem] = (),
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention of ragged new tokens over what is cached before them and themselves: [tokens, heads, value_dim].

    Sequence i's last counts[i] tokens are the queries, laid end to end; their keys are in the pages already. With
    v_pages=None the first `value_dim` columns of a key are its value (latent attention). `return_lse`: also the
    log-sum-exp of each query's scores, [tokens, heads] in float32. A query that sees no key gives 0 and −∞.

    ValueError, before anything is launched, for shapes, dtypes or devices that do not fit, and as of `plan_batch`.
    """
    inner = value_dim if v_pages is None else None
    batch = plan_batch(page_table, seq_lens.tolist(), counts, k_pages, q.shape[-2], inner, stems)
    out, lse = paged_attention(q, k_pages, v_pages, batch, scale, value_dim)
    return (out, lse) if return_lse else out


def paged_decode(
    q: Float[Tensor, "batch *queries heads dim"],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"] | None,
    page_table: Int[Tensor, "batch width"],
    seq_lens: Int[Tensor, "batch"],
    scale: float,
    *,
    value_dim: int | None = None,
    return_lse: bool = False,
    stems: Sequence[Stem] = (),
) -> Tensor | tuple[Tensor, Tensor]:
    """`paged_prefill` of each sequence's last token, or, with drafts to verify, of its last `queries` tokens.

    Shapes as q has them: [batch, *queries, heads, value_dim].
    """
    if q.ndim not in (3, 4):
        raise ValueError(f"q must be [batch, heads, dim] or [batch, queries, heads, dim], got {list(q.shape)}")
    counts = [1 if q.ndim == 3 else q.shape[1]] * len(q)
    inner = value_dim if v_pages is None else None
    batch = plan_batch(page_table, seq_lens.tolist(), counts, k_pages, q.shape[-2], inner, stems)
    out, lse = paged_attention(q.flatten(0, -3), k_pages, v_pages, batch, scale, value_dim)
    out, lse = out.view(*q.shape[:-1], out.shape[-1]), lse.view(q.shape[:-1])
    return (out, lse) if return_lse else out


def write_kv(
    k: Float[Tensor, "tokens kv_heads dim"],
    v: Float[Tensor, "tokens kv_heads value_dim"] | None,
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"] | None,
    slots: Int[Tensor, "tokens"],
) -> None:
    """Each token's key and value into its slot, page · page_size + offset; a slot below 0: nowhere.

    ValueError for shapes, dtypes or devices that do not fit, and for values where the pages hold none. The slots are
    the caller's to check: looking at them here would wait for the device in every layer.
    """
    for name, new, pages in (("keys", k, k_pages), ("values", v, v_pages)):
        if (new is None) != (pages is None):
            raise ValueError(f"{name}: given exactly where there are pages for them")
        if new is None or pages is None:
            continue
        if new.shape[1:] != pages.shape[2:] or len(new) != len(slots):
            raise ValueError(f"{name} {list(new.shape)} for {len(slots)} slots of pages {list(pages.shape)}")
        if (new.dtype, new.device) != (pages.dtype, pages.device) or not pages.is_contiguous():
            raise ValueError(f"{name} {new.dtype} on {new.device} cannot go to pages {pages.dtype} on {pages.device}")
    if not uses_triton(k):
        return reference.write_kv(k, v, k_pages, v_pages, slots)
    from inference_opt.kernels import write

    return write.write_kv(k, v, k_pages, v_pages, slots)


def merge_states(
    outs: Float[Tensor, "states tokens heads value_dim"], lses: Float[Tensor, "states tokens heads"]
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "tokens heads"]]:
    """The state (output, log-sum-exp) over all keys, of states over disjoint sets. ValueError for other shapes."""
    if outs.ndim != 4 or outs.shape[:3] != lses.shape:
        raise ValueError(
            f"expected outputs [states, tokens, heads, dim] and sums [...], got {list(outs.shape)}, {list(lses.shape)}"
        )
    if not uses_triton(outs):
        return reference.merge_states(outs, lses)
    from inference_opt.kernels import attention

    states, tokens = outs.shape[:2]
    each = torch.arange(tokens, dtype=torch.int32, device=outs.device)
    listed = (each[:, None] + tokens * torch.arange(states, dtype=torch.int32, device=outs.device)).flatten()
    offsets = torch.arange(tokens + 1, dtype=torch.int32, device=outs.device) * states
    out, lse = torch.empty_like(outs[0]), torch.empty_like(lses[0])
    attention.merge(outs.flatten(0, 1).float(), lses.flatten(0, 1), offsets, listed, out, lse, planned=False)
    return out, lse
