"""What a drafter is: it guesses the next tokens of texts, and says from which distribution it drew each.

    propose   for each request: up to `gamma` tokens, and the distributions they were drawn from
    observe   what the target has read and kept since, so that a drafter with a cache of its own keeps it right

A drafter may guess badly, never dishonestly. Exactness asks only that each token was drawn, by the `rng` of the
request, from the distribution that is returned with it. What a drafter has cached decides how much is accepted, not
what comes out.
"""

import copy
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from inference_opt.cache.paged import PagedCache
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import Noise, SamplingParams
from inference_opt.speculative.rules import Probs, Randomness
from inference_opt.values import shown


@runtime_checkable
class RequestView(Protocol):
    """What a drafter sees of a request."""

    tokens: array  # all that are known
    computed: int  # of these, how many the target has read: in decode, all but the last
    params: SamplingParams
    drafter_state: Any  # whatever the drafter keeps with the text; None when it begins, and again after a preemption

    @property
    def table(self) -> list[int]:
        """Its pages, with room for the tokens and the drafts."""


@dataclass(frozen=True)
class DraftRequest:
    """Draft up to `gamma` ≥ 1 tokens for a text in decode, drawing the i-th with `rng.choose(probs[i], i)`.

    `depth`: a tree is asked for, of at most so many levels; None: a chain. `least`: a tree leaves out drafts that it
    holds less probable. `noise`: what the target will draw with, if its own draws decide what is kept
    (`coupled_tree.py`): a tree may look at it.
    """

    text: RequestView
    gamma: int
    rng: Randomness
    depth: int | None = None
    least: float = 0.0
    noise: Noise | None = None


@dataclass(frozen=True)
class Draft:
    """What a drafter proposes. `probs` None: the tokens were found, not drawn (all probability is on each).

    `parents`, of a tree: the earlier draft that each one follows, −1 for the text; None: a chain. Siblings differ. The
    distribution of one is that given the siblings before it: without these, normalised.
    """

    tokens: list[int] = field(default_factory=list)
    probs: list[Probs] | None = None
    parents: list[int] | None = None

    @property
    def rising(self) -> Sequence[int]:
        """The parents of all; of a chain, too."""
        return range(-1, len(self.tokens) - 1) if self.parents is None else self.parents


@dataclass(frozen=True)
class Observation:
    """Tokens of a text that the target has just read and kept: positions start … start + len(tokens) − 2.

    The last of `tokens` is the one that follows them, known but not read.
    """

    text: RequestView
    table: list[int]
    start: int
    tokens: list[int]
    states: list[Tensor]  # the target's residual stream behind each layer of `taps`: [len(tokens) − 1, dim]
    kind: Literal["prompt", "decode", "end"]  # except for "decode", other texts may read these pages from now on

    @property
    def end(self) -> int:
        """The first position that was not read."""
        return self.start + len(self.tokens) - 1


class Drafter:
    """The base of all drafters."""

    taps: Sequence[int] = ()  # layers of the target whose residual stream `observe` wants to see
    cost: float = 0.0  # of one drafted token, in steps of the target
    found: bool = False  # whether its tokens are found, not drawn, so that drafts come without distributions
    captured: bool = False  # whether it can draft on the device, without the host
    trees: bool = False  # whether it can draft trees; others are asked for chains
    reviewed: bool = False  # whether it can tell what its drafts would have given (`review`)

    def __repr__(self) -> str:
        given = [name for name in signature(type(self)).parameters if hasattr(self, name)]
        return f"{type(self).__name__}({', '.join(f'{name}={shown(getattr(self, name))}' for name in given)})"

    def bind(self, target: Transformer, cache: PagedCache) -> "Drafter":
        """A drafter of this kind at work for one engine. ValueError where it does not fit the target."""
        return copy.copy(self)

    def propose(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """A draft for each request; it may be shorter than asked, or empty."""
        raise NotImplementedError

    def guess(self, steps: Any, rows: int, gamma: int) -> None:
        """Draft on the device, in a captured step (`kernels/draft_steps.py`); for those with `captured`."""
        raise NotImplementedError

    def network(self, steps: Any, table: Any, max_steps: int) -> Any:
        """For those with `captured` whose guesses take a network: what runs it in captured steps (`head_steps.py`)."""
        return None

    def review(self, steps: Any, rows: int) -> Tensor:
        """How many steps each text's latest tokens would have taken with each of `steps.lengths`; if `reviewed`."""
        raise NotImplementedError

    def observe(self, observations: Sequence[Observation]) -> None:
        """Learn what the target has kept. All pages in the observations' tables may still be written.

        Those with `captured` are not told what their own captured steps have decoded.
        """


def check_draft(draft: Draft, gamma: int, vocab_size: int, depth: int | None = None) -> None:
    """ValueError for a draft that no rule could judge: too long, or with tokens or distributions that are not valid.

    Or for a tree that is none, has more levels than `depth`, or was not asked for.
    """
    tokens = draft.tokens
    probs = draft.probs
    if len(tokens) > gamma or (probs is not None and len(probs) != len(tokens)):
        count = "no" if probs is None else len(probs)
        raise ValueError(
            f"the drafter returned {len(tokens)} tokens and {count} distributions; at most {gamma} were asked for"
        )
    if draft.parents is not None:
        _check_parents(tokens, draft.parents, depth)
    for i, x in enumerate(tokens):
        if not 0 <= x < vocab_size:
            raise ValueError(f"the drafter's token {i} is {x}, which is not in the vocabulary of {vocab_size}")
        if probs is None:
            continue
        q = probs[i]
        if q.shape != (vocab_size,) or not abs(q.sum() - 1) < 1e-6 or q.min() < 0:
            raise ValueError(
                f"the drafter's probs[{i}] is not a distribution: expected {vocab_size} probabilities that sum to one, "
                f"got {q.shape} that sum to {q.sum()} with minimum {q.min()}"
            )
        if not q[x] > 0:
            raise ValueError(f"the drafter's token {i} ({x}) has probability 0 in probs[{i}]: it was not drawn from it")


def _check_parents(tokens: list[int], parents: list[int], depth: int | None) -> None:
    if depth is None or len(parents) != len(tokens):
        wanted = "no parents: a chain was asked for" if depth is None else "a parent for each"
        raise ValueError(f"the drafter returned {len(tokens)} tokens and {len(parents)} parents; expected {wanted}")
    levels: list[int] = []
    for i, parent in enumerate(parents):
        if not -1 <= parent < i:
            raise ValueError(
                f"the drafter's token {i} follows draft {parent}: expected an earlier one, or −1 (the text)"
            )
        levels.append(1 if parent < 0 else levels[parent] + 1)
        if levels[i] > depth:
            raise ValueError(
                f"the drafter's token {i} is on level {levels[i]} of its tree; at most {depth} were asked for"
            )
    if len({*zip(parents, tokens)}) < len(tokens):
        raise ValueError("two of the drafter's tokens that follow the same draft are equal: candidates must differ")


def one_hot(token: int, vocab_size: int) -> Float[np.ndarray, "vocab"]:
    """All probability on one token."""
    probs = np.zeros(vocab_size)
    probs[token] = 1.0
    return probs
