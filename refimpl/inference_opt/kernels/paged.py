"""The kernels' front: checks, the choice between Triton and plain PyTorch, and the plan that a step shares.

    batch = plan_batch(page_table, lengths, counts, ...)    once a step: checked, and who reads what (plan.py)
    write_kv(k, v, k_pages, v_pages, slots)                 a layer: new keys and values into their pages
    paged_attention(q, k_pages, v_pages, batch, scale)      a layer: each new token over its own sequence's past

`paged_decode` and `paged_prefill` are the same in one call. A bad index would be a fault on the card that takes the
whole process with it, so lengths and page tables are checked where the lists are still at hand, before any launch.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels import reference
from inference_opt.kernels.batch import Batch, Stem, plan_batch, uses_triton


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
