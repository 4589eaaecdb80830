"""Every right rule has the target's law, exactly, and costs what the papers say."""

import random
import warnings
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.lab.exactness.enumerate import second_winner
from inference_opt.lab.exactness.exact import joint_law, output_law, step_law
from inference_opt.lab.exactness.proposals import branching, siblings
from inference_opt.sampling import CommonNoise, Noise
from inference_opt.speculative import cost, rules
from inference_opt.speculative.coupled_tree import coupled_tree
from inference_opt.speculative.traversal import traversal


def random_model(seed, vocab, point=False):
    """Laws behind every prefix: small rationals, zeros among them; or all on one token."""

    @lru_cache(None)
    def law(prefix):
        rng = random.Random(f"{seed} {prefix}")
        weights = [0 if rng.random() < 0.3 else rng.randint(1, 6) for _ in range(vocab)]
        if point or not any(weights):
            weights = [0] * vocab
            weights[rng.randrange(vocab)] = 1
        return tuple(Fraction(w, sum(weights)) for w in weights)

    return law


RIGHT = {
    "token_wise": (rules.token_wise, None),
    "block": (rules.block, None),
    "coupled": (rules.coupled, None),
    "point_mass": (rules.point_mass, None),
    "multi_draft without replacement": (rules.multi_draft, siblings(False)),
    "multi_draft with replacement": (rules.multi_draft, siblings(True)),
    "tree without replacement": (rules.tree, branching(2, False)),
    "tree with replacement": (rules.tree, branching(2, True)),
    "coupled_tree": (coupled_tree, branching(2, False)),
    "traversal": (traversal, branching(2, False)),
}
# Vocabulary, gamma, length: texts of more than one step, sizes that enumeration can do.
SIZES = st.sampled_from(
    [(1, 2, 3), (2, 0, 3), (2, 1, 4), (2, 2, 4), (2, 3, 5), (2, 4, 5), (3, 1, 3), (3, 2, 3), (4, 1, 2)]
)
LARGE = {"token_wise": (4, 4, 3), "block": (3, 4, 3), "coupled": (3, 3, 3), "point_mass": (4, 4, 5)}


