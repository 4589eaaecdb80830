"""The seam between the engine and what runs the model: chunks and drafts go in, what each chunk emits comes out.

`EagerRunner` (eager_runner.py) is the readable one, and runs everywhere. `GraphRunner` (graph_runner.py) replays
captured steps on CUDA, several in a row. The engine does not know which one it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from inference_opt.engine.request import Request
from inference_opt.engine.scheduler import Chunk
from inference_opt.speculative.drafter import Draft


class Judged(NamedTuple):
    """One speculative step of a request: drafts, those accepted, and tokens emitted.

    `shown`: to the target. A draft that is only compared with what was decoded without it teaches as much.
    """

    drafted: int
    accepted: int
    emitted: int
    shown: bool = True


@dataclass(frozen=True)
class Result:
    """What a run gives for one chunk."""

    tokens: list[int] | None  # what it emits: nothing while there is prompt left; None if its logits are broken
    logprobs: list[float] = field(default_factory=list)  # of each token, if the request asks for them
    states: list[Tensor] = field(default_factory=list)  # hidden states, [fed, dim] for each layer the drafter taps
    judged: list[Judged] = field(default_factory=list)  # its steps with a drafter, one after another


@runtime_checkable
class Runner(Protocol):
    """Runs what the scheduler decided. It reserves no pages and changes no request."""

    def repeats(self, request: Request) -> bool:
        """Whether it can decode the request several steps in a row, without asking the scheduler in between."""
        ...

    def propose(self, chunks: Sequence[Chunk]) -> list[Draft]:
        """The drafts that are made before the run; empty where the run makes them itself."""
        ...

    def run(self, chunks: Sequence[Chunk], drafts: Sequence[Draft]) -> list[Result]:
        """A result for each chunk, with its draft fed behind it. At most `chunk.grant` tokens are decoded."""
        ...

    def forget(self) -> None:
        """The weights have changed: drop what was captured."""
        ...
