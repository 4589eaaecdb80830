"""Exercises: the reader writes it, and the properties judge it.

    start("03.split")                  the text to begin with
    check("03.split", my_split)        a function of the notebook, or the path of a file
    hint("03.split")                   the next of three hints
    solution("03.split")               the reference, at last

What was tried and accepted is kept in `exercises.json`, in the folder where you work (`progress.py`).
"""

import linecache
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

from inference_opt.explain.exercises import process
from inference_opt.explain.exercises.exercise import Exercise, Predict, Repair
from inference_opt.explain.exercises.judge import Solution, any_seed
from inference_opt.explain.exercises.progress import Progress
from inference_opt.explain.exercises.table import EXERCISES
from inference_opt.explain.exercises.verdict import Verdict
from inference_opt.files import check_file
from inference_opt.values import integer


def named(id: str) -> Exercise:
    """An exercise by its name. ValueError for one that there is not."""
    if id not in EXERCISES:
        near = [name for name in EXERCISES if str(id).split(".")[0] == name.split(".")[0]] or list(EXERCISES)
        more = "" if find_spec("triton") else " (more where Triton is installed: pip install triton)"
        raise ValueError(f"there is no exercise {id!r}; there are {', '.join(near)}{more}")
    return EXERCISES[id]


def start(id: str) -> str:
    """The text to begin with: imports, signature, docstring, and no body."""
    return named(id).file_text()


def check(
    id: str,
    answer: Callable[..., Any] | Mapping[str, float] | str | Path,
    *,
    witness: Mapping[str, Any] | None = None,
    seed: int | None = None,
    folder: str | Path = ".",
) -> Verdict:
    """Judge a solution: a function (or a dict of numbers, where numbers are asked for), or the path of a file.

    `witness`: of a repair, where a function is given. `seed`: of the inputs that are tried; others every time without.
    The learner's file is only read. ValueError for an unknown exercise, for what is no solution, and for no file.
    """
    exercise, progress = named(id), Progress(folder)
    progress.read()  # what cannot be kept is said before minutes of work
    chance = any_seed() if seed is None else integer("seed", seed, 0)
    if isinstance(answer, str | Path):
        if "\n" in str(answer):
            raise ValueError("expected the path of a file, got its text: write it to a file, or hand over the function")
        path = Path(answer)
        check_file(path)
        handed = Solution(file=str(path.resolve()), text=_text(path))
    elif not (isinstance(answer, Mapping) if isinstance(exercise, Predict) else callable(answer)):
        wanted = "a dict of numbers" if isinstance(exercise, Predict) else "a function"
        raise ValueError(f"{id} is answered by {wanted}, or by the path of a file; got {answer!r}")
    else:
        plain = dict(answer) if isinstance(answer, Mapping) else getattr(answer, "fn", answer)  # of a Triton kernel
        handed = Solution(value=plain, sources=_sources(answer))
    if witness is not None and not (isinstance(exercise, Repair) and handed.value is not None):
        raise ValueError("witness goes with the function of a repair; a file has it as `witness = …`")
    handed.witness = witness
    verdict = process.run(id, handed, chance)
    progress.checked(verdict)
    return verdict


def hint(id: str, folder: str | Path = ".") -> str:
    """The next hint: three in all, from a nudge to nearly the solution. The last is said again."""
    hints = named(id).hints
    shown = Progress(folder).hinted(id, len(hints))
    return f"hint {shown} of {len(hints)}: {hints[shown - 1]}"


def solution(id: str, folder: str | Path = ".") -> str:
    """A file that is accepted: the reference itself, or the numbers that come out."""
    text = named(id).file_text(solved=True)
    Progress(folder).solved(id)
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason}, byte {error.start})") from None


def _sources(answer: Any) -> dict[str, list[str]]:
    """The text of the notebook's cells, or files, that a function is made of: a child has not read them."""
    plain = getattr(answer, "fn", answer)
    if not isinstance(plain, FunctionType):
        return {}
    functions = [plain, *(f for f in plain.__globals__.values() if isinstance(f, FunctionType))]
    files = {f.__code__.co_filename for f in functions if f.__module__ == plain.__module__}
    return {file: lines for file in files if (lines := linecache.getlines(file))}


__all__ = ["EXERCISES", "Verdict", "check", "hint", "named", "solution", "start"]
