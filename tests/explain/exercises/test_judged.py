"""The judge is judged: every reference is accepted, every starter and every wrong solution refused."""

import importlib

import pytest

from tests.explain.exercises.judging import EXERCISES, all_of, text_of, verdict_on

CHAPTERS = sorted({each.chapter for each in EXERCISES.values()})
TABLES = [importlib.import_module(f"tests.explain.exercises.chapter_{number}") for number in CHAPTERS]
WRONG, RIGHT = all_of(each.WRONG for each in TABLES), all_of(each.RIGHT for each in TABLES)


@pytest.mark.parametrize("id", EXERCISES)
def test_the_reference_is_accepted_and_the_starter_is_not(id):
    verdict = verdict_on(id, EXERCISES[id].file_text(solved=True))
    assert verdict.accepted, verdict
    assert not verdict_on(id, EXERCISES[id].file_text()).accepted


@pytest.mark.parametrize(("id", "name", "change"), WRONG, ids=[f"{id}: {name}" for id, name, _ in WRONG])
def test_a_wrong_solution_is_refused(id, name, change):
    verdict = verdict_on(id, text_of(EXERCISES[id], change))
    assert not verdict.accepted, name
    assert verdict.sentence


@pytest.mark.parametrize(("id", "name", "change"), RIGHT, ids=[f"{id}: {name}" for id, name, _ in RIGHT])
def test_another_right_solution_is_accepted(id, name, change):
    verdict = verdict_on(id, text_of(EXERCISES[id], change))
    assert verdict.accepted, f"{name}: {verdict}"


def test_each_exercise_has_six_wrong_solutions_and_a_right_one():
    counts = {id: sum(each == id for each, *_ in WRONG) for id in EXERCISES}
    assert all(count >= 6 for count in counts.values()), counts
    others = {id for id, *_ in RIGHT}
    assert others == {id for id, each in EXERCISES.items() if each.kind != "predict"}
