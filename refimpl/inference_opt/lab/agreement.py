"""Is a fast way of decoding exact? Compare its tokens with the oracle's, and explain the first that differs.

In float64 the tokens must be the same. In float32 and bfloat16, two correct computations of one logit differ by
rounding, because sums are taken in another order. If the two largest logits are closer than that, either token is
right. Such a tie is not an error of logic; it is always reported, with its numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inference_opt.model.attention import NoCache
from inference_opt.model.transformer import Transformer

# Two logits are tied if they differ by less than this many units of eps · max |logit|. Measured on SmolLM2 against
# float64, over the ten built-in prompts: single logits are off by up to 46 units in float32 and 6.6 in bfloat16. Where
# bfloat16 prefers another token than float64, the two logits differ by up to 1.8 units (`tests/lab/test_agreement.py`).
_TIE_UNITS = {torch.float64: 48, torch.float32: 48, torch.bfloat16: 4}


@dataclass(frozen=True)
class Agreement:
    """The result of a comparison. `exact`: the same tokens, or a tie at the first difference."""

    identical: bool
    position: int | None = None  # of the first token that differs, counted in the new tokens
    gap: float = 0.0  # the oracle's token's logit minus the other token's; a negative gap contradicts the oracle
    tie: float = 0.0  # gaps of at most this size, positive or negative, are rounding

    @property
    def exact(self) -> bool:
        """Whether the two differ by rounding at most."""
        return self.identical or (self.position is not None and abs(self.gap) <= self.tie)

    def __str__(self) -> str:
        if self.identical:
            return "identical"
        if self.position is None:
            return "DIFFERENT: one stops where the other goes on"
        verdict = "tie" if self.exact else "DIFFERENT"
        return f"{verdict} at token {self.position}: logits {self.gap:.2g} apart, rounding is {self.tie:.2g}"


@torch.inference_mode()
def compare(model: Transformer, prompt_ids: Sequence[int], oracle: Sequence[int], other: Sequence[int]) -> Agreement:
    """Compare another decoder's greedy tokens with the oracle's, for one prompt and one model."""
    if list(oracle) == list(other):
        return Agreement(identical=True)
    position = next((i for i, (a, b) in enumerate(zip(oracle, other)) if a != b), None)
    if position is None:
        return Agreement(identical=False)
    ids = torch.tensor([*prompt_ids, *oracle[:position]], device=model.device)
    last = torch.tensor([len(ids) - 1], device=model.device)
    logits = model(ids, torch.arange(len(ids), device=model.device), NoCache([len(ids)]), rows=last)[0].double()
    gap = float(logits[oracle[position]] - logits[other[position]])
    tie = _TIE_UNITS[model.dtype] * torch.finfo(model.dtype).eps * float(logits.abs().max())
    return Agreement(identical=False, position=position, gap=gap, tie=tie)


@torch.inference_mode()
def teacher_forced_greedy(model: Transformer, prompt_ids: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """The tokens of greedy naive decoding, up to the first that differs from `tokens`, from one forward pass.

    Until they differ, naive decoding reads this very text, so its next token is the most probable one here.
    """
    text = torch.tensor([*prompt_ids, *tokens[:-1]], device=model.device)
    rows = torch.arange(len(prompt_ids) - 1, len(text), device=model.device)
    logits = model(text, torch.arange(len(text), device=model.device), NoCache([len(text)]), rows=rows)
    favourites = logits.argmax(dim=-1).tolist()
    last = next((i for i, (a, b) in enumerate(zip(favourites, tokens)) if a != b), len(favourites) - 1)
    return favourites[: last + 1]
