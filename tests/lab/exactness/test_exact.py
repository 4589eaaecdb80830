"""The enumeration itself, and laws at its edges: large steps, honest drafters, steps that share noise."""

from array import array
from collections import defaultdict
from fractions import Fraction
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_opt.lab.exactness import enumerate as enumeration
from inference_opt.lab.exactness import mutants
from inference_opt.lab.exactness.enumerate import Branching, every_path
from inference_opt.lab.exactness.exact import joint_law, output_law, step_law, total_variation
from inference_opt.lab.exactness.mutants import chain_of
from inference_opt.lab.exactness.proposals import branching, chain, from_start, siblings
from inference_opt.sampling import Noise, SamplingParams
from inference_opt.speculative import rules
from inference_opt.speculative.drafter import DraftRequest
from inference_opt.speculative.lookup import NGram


@st.composite
def models(draw, vocab):
    """A law behind every prefix: one of a few drawn rows, by the prefix's hash. Zeros, points and equal rows occur."""
    weights = st.lists(st.integers(0, 4), min_size=vocab, max_size=vocab).filter(any)
    rows = [tuple(Fraction(w, sum(row)) for w in row) for row in draw(st.lists(weights, min_size=1, max_size=5))]
    step = draw(st.integers(1, 9))

    def model(prefix):
        state = 0
        for x in prefix:
            state = state * (step + 1) + x + 1
        return rows[state % len(rows)]

    return model


def pairs(*sizes):
    """(vocab, gamma, length, target, draft), now and then with the target for a draft."""
    return st.sampled_from(sizes).flatmap(
        lambda size: models(size[0]).flatmap(
            lambda target: st.tuples(
                *map(st.just, size), st.just(target), st.one_of(models(size[0]), models(size[0]), st.just(target))
            )
        )
    )


def continued(law, target, length):
    """The law of the first tokens, where a step's output is cut, or continued by the target, to that length."""
    texts = defaultdict(Fraction)
    for emitted, probability in law.items():
        rest = joint_law(lambda prefix: target(emitted + prefix), max(0, length - len(emitted)))  # noqa: B023
        for more, weight in rest.items():
            texts[(emitted + more)[:length]] += probability * weight
    return dict(texts)


@pytest.mark.parametrize("rule", [rules.token_wise, rules.block, rules.coupled, rules.multi_draft])
@settings(max_examples=12)
@given(case=pairs((4, 2, 3), (3, 3, 4), (2, 4, 5), (4, 0, 1), (2, 4, 2)))
def test_one_step_continued_by_the_target_has_the_joint_law(rule, case):
    _, gamma, length, target, draft = case
    law = step_law(target, draft, gamma, rule)
    assert all(1 <= len(emitted) <= gamma + 1 for emitted in law)
    assert continued(law, target, length) == joint_law(target, length)


@pytest.mark.parametrize("rule", [rules.token_wise, rules.block])
def test_the_largest_step(rule):
    """Four tokens, four drafts."""

    def model(shift):
        rows = [(1, 2, 3, 4), (0, 1, 1, 2), (5, 1, 0, 0), (1, 1, 1, 1), (0, 0, 0, 1)]
        rows = [tuple(Fraction(w, sum(row)) for w in row) for row in rows]
        return lambda prefix: rows[(sum(prefix) + 3 * len(prefix) + shift) % len(rows)]

    target, draft = model(0), model(3)
    assert continued(step_law(target, draft, 4, rule), target, 5) == joint_law(target, 5)


