"""Tiny models and what several scenarios count."""

from dataclasses import replace
from typing import Any

import torch

from inference_opt.engine.engine import Engine
from inference_opt.engine.request import Request
from inference_opt.explain.views import counters
from inference_opt.model.config import LatentShape, ModelConfig
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams

LETTERS = "abcdefghijklmnopqrstuvwxyz .,!?"  # the toys' vocabulary


def toy(
    depth: int = 1, heads: int = 2, kv_heads: int = 2, seed: int = 0, latent: LatentShape | None = None
) -> Transformer:
    """A random transformer over letters, in float64."""
    head_dim = 8 if latent is None else latent.qk_nope_head_dim + latent.qk_rope_head_dim
    config = ModelConfig(
        vocab_size=len(LETTERS), dim=16, depth=depth, heads=heads, kv_heads=kv_heads, head_dim=head_dim, ffn_dim=32,
        max_context=64, latent=latent,
    )  # fmt: skip
    model = Transformer(config).init_weights(seed).to(torch.float64).eval()
    with torch.no_grad():  # sharper distributions than an untrained model's
        for weight in (model.head.weight, *(p for n, p in model.named_parameters() if "qkv" in n)):
            weight.mul_(12)
    return model


def spell(token: int) -> str:
    """The letter of a token."""
    return LETTERS[token % len(LETTERS)]


def ids(text: str) -> list[int]:
    """The tokens of a text. ValueError for letters that the toys do not know."""
    if unknown := sorted(set(text.lower()) - set(LETTERS)):
        raise ValueError(f"the toy model's letters are {LETTERS!r}; it does not know {unknown}")
    return [LETTERS.index(letter) for letter in text.lower()]


def new(tokens: int, **more: Any) -> SamplingParams:
    """So many new tokens."""
    return SamplingParams(max_new_tokens=tokens, ignore_eos=True, **more)


def arrivals(engine: Engine, prompts: str, **more: Any) -> list[Request]:
    """Requests A, B, … from lines of "prompt: new tokens", with seeds of their own."""
    requests, names = [], "ABCDEFGH"
    for name, line, own in zip(names, filter(str.strip, prompts.split("\n")), new(1, **more).split(len(names))):
        text, _, count = line.strip().rpartition(":")
        if not text or not count.strip().isdigit() or int(count) < 1:
            raise ValueError(f'expected a line "prompt: number of new tokens", got {line.strip()!r}')
        requests.append(engine.add(ids(text), replace(own, max_new_tokens=int(count)), id=name))
    return requests


class Counts:
    """What an engine computed so far, beside what the naive oracle would have for the same texts."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests: list[Request] = []


@counters.register
def counted(counts: Counts) -> dict[str, Any]:
    """Tokens that went through the model; naively, the whole text goes through it for every new token."""
    stats = counts.engine.stats
    computed = stats.prefill_tokens + stats.decode_tokens + stats.drafted_tokens - stats.accepted_tokens
    naive = sum(sum(range(len(each.prompt), len(each.tokens))) for each in counts.requests)
    return {
        "tokens through the model": {"value": computed, "naive": naive},
        "found, not computed": stats.cached_tokens,
    }
