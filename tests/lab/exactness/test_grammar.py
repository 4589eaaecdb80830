"""What masked speculation samples, by enumeration; and the conditional law, by dynamic programming and by counting."""

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.lab.exactness.exact import joint_law, output_law, total_variation
from inference_opt.lab.exactness.grammar import (
    DONE,
    END,
    GRAMMARS,
    LENGTH,
    MASKED,
    Automaton,
    Matcher,
    conditional,
    locally,
    masked_chain,
    measure,
)
from inference_opt.lab.exactness.mutants import as_is, chain_of
from inference_opt.lab.exactness.zoo import DRAFT, TARGET, table
from inference_opt.speculative import rules

automata = pytest.mark.parametrize("automaton", GRAMMARS.values(), ids=GRAMMARS)


def said(model, text):
    """The probability of a text, up to its end and no further."""
    probability = Fraction(1)
    for i, x in enumerate(text[: text.index(END) + 1]):
        probability *= model(text[:i])[x]
    return probability


def by_counting(model, fits):
    """The conditional law, in the plainest way: every text, kept if it fits, divided by the sum."""
    texts = {t + (END,) * (LENGTH - len(t)) for n in range(LENGTH) for t in product((0, 1), repeat=n) if fits(t)}
    law = {t: said(model, t) for t in texts}
    return {t: w / sum(law.values()) for t, w in law.items()}


def balanced(text):
    depths = [sum(1 if x == 0 else -1 for x in text[:i]) for i in range(len(text) + 1)]
    return min(depths) == 0 == depths[-1]


FITS = {
    "an even number of 0": lambda text: text.count(0) % 2 == 0,
    "brackets": balanced,
    "a word or a keyword": lambda text: text in ((0,), (1, 0, 1, 1)),
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_dynamic_programming_gives_what_counting_gives(name):
    right = by_counting(TARGET, FITS[name])
    assert joint_law(conditional(TARGET, GRAMMARS[name]), LENGTH) == right
    last = joint_law(conditional(TARGET, GRAMMARS[name], look=lambda text: text[-1:]), LENGTH)
    assert last == right, "the model looks at the last token alone"


@automata
def test_masked_speculation_samples_the_masked_model(automaton):
    local = joint_law(locally(TARGET, automaton), LENGTH)
    right = joint_law(conditional(TARGET, automaton), LENGTH)
    for rule in (rules.token_wise, rules.block, rules.coupled):
        law = output_law(TARGET, DRAFT, 2, rule, LENGTH, propose=masked_chain(automaton))
        assert law == local
        assert law == output_law(locally(TARGET, automaton), locally(DRAFT, automaton), 2, rule, LENGTH)
    assert total_variation(local, right) > Fraction("0.3")


@automata
def test_speculation_on_the_conditional_model_is_exact(automaton):
    measured = measure(automaton, TARGET, DRAFT)
    assert measured.speculation_is_local
    assert measured.speculation_is_exact
    assert 0 < measured.fits < 1


def test_total_variations():
    shown = {name: (round(float(m.fits), 4), round(float(m.bias), 4)) for name, m in measured().items()}
    assert shown == {
        "an even number of 0": (0.5092, 0.3865),
        "brackets": (0.3488, 0.3273),
        "a word or a keyword": (0.1545, 0.3459),
    }


def measured():
    return {name: measure(automaton, TARGET, DRAFT) for name, automaton in GRAMMARS.items()}


@automata
def test_drafts_may_be_masked_or_not_but_must_be_reported_as_drawn(automaton):
    """Unmasked drafts cost acceptance only. Masked ones that are judged by the unmasked q are biased once more."""
    local, masked = locally(TARGET, automaton), locally(DRAFT, automaton)
    right = joint_law(local, 4)
    # An unmasked draft may leave the grammar: what the target says there does not matter, for it is never emitted.
    everywhere = lambda text: local(text) if fits_so_far(automaton, text) else TARGET(text)  # noqa: E731
    assert output_law(everywhere, DRAFT, 2, rules.token_wise, 4) == right
    drawn = lambda text: masked(text) if fits_so_far(automaton, text) else DRAFT(text)  # noqa: E731
    assert output_law(everywhere, drawn, 2, rules.token_wise, 4) == right

    def raw_q(target, draft, prefix, gamma, choose):
        ps, _, tokens = masked_chain(automaton)(TARGET, draft, prefix, gamma, choose)
        return ps, chain_of(as_is, as_is)(TARGET, draft, prefix, gamma, lambda q, i: tokens[i])[1], tokens

    assert output_law(TARGET, DRAFT, 2, rules.token_wise, 4, propose=raw_q) != right


def fits_so_far(automaton, text):
    try:
        Matcher(automaton, text)
    except ValueError:
        return False
    return True


def test_the_entry_of_the_zoo():
    assert MASKED.right_law() == MASKED.true_law()
    assert round(float(MASKED.bias()), 4) == 0.3459
    assert MASKED.samples() > 10


@given(st.data())
def test_a_matcher_that_is_rolled_back_is_where_it_was(data):
    automaton = data.draw(st.sampled_from(list(GRAMMARS.values())))
    matcher, text = Matcher(automaton), []
    for _ in range(8):
        if data.draw(st.booleans()) or not text:
            text.append(data.draw(st.sampled_from(sorted(automaton.follow[matcher.states[-1]]))))
            matcher.advance(text[-1])
        else:
            count = data.draw(st.integers(0, len(text)))
            matcher.rollback(count)
            del text[len(text) - count :]
        assert matcher.states == Matcher(automaton, text).states


def test_errors():
    brackets = GRAMMARS["brackets"]
    matcher = Matcher(brackets, (0,))
    with pytest.raises(ValueError, match=r"token 2 may not follow .* allows \[0, 1\]"):
        matcher.advance(2)
    with pytest.raises(ValueError, match="2 tokens cannot be taken back, there are 1"):
        matcher.rollback(2)
    assert matcher.states == Matcher(brackets, (0,)).states
    with pytest.raises(ValueError, match="no probability to any token allowed"):
        locally(table(start="0 0 1"), brackets)((0,))
    with pytest.raises(ValueError, match="no text of the grammar"):
        conditional(table(start="1 0 1"), brackets)((0,))
    with pytest.raises(ValueError, match="the grammar is empty"):
        Automaton.of("s", END, lambda state: {0: "s"})
    star = Automaton.of("s", END, lambda state: {0: "s", END: DONE})
    assert sum(locally(TARGET, star)(())) == 1
    with pytest.raises(ValueError, match="not finite"):
        conditional(TARGET, star, look=lambda text: text[-1:])(())


def test_what_cannot_end_is_never_allowed():
    trap = Automaton.of(
        "s", END, lambda state: {0: "trap", 1: "t"} if state == "s" else {END: DONE} if state == "t" else {}
    )
    assert trap.follow["s"] == {1: "t"}
    assert "trap" not in trap.follow
    assert conditional(TARGET, trap)(()) == locally(TARGET, trap)(()) == (0, 1, 0)
