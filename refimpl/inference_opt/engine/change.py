"""What a step changes of a request, worked out before anything is written.

A step may fail or be interrupted at any line, and nothing may be lost. So a list of its changes is worked out first,
and then written. Writing the list twice gives the same as writing it once. If the step fails before the list is made,
it has not happened. If it fails later, the whole list is written once more, however much of it was written before, and
the step has happened.
"""

from array import array
from collections.abc import Sequence
from copy import copy
from typing import Literal, NamedTuple

from torch import Tensor

from inference_opt.engine.request import Request
from inference_opt.engine.runner import Judged, Result
from inference_opt.engine.scheduler import Chunk
from inference_opt.sampling import BROKEN, FinishReason, StopCheck
from inference_opt.speculative.drafter import Draft

Kind = Literal["prompt", "decode", "end"]  # what a step was for a request


class Change(NamedTuple):
    """A request's new state, and where in its lists it is written. Writing it twice does no harm."""

    chunk: Chunk
    draft: Draft
    known: int  # its tokens before the step
    tokens: list[int]  # those that the step adds, up to the one that ends the text
    scored: int  # its log-probabilities before the step
    logprobs: Sequence[float]
    computed: int
    check: StopCheck
    finish_reason: FinishReason | Literal["error"] | None
    judged: list[Judged]  # the steps that emitted the tokens
    lengths: tuple[float, list[float]] | None  # as of `Result`
    states: Sequence[Tensor]  # of the tokens fed: what the drafter taps
    kind: Kind

    @property
    def request(self) -> Request:
        """Whose it is."""
        return self.chunk.request

    def write(self) -> None:
        """Once or several times."""
        request = self.request
        request.tokens[self.known :] = array("i", self.tokens)
        request.logprobs[self.scored :] = self.logprobs
        request.computed, request.check = self.computed, self.check
        request.decoding = request.decoding or bool(self.tokens)
        request.error = BROKEN if self.finish_reason == "error" else None
        request.finish_reason = self.finish_reason
        request.notify()


def work_out(chunk: Chunk, draft: Draft, result: Result) -> Change:
    """A request's change by a step. Of what was emitted, every token up to the one that ends the text is kept."""
    request, emitted = chunk.request, result.tokens
    check, known = copy(request.check), len(request.tokens)
    tokens, reason = check.within(emitted or [])
    ended = "error" if emitted is None else reason
    return Change(
        chunk,
        draft,
        known=known,
        tokens=tokens,
        scored=len(request.logprobs),
        logprobs=result.logprobs[: len(tokens)],
        # All kept tokens but the last were read. The last counts as not read, even if it was. (Slots behind `computed`
        # are overwritten.)
        computed=known + len(tokens) - 1 if tokens else chunk.start + chunk.count,
        check=check,
        finish_reason=ended,
        judged=_until(result.judged, len(tokens)),
        lengths=result.lengths,
        states=result.states,
        kind="prompt" if not request.decoding else "end" if ended else "decode",
    )


def _until(judged: Sequence[Judged], count: int) -> list[Judged]:
    """The steps that emitted the first `count` tokens, and of the last of them what lies among these."""
    kept = []
    for step in judged:
        kept.append(step if step.emitted <= count else step._replace(accepted=min(step.accepted, count), emitted=count))
        count -= step.emitted
        if count <= 0:
            break
    return kept
