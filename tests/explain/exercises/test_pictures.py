"""A refusal's picture, in a browser: it opens where an invariant breaks, and its last step compares came and right."""

import importlib

import pytest

from inference_opt.explain.exercises.verdict import breaks_at
from tests.explain.browser import launched, opened, where
from tests.explain.exercises.judging import EXERCISES, text_of, verdict_on


@pytest.fixture(scope="module")
def browser():
    with launched() as it:
        yield it


def recorded(exercise):
    """The verdict on the first wrong solution that is recorded with steps of the code itself, if there is one."""
    wrong = importlib.import_module(f"tests.explain.exercises.chapter_{exercise.chapter}").WRONG[exercise.id]
    for change in wrong.values():
        verdict = verdict_on(exercise.id, text_of(exercise, change))
        if verdict.trace is not None and any(not event.startswith("exercise.") for event in verdict.trace.events()):
            return verdict
    return None


def test_counterexamples_open_at_the_broken_invariant(browser, tmp_path):
    shown = set()  # an exercise of each chapter
    for exercise in EXERCISES.values():
        if exercise.kind == "predict" or exercise.chapter in shown or (verdict := recorded(exercise)) is None:
            continue
        shown.add(exercise.chapter)
        trace, file = verdict.trace, tmp_path / f"{exercise.id}.html"
        file.write_text(verdict.page(), encoding="utf-8")
        with opened(browser, file) as page:
            page.locator(".player").focus()
            assert where(page) == breaks_at(trace) + 1, exercise.id
            broken = [name for name, held in trace.steps[breaks_at(trace)]["invariants"].items() if not held]
            assert broken
            assert broken[0] in page.locator(".held").inner_text()
            page.keyboard.press("End")
            assert where(page) == len(trace)
            told = page.locator(".scenes [data-kind=comparison]")
            assert "came" in told.inner_text()
            assert "right" in told.inner_text()
            page.keyboard.press("Home")
            assert page.locator(".sentence").inner_text().startswith("the input:")
    assert len(shown) >= 8
