"""How near one model is to another: perplexity and divergence on the same texts, and shared preferences."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import torch
from torch import nn

from inference_opt.model.attention import NoCache
from inference_opt.model.transformer import Transformer


@dataclass(frozen=True)
class Quality:
    """Means over every position, but the first, of some texts."""

    perplexity: float  # e^(mean −ln p of the text's token)
    divergence: float  # mean KL(original ‖ model) of the next token's distribution, in nats
    agreement: float  # share of positions where both models prefer the same token
    tokens: int


@torch.inference_mode()
def quality(model: Transformer, original: Transformer, texts: Sequence[Sequence[int]]) -> Quality:
    """The quality of `model` beside `original`. ValueError if no text has two tokens."""
    surprise = divergence = same = tokens = 0.0
    for text in texts:
        if len(text) < 2:
            continue
        ids = torch.tensor(text, device=model.device)
        positions = torch.arange(len(ids), device=model.device)
        log_q = model(ids, positions, NoCache([len(ids)])).float().log_softmax(dim=-1)[:-1]  # [tokens − 1, vocab]
        log_p = log_q
        if original is not model:
            log_p = original(ids, positions, NoCache([len(ids)])).float().log_softmax(dim=-1)[:-1]
        surprise += float(nn.functional.nll_loss(log_q, ids[1:], reduction="sum"))
        divergence += float((log_p.exp() * (log_p - log_q)).sum())
        same += float((log_q.argmax(dim=-1) == log_p.argmax(dim=-1)).sum())
        tokens += len(ids) - 1
    if not tokens:
        raise ValueError("quality needs at least one text of two or more tokens")
    return Quality(exp(surprise / tokens), divergence / tokens, same / tokens, int(tokens))
