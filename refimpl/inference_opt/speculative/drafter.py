"""What a drafter is: it guesses the next tokens of texts, and says from which law it drew each.

    propose   for each job: up to `gamma` tokens, and the laws they were drawn from
    observe   what the target has read and kept since, so that a drafter with a cache of its own keeps it right

A drafter may guess badly, never dishonestly: exactness asks only that each token was drawn from the law that is
returned with it, by the `chance` of the job. What a drafter has cached decides how much is accepted, not what comes
out.
"""

import copy
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from inference_opt.cache.paged import PagedCache
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams
from inference_opt.speculative.rules import Probs, Randomness


@runtime_checkable
class Text(Protocol):
    """What a drafter sees of a request."""

    tokens: array  # all that are known
    computed: int  # of these, how many the target has read: in decode, all but the last
    table: list[int]  # pages, with room for the tokens and the drafts
    params: SamplingParams
    memo: Any  # the drafter's own notes; None when the text begins, and again when it was preempted


@dataclass(frozen=True)
class Job:
    """Draft up to `gamma` ≥ 1 tokens for a text in decode, drawing the i-th with `chance.choose(law, i)`."""

    text: Text
    gamma: int
    chance: Randomness


@dataclass(frozen=True)
class Draft:
    """What a drafter proposes. `laws` None: the tokens were found, not drawn (each law is 1 at its token)."""

    tokens: list[int] = field(default_factory=list)
    laws: list[Probs] | None = None


@dataclass(frozen=True)
class Span:
    """Tokens of a text that the target has just read and kept: positions start … start + len(tokens) − 2.

    The last of `tokens` is the one that follows them, known but not read.
    """

    text: Text
    table: list[int]
    start: int
    tokens: list[int]
    states: list[Tensor]  # the target's residual stream behind each layer of `taps`: [len(tokens) − 1, dim]
    kind: Literal["prompt", "decode", "end"]  # but for "decode", others may read these pages from now on

    @property
    def end(self) -> int:
        """The first position that was not read."""
        return self.start + len(self.tokens) - 1


class Drafter:
    """The base of all drafters."""

    taps: Sequence[int] = ()  # layers of the target whose residual stream `observe` wants to see
    cost: float = 0.0  # of one drafted token, in steps of the target
    found: bool = False  # whether its tokens are found, not drawn, so that drafts come without laws

    def bind(self, target: Transformer, cache: PagedCache) -> "Drafter":
        """A drafter of this kind at work for one engine. ValueError where it does not fit the target."""
        return copy.copy(self)

    def propose(self, jobs: Sequence[Job]) -> list[Draft]:
        """A draft for each job; it may be shorter than asked, or empty."""
        raise NotImplementedError

    def observe(self, spans: Sequence[Span]) -> None:
        """Learn what the target has kept. All pages in the spans' tables may still be written."""


def check_draft(draft: Draft, gamma: int, vocab_size: int) -> None:
    """ValueError for a draft that no rule could judge: too long, no token, or laws that are none."""
    tokens, laws = draft.tokens, draft.laws
    if len(tokens) > gamma or (laws is not None and len(laws) != len(tokens)):
        count = "no" if laws is None else len(laws)
        raise ValueError(f"the drafter returned {len(tokens)} tokens and {count} laws; at most {gamma} were asked for")
    for i, x in enumerate(tokens):
        if not 0 <= x < vocab_size:
            raise ValueError(f"the drafter's token {i} is {x}, which is not in the vocabulary of {vocab_size}")
        if laws is None:
            continue
        law = laws[i]
        if law.shape != (vocab_size,) or not abs(law.sum() - 1) < 1e-6 or law.min() < 0:
            raise ValueError(
                f"the drafter's law {i} is none: expected {vocab_size} probabilities that sum to one, "
                f"got {law.shape} that sum to {law.sum()} with least {law.min()}"
            )
        if not law[x] > 0:
            raise ValueError(
                f"the drafter's token {i} ({x}) has probability 0 under the law it claims to be drawn from"
            )


def one_hot(token: int, vocab_size: int) -> Float[np.ndarray, "vocab"]:
    """All probability on one token."""
    law = np.zeros(vocab_size)
    law[token] = 1.0
    return law
