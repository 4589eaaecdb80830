"""The seam between the engine and what runs the model: chunks and drafts go in, what each chunk emits comes out.

`EagerRunner` (eager_runner.py) is the readable one, and runs everywhere. `GraphRunner` (graph_runner.py) replays
captured steps on CUDA, several in a row. The engine does not know which one it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from inference_opt.engine.request import Request
from inference_opt.engine.scheduler import Chunk
from inference_opt.speculative.drafter import Draft


@dataclass(frozen=True)
class Result:
    """What a run gives for one chunk."""

    tokens: list[int] | None  # what it emits: nothing while there is prompt left; None if its logits are broken
    logprobs: list[float] = field(default_factory=list)  # of each token, if the request asks for them
    states: list[Tensor] = field(default_factory=list)  # hidden states, [fed, dim] for each layer the drafter taps
    accepted: int = 0  # drafts, with which the tokens begin


@runtime_checkable
class Runner(Protocol):
    """Runs what the scheduler decided. It reserves no pages and changes no request."""

    def repeats(self, request: Request) -> bool:
        """Whether it can decode the request several steps in a row, without asking the scheduler in between."""
        ...

    def run(self, chunks: Sequence[Chunk], drafts: Sequence[Draft]) -> list[Result]:
        """A result for each chunk, with its draft fed behind it. At most `chunk.steps` decode steps are run."""
        ...

    def forget(self) -> None:
        """The weights have changed: drop what was captured."""
        ...
