"""Clocks and counts: what an engine observes of itself. A failed step counts only if its changes were written."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from inference_opt.engine.change import Change
from inference_opt.engine.request import Metrics, Request
from inference_opt.engine.stats import Stats

Phase = Literal["schedule", "draft", "run"]


class StepTimer:
    """The seconds of one step, by phase."""

    def __init__(self) -> None:
        self.began = self.last = perf_counter()
        self.seconds: dict[Phase, float] = {"schedule": 0.0, "draft": 0.0, "run": 0.0}

    def mark(self, phase: Phase) -> None:
        """The time since the last mark belongs to `phase`."""
        now = perf_counter()
        self.seconds[phase] += now - self.last
        self.last = now


@dataclass(frozen=True)
class Counted:
    """Metrics and totals after a step. Like its changes (change.py), they may be written twice."""

    observer: "Observer"
    totals: Stats
    metrics: list[tuple[Request, Metrics]]

    def write(self) -> None:
        """Once or several times."""
        self.observer.totals = self.totals
        for request, metrics in self.metrics:
            request.metrics = metrics


class Observer:
    """The totals of one engine, and the metrics of its requests."""

    def __init__(self, pages: int) -> None:
        self.totals = Stats(pages=pages)

    def arrived(self, request: Request) -> None:
        """A request has arrived."""
        request.metrics.arrived_step, request.metrics.arrived = self.totals.steps, perf_counter()

    def aborted(self, request: Request) -> None:
        """A request was ended by its caller."""
        request.metrics.finished = perf_counter()

    def count(self, changes: Sequence[Change], timer: StepTimer) -> Counted:
        """What a step adds to the metrics and to the totals. Nothing is written yet."""
        totals = copy(self.totals)
        metrics = [(change.request, _count(change, timer.began, totals)) for change in changes]
        totals.steps += 1
        return Counted(self, totals, metrics)

    def spend(self, timer: StepTimer) -> None:
        """The step is done: its seconds count."""
        self.totals.run_seconds += timer.seconds["run"]
        self.totals.draft_seconds += timer.seconds["draft"]
        self.totals.schedule_seconds += timer.seconds["schedule"]


def _count(change: Change, began: float, totals: Stats) -> Metrics:
    """A request's metrics after a step that began at `began`; its part is added to `totals`."""
    request, chunk, tokens, now = change.request, change.chunk, change.tokens, perf_counter()
    metrics = copy(request.metrics)
    if metrics.admitted is None:
        metrics.admitted, metrics.admitted_step = began, totals.steps
    for counts in (metrics, totals):
        counts.cached_tokens += chunk.found
        for step in change.judged:
            counts.drafted_tokens += step.drafted
            counts.accepted_tokens += step.accepted
    if chunk.start >= len(request.prompt) and chunk.count == 1 and tokens:
        metrics.decode_steps += 1
        totals.decode_tokens += len(tokens)
    else:
        metrics.prefill_steps += 1
        for counts in (metrics, totals):
            counts.prefill_tokens += chunk.count
    totals.new_tokens += len(tokens)
    if tokens and metrics.first_token is None:
        metrics.first_token = now
    if change.finish_reason:
        metrics.finished = now
    return metrics
