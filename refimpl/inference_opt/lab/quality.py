"""How near one model is to another: perplexity of both on the same texts, and how often they favour the same token."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import torch
from torch import nn

from inference_opt.model.attention import NoCache
from inference_opt.model.transformer import Transformer


@dataclass(frozen=True)
class Quality:
    """Over every position of some texts but the first."""

    perplexity: float  # e^(mean −ln p of the token that stands there)
    divergence: float  # mean KL(original ‖ model) of the next token's law, in nats
    agreement: float  # share of positions where both favour the same token
    tokens: int


@torch.inference_mode()
def quality(model: Transformer, original: Transformer, texts: Sequence[Sequence[int]]) -> Quality:
    """Of `model`, held against `original`. ValueError where no text has two tokens."""
    surprise = divergence = same = tokens = 0.0
    for text in texts:
        if len(text) < 2:
            continue
        ids = torch.tensor(text, device=model.device)
        positions = torch.arange(len(ids), device=model.device)
        law = model(ids, positions, NoCache([len(ids)])).float().log_softmax(dim=-1)[:-1]
        wanted = law  # [tokens − 1, vocab]: of each token but the first
        if original is not model:
            wanted = original(ids, positions, NoCache([len(ids)])).float().log_softmax(dim=-1)[:-1]
        surprise += float(nn.functional.nll_loss(law, ids[1:], reduction="sum"))
        divergence += float((wanted.exp() * (wanted - law)).sum())
        same += float((law.argmax(dim=-1) == wanted.argmax(dim=-1)).sum())
        tokens += len(ids) - 1
    if not tokens:
        raise ValueError("quality needs at least one text of two or more tokens")
    return Quality(exp(surprise / tokens), divergence / tokens, same / tokens, int(tokens))
