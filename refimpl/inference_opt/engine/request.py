"""A request: one prompt on its way through the engine, and what was observed of it.

    tokens      p p p p p p p p p g g g        the prompt, then what was generated
    computed    └─────────────────┘            keys and values of these lie in pages; the next steps compute the rest
    pages       [ 7 ][ 3 ][ 4 ][ 9 ]           in order; the first `shared` belong to the radix tree, the others to
    shared      └────────┘                     this request alone

Between two steps a running request has one token that is not computed, the one sampled last (decode), or several
(prefill). Drafts are not tokens of the request: they join `tokens` when they are accepted.
"""

from array import array
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from inference_opt.engine.prompts import ids_of, needed
from inference_opt.model.config import ModelConfig
from inference_opt.radix.node import Node
from inference_opt.sampling import FinishReason, SamplingParams, StopCheck, seeded
from inference_opt.speculative.acceptance import Acceptance
from inference_opt.values import brief

Reason = FinishReason | Literal["abort", "error"]


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
    prefill_tokens: int = 0  # computed as known tokens, including those recomputed after a preemption
    prefill_steps: int = 0
    decode_steps: int = 0
    drafted_tokens: int = 0  # guessed by a drafter and shown to the target
    accepted_tokens: int = 0  # of these, kept
    preemptions: int = 0
    overtaken: int = 0  # how often a later arrival was admitted while this one waited

    def __copy__(self) -> "Metrics":
        twin = object.__new__(Metrics)  # several times faster than the general way; every step copies every request's
        twin.__dict__.update(self.__dict__)
        return twin


@dataclass
class Pages:
    """The pages of a running request. Only the cache manager changes them."""

    table: list[int] = field(default_factory=list)
    shared: int = 0  # how many of them, from the first, belong to the tree
    node: Node | None = None  # the tree's node where these end, which is locked; None while the request does not run


def _nobody() -> None:
    """No stream listens."""


@dataclass(eq=False, repr=False)
class Request:
    """One prompt being continued; the caller's handle to its result."""

    id: Hashable
    prompt: list[int]
    params: SamplingParams
    check: StopCheck
    namespace: Hashable = None
    tokenizer: Any = None  # to read the result as text
    arrival: int = -1  # 0, 1, 2, …: the order in which requests came; −1 before it has
    notify: Callable[[], Any] = _nobody  # called when it has new tokens or has ended (streams.py)

    tokens: array = field(init=False)  # four bytes each, as the radix tree takes them
    logprobs: list[float] = field(default_factory=list)  # of the new tokens, if asked for
    finish_reason: Reason | None = None
    error: str | None = None  # what was wrong, if finish_reason is "error"
    metrics: Metrics = field(default_factory=Metrics)

    computed: int = 0
    pages: Pages = field(default_factory=Pages)
    decoding: bool = False  # whether a token was sampled since it was admitted
    acceptance: Acceptance | None = None  # of its drafts, if the engine chooses how many
    drafter_state: Any = None  # what the drafter keeps with the text

    def __post_init__(self) -> None:
        self.tokens = array("i", self.prompt)
        self.max_computed = len(self.prompt) + self.check.left - 1  # the last token sampled is never computed

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
        """How many known tokens are not computed: 1 in decode, more in prefill."""
        return len(self.tokens) - self.computed

    @property
    def table(self) -> list[int]:
        """Its page table, for those who read pages: the runner and the drafter."""
        return self.pages.table

    def __repr__(self) -> str:
        state = f"finish_reason {self.finish_reason!r}" if self.finished else "in decode" if self.decoding else "waits"
        return f"<Request {brief(self.id)}, {len(self.prompt)} prompt tokens, {len(self.output)} new, {state}>"

    def forget(self) -> None:
        """It has stopped running: it has no pages any more, and none of its tokens counts as computed."""
        self.pages, self.computed = Pages(), 0
        self.decoding, self.drafter_state = False, None


def made(
    config: ModelConfig,
    tokenizer: Any,  # with `detokenizer()`, or None
    prompt: Any,
    params: SamplingParams,
    id: Any = None,
    namespace: Any = None,
) -> Request:
    """A request that has not arrived, with a seed. ValueError for a prompt or names that no request can have."""
    ids, params = config.check_prompt(ids_of(prompt, tokenizer)), seeded(params)
    check_hashable("id", id)
    check_hashable("namespace", namespace)
    left = config.max_context - len(ids) + 1
    stream = needed(tokenizer).detokenizer() if params.stop or tokenizer else None
    return Request(id, ids, params, StopCheck(params, config.eos_token_ids, left, stream), namespace, tokenizer)


def check_hashable(name: str, value: Any) -> None:
    """ValueError for a value that cannot be the key of a dict."""
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(f"{name} must be hashable, got {value!r} ({error})") from None
