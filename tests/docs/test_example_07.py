"""The example of chapter 07, p = (.5, .3, .2) and q = (.4, .35, .25): every number in the text is computed here."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from inference_opt.lab.exactness import mutants
from inference_opt.lab.exactness.exact import output_law, step_law
from inference_opt.lab.exactness.proposals import siblings, target_along
from inference_opt.speculative import rules

CHAPTER = Path(__file__).resolve().parents[2] / "chapters" / "07_exactness.md"
TOKEN = re.compile(r"`([abc](?: [abc])*)`|<code>([abc](?: [abc])*)</code>")  # as it is set in the text
TEXT = TOKEN.sub(lambda match: match[1] or match[2], " ".join(CHAPTER.read_text(encoding="utf-8").split()))
P, Q = (np.array([Fraction(n, 20) for n in row], dtype=object) for row in ((10, 6, 4), (8, 7, 5)))
A, B, C = range(3)
UNSURE = Fraction(3, 10)


def target(text):
    return tuple(P)


def draft(text):
    return tuple(Q)


def dec(number):
    """0.05, 0.345: a decimal as the chapter writes it."""
    return f"{float(number):.3f}".rstrip("0").rstrip(".")


def row(numbers):
    """(0.1, 0, 0)."""
    return f"({', '.join(map(dec, numbers))})"


def distance(a, b):
    return sum(abs(x - y) for x, y in zip(a, b)) / 2


def first(law):
    """The distribution of the first token that a step emits."""
    return [sum(weight for emitted, weight in law.items() if emitted[0] == x) for x in (A, B, C)]


def kept(rule, gamma, propose=None):
    return sum((len(emitted) - 1) * w for emitted, w in step_law(target, draft, gamma, rule, (), propose).items())


class Given:
    """Uniform numbers that are given, and the weights of the draw that follows."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def uniform(self, i):
        return Fraction(self.numbers[i - 1])

    def choose(self, weights, i):
        self.weights = weights
        return int(np.argmax(weights))


def walk(*tokens):
    """(w_1, S_1, h_1, w_2) of block verification, by its definition."""
    w_1 = min(1, P[tokens[0]] / Q[tokens[0]])
    excess = np.maximum(w_1 * P - Q, 0).sum()
    w_2 = min(1, w_1 * P[tokens[1]] / Q[tokens[1]])
    return w_1, excess, excess / (excess + 1 - w_1), w_2


def passes(u_1, u_2, *tokens):
    """What `block` emits of two drafts, and the weights that its last token is drawn from."""
    rng = Given(u_1, u_2)
    return rules.block([P, P, P], [Q, Q], tokens, rng), rng.weights


def expected():
    """Pieces of the chapter's text, each with numbers that are computed."""
    both, residual = np.minimum(P, Q), rules.residual(P, Q)
    wrong = first(step_law(target, draft, 1, mutants.no_residual))
    assert first(step_law(target, draft, 1, rules.token_wise)) == list(P)
    yield f"$p = {row(P)}$ and $q = {row(Q)}$"
    for name, cells in (
        ("target $p$", P),
        ("draft $q$", Q),
        (r"drafted and accepted, $\min(p, q)$", both),
        ("drafted and rejected, $(q - p)^+$", np.maximum(Q - P, 0)),
        ("residual, $(p - q)^+$", residual),
        ("emitted: accepted, or drawn from the residual", both + residual),
        ("*wrong*: accepted, or drawn from $p$", wrong),
    ):
        yield f"| {name} | {' | '.join(map(dec, [*cells, sum(cells)]))} |"
    yield f"accepted with probability {dec(both.sum())}. A rejection always emits a"
    yield f"a gets only {dec(both[A])} + {dec(residual.sum())} · {dec(P[A])} = {dec(wrong[A])}."
    yield f"it is ({' + '.join(dec(abs(x)) for x in P - wrong)})/2 = {dec(distance(P, wrong))}"
    yield f"it is ({' + '.join(dec(abs(x)) for x in P - Q)})/2 = {dec(distance(P, Q))}"
    assert distance(P, Q) == 1 - both.sum()
    # Found, not drawn
    yield f"b is emitted with probability {dec(P[B])}. Otherwise, with probability {dec(1 - P[B])}, a is drawn"
    yield f"with probability {dec(P[A])}/{dec(1 - P[B])} and c with probability {dec(P[C])}/{dec(1 - P[B])}"
    # Two candidates, b first
    missing = residual / residual.sum()
    left = np.array([Q[A], 0, Q[C]])
    yield f"$p' = {row(missing)}$"
    yield f"$({dec(left[A])}, 0, {dec(left[C])})/{dec(left.sum())}$"
    assert missing[A] >= left[A] / left.sum()
    one, two = kept(rules.multi_draft, 1, siblings()), kept(rules.multi_draft, 2, siblings())
    yield f"accepted with probability {dec(one)}. With two, one of them is accepted with probability {dec(two)}"
    # The walk
    w, s, h, w_a = walk(B, A)
    *_, w_c = walk(B, C)
    yield f"| 1 | b | min(1, 1 · 0.3/0.35) = {w} | {w} · 0.5 − 0.4 = {s} | ({s}) / ({s} + {1 - w}) = {h} |"
    yield f"| 2 | a | min(1, {w} · 0.5/0.4) = {w_a} | – | $w_2$ = {w_a} |"
    yield f"| 2 | c | min(1, {w} · 0.2/0.25) = {w_c} | – | $w_2$ = {w_c} |"
    yield f"Token-wise keeps it with probability {min(1, P[B] / Q[B]) * min(1, P[A] / Q[A])}, because it rejects b"
    yield f"it rejects b with probability {1 - P[B] / Q[B]} before"
    assert passes("0.999", "0.999", B, A)[0][:2] == [B, A]
    u_1, u_2, other = "0.1", "0.7", "0.5"
    emitted, weights = passes(u_1, u_2, B, C)
    yield f"take $u_1 = {u_1}$ and $u_2 = {u_2}$"
    assert emitted == [B, A]
    yield rf"$u_2 \ge {w_c} \approx {dec(w_c)}$"
    yield f"$u_1 < {h}$"
    yield rf"$(w_1\,p - q)^+ = ({', '.join(map(str, weights))})$"
    yield f"With $u_1 = {other}$ and the same $u_2$, nothing passes"
    emitted, weights = passes(other, u_2, B, C)
    assert emitted == [A]
    yield rf"$(w_0\,p - q)^+ = {row(weights)}$"
    yield f"keeps {dec(kept(rules.block, 2))} of two drafts here, token-wise {dec(kept(rules.token_wise, 2))}"
    yield f"{h} + {1 - h} · ({w} − {s}) = {h + (1 - h) * (w - s)} = $w_1$"
    yield f"target $(1, 0, 0)$ and the weight {s / (s + 1 - w)}"
    # Sample and match
    yield f"in the example {dec((P * Q).sum())} instead of {dec(both.sum())}"


