"""The controls of a scenario: which there are, and what is said of a value that cannot be."""

import ipywidgets
import pytest

from inference_opt.explain.scenarios import SCENARIOS
from inference_opt.explain.scenarios.explore import explore
from inference_opt.explain.scenarios.speculation import RULES


def controls(shown):
    """{label: control}."""
    return {control.description: control for control in shown.children[0].children}


def test_what_is_one_of_a_few_is_chosen_from_a_menu():
    shown = explore("speculative-step")
    rule = controls(shown)["rule"]
    assert isinstance(rule, ipywidgets.Dropdown)
    assert rule.options == tuple(RULES)
    before = shown.children[2].trace
    rule.value = "block"
    assert shown.children[2].trace != before
    assert shown.children[1].value == ""


@pytest.mark.parametrize("name", SCENARIOS)
def test_labels_are_whole(name):
    for label, control in controls(explore(name)).items():
        assert control.style.description_width == "initial", f"{label!r} is cut where it is longer than others"


@pytest.mark.parametrize("value", [-3, 0, 513])
def test_a_number_that_cannot_be_is_said_and_not_changed(value):
    shown = explore("diverging-insert")
    before, size = shown.children[2].trace, controls(shown)["page size"]
    size.value = value
    assert size.value == value
    assert f"page size: expected a whole number from 1 to 512, got {value}" in shown.children[1].value
    assert shown.children[2].trace == before
    size.value = 3
    assert shown.children[1].value == ""


def test_a_seed_may_be_large_and_not_negative():
    shown = explore("rejection")
    seed = controls(shown)["seed"]
    seed.value = 2**40
    assert shown.children[1].value == ""
    seed.value = -1
    assert "seed must be a whole number of at least 0" in shown.children[1].value
