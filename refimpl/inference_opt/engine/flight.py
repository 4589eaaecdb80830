"""Steps that were launched, and that the host has not looked at.

While they run, the host launches those that come behind them, and only then waits for their tokens:

    card   steps 1 … 10 | steps 11 … 20      | steps 21 … 30      |
    host   launch 11 … 20, look at 1 … 10, launch 21 … 30, look at 11 … 20, …

So the card does not wait for the host, as long as a look takes less time than such a run. The scheduler has reserved
the pages of both. What comes between two looks may make a run ahead useless: a text ends, breaks in the middle of a
run, is aborted or loses its pages, or another arrives. That does no harm. The card works in the order in which the host
launches, so whoever gets a page later writes it later. And what the run would have given is computed once more, or not
needed.

Steps with drafts can be followed only by steps with drafts of the same shape. How far the first ones get is known on
the card alone: the text, its length and the drafter's state are there. So the host sends what it knows, that is how
long each text may become, and learns where the second run began when it looks at the first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from inference_opt.engine.request import Pages, Request
from inference_opt.engine.scheduler import Chunk
from inference_opt.kernels.shape import Shape
from inference_opt.kernels.transfer import sent

UNKNOWN = -1  # a slot


class Row(NamedTuple):
    """One text of a run: in which row, on which pages, from which slot on, and how many steps."""

    row: int
    pages: Pages
    start: int
    steps: int


class Flight(NamedTuple):
    """A run with drafts of a shape, or without. `found` waits for what it gives; then `seconds` gives those of a step.

    What a plain run gives: tokens, largest logits, log-probabilities. With drafts: the notes of `commit`
    (`draft_steps.py`), tokens, log-probabilities; and `reviewed` waits for what the drafter says of them, `states` are
    those of its network. It keeps no request alive: the last one may end while a run ahead is never looked at.
    """

    texts: "WeakKeyDictionary[Request, Row]"
    rows: int
    shape: Shape
    device: torch.device
    found: Callable[[], list[Tensor]]
    seconds: Callable[[], float]
    reviewed: Callable[[], list[list[float]]] | None = None
    states: Tensor | None = None

    @classmethod
    def of(
        cls,
        requests: Sequence[Request],
        starts: Sequence[int],
        counts: Sequence[int],
        shape: Shape,
        *given: Any,
    ) -> "Flight":
        """One of these texts, each from its own slot on and with its own number of steps."""
        rows = [Row(i, each.pages, *its) for i, (each, *its) in enumerate(zip(requests, starts, counts))]
        return cls(WeakKeyDictionary(zip(requests, rows)), len(rows), shape, *given)

    @property
    def steps(self) -> int:
        """Of the text that has most."""
        return max(each.steps for each in self.texts.values())

    def serves(self, chunks: Sequence[Chunk]) -> bool:
        """Whether it is what comes next for these texts. (Others of it may have ended.)"""
        rows = [self.texts.get(each.request) for each in chunks]
        return all(
            row and row.pages is each.request.pages and row.start == each.start for row, each in zip(rows, chunks)
        )

    def began(self, requests: Sequence[Request], starts: Sequence[int]) -> None:
        """From which slots on it runs is known now."""
        for request, start in zip(requests, starts):
            self.texts[request] = self.texts[request]._replace(start=start)

    def places(self, requests: Sequence[Request]) -> list[int]:
        """Where these texts are."""
        return [self.texts[each].row for each in requests]

    def on_device(self, requests: Sequence[Request]) -> Int[Tensor, "texts"]:
        """The same, for the device."""
        return sent(torch.tensor(self.places(requests)), self.device)
