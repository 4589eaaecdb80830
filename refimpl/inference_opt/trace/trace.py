"""A trace: the steps of one recording, as plain JSON with a version, and how it is saved, read, checked and shown.

    {"format": "inference-opt trace", "version": 2, "title": …, "about": …, "labels": {token: text}, "cut": "",
     "sources": [{"file", "line", "lines"}],
     "steps": [{"event", "text", "facts", "state": {kind: snapshot}, "invariants", "counters", "source", "question"?}]}

    question: {"ask", "choices": [[answer, why], …], "right": index}
          or  {"ask", "number", "why", "beliefs": [[wrong number, why], …]}

`trace.schema.json` says the same as a JSON Schema. A trace feeds the notebook, the page and the tests alike.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from inference_opt.files import check_file, write_whole
from inference_opt.values import shown

FORMAT, VERSION = "inference-opt trace", 2
Reasoned = tuple[str, str]  # an answer, and one line why it is right or wrong


class Trace:
    """What a recording kept. `cut` says why it ends early, if it does."""

    html: "ClassVar[Callable[[Trace], str] | None]" = None  # how a notebook shows one: the player says, when imported

    def __init__(self, title: str = "", about: str = "") -> None:
        self.title, self.about, self.cut = title, about, ""
        self.labels: dict[str, str] = {}
        self.sources: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self.steps)

    def events(self) -> list[str]:
        """What happened, in order."""
        return [step["event"] for step in self.steps]

    def where(self, event: str) -> list[int]:
        """The indices of the steps of an event."""
        return [i for i, step in enumerate(self.steps) if step["event"] == event]

    def ask(self, at: int, question: str, right: Reasoned, *wrong: Reasoned) -> None:
        """Let the player ask before it shows the step of index `at`; the reader chooses an answer.

        The choices are put into alphabetical order, which does not tell the right one.
        ValueError for a step that no other precedes, for fewer than two wrong answers, and for equal ones.
        """
        choices = sorted([right, *wrong])
        if len(wrong) < 2 or len({answer for answer, _ in choices}) < len(choices):
            raise ValueError(
                f"expected two or more wrong answers, all different, got {[answer for answer, _ in wrong]}"
            )
        self._ask(at, {"ask": question, "choices": [list(each) for each in choices], "right": choices.index(right)})

    def ask_number(self, at: int, question: str, number: int, why: str, beliefs: Mapping[int, str]) -> None:
        """The same with a number that the reader types. `beliefs`: wrong numbers, each with a line why it is wrong.

        A belief that happens to be right in this recording is left out.
        """
        wrong = [[belief, reason] for belief, reason in sorted(beliefs.items()) if belief != number]
        self._ask(at, {"ask": question, "number": number, "why": why, "beliefs": wrong})

    def _ask(self, at: int, question: dict[str, Any]) -> None:
        if not 0 < at < len(self):
            raise ValueError(f"expected a step from 1 to {len(self) - 1}, behind one that is shown, got {at}")
        self.steps[at]["question"] = question

    def as_json(self) -> dict[str, Any]:
        """The whole trace."""
        parts = {name: getattr(self, name) for name in ("title", "about", "labels", "cut", "sources", "steps")}
        return {"format": FORMAT, "version": VERSION, **parts}

    @classmethod
    def from_json(cls, whole: Any) -> "Trace":
        """The trace that `as_json` gave. ValueError for anything else."""
        check(whole)
        trace = cls(whole["title"], whole["about"])
        trace.labels, trace.cut, trace.sources, trace.steps = (
            whole[name] for name in ("labels", "cut", "sources", "steps")
        )
        return trace

    def save(self, path: str | Path) -> None:
        """Write the trace whole or not at all."""
        write_whole(path, json.dumps(self.as_json(), ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Read a trace. ValueError, saying what is wrong, for one that is truncated or of another version."""
        check_file(Path(path))
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_number))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not a whole trace: {error} (was the file truncated?)") from None
        except RecursionError:
            raise ValueError(f"{path} is no trace: nested too deeply") from None
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {error}") from None

    def _repr_html_(self) -> str | None:
        return Trace.html(self) if Trace.html else None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON: a player cannot read it")


def check(whole: Any) -> None:
    """ValueError, saying what is wrong and where, for anything but a whole trace of this version."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise ValueError(f'not a trace: expected an object with "format": "{FORMAT}"')
    if whole.get("version") != VERSION:
        raise ValueError(
            f"a trace of version {shown(whole.get('version'))}; this code reads version {VERSION}: record it anew"
        )
    schema = json.loads(Path(__file__).with_name("trace.schema.json").read_text(encoding="utf-8"))
    if error := best_match(Draft202012Validator(schema).iter_errors(whole)):
        where = error.json_path.removeprefix("$").removeprefix(".") or "the trace"
        raise ValueError(f"{where}: {error.message.replace(repr(error.instance), shown(error.instance), 1)}")
    for i, step in enumerate(whole["steps"]):
        if step["source"] >= len(whole["sources"]):
            raise ValueError(f"steps[{i}].source: {step['source']} names no source, there are {len(whole['sources'])}")