@pytest.mark.parametrize("name", RIGHT)
@given(sizes=SIZES, seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_the_law_of_a_text_is_the_target_s(name, sizes, seeds):
    (vocab, gamma, length), (rule, propose) = sizes, RIGHT[name]
    if rule in (rules.tree, coupled_tree, traversal):
        gamma, length = min(gamma, 2), min(length, 3)
    target, draft = random_model(seeds[0], vocab), random_model(seeds[1], vocab, point=rule is rules.point_mass)
    assert output_law(target, draft, gamma, rule, length, propose) == joint_law(target, length)


@pytest.mark.parametrize("name", LARGE)
def test_the_law_of_a_text_at_the_larger_sizes(name):
    (vocab, gamma, length), (rule, propose) = LARGE[name], RIGHT[name]
    target, draft = random_model(1, vocab), random_model(2, vocab, point=rule is rules.point_mass)
    assert output_law(target, draft, gamma, rule, length, propose) == joint_law(target, length)


@pytest.mark.parametrize("name", [name for name in RIGHT if name != "point_mass"])
def test_a_draft_that_is_the_target(name):
    rule, propose = RIGHT[name]
    target = random_model(5, 3)
    gamma = 2
    assert output_law(target, target, gamma, rule, 3, propose) == joint_law(target, 3)
    if rule in (rules.token_wise, rules.block, rules.coupled):
        assert all(len(emitted) == gamma + 1 for emitted in step_law(target, target, gamma, rule)), "all are accepted"


def a_tree(data, vocab, depth):
    """{path: candidates that differ} of any tree."""
    tokens, level = {}, [()]
    for at in range(depth + 1):
        for path in level:
            tokens[path] = sorted(data.draw(st.sets(st.integers(0, vocab - 1)))) if at < depth else []
        level = [(*path, x) for path in level for x in tokens[path]]
    return tokens


@given(st.data(), st.integers(1, 3), st.integers(0, 3), st.integers(0, 99), st.integers(0, 9))
def test_a_coupled_tree_emits_what_the_seed_gives_without_drafts_as_far_as_the_tree_holds_it(data, v, depth, seed, at):
    model, tokens = random_model(seed, v), a_tree(data, v, depth)

    def behind(path):
        return np.array([float(w) for w in model(path)])

    emitted = coupled_tree({path: behind(path) for path in tokens}, None, tokens, CommonNoise(seed, at))
    text = ()
    while len(text) < len(emitted):
        text = (*text, Noise(seed, at + len(text)).choose(behind(text), 0))
    assert tuple(emitted) == text
    assert text[:-1] in tokens, "it ends behind the first token that the tree does not hold, and not before"
    assert text not in tokens


@given(st.integers(2, 4), st.integers(0, 4), st.integers(0, 1), st.integers(0, 99))
def test_a_coupled_tree_of_width_one_is_coupled(vocab, right, wrong, seed):
    """The chain is what the target draws for so many tokens, and goes on with another."""
    model, chain, ps = random_model(seed, vocab), [], []
    for i in range(right + 1):
        ps.append(np.array([float(w) for w in model(tuple(chain))]))
        chain.append(Noise(seed, i).choose(ps[i], 0))
    chain = chain[:right] + [(chain[-1] + 1) % vocab] * wrong
    ps += ps[-1:] * wrong
    tokens = {tuple(chain[:i]): chain[i : i + 1] for i in range(len(chain) + 1)}
    emitted = coupled_tree(dict(zip(tokens, ps)), None, tokens, CommonNoise(seed, 0))
    assert emitted == rules.coupled(ps, [], chain, CommonNoise(seed, 0))
    assert len(emitted) == right + 1


def test_traversal_of_a_chain_is_block():
    for seed in range(10):
        target, draft = random_model(seed, 3), random_model(seed + 100, 3)
        law = step_law(target, draft, 3, traversal, (), branching(1))
        assert law == step_law(target, draft, 3, rules.block)


def accepted(target, draft, gamma, rule):
    return sum(p * (len(emitted) - 1) for emitted, p in step_law(target, draft, gamma, rule).items())


@given(st.sampled_from([(2, 2), (2, 4), (3, 2), (3, 3)]), st.integers(0, 999), st.integers(0, 999))
def test_the_block_rule_accepts_no_fewer(sizes, a, b):
    vocab, gamma = sizes
    target, draft = random_model(a, vocab), random_model(b, vocab)
    assert accepted(target, draft, gamma, rules.block) >= accepted(target, draft, gamma, rules.token_wise)


def test_the_block_rule_on_its_paper_s_example():
    def target(prefix):
        return Fraction(1, 3), Fraction(2, 3)

    def draft(prefix):
        return Fraction(2, 3), Fraction(1, 3)

    assert accepted(target, draft, 2, rules.token_wise) == Fraction(10, 9)
    assert accepted(target, draft, 2, rules.block) == Fraction(11, 9)


@given(st.integers(2, 4), st.integers(0, 999), st.integers(0, 999))
def test_races_with_common_noise_have_the_right_marginals(vocab, a, b):
    q, p = (np.array(random_model(seed, vocab)(()), dtype=object) for seed in (a, b))
    joint = {i: second_winner(q, i, p) for i in np.flatnonzero(q).tolist()}
    for i, weights in joint.items():
        assert sum(weights) == q[i]
    assert [sum(weights[j] for weights in joint.values()) for j in range(vocab)] == list(p)


def test_races_agree_with_the_noise_that_the_engine_draws():
    q, p = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    exact = [Fraction(w).limit_denominator() for w in q], [Fraction(w).limit_denominator() for w in p]
    pairs = [(Noise(s, 0).choose(q, 0), Noise(s, 0).choose(p, 0)) for s in range(4000)]
    for i in range(3):
        weights = second_winner(np.array(exact[0], dtype=object), i, np.array(exact[1], dtype=object))
        for j in range(3):
            share = sum(pair == (i, j) for pair in pairs) / len(pairs)
            assert (
                abs(share - float(weights[j])) < 4 * 0.5 / len(pairs) ** 0.5
            )  # four standard errors, and seeds are fixed


@given(
    st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.sampled_from(["token_wise", "block", "point_mass"])
)
def test_floats_and_fractions_take_the_same_turns(a, b, seed, name):
    rule = RIGHT[name][0]
    target, draft = random_model(a, 4), random_model(b, 4, point=rule is rules.point_mass)
    text, tokens, laws = (), [], []
    for i in range(3):
        laws.append(np.array(draft(text), dtype=object))
        tokens.append(Noise(seed, 0, 1).choose(laws[-1].astype(float), i))
        text = (*text, tokens[-1])
    read = [np.array(target(text[:i]), dtype=object) for i in range(4)]

    class Exact:  # the engine's numbers, taken as rationals
        def uniform(self, i):
            return Fraction(Noise(seed, 0).uniform(i))

        def choose(self, weights, i):
            return Noise(seed, 0).choose(np.array(weights, dtype=float), i)

    floats = rule([p.astype(float) for p in read], [q.astype(float) for q in laws], tokens, Noise(seed, 0))
    assert floats == rule(read, laws, tokens, Exact())


def test_a_draw_of_zero_admits_no_token_of_probability_zero():
    """`u <= p/q` with u = 0 (older vLLM and SGLang kernels)."""

    class Nought:
        def uniform(self, i):
            return 0.0

        def choose(self, weights, i):
            return int(np.argmax(weights))

    p, q = np.array([0.0, 1.0]), np.array([0.5, 0.5])
    for rule in (rules.token_wise, rules.block, rules.point_mass):
        assert rule([p, p], [q], [0], Nought()) == [1]
    assert rules.multi_draft([p, p, p], [q], [0], Nought()) == [1]
    assert rules.tree({(): p, (0,): p}, {(): [q]}, {(): [0], (0,): []}, Nought()) == [1]


@given(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9))
def test_expected_tokens_a_step_where_acceptance_is_independent(gamma, a, b):
    """Laws that do not depend on the prefix: β is constant, and the formula is exact."""
    p, q = (Fraction(a, a + b), Fraction(b, a + b)), (Fraction(1, 2), Fraction(1, 2))
    alpha = sum(map(min, p, q))
    law = step_law(lambda _: p, lambda _: q, gamma, rules.token_wise)
    assert sum(w * len(emitted) for emitted, w in law.items()) == cost.expected_tokens(alpha, gamma)


