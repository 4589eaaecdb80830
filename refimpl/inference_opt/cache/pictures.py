"""Attention over pages as recorded steps show it: where the keys lie, and how the last new token weighs them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ATTENDED = "layer {layer}: {q.shape[0]:new token} over {end:key} {how} pages {pages}"


def attended(
    cache: Any, layer: int, pages: Sequence[int], end: int, q: Tensor, out: Tensor, scale: float
) -> dict[str, Any]:
    """One sequence's attention: where its keys lie, and how the last new token weighs them."""
    state = {"kind": "attention", "layer": layer, "table": list(pages), "end": end, "new": len(q)}
    state |= {"page_size": cache.page_size, "pages": cache.num_pages, "weights": []}
    kept = cache.bytes_per_token() // len(cache.keys)  # of one layer
    how, moved = ("read in", "bytes read") if cache.in_place else ("gathered from", "bytes gathered")
    counters = {"keys and values computed": {"value": len(q), "naive": end}, moved: end * kept}
    shot = {"counters": counters, "said": {"how": how}}
    if cache.latent_dim is not None:  # the weights are the latent form's own affair
        return state | shot
    used = torch.tensor(pages, device=q.device)
    k, v = (x[layer].index_select(0, used).flatten(0, 1)[:end].double() for x in (cache.keys, cache.values))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # [end, heads, d]
    weights = torch.softmax(torch.einsum("hd,khd->hk", q[-1].double(), k) * scale, dim=-1)  # [heads, end]
    state["weights"] = weights.round(decimals=4).tolist()
    eps = torch.finfo(out.dtype).eps
    same = torch.allclose(torch.einsum("hk,khd->hd", weights, v), out[-1].double(), rtol=4 * eps, atol=max(1e-4, eps))
    ends = end <= len(pages) * cache.page_size
    invariants = {"the weights drawn give the output": same, "the page table has a page for every key": ends}
    return state | shot | {"invariants": invariants}
