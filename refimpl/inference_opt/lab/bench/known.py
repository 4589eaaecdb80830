"""A target and a drafter whose acceptance is known: what speculation gives on a shape, at any α, without its weights.

The target repeats its last token. Its matrices are random and read as always, but what its layers add to the residual
stream is small, and its head is its table of embeddings: so the largest logit is by far that of the token just read.
The drafter knows this, and spoils each draft with probability 1 − α. (Of random weights alone no drafter could know the
next token: two batches round differently, and near ties are many.)

With a `stride` the target adds it to its last token. So the tokens of a text differ, and in a mixture of experts they
choose different ones: a text that repeats a token would need only the experts of one, however many drafts are read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import lgamma
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from inference_opt.cache.paged import PagedCache
from inference_opt.lab.bench.shapes import random_model
from inference_opt.model.config import ModelConfig
from inference_opt.model.transformer import Transformer
from inference_opt.speculative.drafter import Draft, Drafter, DraftRequest

QUIET = 1e-3  # how much of a layer's output is left
PRIME = 7919  # shifts each text's spoiled places


def repeating_model(config: ModelConfig, dtype: torch.dtype, device: torch.device, stride: int = 0) -> Transformer:
    """A model of this shape whose greedy text repeats the last token, or adds `stride` to it each time."""
    model = random_model(replace(config, tied_embeddings=False), dtype, device).unpack()
    with torch.no_grad():
        for name, weight in model.layers.named_parameters():
            if {"out", "down"} & set(name.split(".")):
                weight.mul_(QUIET)
        model.head.weight.copy_(model.embed.weight.roll(stride, 0))
    return model.pack()


class Known(Drafter):
    """Each draft is the target's token with probability `alpha`, else another one. Its place in the text decides."""

    found = True
    captured = True
    spoiled: np.ndarray  # by place: what is added to the token there
    on_device: Tensor  # the same
    vocab: int

    def __init__(self, alpha: float, seed: int = 0, stride: int = 0) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is a probability, got {alpha}")
        self.alpha, self.seed, self.stride = alpha, seed, stride

    def bind(self, target: Transformer, cache: PagedCache) -> "Known":
        """For texts as long as the target's context."""
        bound = Known(self.alpha, self.seed, self.stride)
        bound.vocab = target.config.vocab_size
        drawn = np.random.default_rng(self.seed).random(target.config.max_context + 1)
        bound.spoiled = (drawn >= self.alpha).astype(np.int64)
        bound.on_device = torch.from_numpy(bound.spoiled).to(target.device)
        return bound

    def propose(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """As long as asked."""
        drafts = []
        for each in requests:
            tokens = each.text.tokens
            ahead = np.arange(each.gamma)
            spoiled = self.spoiled[(len(tokens) + ahead + PRIME * tokens[0]) % len(self.spoiled)]
            drafts.append(Draft(((tokens[-1] + self.stride * (1 + ahead) + spoiled) % self.vocab).tolist()))
        return drafts

    def guess(self, steps: Any, rows: int, gamma: int) -> None:
        """The same on the device."""
        text, known = steps.text[:rows].long(), steps.known[:rows, None]
        last = text.gather(1, (known - 1).clamp_min(0))
        ahead = torch.arange(gamma, device=known.device)
        spoiled = self.on_device[(known + ahead + PRIME * text[:, :1]) % len(self.on_device)]
        drafts = (last + self.stride * (1 + ahead) + spoiled) % self.vocab
        steps.draft.view(-1)[: rows * gamma] = drafts.flatten().int()
        steps.drafted[:rows] = gamma


def unfinished(alpha: float, gamma: int, tokens: int) -> Float[np.ndarray, "steps"]:
    """By number of steps done, from none on: the probability that a text still lacks some of its `tokens` tokens.

    A step gives j + 1 tokens with probability (1 − α) α^j for j < γ, and γ + 1 with probability α^γ: the drafts before
    the first wrong one, and one more.
    """
    given = np.array([0, *((1 - alpha) * alpha**j for j in range(gamma)), alpha**gamma])
    have = np.eye(1, tokens)[0]  # the probability of each number of tokens that is too small
    lacking = []
    while (left := have.sum()) > 1e-12:
        lacking.append(left)
        have = np.convolve(have, given)[:tokens]
    return np.array(lacking)


def expected_seconds(alpha: float, gamma: int, tokens: int, batch: int, price: Callable[[np.ndarray], Any]) -> float:
    """How long a batch of texts takes until each has `tokens` tokens, where none takes the place of one that ends.

    `price`: seconds of a step by the number of texts that still lack tokens. They are independent, so it is binomial.
    """
    lacking, texts = unfinished(alpha, gamma, tokens)[:, None].clip(1e-16, 1 - 1e-16), np.arange(1, batch + 1)
    # In logarithms: the number of ways to choose n of many texts is too large for a float.
    ways = np.array([lgamma(batch + 1) - lgamma(n + 1) - lgamma(batch - n + 1) for n in texts])
    chance = np.exp(ways + texts * np.log(lacking) + (batch - texts) * np.log1p(-lacking))
    return float(chance.sum(0) @ price(texts))


def predicted_speedup(
    alpha: float, gamma: int, tokens: int, batch: int, sizes: Sequence[int], seconds: Mapping[int, Sequence[float]]
) -> float:
    """How many times as fast as plain decoding such a batch is.

    `seconds`: of a step with each number of drafts, 0 too, for each of `sizes`, numbers of texts in ascending order;
    interpolated between them.
    """
    plain = tokens * float(np.interp(batch, sizes, seconds[0]))
    return plain / expected_seconds(alpha, gamma, tokens, batch, partial(np.interp, xp=sizes, fp=seconds[gamma]))
