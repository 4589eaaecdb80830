"""Toy models for foreign loops: tables of a few rows, as logits behind a text that starts with a token BOS."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float

from inference_opt.lab.exactness.proposals import Model, Prefix

Logits = Float[torch.Tensor, "vocab"]


def tensor(probs: Any) -> Float[torch.Tensor, "vocab"]:
    """A distribution as floats."""
    return torch.tensor([float(p) for p in probs], dtype=torch.float64)


def logits(model: Model, prefix: Prefix) -> Logits:
    """log p behind a prefix; BOS, the last id, is never said."""
    return torch.tensor([*(float(p) for p in model(prefix)), 0.0]).log()


class Toy:
    """A model that remembers the tokens it was given by their position, as a KV cache does."""

    def __init__(self, model: Model, prefix: Prefix = ()) -> None:
        self.model = model
        self.bos = len(model(()))
        self.text = [self.bos, *prefix]

    def __call__(self, tokens: Sequence[int], position: int) -> Float[torch.Tensor, "tokens vocab"]:
        """The logits behind each of the tokens, the first of which stands at that position."""
        self.text[position:] = tokens
        ends = range(position + 1, position + 1 + len(tokens))
        return torch.stack([logits(self.model, tuple(self.text[1:end])) for end in ends])


def whole(target: Model, draft: Any, prefix: Prefix, gamma: int, choose: Any) -> tuple[Any, Any, Any]:
    """A proposal for samplers that draft by themselves: they are given the models, the prefix and gamma."""
    return target, draft, (prefix, gamma)


def fractions(row: torch.Tensor) -> list[Fraction]:
    """Floats as the fractions that they are."""
    return [Fraction(p) for p in row.tolist()]
