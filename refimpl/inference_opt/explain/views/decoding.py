"""Plain decoding: a token that has just come out, what was computed for it, and what was kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inference_opt.explain.views.registry import PICTURES, SENTENCES
from inference_opt.model.attention import NoCache
from inference_opt.model.linear import Linear
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams, probabilities

LIKELIEST = 8  # tokens whose bars are shown

SENTENCES |= {
    "naive.token": "all {new:token} of the text go through the model, and {token:text} comes next",
    "cache.token": "{new:new token} through the model, {kept:token} kept: {token:text} comes next",
}


def decoded(
    model: Transformer,
    tokens: Sequence[int],
    logits: Tensor,
    params: SamplingParams,
    kept: int | None = None,
    capacity: int = 0,
) -> dict[str, Any]:
    """A text that has just got its last token: what was computed for it, and what was kept (None: nothing ever is)."""
    read, token = list(tokens[:-1]), tokens[-1]
    new = len(read) - (kept or 0)
    chances = probabilities(logits, params)
    shown = sorted({*chances.topk(min(LIKELIEST, len(chances))).indices.tolist(), token})
    state: dict[str, Any] = {"kind": "decode", "way": "naive" if kept is None else "cached", "read": read, "new": new}
    state |= {"token": token, "room": capacity, "vocab": shown, "law": chances[shown].tolist()}
    invariants = {}
    counters = {"tokens through the model": (new, len(read))}
    if model.config.latent is None and model.config.experts is None:
        counters["FLOPs"] = flops(model, new, len(read)), flops(model, len(read), len(read))
    if kept is not None:
        with torch.inference_mode():
            ids, positions = torch.tensor(read, device=model.device), torch.arange(len(read), device=model.device)
            # Not a call of the model: those may be counted.
            h, _ = model.hidden_states(ids, positions, NoCache([len(read)]))
            whole = model.logits(h[-1:])[0]
        same = torch.allclose(whole, logits, rtol=1e-4, atol=1e-4)
        invariants = {"the logits are those of recomputing all": same, "the text fits its room": len(read) <= capacity}
    beside = {name: mine if kept is None else {"value": mine, "naive": its} for name, (mine, its) in counters.items()}
    said = {"new": new, "kept": kept, "token": token}
    return state | {
        "tokens_shown": {*tokens, *shown},
        "said": said,
        "invariants": invariants,
        "counters": beside,
    }


PICTURES |= {"naive.token": decoded, "cache.token": decoded}


def flops(model: Transformer, new: int, keys: int) -> int:
    """Of one sequence's `new` tokens over `keys`, themselves included, and of one row of logits: the products.

    Of a dense model with grouped-query attention, as it is computed: what the mask hides included.
    """
    config = model.config
    weights = sum(module.weight.numel() for module in model.layers.modules() if isinstance(module, Linear))
    attention = 4 * config.depth * config.heads * config.head_dim * keys  # scores and weighted values, of a query
    return new * (2 * weights + attention) + 2 * config.dim * config.vocab_size
