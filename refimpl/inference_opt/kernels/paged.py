"""The functions that callers use: they check, then choose between the Triton kernels and the reference in PyTorch.

    batch = plan_batch(page_table, lengths, counts, ...)    once a step: check, and plan who reads what (plan.py)
    write_kv(k, v, k_pages, v_pages, slots)                 once a layer: new keys and values into their pages
    paged_attention(q, k_pages, v_pages, batch, scale)      once a layer: each new token over its own sequence's past

`paged_decode` and `paged_prefill` do it all in one call. On the card a bad index is a fault that ends the whole
process. So lengths and page tables are checked where the lists are still on the host, before any launch.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels import reference
from inference_opt.kernels.batch import Batch, SharedPrefix, plan_batch, uses_triton


def paged_attention(
    q: Float[Tensor, "tokens heads dim"],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"] | None,
    batch: Batch,
    scale: float,
    value_dim: int | None = None,
    pdl: bool = False,
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "tokens heads"]]:
    """Outputs and log-sum-exps of a planned batch. Without `v_pages` values are the keys' first `value_dim` columns.

    `pdl`: the batch was planned before the last ordinary launch before this call, so that the kernels may start
    early and read the plan (`pdl.py`).
    """
    value_dim = _check(q, k_pages, v_pages, sum(batch.counts), value_dim)
    if batch.plan is None:
        values = k_pages[..., :value_dim] if v_pages is None else v_pages
        return reference.attend(q, k_pages, values, batch.page_table, batch.lengths, batch.counts, scale, batch.seen)
    from inference_opt.kernels import attention  # needs Triton

    return attention.attend(q.contiguous(), k_pages, v_pages, batch.page_table, batch.plan, scale, value_dim, pdl)


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
    prefixes: Sequence[SharedPrefix] = (),
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention of new tokens over themselves and all that is cached before them: [tokens, heads, value_dim].

    The last counts[i] tokens of sequence i are queries, laid end to end; their keys are in the pages already. With
    v_pages=None the first `value_dim` columns of a key are its value (latent attention). `return_lse`: also return the
    log-sum-exp of each query's scores, [tokens, heads] in float32. A query that sees no key gives 0 and −∞.

    ValueError, before anything is launched, for shapes, dtypes or devices that do not fit, and those of `plan_batch`.
    """
    inner = value_dim if v_pages is None else None
    batch = plan_batch(page_table, seq_lens.tolist(), counts, k_pages, q.shape[-2], inner, prefixes)
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
    prefixes: Sequence[SharedPrefix] = (),
) -> Tensor | tuple[Tensor, Tensor]:
    """`paged_prefill` for the last token of each sequence, or, with drafts to verify, for its last `queries` tokens.

    The result has the shape of q: [batch, *queries, heads, value_dim].
    """
    if q.ndim not in (3, 4):
        raise ValueError(f"q must be [batch, heads, dim] or [batch, queries, heads, dim], got {list(q.shape)}")
    counts = [1 if q.ndim == 3 else q.shape[1]] * len(q)
    inner = value_dim if v_pages is None else None
    batch = plan_batch(page_table, seq_lens.tolist(), counts, k_pages, q.shape[-2], inner, prefixes)
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
    """Write each token's key and value into its slot, page · page_size + offset. A slot below 0: write nowhere.

    ValueError for shapes, dtypes or devices that do not fit, and for values where there are no pages for them. The
    caller checks the slots: to look at them here would wait for the device in every layer.
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
    from inference_opt.kernels.write import write_token  # needs Triton

    # The tokens of k and v may lie apart, as views of one projection do; the numbers of one token must lie together.
    given = [x if x[:1].is_contiguous() else x.contiguous() for x in (k, v) if x is not None]
    pools = [x for x in (k_pages, v_pages) if x is not None]
    k_width, v_width = k.shape[1:].numel(), 0 if v is None else v.shape[1:].numel()
    power_of_two = 1 << (max(k_width, v_width) - 1).bit_length()
    write_token[(len(k),)](
        given[0], given[-1], pools[0], pools[-1], slots, given[0].stride(0), given[-1].stride(0),
        k_width, v_width, power_of_two,
    )  # fmt: skip


def merge_states(
    outs: Float[Tensor, "states tokens heads value_dim"], lses: Float[Tensor, "states tokens heads"]
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "tokens heads"]]:
    """Join states (output, log-sum-exp) over disjoint sets of keys into the state over all of them.

    ValueError for shapes that do not fit.
    """
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
    attention.merge(outs.flatten(0, 1).float(), lses.flatten(0, 1), offsets, listed, out, lse)
    return out, lse
