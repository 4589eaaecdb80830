"""What the book holds of the exercises is what there is: the committed verdicts, and the cells of the notebooks."""

import json
import sys
from pathlib import Path

import pytest

from inference_opt.explain.exercises import EXERCISES

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "docs"))
from exercises import cells  # noqa: E402
from survivors import REASONS, reason  # noqa: E402

JUDGED = json.loads((ROOT / "docs/results/exercises.json").read_text(encoding="utf-8"))["exercises"]
MUTANTS = json.loads((ROOT / "docs/results/mutants.json").read_text(encoding="utf-8"))["mutants"]


def test_the_committed_verdicts_are_of_today_s_exercises_and_every_one_is_right():
    assert [(each["id"], each["title"]) for each in JUDGED] == [(id, each.title) for id, each in EXERCISES.items()]
    for each in JUDGED:
        for solution in each["solutions"]:
            assert solution["accepted"] == (solution["side"] == "right"), (each["id"], solution)
        assert len(each["solutions"]) >= 8, each["id"]


def test_there_are_two_exercises_or_more_for_every_chapter_and_all_three_kinds():
    chapters = [each.chapter for each in EXERCISES.values()]
    assert all(chapters.count(f"{number:02}") >= 2 for number in range(10))
    assert {each.kind for each in EXERCISES.values()} == {"write", "repair", "predict"}
    assert all(1 <= each.minutes <= 60 and len(each.hints) == 3 for each in EXERCISES.values())


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_ends_in_its_chapter_s_exercises_not_solved(path):
    tagged = [cell for cell in nbformat.read(path, 4).cells if "exercise" in cell.metadata.get("tags", [])]
    mine = cells([each for each in EXERCISES.values() if each.chapter == path.name[:2]])
    assert [(cell.cell_type, cell.source) for cell in tagged] == [(cell.cell_type, cell.source) for cell in mine]
    assert not any(": accepted" in str(cell.get("outputs", "")) for cell in tagged)


def test_a_mutant_is_refused_or_there_is_a_reason_why_it_is_right():
    for each in MUTANTS:
        assert each["refused"] or reason(each["id"], each["line"])
    lines = {id: [m["line"] for m in MUTANTS if m["id"] == id and not m["refused"]] for id in EXERCISES}
    for id, parts in REASONS.items():
        for part in parts:
            assert any(part in line for line in lines[id]), f"{id}: no survivor has {part!r}"
    nothing_to_change = {"09.trim"}  # for cosmic-ray: it has no number, no comparison and no operator
    asked = {id for id, each in EXERCISES.items() if each.kind != "predict"}
    assert {each["id"] for each in MUTANTS} == asked - nothing_to_change
    assert sum(each["refused"] for each in MUTANTS) >= 50
