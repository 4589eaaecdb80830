"""What a learner has tried and solved: `exercises.json`, in the folder where the learner works."""

import json
import warnings
from pathlib import Path
from typing import Any

from inference_opt.explain.exercises.verdict import Verdict
from inference_opt.files import check_file, write_whole

FILE = "exercises.json"


class Progress:
    """One folder's file. A file that is no progress is refused with ValueError, and never written over."""

    def __init__(self, folder: str | Path = ".") -> None:
        self.path = Path(folder) / FILE

    def read(self) -> dict[str, dict[str, Any]]:
        """{exercise: {"checks": how many, "accepted": bool, "hints": shown, "solution": whether it was shown}}."""
        if not self.path.parent.is_dir():
            raise ValueError(f"there is no folder {self.path.parent}")
        if not self.path.exists():
            return {}
        try:
            check_file(self.path)
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path} does not hold the progress of exercises: {error}") from None
        rows = known.values() if isinstance(known, dict) else [None]
        if not all(isinstance(row, dict) and all(isinstance(v, int) for v in row.values()) for row in rows):
            raise ValueError(f"{self.path} does not hold the progress of exercises: move it away")
        return dict(known)

    def checked(self, verdict: Verdict) -> None:
        """A solution was judged. What was accepted once stays so."""
        self._change(
            verdict.id,
            lambda one: {
                "checks": one.get("checks", 0) + 1,
                "accepted": verdict.accepted or one.get("accepted", False),
            },
        )

    def hinted(self, id: str, most: int) -> int:
        """One more hint is shown; its number."""
        return int(self._change(id, lambda one: {"hints": min(one.get("hints", 0) + 1, most)})["hints"])

    def solved(self, id: str) -> None:
        """The solution is shown."""
        self._change(id, lambda one: {"solution": True})

    def _change(self, id: str, change: Any) -> dict[str, Any]:
        known = self.read()
        known[id] = known.get(id, {}) | change(known.get(id, {}))
        try:
            write_whole(self.path, json.dumps(known, indent=1, sort_keys=True) + "\n")
        except OSError as error:  # the verdict, or the hint, is worth more
            warnings.warn(f"your progress is not kept: {self.path}: {error.strerror}", stacklevel=4)
        return known[id]


def state(one: dict[str, Any]) -> str:
    """What a learner has done of an exercise, in a few words."""
    checks, hints = one.get("checks", 0), one.get("hints", 0)
    said = ["accepted"] if one.get("accepted") else [f"{checks} tried"] if checks else []
    said += [f"{hints} of 3 hints"] if hints else []
    said += ["solution shown"] if one.get("solution") else []
    return ", ".join(said)