@pytest.mark.parametrize(
    ("alpha", "gamma", "operations", "speed"),
    [
        (0.6, 2, 1.53, 1.96),
        (0.7, 3, 1.58, 2.53),
        (0.8, 2, 1.23, 2.44),
        (0.8, 5, 1.63, 3.69),
        (0.9, 2, 1.11, 2.71),
        (0.9, 10, 1.60, 6.86),
    ],
)
def test_the_paper_s_first_table(alpha, gamma, operations, speed):
    assert abs(cost.operations(alpha, gamma, 0) - operations) < 0.006
    assert abs(cost.speedup(alpha, gamma, 0) - speed) < 0.006


@pytest.mark.parametrize(
    ("c", "best"),
    [
        ("0.01", [5, 7, 9, 14, 24]),
        ("0.02", [4, 6, 8, 11, 19]),
        ("0.05", [3, 4, 6, 8, 13]),
        ("0.1", [2, 3, 4, 6, 10]),
        ("0.2", [1, 2, 3, 4, 7]),
    ],
)
def test_the_best_length_by_theorem_3_8_in_exact_numbers(c, best):
    """Of α = 0.5 … 0.9: the γ that maximises (1 − α^(γ+1)) / ((1 − α)(γ c + 1)), found by looking at all up to 40."""
    for alpha, gamma in zip(("0.5", "0.6", "0.7", "0.8", "0.9"), best):
        assert cost.best_gamma(float(alpha), float(c), 40) == gamma
        assert cost.best_gamma(Fraction(alpha), Fraction(c), gamma - 1) == gamma - 1, "the gain grows up to there"


@given(st.floats(0, 1), st.floats(0, 2), st.integers(0, 12))
def test_there_is_a_gain_exactly_if_drafts_are_accepted_more_often_than_they_cost(alpha, c, most):
    best = cost.best_gamma(alpha, c, most)
    assert 0 <= best <= most
    assert (best > 0) == (most > 0 and cost.speedup(alpha, 1, c) > 1)


@given(st.fractions(0, 1, max_denominator=9), st.fractions(0, 2, max_denominator=9), st.integers(0, 8))
def test_the_best_draft_length_gains_most_of_all(alpha, c, most):
    """Theorem 3.8 without its closed form: each way that a draft may end, by its probability."""
    gains = []
    for gamma in range(most + 1):
        ends = [(alpha**kept * (1 - alpha), kept + 1) for kept in range(gamma)] + [(alpha**gamma, gamma + 1)]
        assert sum(p for p, _ in ends) == 1
        gains.append(sum(p * tokens for p, tokens in ends) / (gamma * c + 1))
        assert cost.speedup(alpha, gamma, c) == gains[-1]
    assert gains[cost.best_gamma(alpha, c, most)] == max(gains)


def test_what_has_no_law_or_no_cost():
    def none(prefix):
        return Fraction(1, 2), Fraction(1, 3)

    right = random_model(0, 2)
    with pytest.raises(ValueError, match="sum to one"):
        joint_law(none, 1)
    with pytest.raises(ValueError, match="sum to one"):
        output_law(right, none, 1, rules.multi_draft, 1)
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        output_law(right, right, -1, rules.token_wise, 1)
    with pytest.raises(ValueError, match="length must be at least 0"):
        output_law(right, right, 1, rules.token_wise, -1)
    for call, message in (
        (lambda: cost.expected_tokens(1.5, 1), "alpha"),
        (lambda: cost.expected_tokens(0.5, -1), "gamma"),
        (lambda: cost.speedup(0.5, 1, -0.1), "cost"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("q", [5e-324, 1e-310, 1e-300])
def test_a_draft_whose_probability_is_next_to_nothing_is_kept_without_a_warning(q):
    target, draft = [np.array([0.5, 0.5])] * 2, [np.array([1 - q, q])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rule in (rules.token_wise, rules.block):
            assert rule(target, draft, [1], Noise(0, 3))[0] == 1
        assert rules.multi_draft([np.array([0.5, 0.5])] * 2, draft, [1], Noise(0, 3))[0] == 1
    assert rules.ratio(q, 0.5) == q / 0.5
    assert rules.ratio(0.5, q) == rules.ratio(q, q) == 1