def answers():
    """The same, of the six questions."""
    p, q = (np.array([Fraction(n, 10) for n in numbers], dtype=object) for numbers in ((6, 3, 1), (3, 3, 4)))
    wrong = first(step_law(lambda _: tuple(p), lambda _: tuple(q), 1, mutants.no_residual))
    both = np.minimum(p, q)
    yield f"p = {row(p)} and q = {row(q)}. With what probability"
    yield f"min(p, q) = {row(both)}, so {dec(both.sum())}"
    yield f"{dec(1 - both.sum())} · p = {row((1 - both.sum()) * p)} and emits {row(wrong)}"
    yield f"differences from p are {dec(p[0] - wrong[0])}, {dec(wrong[1] - p[1])} and {dec(wrong[2] - p[2])}"
    yield f"half of their sum is {dec(distance(p, wrong))}"
    yield f"adds the residual {row(rules.residual(p, q))}"
    twice = [(B, B)]
    one = sum(w for e, w in step_law(target, draft, 2, mutants.one_uniform).items() if e[:2] in twice and len(e) == 3)
    own = sum(w for e, w in step_law(target, draft, 2, rules.token_wise).items() if e[:2] in twice and len(e) == 3)
    yield f"kept with probability {one / Q[B] ** 2} instead of {own / Q[B] ** 2}"
    w, s, h, w_2 = walk(C, A)
    assert (s, h, w_2) == (0, 0, 1)
    yield f"w₁ = {dec(P[C])}/{dec(Q[C])} = {dec(w)}"
    yield f"{dec(w)} · {dec(P[A])} − {dec(Q[A])} = 0, so S₁ = {s} and h₁ = {h}"
    yield f"w₂ = min(1, {dec(w)} · {dec(P[A])}/{dec(Q[A])}) = {w_2}"
    yield f"rejects c with probability {dec(1 - w)}, and keeps both only with probability {dec(w)}"
    yield f"If its q is below {dec(UNSURE)}, it drops the token"
    yield f"Only c has a q below {dec(UNSURE)}"
    assert [x for x in (A, B, C) if Q[x] < UNSURE] == [C]
    dropped = first(step_law(target, draft, 1, rules.token_wise, (), dropping))
    yield f"dropped with probability {dec(Q[C])}; this adds {dec(Q[C])} · p = {row(Q[C] * P)}"
    yield f"{dec(min(P[A], Q[A]))} and {dec(min(P[B], Q[B]))} are accepted, and the rejections of b, {dec(Q[B] - P[B])}"
    yield f"The sum is {row(dropped)}"
    assert P[C] / dropped[C] == 4


def dropping(target, draft, prefix, gamma, choose):
    """One draft; if it is unsure, it is dropped."""
    x = choose(Q, 0)
    tokens = [] if Q[x] < UNSURE else [x]
    return target_along(target, prefix, tokens), [Q] * len(tokens), tokens


@pytest.mark.parametrize("piece", [*expected(), *answers()])
def test_the_text_has_the_numbers_that_are_computed(piece):
    assert piece in TEXT


def test_every_rule_of_the_example_is_exact():
    for rule in (rules.token_wise, rules.block, rules.multi_draft, rules.coupled):
        law = output_law(target, draft, 2, rule, 2)
        assert law == {(x, y): P[x] * P[y] for x in (A, B, C) for y in (A, B, C)}
