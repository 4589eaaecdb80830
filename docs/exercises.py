"""Writes what the book holds of the exercises: python docs/exercises.py (`make exercises`).

    docs/results/exercises.json   each exercise, and what the judge says of the solutions in tests/explain/exercises
    notebooks/*.ipynb             of each exercise of the chapter the task, what to begin with, and the check

`--mutants` has every reference mutated by cosmic-ray (pip install cosmic-ray), each mutant judged, and the verdicts
written to docs/results/mutants.json; with names of exercises, those alone are judged anew. Mutants are wrong solutions
that nobody here wrote.
"""

import ast
import importlib
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from inference_opt.environment import describe  # noqa: E402
from inference_opt.explain.exercises import EXERCISES  # noqa: E402
from inference_opt.explain.exercises.exercise import Exercise, Repair, Write, imports_of  # noqa: E402
from inference_opt.files import write_json  # noqa: E402
from tests.explain.exercises.judging import text_of, verdict_on  # noqa: E402

RESULTS = ROOT / "docs/results"
WORKERS = 2


# The table of solutions


def judged() -> list[dict[str, Any]]:
    """Each exercise, with the verdicts on its reference, its starter, wrong and other right solutions."""
    work, names = [], []
    for id, exercise in EXERCISES.items():
        tables = importlib.import_module(f"tests.explain.exercises.chapter_{exercise.chapter}")
        names += [(id, "right", "the reference"), (id, "wrong", "the starter")]
        work += [(id, exercise.file_text(solved=True)), (id, exercise.file_text())]
        for side, table in (("wrong", tables.WRONG), ("right", tables.RIGHT)):
            for name, change in table.get(id, {}).items():
                names.append((id, side, name))
                work.append((id, text_of(exercise, change)))
    with ProcessPoolExecutor(WORKERS) as pool:
        verdicts = list(pool.map(verdict_on, *zip(*work)))
    rows = []
    for id, each in EXERCISES.items():
        mine = [(side, name, verdict) for (of, side, name), verdict in zip(names, verdicts) if of == id]
        rows.append({
            "id": id, "kind": each.kind, "title": each.title, "minutes": each.minutes,
            "solutions": [
                {"side": side, "name": name, "accepted": v.accepted, "said": v.sentence, "seconds": v.seconds}
                for side, name, v in mine
            ],
        })  # fmt: skip
    return rows


# Mutants


def mutants(exercise: Write) -> Iterator[tuple[str, str, str]]:
    """(operator, line, text) of every mutant of the reference that differs from it in what it does."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source = exercise.source()
    seen = {_bare(source)}
    for name in operator_names():
        if get_operator(name).arguments():  # it wants to be told which variable, say
            continue
        operator = get_operator(name)()
        for occurrence in range(1000):
            mutant = mutate_code(source, operator, occurrence)
            if mutant is None:
                break
            try:
                bare = _bare(mutant)
            except SyntaxError:  # 2.0 ** not 900
                continue
            if bare not in seen:
                seen.add(bare)
                lines = [new for old, new in zip(source.splitlines(), mutant.splitlines()) if old != new]
                yield name.removeprefix("core/"), (lines or [mutant.splitlines()[-1]])[0].strip(), mutant


def _bare(source: str) -> str:
    """What a function does: its tree without annotations, decorators and docstring."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns, node.decorator_list = None, []
            node.body = node.body[1:] if ast.get_docstring(node) else node.body
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def judged_mutants(ids: list[str]) -> list[dict[str, Any]]:
    """Every mutant of the references of these exercises, and whether the judge refused it."""
    work, names = [], []
    for id, exercise in EXERCISES.items():
        if isinstance(exercise, Write) and id in ids:
            witness = f"witness = {dict(exercise.witness)!r}\n" if isinstance(exercise, Repair) else ""
            for operator, line, text in mutants(exercise):
                names.append((id, operator, line))
                work.append((id, f"{imports_of(exercise.function)}\n{witness}\n{text}"))
    print(f"{len(work)} mutants")
    with ProcessPoolExecutor(WORKERS) as pool:
        verdicts = pool.map(verdict_on, *zip(*work))
        rows = []
        for (id, operator, line), (_, text), verdict in zip(names, work, verdicts):
            rows.append({"id": id, "operator": operator, "line": line, "refused": not verdict.accepted})
            if verdict.accepted:
                print(f"survives: {id}: {operator}: {line}", flush=True)
                rows[-1]["text"] = text
    return rows


# Notebooks


def cells(exercises: list[Exercise]) -> list[NotebookNode]:
    """The end of a notebook: tasks, what to begin with, checks."""
    tag = {"tags": ["exercise"]}
    new = nbformat.v4
    said = (
        "## Exercises\n\nWrite it yourself. Replace what is missing, run the cell, and have it judged by the next one. "
        'A refusal shows the smallest input that breaks it, to be stepped through. `hint("…")` helps in three steps.'
    )
    made = [new.new_markdown_cell(said, metadata=tag)]
    made.append(new.new_code_cell("from inference_opt.exercises import check, hint, solution", metadata=tag))
    for each in exercises:
        task = "\n\n".join(each.paragraphs)
        made.append(new.new_markdown_cell(f"### {each.id} · {each.title}\n\n{task}", metadata=tag))
        made.append(new.new_code_cell(each.code().rstrip(), metadata=tag | {"exercise": each.id}))
        made.append(new.new_code_cell(each.call(), metadata=tag))
    for number, cell in enumerate(made):
        cell.id = f"exercise-{number}"
    return made


def write_cells(path: Path) -> None:
    """Put a chapter's exercises at the end of its notebook; outputs of cells that stay as they are stay too."""
    notebook = nbformat.read(path, 4)
    mine = [each for each in EXERCISES.values() if each.chapter == path.name[:2]]
    kept = [cell for cell in notebook.cells if "exercise" not in cell.metadata.get("tags", [])]
    old = {(cell.id, cell.source): cell for cell in notebook.cells if cell not in kept}
    notebook.cells = kept + [old.get((cell.id, cell.source), cell) for cell in (cells(mine) if mine else [])]
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--mutants" in sys.argv[1:]:
        command = "python docs/exercises.py --mutants"
        ids = sys.argv[2:] or list(EXERCISES)
        path = RESULTS / "mutants.json"
        known = json.loads(path.read_text(encoding="utf-8"))["mutants"] if sys.argv[2:] else []
        rows = [each for each in known if each["id"] not in ids] + judged_mutants(ids)
        rows.sort(key=lambda each: list(EXERCISES).index(each["id"]))
        write_json(path, {"command": command, "machine": describe(), "mutants": rows})
    else:  # notebooks first: the verdicts take minutes
        for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
            write_cells(path)
        command = "python docs/exercises.py"
        write_json(RESULTS / "exercises.json", {"command": command, "machine": describe(), "exercises": judged()})
