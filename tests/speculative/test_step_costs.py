"""What steps cost: as measured, as compared for nobody, or as the nearest that is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.speculative.acceptance import LENGTHS
from inference_opt.speculative.step_costs import KEPT, LOOKS, UNTRIED, StepCosts

SECONDS = st.floats(1e-4, 1e-1)


@given(st.lists(SECONDS, min_size=1, max_size=20), st.integers(1, 64), st.sampled_from(LENGTHS))
def test_a_price_is_the_median_of_the_latest_and_one_slow_step_does_not_change_it(seconds, texts, gamma):
    costs = StepCosts()
    costs.learn(texts, 0, 1.0)
    for each in seconds:
        costs.learn(texts, gamma, each)
    latest = ([1.0] * (gamma == 0) + seconds)[-KEPT:]
    assert min(latest) <= costs.of(texts, gamma) <= max(latest)
    if len(latest) > 2:
        costs.learn(texts, gamma, 1e9)
        assert costs.of(texts, gamma) <= max(latest[1 - KEPT :])


@given(SECONDS, SECONDS, SECONDS, st.sampled_from(LENGTHS[1:]))
def test_a_step_of_nobody_tells_how_prices_compare_until_one_is_measured(plain, idle, idle_draft, gamma):
    costs = StepCosts()
    assert not costs.known(3, gamma)
    costs.calibrate(4, 0, idle)
    costs.calibrate(3, gamma, idle_draft)  # three texts run in the steps of four
    assert costs.known(4, gamma)
    assert not costs.measured(4, gamma)
    costs.learn(4, 0, plain)
    assert costs.of(3, gamma) == pytest.approx(plain * max(idle_draft / idle, 1))
    costs.learn(3, gamma, 7.0)
    assert costs.of(4, gamma) == 7.0
    assert not costs.measured(2, 0), "sizes of batches are apart"


def test_an_unknown_length_costs_little_more_than_the_nearest_that_is_known():
    costs = StepCosts()
    assert costs.of(1, 3) == 1 + 3 * UNTRIED
    costs.learn(1, 0, 2.0)
    assert costs.of(1, 12) == pytest.approx(2 * (1 + 12 * UNTRIED))
    costs.learn(1, 7, 5.0)
    assert costs.of(1, 12) == pytest.approx(5 * (1 + 12 * UNTRIED) / (1 + 7 * UNTRIED))
    assert costs.all(1)[0] == 2.0
    assert costs.of(1, 3) == pytest.approx(2 + 3 * 3 / 7), "between two that are known"


@given(st.sampled_from([(1, 8), (8, 1), (2, 4), (64, 2)]), st.floats(1, 4), st.sampled_from(LENGTHS[1:]))
def test_batches_of_other_sizes_show_the_least_that_a_length_may_cost(sizes, price, gamma):
    here, there = sizes
    costs = StepCosts()
    costs.learn(here, 0, 2.0)
    costs.learn(there, 0, 5.0)
    costs.calibrate(there, 0, 4.0)
    costs.calibrate(there, gamma, 4.0 * price)
    least = 1 + (price - 1) * min(here / there, 1)
    assert costs.of(here, gamma) == pytest.approx(2 * max(least, 1 + UNTRIED * gamma))
    costs.learn(here, gamma, 0.5)
    assert costs.of(here, gamma) == 0.5, "what is measured counts"


def test_a_look_is_the_usual_one_of_its_kind_and_size():
    costs = StepCosts()
    assert costs.look(3, True) == 0.0
    for seconds in (2.0, 900.0, 2.5):
        costs.learn_look(4, False, seconds)
    assert costs.look(3, False) == costs.look(3, True) == 2.0, "slow ones do not count"
    assert costs.look(1, False) == 0.0, "sizes of batches are apart"
    costs.learn_look(4, True, 7.0)
    assert (costs.look(3, False), costs.look(3, True)) == (2.0, 7.0)
    for _ in range(LOOKS):
        costs.learn_look(4, False, 1.0)
    assert costs.look(3, True) == 1.0, "what was long ago is forgotten"


@given(st.lists(st.integers(0, 99), min_size=1, max_size=9), st.booleans(), st.integers(1, 40))
def test_texts_are_done_when_plain_steps_have_decoded_them(lefts, measured, most):
    """Step by step: each costs what it costs for those that are left."""
    costs, n = StepCosts(), len(lefts)
    costs.learn(n, 0, 2.0)
    costs.learn_look(n, False, 5.0)
    prices = dict.fromkeys(range(1, n + 1), 2.0)
    if measured and n > 2:
        costs.learn(2, 0, 0.5)
        prices |= {1: 0.5, 2: 0.5}  # what is not measured costs what more texts cost
    steps = sum(prices[sum(left > step for left in lefts)] for step in range(max(lefts)))
    looks = max(max(lefts) / most, 1) if max(lefts) else 0
    assert costs.until_done(np.array([lefts, lefts], dtype=float), most) == pytest.approx([steps + 5 * looks] * 2)
