"""Recording. Reference code says `step(…)` where something has happened; under `record()` that is kept.

    step("pool.allocate", self, "{count:page} taken: {pages}", count=count, pages=pages)
          │               │     │                              └─ facts: what happened, as values
          │               │     └─ a sentence, made of the facts with str.format, only when recorded
          │               └─ whose state changed: it has `snapshot()`, and may have `invariants()` and `counters()`;
          │                  or a function that makes the snapshot, and all these, of the facts
          └─ the event

Unrecorded, a step is one look at a context variable: nothing is formatted, copied or checked.

Recorded, every step holds whole snapshots, not differences: of the subject, and of every subject that spoke before or
is watched. A snapshot is a dict with its `kind`, which says how it is drawn; one snapshot a kind, the last that spoke.

Invariants: a recording changes nothing that it sees, and stops nothing; what a trace holds is plain JSON that no later
step can change.
"""

import json
import linecache
import string
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction
from functools import partial
from math import isfinite
from pathlib import Path
from types import FrameType
from typing import Any, no_type_check

from inference_opt.trace.trace import Trace

ROOT = Path(__file__).resolve().parent.parent  # the package
ABOVE, BELOW = 9, 5  # source lines shown round a step
MAX_BYTES = 32_000_000
ARMS = ("else:", "elif ", "except", "finally:")
LONG = 16  # half as many tokens as a sentence shows of a text

_recorder: ContextVar["Recorder | None"] = ContextVar("recorder", default=None)
recording = _recorder.get  # where microseconds count: `if recording(): step(…)` makes no arguments that no one takes


# [step]
@no_type_check  # a checker put round it would be its caller, and cost
def step(event: str, subject: Any, text: str, /, **facts: Any) -> None:
    """Something has happened. Costs nothing to speak of unless it is recorded."""
    recorder = _recorder.get()
    if recorder is not None:
        recorder.add(event, subject, text, facts, sys._getframe(1))


@contextmanager
def record(
    title: str = "",
    watch: Iterable[Any] = (),
    label: Callable[[int], str] | None = None,
    only: str | tuple[str, ...] = "",
    max_bytes: int = MAX_BYTES,
) -> Iterator[Trace]:
    """Keep every step of the block in the trace that is returned.

    `watch`: subjects whose state every step shows, though they have not spoken yet. `label`: what a token is called.
    `only`: keep events that begin so, or with one of these.
    A recording that would pass `max_bytes` is cut, as is one whose step cannot be shown (its sentence, a snapshot or a
    label raised an error): the code runs on, and `trace.cut` says so.
    """
    recorder = Recorder(Trace(title), watch, label, only, max_bytes)
    with _under(recorder):
        yield recorder.trace


@contextmanager
def _under(recorder: "Recorder | None") -> Iterator[None]:
    before = _recorder.get()
    try:
        _recorder.set(recorder)
        yield
    finally:
        _recorder.set(before)


unrecorded = partial(_under, None)  # what the block does is no step: it keeps books of its own


# [/step]


