"""Notebooks as the site's build executed them: what a cell tagged `exact` printed when committed, it prints still."""

import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "docs"))


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell):
    joined = pytest.importorskip("execute").joined  # takes seconds and 50 MB, which the other tests need not wait for
    shown = [{"text": out.get("text"), **out.get("data", {})} for out in joined(cell.outputs)]
    return [each["text"] or each.get("text/html") or each.get("text/plain") for each in shown]


def exact(notebook):
    """The numbers of the cells tagged exact."""
    return [number for number, cell in enumerate(code(notebook)) if "exact" in cell.metadata.get("tags", [])]


def sources(notebook):
    return [cell.source for cell in code(notebook)]


def test_committed_outputs_of_exact_cells_hold():
    cached = [nbformat.read(path, 4) for path in (ROOT / "build" / "notebooks").rglob("base.ipynb")]
    if not cached:
        pytest.skip("no executed notebooks in build/notebooks: make docs")
    tagged = 0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        committed = nbformat.read(path, 4)
        runs = [run for run in cached if sources(run) == sources(committed)]
        assert runs, f"{path.name} has changed since it was executed: make docs"
        tagged += len(exact(committed))
        for number in exact(committed):
            then, now = (texts(code(run)[number]) for run in (committed, runs[-1]))
            assert now == then, f"{path.name}, code cell {number + 1}: its committed output no longer holds"
    assert tagged, "no cell of any notebook is tagged exact"
