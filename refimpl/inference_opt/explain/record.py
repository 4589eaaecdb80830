"""Recording: what code tells by `emit` (`trace/emit.py`) becomes the steps of a trace.

    with record("two requests", watch=[engine.pool]) as trace:
        engine.step()

Every step holds whole snapshots, not differences: of the subject that spoke, and of every subject that spoke before or
is watched. A snapshot is a dict with its `kind`, which says how the player draws it; there is one a kind, the last that
spoke. What is said and drawn of an event stands in `explain/views/`.

Invariants: a recording changes nothing that it sees and stops nothing. What a trace holds is plain JSON that no later
step can change.
"""

import json
import linecache
import re
import string
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import isfinite
from pathlib import Path
from types import CodeType
from typing import Any

from inference_opt.explain import views
from inference_opt.trace import Trace, listening

ROOT = Path(__file__).resolve().parent.parent  # the package
ABOVE, BELOW = 9, 5  # source lines shown round a step
MAX_BYTES = 32_000_000
LONG = 16  # half as many tokens as a sentence shows of a text


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
    with listening(recorder):
        yield recorder.trace


class Recorder:
    """Writes steps into a trace: the listener of `trace/emit.py`."""

    def __init__(
        self, trace: Trace, watch: Iterable[Any], label: Callable[[int], str] | None, only: Any, max_bytes: int
    ) -> None:
        self.trace = trace
        self.only = only
        self.max_bytes = self.remaining = max_bytes
        self.subjects = {type(subject): subject for subject in watch}  # one of a class: the last that spoke
        self.words = Words(label or str, named=label is not None)
        self.busy = False

    def hear(self, event: str, subject: Any, data: dict[str, Any], code: CodeType, line: int) -> None:
        """Keep one step, unless the trace is full."""
        if self.trace.cut or self.busy or not event.startswith(self.only):
            return
        try:
            self.busy = True  # whatever a snapshot calls is no step of its own
            step = self._step(event, subject, data) | {"source": self._source(code, line)}
            size = len(json.dumps(step, ensure_ascii=False).encode())
            if size > self.remaining:
                self._cut(f"the next would have passed max_bytes = {self.max_bytes:,}")
            else:
                self.remaining -= size
                self.trace.steps.append(step)
        except Exception as error:  # of a view, or of who names a token: what is recorded is not to blame
            self._cut(f"the next, {event}, could not be shown: {type(error).__name__}: {error}")
        finally:
            self.busy = False

    def watch(self, subject: Any, context: dict[str, Any]) -> Any:
        """What tells of the use of a subject that says nothing itself."""
        return subject if self.busy else views.watching(subject, **context)

    def _cut(self, why: str) -> None:
        self.trace.cut = f"the recording was cut after {len(self.trace.steps)} steps: {why}"

    def _step(self, event: str, subject: Any, data: dict[str, Any]) -> dict[str, Any]:
        picture = views.PICTURES.get(event)
        drawn = picture(**data) if picture else {}
        if subject is not None:
            self.subjects[type(subject)] = subject
        invariants, counters, said = (drawn.pop(name, {}) for name in ("invariants", "counters", "said"))
        states = [state for each in self.subjects.values() if (state := views.snapshot(each)) is not None]
        states += [drawn] if drawn else []
        # The one that speaks vouches for itself: it stands between two of its calls, the others perhaps within one.
        invariants = invariants | views.invariants(subject)
        for each in self.subjects.values():
            counters = counters | views.counters(each)
        for token in {token for state in states for token in state.pop("tokens_shown", ())}:
            self.trace.labels[str(token)] = self.words.label(token)
        sentence = views.SENTENCES.get(event, ", ".join(f"{name} {{{name}}}" for name in data) or event)
        return {
            "event": event,
            "text": self.words.format(sentence(**data) if callable(sentence) else sentence, **(data | said)),
            "facts": {} if picture else jsonable(data),  # a picture made of the data is all there is of them
            "state": {state["kind"]: jsonable(state) for state in states},
            "invariants": {name: bool(held) for name, held in invariants.items()},
            "counters": jsonable(counters),
        }

    def _source(self, code: CodeType, line: int) -> int:
        """The place of a step's source among the trace's: each is kept once."""
        path = Path(code.co_filename)
        file = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        for i, known in enumerate(self.trace.sources):
            if (known["file"], known["line"]) == (file, line):
                return i
        lines = linecache.getlines(str(path))
        first = max(line - ABOVE, code.co_firstlineno)
        last = min(line + BELOW, views.last_line(code))
        near = [
            [n, text.rstrip("\n")]
            for n, text in enumerate(lines, start=1)
            if first <= n <= last
            and not re.match(r" *# \[/?[\w-]+\]$", text)  # where a listing of the book begins or ends
        ]
        self.trace.sources.append({"file": file, "line": line, "lines": near})
        return len(self.trace.sources) - 1


def jsonable(value: Any) -> Any:
    """A copy made of what JSON has. Exact numbers, inf and nan become text, a subject its snapshot."""
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, Fraction | float):  # JSON has neither exact numbers nor inf and nan
        return str(value)
    if isinstance(value, dict):
        return {str(key): jsonable(each) for key, each in value.items()}
    if hasattr(value, "tolist"):  # arrays and tensors
        return jsonable(value.tolist())
    if (state := views.snapshot(value)) is not None:
        return jsonable(state)
    if isinstance(value, Iterable):
        return [jsonable(each) for each in value]
    return str(value)


class Words(string.Formatter):
    """str.format, and: {n:page} is "1 page" or "2 pages", {tokens:text} what tokens are called; lists have commas."""

    def __init__(self, label: Callable[[int], str], named: bool) -> None:
        self.label, self.named = label, named

    def format_field(self, value: Any, format_spec: str) -> str:
        """One field of a sentence."""
        if format_spec == "text":
            handle = views.snapshot(value)  # a node's: the tokens that it stands for
            tokens = value if handle is None else handle
            words = [self.label(token) for token in (tokens if isinstance(tokens, Iterable) else [tokens])]
            words = ["␣"] if words == [" "] else words
            letters = self.named and all(len(word) == 1 for word in words)
            words = [*words[:LONG], "…", *words[-LONG // 2 :]] if len(words) > 2 * LONG else words
            if words:
                return f"“{('' if letters else ' ').join(words)}”"
            return "nothing" if handle is None else "the root"
        if format_spec.replace(" ", "").isalpha() and len(format_spec) > 1:
            return f"{value} {format_spec}{'' if value == 1 else 's'}"
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, Iterable) and not isinstance(value, str):
            return ", ".join(map(str, value)) or "none"
        return format(value, format_spec)
