"""The seam between the engine and what runs the model: chunks and drafts go in, what each chunk emits comes out.

`EagerRunner` (eager_runner.py) is the readable one, and runs everywhere. `GraphRunner` (graph_runner.py) replays
captured steps on CUDA, several in a row. The engine does not know which one it has.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from inference_opt.engine.scheduler import Chunk, Repeat
from inference_opt.speculative.drafter import Draft


class Judged(NamedTuple):
    """One speculative step of a request: drafts, those accepted, and tokens emitted."""

    drafted: int
    accepted: int
    emitted: int


class Result(NamedTuple):
    """What a run gives for one chunk."""

    tokens: list[int] | None  # what it emits: nothing while there is prompt left; None if its logits are broken
    logprobs: Sequence[float] = ()  # of each token, if the request asks for them
    states: Sequence[Tensor] = ()  # hidden states, [fed, dim] for each layer the drafter taps
    judged: Sequence[Judged] = ()  # its steps with a drafter, one after another
    lengths: tuple[float, list[float]] | None = None  # what `Acceptance.learn` takes of these steps


def lefts(chunks: Sequence[Chunk]) -> list[int] | None:
    """How many tokens each text may still have; None if others wait for a place: then it does not matter whose come."""
    return None if any(chunk.queue for chunk in chunks) else [chunk.request.check.left for chunk in chunks]


@runtime_checkable
class Runner(Protocol):
    """Runs what the scheduler decided. It reserves no pages and changes no request.

    `draft_rows`: up to how many rows a step may have by drafts, unless the engine's user says so.
    """

    draft_rows: int

    def choose(self, chunks: Sequence[Chunk]) -> Repeat | None:
        """How many drafts a step, and how many steps in a row without asking the scheduler in between.

        The chunks are all of a step, and all decode. None: a single step, with the drafts that they have.
        """
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
