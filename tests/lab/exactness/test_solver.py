"""For all real p and q: z3 runs the rules' own code on symbols, and finds no laws that break it."""

from fractions import Fraction

import pytest
import z3

from inference_opt.lab.exactness import mutants
from inference_opt.lab.exactness.exact import output_law, total_variation
from inference_opt.lab.exactness.solver import counterexample, solve
from inference_opt.speculative import rules


def found(q, world):
    """A token that was not drawn."""
    return [], [0]


def with_replacement(q, world):
    return [q, q], [world.choose(q, 0), world.choose(q, 1)]


def without_replacement(q, world):
    x = world.choose(q, 0)
    rest = q.copy()
    rest[x] = 0
    if not rest.any():
        return [q], [x]
    return [q, rest / rest.sum()], [x, world.choose(rest, 1)]


@pytest.mark.parametrize(
    ("rule", "vocab", "draft"),
    [
        (rules.token_wise, 2, None),
        (rules.token_wise, 3, None),
        (rules.block, 2, None),
        (rules.point_mass, 2, found),
        (rules.point_mass, 3, found),
        (rules.multi_draft, 2, with_replacement),
        (rules.multi_draft, 2, without_replacement),
    ],
)
def test_no_laws_break_a_right_rule(rule, vocab, draft):
    assert counterexample(rule, vocab, draft) is None


@pytest.mark.parametrize("rule", [mutants.no_residual, mutants.lenient, mutants.typical, mutants.accept_all])
def test_the_solver_finds_laws_that_break_a_wrong_rule(rule):
    p, q = counterexample(rule, 2)
    assert sum(p) == sum(q) == 1
    assert min(p + q) >= 0
    law = output_law(lambda _: p, lambda _: q, 1, rule, 1)  # and enumeration agrees that they do
    assert total_variation(law, {(x,): w for x, w in enumerate(p)}) > 0


def test_what_two_tokens_hide_three_show():
    """EAGLE#20 again: with two tokens what is left is the other one, whatever is subtracted."""
    assert counterexample(mutants.residual_at_the_token, 2) is None
    p, q = counterexample(mutants.residual_at_the_token, 3)
    assert output_law(lambda _: p, lambda _: q, 1, mutants.residual_at_the_token, 1) != {
        (x,): w for x, w in enumerate(p) if w
    }


@pytest.mark.parametrize("vocab", [2, 3, 8, 32])
def test_the_linear_form(vocab):
    """min(p, q) + (p − q)⁺ = p, and so Σ (p − q)⁺ = 1 − Σ min(p, q), without a division."""
    p, q = ([z3.Real(f"{name}_{x}") for x in range(vocab)] for name in "pq")
    laws = [z3.Sum(p) == 1, z3.Sum(q) == 1, *(w >= 0 for w in p + q)]
    accepted = [z3.If(a < b, a, b) for a, b in zip(p, q)]
    left = [z3.If(a > b, a - b, 0) for a, b in zip(p, q)]
    assert solve(*laws, z3.Or([a + b != c for a, b, c in zip(accepted, left, p)])) is None
    # What was just shown of each token is all that the sum needs.
    m, r = ([z3.Real(f"{name}_{x}") for x in range(vocab)] for name in "mr")
    assert solve(*laws, *(a + b == c for a, b, c in zip(m, r, p)), z3.Sum(r) != 1 - z3.Sum(m)) is None
    # A rejection without anything left to draw from: p < q somewhere, p > q nowhere. There is none.
    assert solve(*laws, z3.Or([a < b for a, b in zip(p, q)]), *(a <= b for a, b in zip(p, q))) is None


def test_the_solver_can_say_no():
    assert solve(z3.Real("x") * z3.Real("x") == 2) is not None
    assert solve(z3.Real("x") * z3.Real("x") == -1) is None
    a, b, c = z3.Ints("a b c")
    with pytest.raises(RuntimeError, match="gives up"):
        solve(a > 0, b > 0, c > 0, a * a * a + b * b * b == c * c * c, seconds=0.1)


def test_the_numbers_it_shows_are_rationals():
    p, _ = counterexample(mutants.no_residual, 2)
    assert all(isinstance(w, Fraction) for w in p)
