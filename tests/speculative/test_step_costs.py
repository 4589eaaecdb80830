"""Lengths that pay are found from what steps took, and those that do not are left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.speculative.cost import expected_tokens
from inference_opt.speculative.step_costs import AGAIN, LENGTHS, StepCosts

PRICES = st.lists(st.floats(1, 4), min_size=len(LENGTHS) - 1, max_size=len(LENGTHS) - 1)


def run(costs, prices, alphas, wanted, steps):
    """Choose and measure so many times: the lengths chosen."""
    chosen = []
    for _ in range(steps):
        chosen.append(costs.best(alphas, wanted))
        costs.learn(len(alphas), chosen[-1], prices[chosen[-1]])
    return chosen


@given(PRICES, st.lists(st.floats(0, 0.99), min_size=1, max_size=5), st.integers(1, 12))
def test_it_settles_where_tokens_a_second_are_most_of_what_it_tried(prices, alphas, most):
    costs, price = StepCosts(), dict(zip(LENGTHS, [1.0, *prices]))
    wanted = [most] * len(alphas)
    chosen = run(costs, price, alphas, wanted, AGAIN)
    rate = {each: sum(expected_tokens(alpha, min(each, most)) for alpha in alphas) / price[each] for each in LENGTHS}
    assert chosen[0] == chosen[-1] == 0, "plain decoding first, and again"
    assert max(chosen) <= most
    assert rate[chosen[-2]] == max(rate[each] for each in set(chosen))
    assert rate[chosen[-2]] >= rate[0], "it never settles below plain decoding"


def test_a_length_that_costs_too_much_is_tried_once_and_sizes_of_batches_are_apart():
    costs, price = StepCosts(), {each: 1.0 if each == 0 else 5.0 for each in LENGTHS}
    chosen = run(costs, price, [0.8], [12], AGAIN - 1)
    assert sorted(set(chosen)) != [0], "it tried"
    assert all(chosen.count(each) == 1 for each in set(chosen) - {0})
    assert costs.best([0.8, 0.8], [12, 12]) == 0, "of two texts nothing is known"
    free = dict.fromkeys(LENGTHS, 1.0)
    assert run(costs, free, [0.8] * 3, [12] * 3, 9)[-1] == 12
    assert costs.best([0.8], [12]) == 0 == chosen[-1]


def test_texts_that_want_no_drafts_are_counted_as_they_are():
    costs = StepCosts()
    run(costs, {each: 1 + 0.4 * (each > 0) for each in LENGTHS}, [0.9, 0.9], [4, 4], 9)
    assert costs.best([0.9, 0.9], [4, 4]) == 4
    assert costs.best([0.9, 0.0], [4, 0]) == costs.best([0.0, 0.9], [0, 4])
    assert costs.of(2, 4) == pytest.approx(1.4)
