"""Latent attention as a recorded step shows it: what is kept, in which form it is read, and what either form costs."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inference_opt.model.attention import causal_attention

if TYPE_CHECKING:
    from inference_opt.model.latent import LatentAttention

ROWS, WIDTH = 48, 64  # of what is kept, shown number by number

KEPT = "layer {layer}: of {kept.shape[0]:token} only latent and rotated key are kept, {kept.shape[2]:number} each"
EXPANDED = "explicit: all {kept.shape[0]} latents are made keys and values of every head, for {q.shape[0]:query token}"
ABSORBED = (
    "absorbed: {q.shape[0]:query token} brought to the latents' width, and {kept.shape[0]:latent} met as they are"
)


def latent_state(
    of: "LatentAttention", kept: Tensor, layer: int | None = None, q: Any = None, form: str = "kept"
) -> dict[str, Any]:
    """Widths, what is kept, and whether the two forms agree."""
    from inference_opt.model.latent import multiplications

    s = of.shape
    widths = {
        "heads": of.heads, "kv_heads": of.kv_heads, "latent": s.kv_lora_rank,
        "rope": s.qk_rope_head_dim, "key": s.qk_nope_head_dim, "value": s.v_head_dim,
    }  # fmt: skip
    queries, keys = 0 if q is None else len(q), len(kept)
    rows = kept[-ROWS:, 0, :WIDTH].double().round(decimals=3)
    state = {"kind": "mla", "form": form, "queries": queries, "keys": keys, "widths": widths, "rows": rows.tolist()}
    each = of.kv_heads * (s.qk_nope_head_dim + s.qk_rope_head_dim + s.v_head_dim)
    counters: dict[str, Any] = {"numbers kept a token": {"value": s.kv_lora_rank + s.qk_rope_head_dim, "naive": each}}
    invariants = {}
    if q is not None:
        other = "explicit" if form == "absorbed" else "absorbed"
        counters["multiplications in this form"] = multiplications(of.config, form, queries, keys)
        counters["multiplications in the other"] = multiplications(of.config, other, queries, keys)
        with torch.inference_mode():
            latent = causal_attention(of.absorb(q), kept, kept[..., : s.kv_lora_rank], of.scale)
            same = torch.allclose(causal_attention(q, *of.expand(kept), of.scale), of.values(latent), atol=1e-4)
        invariants["both forms give the same values"] = same
    return state | {"counters": counters, "invariants": invariants}
