"""Recorded steps of models: a new token and what was computed for it; what latent attention keeps, and reads how."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inference_opt.model.attention import NoCache, causal_attention
from inference_opt.model.linear import Linear

if TYPE_CHECKING:
    from inference_opt.model.mla import LatentAttention
    from inference_opt.model.transformer import Transformer

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
    from inference_opt.model.mla import multiplications

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


LIKELIEST = 8  # tokens whose bars are shown
RECOMPUTED = "all {new:token} of the text go through the model, and {token:text} comes next"
CACHED = "{new:new token} through the model, {kept:token} kept: {token:text} comes next"


def flops(model: "Transformer", new: int, keys: int) -> int:
    """Of one sequence's `new` tokens over `keys`, themselves included, and of one row of logits: the products.

    Of a dense model with grouped-query attention, as it is computed: what the mask hides included.
    """
    config = model.config
    weights = sum(module.weight.numel() for module in model.layers.modules() if isinstance(module, Linear))
    attention = 4 * config.depth * config.heads * config.head_dim * keys  # scores and weighted values, of a query
    return new * (2 * weights + attention) + 2 * config.dim * config.vocab_size


def decoded(
    model: "Transformer",
    text: Sequence[int],
    kept: int | None,
    logits: Tensor,
    params: Any,
    law: Callable[[Tensor, Any], Tensor],
    room: int = 0,
) -> dict[str, Any]:
    """A text that has just got its last token: what was computed for it, and what was kept (None: nothing ever is)."""
    read, token, new = list(text[:-1]), text[-1], len(text) - 1 - (kept or 0)
    chances = law(logits, params)
    shown = sorted({*chances.topk(min(LIKELIEST, len(chances))).indices.tolist(), token})
    state: dict[str, Any] = {"kind": "decode", "way": "naive" if kept is None else "cached", "read": read, "new": new}
    state |= {"token": token, "room": room, "vocab": shown, "law": chances[shown].tolist()}
    invariants, counters = {}, {"tokens through the model": (new, len(read))}
    if model.config.latent is None and model.config.experts is None:
        counters["FLOPs"] = flops(model, new, len(read)), flops(model, len(read), len(read))
    if kept is not None:
        with torch.inference_mode():
            ids, positions = torch.tensor(read, device=model.device), torch.arange(len(read), device=model.device)
            h, _ = model.hidden_states(ids, positions, NoCache([len(read)]))
            same = torch.allclose(model.logits(h[-1:])[0], logits, rtol=1e-4, atol=1e-4)
        invariants = {"the logits are those of recomputing all": same, "the text fits its room": len(read) <= room}
    state |= {"tokens_shown": {*text, *shown}, "said": {"new": new, "kept": kept, "token": token}}
    beside = {name: mine if kept is None else {"value": mine, "naive": its} for name, (mine, its) in counters.items()}
    return state | {"invariants": invariants, "counters": beside}
