"""What the judge says of a solution, in words and as a picture."""

import html
from dataclasses import asdict, dataclass, field
from typing import Any

from inference_opt.explain.player.page import frame, page
from inference_opt.trace.trace import Trace


@dataclass
class Verdict:
    """Whether a solution is accepted. If not: what broke, on which input, what came and what is right.

    `line`: of the learner's own text, where an error was raised; 0 where none was. `trace`: the recording of the
    smallest input that breaks it, which ends where it breaks.
    """

    id: str
    accepted: bool
    sentence: str
    example: dict[str, str] = field(default_factory=dict)
    came: str = ""
    right: str = ""
    line: int = 0
    printed: str = ""
    seconds: float = 0.0
    seed: int = 0
    trace: Trace | None = None

    @classmethod
    def from_json(cls, whole: dict[str, Any]) -> "Verdict":
        """What `as_json` gave."""
        trace = whole.pop("trace")
        return cls(**whole, trace=Trace.from_json(trace) if trace else None)

    def as_json(self) -> dict[str, Any]:
        """The verdict as plain JSON, its recording included."""
        plain = asdict(self) | {"trace": None}
        return plain if self.trace is None else plain | {"trace": self.trace.as_json()}

    def lines(self) -> list[str]:
        """The verdict in words, a line each."""
        if self.accepted:
            return [f"{self.id}: accepted. {self.sentence}", *self._printed()]
        given = [f"    {name} = {value}" for name, value in self.example.items()]
        told = [f"  {name:7}{value}" for name, value in (("came", self.came), ("right", self.right)) if value]
        where = [f"  at line {self.line} of your text"] if self.line else []
        return [
            f"{self.id}: refused",
            f"  {self.sentence}",
            *(["  the smallest input found that shows it:", *given] if given else []),
            *told,
            *where,
            *self._printed(),
        ]

    def _printed(self) -> list[str]:
        return [f"  your code printed: {self.printed}"] if self.printed else []

    def page(self) -> str:
        """A whole HTML file: the player, open at the step that breaks. ValueError where nothing was recorded."""
        if self.trace is None:
            raise ValueError(f"nothing was recorded of {self.id}")
        return page(self.trace, at=breaks_at(self.trace))

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        colour = "#2b7a4b" if self.accepted else "#b3373d"
        words = html.escape("\n".join(self.lines()))
        told = f'<pre style="border-left: 4px solid {colour}; padding: .5em 1em; white-space: pre-wrap">{words}</pre>'
        return told + (frame(self.trace, at=breaks_at(self.trace)) if self.trace else "")


def breaks_at(trace: Trace) -> int:
    """The first step at which an invariant does not hold; the last step, which tells of it, where all hold."""
    broken = (i for i, step in enumerate(trace.steps) if not all(step["invariants"].values()))
    return next(broken, len(trace) - 1)