class Recorder:
    """Writes steps into a trace."""

    def __init__(
        self, trace: Trace, watch: Iterable[Any], label: Callable[[int], str] | None, only: Any, max_bytes: int
    ) -> None:
        self.trace, self.only, self.left, self.max_bytes = trace, only, max_bytes, max_bytes
        self.subjects = {type(subject): subject for subject in watch}  # one of a class: the last that spoke
        self.words = Words(label or str, named=label is not None)
        self.busy = False

    def add(self, event: str, subject: Any, text: str, facts: dict[str, Any], frame: FrameType) -> None:
        """Keep one step, unless the trace is full."""
        if self.trace.cut or self.busy or not event.startswith(self.only):
            return
        try:
            self.busy = True  # whatever a snapshot calls is no step of its own
            kept = self._step(event, subject, text, facts) | {"source": self._source(frame)}
            size = len(json.dumps(kept, ensure_ascii=False).encode())
            if size > self.left:
                self._cut(f"the next would have passed max_bytes = {self.max_bytes:,}")
            else:
                self.left -= size
                self.trace.steps.append(kept)
        except Exception as error:  # of whoever shows himself, or names a token: what is recorded is not to blame
            self._cut(f"the next, {event}, could not be shown: {type(error).__name__}: {error}")
        finally:
            self.busy = False

    def _cut(self, why: str) -> None:
        self.trace.cut = f"the recording was cut after {len(self.trace.steps)} steps: {why}"

    def _step(self, event: str, subject: Any, text: str, facts: dict[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        if callable(subject):
            shown = subject(**facts)
        elif subject is not None:
            self.subjects[type(subject)] = subject
        invariants, counters, said = (shown.pop(name, {}) for name in ("invariants", "counters", "said"))
        states = [each.snapshot() for each in self.subjects.values() if hasattr(each, "snapshot")]
        states += [shown] if shown else []
        if hasattr(subject, "invariants"):  # everyone vouches for himself: between two calls of his, not within one
            invariants |= subject.invariants()
        for each in self.subjects.values():
            counters |= each.counters() if hasattr(each, "counters") else {}
        for token in {token for state in states for token in state.pop("tokens_shown", ())}:
            self.trace.labels[str(token)] = self.words.label(token)
        return {
            "event": event,
            "text": self.words.format(text, **(facts | said)),
            "facts": {} if callable(subject) else plain(facts),  # a snapshot made of the facts is all there is of them
            "state": {state["kind"]: plain(state) for state in states},
            "invariants": {name: bool(held) for name, held in invariants.items()},
            "counters": plain(counters),
        }

    def _source(self, frame: FrameType) -> int:
        """The place of a step's source among the trace's: each is kept once."""
        path, line = Path(frame.f_code.co_filename), frame.f_lineno
        file = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        for i, known in enumerate(self.trace.sources):
            if (known["file"], known["step"]) == (file, line):
                return i
        whole = linecache.getlines(str(path), frame.f_globals)
        lines = without_steps(whole)
        before = ran_before(whole, lines, line)
        first = max(before - ABOVE, frame.f_code.co_firstlineno)
        last = min(before + BELOW, max(n for *_, n in frame.f_code.co_lines() if n))
        near = [[n, text] for n, text in lines.items() if first <= n <= last]
        self.trace.sources.append({"file": file, "step": line, "line": before, "lines": near})
        return len(self.trace.sources) - 1


def ran_before(lines: list[str], kept: dict[int, str], line: int) -> int:
    """What the step at a line tells of: the last of the lines kept that ran before it for certain.

    A block that the step stands behind may have been passed over, so that is the block's head; and of the arms of an
    `if` or `try` it is the first one's.
    """
    within = indent(lines[line - 1])
    for number in range(line - 1, 0, -1):
        text = lines[number - 1]
        if text.strip() and indent(text) <= within:
            within = indent(text)
            if number in kept and not text.lstrip().startswith(ARMS):
                return number
    return line


def without_steps(lines: list[str]) -> dict[int, str]:
    """Source lines by number, less what is there for steps alone: their calls, `seen = {…}`, guards of nothing else."""
    kept: dict[int, str] = {}
    depth = guard = 0
    for number, line in enumerate(lines, start=1):
        told = depth or line.strip().startswith(("step(", "seen = {"))
        if told:
            guard = guard or (number - 1 if kept.get(number - 1, "").strip().startswith("if ") else 0)
            depth += line.count("(") - line.count(")")
            continue
        if guard and indent(line) <= indent(kept[guard]):
            del kept[guard]
        kept[number], guard = line.rstrip("\n"), 0
    return kept


def indent(line: str) -> int:
    """How far a line is indented; an empty one, not at all."""
    return len(line) - len(line.lstrip())


def plain(value: Any) -> Any:
    """A copy made of what JSON has. Exact numbers, inf and nan become text, a subject its snapshot."""
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, Fraction | float):  # JSON has neither exact numbers nor inf and nan
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if hasattr(value, "tolist"):  # arrays and tensors
        return plain(value.tolist())
    if hasattr(value, "snapshot"):
        return plain(value.snapshot())
    if isinstance(value, Iterable):
        return [plain(each) for each in value]
    return str(value)


class Words(string.Formatter):
    """str.format, and: {n:page} is "1 page" or "2 pages", {tokens:text} what tokens are called; lists have commas."""

    def __init__(self, label: Callable[[int], str], named: bool) -> None:
        self.label, self.named = label, named

    def format_field(self, value: Any, format_spec: str) -> str:
        """One field of a sentence."""
        if format_spec == "text":
            tokens = value.snapshot() if hasattr(value, "snapshot") else value
            words = [self.label(token) for token in (tokens if isinstance(tokens, Iterable) else [tokens])]
            words = ["␣"] if words == [" "] else words
            letters = self.named and all(len(word) == 1 for word in words)
            words = [*words[:LONG], "…", *words[-LONG // 2 :]] if len(words) > 2 * LONG else words
            return (
                f"“{('' if letters else ' ').join(words)}”"
                if words
                else "the root"
                if hasattr(value, "snapshot")
                else "nothing"
            )
        if format_spec.replace(" ", "").isalpha() and len(format_spec) > 1:
            return f"{value} {format_spec}{'' if value == 1 else 's'}"
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, Iterable) and not isinstance(value, str):
            return ", ".join(map(str, value)) or "none"
        return format(value, format_spec)
