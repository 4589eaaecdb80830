"""Notebooks: short cells without drawing code, and exact outputs that the site's build has again."""

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


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST = 20  # lines of a cell that a learner reads
LONGER = {  # notebook: the longer cells it may have, by their first line, and why
    "05_latent_attention.ipynb": {"%matplotlib inline": "imports"},
    "06_speculative_decoding.ipynb": {"%matplotlib inline": "imports"},
}


def lessons(path):
    """The sources of a notebook's code cells, without the exercises at its end."""
    return [cell.source for cell in code(nbformat.read(path, 4)) if "exercise" not in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_cells_are_short_and_leave_the_drawing_to_the_package(path):
    long = [source.splitlines()[0] for source in lessons(path) if len(source.splitlines()) > LONGEST]
    assert long == list(LONGER.get(path.name, {}))
    assert not any(word in source for source in lessons(path) for word in ("pyplot", "plt.", "spines", ".barh("))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_has_cells_to_change_with_a_prediction(path):
    changes = [source for source in lessons(path) if source.startswith("# Change me: ")]
    assert changes
    assert all("assert " in source and len(source.splitlines()) <= 12 for source in changes)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_cell_that_reads_a_committed_run_says_so(path):
    for source in lessons(path):
        assert "committed(" not in source.replace("import committed", "") or source.startswith("# Of the committed")


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
