"""Notebooks: short cells without drawing code, and exact outputs that the site's build has again."""

import itertools
import re
import sys
from collections import Counter
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
    found = [each["text"] or each.get("text/html") or each.get("text/plain") for each in shown]
    return [text for text in found if not text.startswith("<Figure")]  # the size of a drawing is no result


def tagged(notebook, tag):
    """The numbers of the cells with this tag: exact, or rounded where digits depend on the processor's arithmetic."""
    return [number for number, cell in enumerate(code(notebook)) if tag in cell.metadata.get("tags", [])]


def without_digits(shown):
    return [re.sub(r"\d+", "0", text) for text in shown]


def sources(notebook):
    return [cell.source for cell in code(notebook)]


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST = 16  # lines of a cell that a learner reads


def taught(path):
    """The cells of a notebook without the exercises at its end."""
    return [cell for cell in nbformat.read(path, 4).cells if "exercise" not in cell.metadata.get("tags", [])]


def lessons(path):
    """The sources of its code cells."""
    return [cell.source for cell in taught(path) if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_cells_are_short_and_leave_the_drawing_to_the_package(path):
    long = [source.splitlines()[0] for source in lessons(path) if len(source.splitlines()) > LONGEST]
    assert not long
    assert not any(word in source for source in lessons(path) for word in ("pyplot", "plt.", "spines", ".barh("))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_each_section_has_a_cell_to_change_with_a_prediction(path):
    sections = {}
    for cell in taught(path):
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            changes = sections.setdefault(cell.source.splitlines()[0], [])
        elif cell.source.startswith("# Change me: "):
            changes.append(cell.source)
    first, *others = sections
    assert first == "## Step through it first"  # its player has controls
    assert [section for section in others if not sections[section]] == []
    for source in itertools.chain(*sections.values()):
        assert "assert " in source
        assert len(source.splitlines()) <= 12


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_cell_that_reads_a_committed_run_says_so(path):
    for source in lessons(path):
        assert "committed(" not in source.replace("import committed", "") or source.startswith("# Of the committed")


def test_no_drafting_engine_of_a_notebook_leaves_its_counts_to_a_clock():
    # Without `gamma` the engine chooses by measured times: tokens stay the same, counts of steps and drafts do not.
    lines = [line for path in NOTEBOOKS for source in lessons(path) for line in source.splitlines()]
    engines = [line for line in lines if "Engine(" in line and "drafter=" in line]
    assert len(engines) > 5
    assert [line for line in engines if "gamma=" not in line] == []


def test_committed_outputs_of_exact_cells_hold():
    cached = [nbformat.read(path, 4) for path in (ROOT / "build" / "notebooks").rglob("base.ipynb")]
    if not cached:
        pytest.skip("no executed notebooks in build/notebooks: make docs")
    found = Counter()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        committed = nbformat.read(path, 4)
        runs = [run for run in cached if sources(run) == sources(committed)]
        assert runs, f"{path.name} has changed since it was executed: make docs"
        for tag, shown in (("exact", list), ("rounded", without_digits)):
            found[tag] += len(tagged(committed, tag))
            for number in tagged(committed, tag):
                then, now = (shown(texts(code(run)[number])) for run in (committed, runs[-1]))
                assert now == then, f"{path.name}, code cell {number + 1}: its committed output no longer holds"
    assert found["exact"], "no cell of any notebook is tagged exact"
