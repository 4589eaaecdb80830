"""A request: one prompt on its way through the engine, and what was observed of it.

    tokens      p p p p p p p p p g g g        prompt, then what was generated
    computed    └─────────────────┘            keys and values of these lie in pages; the rest is the next steps' work
    table       [ 7 ][ 3 ][ 4 ][ 9 ]           pages, in order; the first `shared` of them are the tree's, the others
    shared      └────────┘                     this request's alone

Between steps a running request has one token that is not computed, the one sampled last (decode), or more (prefill).
Drafts are not tokens of the request: they join `tokens` when they are accepted.
"""

from array import array
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from inference_opt.radix.node import Node
from inference_opt.sampling import FinishReason, SamplingParams, StopCheck
from inference_opt.speculative.adaptive import Adaptive


@dataclass
class Metrics:
    """What was observed of one request. Steps are counted by the engine, seconds by `time.perf_counter`."""

    arrived_step: int = 0
    arrived: float = 0.0
    admitted_step: int | None = None  # when it first ran
    admitted: float | None = None
    first_token: float | None = None
    finished: float | None = None
    cached_tokens: int = 0  # found in the tree instead of computed
    prefill_tokens: int = 0  # computed as known tokens, those recomputed after a preemption included
    prefill_steps: int = 0
    decode_steps: int = 0
    drafted_tokens: int = 0  # guessed by a drafter and shown to the target
    accepted_tokens: int = 0  # of these, kept
    preemptions: int = 0
    overtaken: int = 0  # times a later arrival was admitted while this one waited

    def __copy__(self) -> "Metrics":
        twin = object.__new__(Metrics)  # several times faster than the general way, at each step of each request
        twin.__dict__.update(self.__dict__)
        return twin

    @property
    def queue_steps(self) -> int | None:
        """Steps that began without it while it waited at first."""
        return None if self.admitted_step is None else self.admitted_step - self.arrived_step


def _nobody() -> None:
    """No stream listens."""


@dataclass(eq=False)
class Request:
    """One prompt being continued; the caller's handle to its result."""

    id: Hashable
    prompt: list[int]
    params: SamplingParams
    check: StopCheck
    namespace: Hashable = None
    arrival: int = -1  # 0, 1, 2, …: the order in which requests came; −1 before it has
    metrics: Metrics = field(default_factory=Metrics)
    tokens: array = field(init=False)  # four bytes each, as the radix tree takes them
    computed: int = 0
    table: list[int] = field(default_factory=list)
    shared: int = 0
    node: Node | None = None  # the tree's node that it has locked; None while it is not running
    decoding: bool = False  # whether a token was sampled since it was admitted
    adaptive: Adaptive | None = None  # how long its drafts should be, where that is left to the engine
    drafter_state: Any = None  # what the drafter keeps with the text
    logprobs: list[float] = field(default_factory=list)  # of the new tokens, if asked for
    finish_reason: FinishReason | Literal["abort", "error"] | None = None
    error: str | None = None  # what was wrong, where that is "error"
    heard: Callable[[], Any] = _nobody  # called when it has new tokens or has ended (streams.py)

    def __post_init__(self) -> None:
        self.tokens = array("i", self.prompt)
        self.most = len(self.prompt) + self.check.left - 1  # tokens to compute: the last one sampled is never fed

    @property
    def output(self) -> list[int]:
        """The new tokens so far."""
        return self.tokens[len(self.prompt) :].tolist()

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None

    @property
    def remaining(self) -> int:
        """Known tokens that are not computed: 1 in decode, more in prefill."""
        return len(self.tokens) - self.computed

    def forget(self) -> None:
        """It has stopped running: nothing of what was computed for it is its own any more."""
        self.node, self.table, self.shared, self.computed = None, [], 0, 0
        self.decoding, self.drafter_state = False, None


def check_hashable(name: str, value: Any) -> None:
    """ValueError for what cannot be looked up."""
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(f"{name} must be hashable, got {value!r} ({error})") from None