HONEST = {
    "top-k draft, scored with its processed q": chain_of(mutants.top(2), mutants.top(2)),
    "greedy draft, scored as a certain one": chain_of(mutants.top(1), mutants.top(1)),
    "cold draft, scored as it was drawn": chain_of(mutants.cold, mutants.cold),
    "rounded draft, scored as it was drawn": chain_of(mutants.coarse, mutants.coarse),
    "adaptive stop that keeps the token already drawn": mutants.stop_early(keep=True),
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("rule", [rules.token_wise, rules.block])
@settings(max_examples=8)
@given(case=pairs((2, 3, 4), (3, 2, 3)))
def test_any_draft_is_exact_if_it_is_scored_as_it_was_drawn(name, rule, case):
    _, gamma, length, target, draft = case
    assert output_law(target, draft, gamma, rule, length, HONEST[name]) == joint_law(target, length)


@settings(max_examples=12)
@given(case=pairs((2, 3, 4), (3, 2, 3)))
def test_a_draft_that_was_searched_for_is_exact_if_it_is_scored_as_found(case):
    _, gamma, length, target, draft = case
    assert output_law(target, draft, gamma, rules.point_mass, length, mutants.beam) == joint_law(target, length)


def by_start(model):
    """A drafter whose law behind a prefix depends on where the step began, too."""
    return lambda start: lambda prefix: model((*start, len(start), *prefix))


FROM_START = {
    "token_wise": (rules.token_wise, chain),
    "token_wise, stopping": (rules.token_wise, mutants.stop_early(keep=True)),
    "block": (rules.block, chain),
    "block, stopping": (rules.block, mutants.stop_early(keep=True)),
    "coupled": (rules.coupled, chain),
    "point_mass": (rules.point_mass, mutants.beam),
    "multi_draft": (rules.multi_draft, siblings()),
    "tree": (rules.tree, branching()),
}


@pytest.mark.parametrize("name", FROM_START)
@settings(max_examples=8)
@given(case=pairs((2, 2, 4), (3, 2, 3)))
def test_a_draft_that_depends_on_where_the_step_began_is_exact(name, case):
    _, gamma, length, target, draft = case
    rule, propose = FROM_START[name]
    assert output_law(target, by_start(draft), gamma, rule, length, from_start(propose)) == joint_law(target, length)


def three(seed):
    """A model over three tokens without zeros."""
    rows = [tuple(Fraction(w, sum(row)) for w in row) for row in ((1, 2, 3), (4, 1, 2), (2, 5, 1), (3, 1, 1))]
    return lambda prefix: rows[(seed + sum((i + 2) * x for i, x in enumerate(prefix)) + len(prefix)) % len(rows)]


def n_gram(start):
    """What `NGram` draws from in a step that begins behind these tokens, which follow a prompt."""

    class Say:  # what is drafted is given
        def choose(self, law, i):
            return drafted[i] if i < len(drafted) else int(np.argmax(law))

        def uniform(self, i):
            raise AssertionError("a drafter draws tokens")

    def model(prefix):
        nonlocal drafted
        drafted = prefix[len(start) :]
        tokens = array("i", [0, 1, 2, 0, 2, 1, 1, 0, *start])
        text = SimpleNamespace(tokens=tokens, computed=len(tokens) - 1, table=[], params=sampled, drafter_state=None)
        (draft,) = drafter.propose([DraftRequest(text, len(drafted) + 1, Say())])
        law = [Fraction(w) for w in draft.probs[-1]]
        return [w / sum(law) for w in law]

    drafted, drafter, sampled = (), NGram(2), SamplingParams(temperature=1.0)
    drafter.vocab_size = 3
    return model


@pytest.mark.parametrize("rule", [rules.token_wise, rules.block, rules.coupled])
def test_the_n_gram_drafter_is_exact_though_its_law_depends_on_where_the_step_began(rule):
    assert n_gram(())((2, 0)) != n_gram((2, 0))((2, 0)), "drafts are not counted, committed tokens are"
    assert output_law(three(0), n_gram, 2, rule, 3, from_start(chain)) == joint_law(three(0), 3)


def judged_from_the_prefix(target, draft, start, gamma, choose):
    """Drafted from where the step began; judged by the law of a step that begins behind the drafts before. Wrong."""
    laws, _, tokens = chain(target, draft(start), start, gamma, choose)
    tokens = list(tokens)
    behind = [(*start, *tokens[:i]) for i in range(gamma)]
    return laws, [np.array(draft(prefix)(prefix), dtype=object) for prefix in behind], tokens


@pytest.mark.parametrize(
    ("target", "drafter"), [(three(0), by_start(three(1))), (three(2), n_gram)], ids=["any", "n-gram"]
)
@pytest.mark.parametrize(
    ("rule", "propose"),
    [
        (mutants.no_residual, from_start(chain)),
        (mutants.block_unscaled, from_start(chain)),
        (rules.token_wise, judged_from_the_prefix),
        (rules.block, judged_from_the_prefix),
        (rules.token_wise, from_start(mutants.stop_early(keep=False))),
    ],
    ids=["no residual", "block, unscaled", "token-wise, other start", "block, other start", "dropped"],
)
def test_a_wrong_rule_is_caught_where_the_draft_depends_on_where_the_step_began(rule, propose, target, drafter):
    law, truth = output_law(target, drafter, 2, rule, 3, propose), joint_law(target, 3)
    assert sum(law.values()) == 1
    assert total_variation(law, truth) > 0


def sample_and_match(target, draft, tokens, rng):
    """`coupled` with noise of its own: what engines do that compare the draft with what they would have sampled."""
    return rules.coupled(target, draft, tokens, rng)


SOURCES = ["independent", "argmax", "raw q", "dropped", "beam"]


@pytest.mark.parametrize("source", SOURCES)
@settings(max_examples=8)
@given(case=pairs((2, 3, 4), (3, 2, 3)))
def test_sample_and_match_is_exact_whatever_proposes(source, case):
    """mlx-swift-lm#459 and mlxcel#902 take it for biased: it is slow, not wrong. It never looks at q."""
    drafters = {
        "independent": None,
        "argmax": chain_of(mutants.top(1), mutants.as_is),
        "raw q": chain_of(mutants.cold, mutants.as_is),
        "dropped": mutants.stop_early(keep=False),
        "beam": mutants.beam,
    }
    _, gamma, length, target, draft = case
    assert output_law(target, draft, gamma, sample_and_match, length, drafters[source]) == joint_law(target, length)


@given(pairs((3, 2, 3), (4, 1, 2)))
def test_races_that_are_shared_match_more_often_than_draws_that_are_not(case):
    _, gamma, _, target, draft = case
    tokens = {
        rule: sum(len(emitted) * p for emitted, p in step_law(target, draft, gamma, rule).items())
        for rule in (rules.token_wise, rules.coupled, sample_and_match)
    }
    assert tokens[rules.token_wise] >= tokens[rules.coupled] >= tokens[sample_and_match]


def test_every_path_is_taken_once():
    def program(rng):
        u = rng.uniform(0)
        low = u < Fraction(1, 4)
        lower = u < Fraction(1, 8) if low else u < Fraction(1, 2)  # the same number: it is known where it lies
        return low, lower, rng.choose(np.array([Fraction(1, 3), Fraction(0), Fraction(2, 3)]), 0)

    law = dict(every_path(program))
    assert law == {
        (low, lower, x): p * q
        for (low, lower), p in {
            (True, True): Fraction(1, 8),
            (True, False): Fraction(1, 8),
            (False, True): Fraction(1, 4),
            (False, False): Fraction(1, 2),
        }.items()
        for x, q in {0: Fraction(1, 3), 2: Fraction(2, 3)}.items()
    }


def test_total_variation():
    half, third = Fraction(1, 2), Fraction(1, 3)
    assert total_variation({(0,): half, (1,): half}, {(0,): half, (1,): half}) == 0
    assert total_variation({(0,): Fraction(1)}, {(1,): Fraction(1)}) == 1
    assert total_variation({(0,): half, (1,): half}, {(0,): third, (1,): 2 * third}) == Fraction(1, 6)


class Noted(Branching):
    """Notes which of a step's numbers were asked for."""

    def __init__(self, script):
        super().__init__(script)
        self.asked = []

    def uniform(self, i):
        self.asked.append(("uniform", i))
        return super().uniform(i)

    def choose(self, weights, i):
        self.asked.append(("choose", i))
        return super().choose(weights, i)


@pytest.mark.parametrize(
    "name", ["token_wise", "block", "coupled", "point_mass", "multi_draft", "tree", "coupled_tree"]
)
def test_no_number_is_asked_for_twice(monkeypatch, name):
    """To `Branching` every number is a new one; from the engine's noise, i again would be the same number again."""
    rule = getattr(rules, name)
    p = np.array([Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)])
    q = np.array([Fraction(1, 4), Fraction(1, 2), Fraction(1, 4)])
    if name.endswith("tree"):
        depth = 2 if name == "tree" else 3  # each level takes one number of the coupled rule
        paths = [path for level in range(depth + 1) for path in product(range(3), repeat=level)]
        target, draft = dict.fromkeys(paths, p), {path: [q, q] for path in paths}
        tokens = {path: [1, 2] if len(path) < depth else [] for path in paths}
    else:
        target, draft, tokens = [p] * 4, [q] * 3, [1, 2, 1]
    monkeypatch.setattr(enumeration, "Branching", Noted)
    longest = 0
    for asked, _ in every_path(lambda rng: (rule(target, draft, tokens, rng), rng.asked)[1]):
        assert len(asked) == len(set(asked))
        longest = max(longest, len(asked))
    assert longest >= 4


@pytest.mark.parametrize("name", ["token_wise", "block", "multi_draft", "tree"])
def test_a_rejection_that_rounding_alone_brought_draws_from_p(name):
    """p is q less its last bit: u may fall between, and then nothing is left of p − q."""

    class Last(Noise):
        def uniform(self, i):
            return 1 - 2.0**-53

    q = np.array([0.5, 0.5])
    p = np.array([0.5 * (1 - 2.0**-53), 0.5])
    target, draft, tokens = [p, p], [q], [0]
    if name == "tree":
        target, draft, tokens = {(): p, (0,): p}, {(): [q]}, {(): [0], (0,): []}
    assert Last(0, 0).uniform(0) >= p[0] / q[0]
    with np.errstate(all="raise"):
        assert getattr(rules, name)(target, draft, tokens, Last(0, 0)) in ([0], [1])
