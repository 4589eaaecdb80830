"""What the kernels must equal: attention over pages, merging and writing in plain PyTorch, one sequence at a time.

A *state* is the result of attention over some of the keys, with what is needed to join it to others:

    o = Σ_j exp(s_j) v_j / Σ_j exp(s_j)        lse = ln Σ_j exp(s_j)

Over disjoint keys A and B states join exactly, in any order (Milakov and Gimelshein 2018, 1805.02867; FlashDecoding):

    lse = ln(e^lse_A + e^lse_B)                o = e^(lse_A − lse) o_A + e^(lse_B − lse) o_B

The state of no key at all is o = 0, lse = −∞. Scores and sums are float32, or float64 where the input is.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def attend(
    q: Float[Tensor, "tokens heads dim"],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"],
    page_table: Int[Tensor, "batch width"],
    lengths: Sequence[int],
    counts: Sequence[int],
    scale: float,
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "tokens heads"]]:
    """Outputs, and the log-sum-exp of each one's scores. Sequence i's counts[i] queries are its last tokens."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    outs, sums = [], []
    for queries, table, length in zip(q.split(list(counts)), page_table, lengths, strict=True):
        used = table[: -(-length // k_pages.shape[1])].long()
        k, v = (pages[used].flatten(0, 1)[:length].to(exact) for pages in (k_pages, v_pages))
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->qhk", queries.to(exact), k) * scale
        position = torch.arange(length - len(queries), length, device=q.device)
        hidden = torch.arange(length, device=q.device) > position[:, None]  # [queries, keys]
        scores = scores.masked_fill(hidden[:, None], float("-inf"))
        lse = scores.logsumexp(-1)
        weights = (scores - lse.clamp(min=torch.finfo(exact).min)[..., None]).exp()  # no key: 0, not 0/0
        outs.append(torch.einsum("qhk,khd->qhd", weights, v))
        sums.append(lse)
    return torch.cat(outs).to(q.dtype), torch.cat(sums)


def merge_states(
    outs: Float[Tensor, "states tokens heads value_dim"], lses: Float[Tensor, "states tokens heads"]
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "tokens heads"]]:
    """The state over all keys, of states over disjoint sets of them."""
    lse = lses.logsumexp(0)
    weights = (lses - lse.clamp(min=torch.finfo(lses.dtype).min)).exp()
    return (outs.to(lses.dtype) * weights[..., None]).sum(0).to(outs.dtype), lse


def write_kv(
    k: Float[Tensor, "tokens kv_heads dim"],
    v: Float[Tensor, "tokens kv_heads value_dim"] | None,
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"] | None,
    slots: Int[Tensor, "tokens"],
) -> None:
    """Each token's key and value into its slot, page · page_size + offset; a slot below 0: nowhere."""
    kept = slots >= 0
    for new, pages in ((k, k_pages), (v, v_pages)):
        if new is not None and pages is not None:
            pages.flatten(0, 1)[slots[kept].long()] = new[kept]
