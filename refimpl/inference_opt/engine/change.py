"""What a step changes of a request, worked out before anything is written.

A step may fail or be interrupted at any line, and nothing may be lost. So its results are worked out first, from what
stands, and then written. Each write assigns a value that does not depend on what it replaces. If a step fails before
its list of changes is made, it has not happened. If it fails later, the whole list is written once more, and the step
has happened, however much of the list was written before.
"""

import time
from array import array
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from inference_opt.engine.request import Metrics, Request
from inference_opt.engine.scheduler import Chunk
from inference_opt.engine.stats import Stats
from inference_opt.sampling import BROKEN, FinishReason, StopCheck
from inference_opt.speculative.drafter import Draft


@dataclass(frozen=True, slots=True)
class Change:
    """One request after the step, and where in its lists that is written: twice gives the same as once."""

    request: Request
    known: int  # its tokens before the step
    tokens: list[int]  # those that the step adds, up to the one that ends the text
    scored: int  # its log-probabilities before the step
    logprobs: list[float]
    computed: int
    check: StopCheck
    metrics: Metrics
    finish_reason: FinishReason | Literal["error"] | None
    accepted: int  # drafts that are among the tokens
    kind: Literal["prompt", "decode", "end"]  # what the step was for the request

    def write(self) -> None:
        """Once or several times."""
        request = self.request
        request.tokens[self.known :] = array("i", self.tokens)
        request.logprobs[self.scored :] = self.logprobs
        request.computed, request.check, request.metrics = self.computed, self.check, self.metrics
        request.decoding = request.decoding or bool(self.tokens)
        request.error = BROKEN if self.finish_reason == "error" else None
        request.finish_reason = self.finish_reason
        request.heard()


# [work_out]
def work_out(
    chunk: Chunk,
    draft: Draft,
    emitted: list[int] | None,
    logits: Float[Tensor, "rows vocab"],
    began: float,
    totals: Stats,
) -> Change:
    """A request's change by a step that began at `began`, and its part of `totals`.

    `emitted`: what the step gives, or None where the logits are broken. Of it every token up to the one that ends the
    text is kept.
    """
    request, now = chunk.request, time.perf_counter()
    check, metrics = copy(request.check), copy(request.metrics)
    tokens, reason = check.within(emitted or [])
    if metrics.admitted is None:
        metrics.admitted, metrics.admitted_step = began, totals.steps
    # Of the drafts, those emitted were read; the last token emitted never is (rejected drafts are overwritten).
    accepted = min(len(emitted) - 1, len(tokens)) if draft.tokens and emitted else 0
    for counts in (metrics, totals):
        counts.cached_tokens += chunk.found
        counts.drafted_tokens += len(draft.tokens)
        counts.accepted_tokens += accepted
    if chunk.start >= len(request.prompt) and chunk.count == 1 and tokens:
        metrics.decode_steps += 1
        totals.decode_tokens += len(tokens)
    else:
        metrics.prefill_steps += 1
        for counts in (metrics, totals):
            counts.prefill_tokens += chunk.count
    if tokens and metrics.first_token is None:
        metrics.first_token = now
    ended = "error" if emitted is None else reason
    if ended:
        metrics.finished = now
    known = len(request.tokens)
    return Change(
        request,
        known=known,
        tokens=tokens,
        scored=len(request.logprobs),
        logprobs=logprobs(logits, tokens) if tokens and request.params.logprobs else [],
        computed=known + len(tokens) - 1 if tokens else chunk.start + chunk.count,
        check=check,
        metrics=metrics,
        finish_reason=ended,
        accepted=accepted,
        kind="prompt" if not request.decoding else "end" if ended else "decode",
    )


# [/work_out]


def logprobs(logits: Float[Tensor, "rows vocab"], tokens: Sequence[int]) -> list[float]:
    """The model's own log-probability of each token, before temperature and filters; row i says token i."""
    rows = torch.log_softmax(logits[: len(tokens)].double(), dim=-1)
    return [float(row[x]) for row, x in zip(rows, tokens)]
