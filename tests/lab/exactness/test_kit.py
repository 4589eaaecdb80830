"""The kit tells every wrong rule from exact, names it, and lets every right rule pass."""

import random
import subprocess
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.lab.exactness import mutants
from inference_opt.lab.exactness.enumerate import second_winner
from inference_opt.lab.exactness.exact import step_law
from inference_opt.lab.exactness.kit import integrate, judge, judge_text
from inference_opt.lab.exactness.kit.integrate import NotAStepFunction
from inference_opt.lab.exactness.kit.likeness import RIGHT
from inference_opt.lab.exactness.kit.pairs import panel
from inference_opt.lab.exactness.kit.sampled import samples_for
from inference_opt.lab.exactness.kit.sampled import test as sampled_test
from inference_opt.lab.exactness.kit.subject import Subject, continued, drafted, emitted_by, total_variation
from inference_opt.lab.exactness.noise_sharing import by_position, on_a_grid, same_stream
from inference_opt.lab.exactness.proposals import chain
from inference_opt.lab.exactness.zoo import ZOO
from inference_opt.sampling import Noise
from inference_opt.speculative import rules

pytestmark = pytest.mark.usefixtures("untyped")  # thousands of runs: checked signatures take most of their time
BY_NAME = {each.name: each for each in ZOO}


class Racing:
    """Draws by the noise that drew the drafts."""

    def __init__(self, uniforms):
        self.uniforms = uniforms

    def choose(self, weights, i):
        return self.uniforms.race(weights, i)

    def uniform(self, i):
        return self.uniforms()


def as_sampler(rule, sharing=None):
    """A rule of ours in the shape of the kit."""

    def sampler(draft, target, tokens, uniforms):
        rows = [each if isinstance(each, dict) else list(each) for each in (target, draft)]
        return rule(*rows, tokens, Racing(uniforms) if sharing is same_stream else uniforms)

    return sampler


def token_wise(draft, target, tokens, uniforms):
    """Written anew, with numbers only: a search in a cumulative sum in the place of a draw."""
    for i, x in enumerate(tokens):
        p, q = target[i], draft[i]
        if uniforms() * q[x] >= p[x]:
            rest = np.maximum(p - q, 0)
            return [*tokens[:i], int(np.searchsorted(np.cumsum(rest) / rest.sum(), uniforms(), side="right"))]
    last = np.cumsum(target[len(tokens)])
    return [*tokens, min(int(np.searchsorted(last / last[-1], uniforms(), side="right")), len(last) - 1)]


@pytest.mark.parametrize("each", [z for z in ZOO if z.sharing is not by_position], ids=lambda each: each.name)
def test_a_wrong_rule_is_told_and_named(each):
    verdict = judge(as_sampler(each.rule, each.sharing), draft=each.propose, search=0)
    assert not verdict
    assert verdict.like == (each.name,)
    assert verdict.distance == 0
    assert bool(verdict.impossible) == (each.sharing is on_a_grid)
    assert verdict.bias > (-1 if verdict.impossible else 0.001)


class Steps:
    """Noise of the kit in the shape of the zoo's."""

    def __init__(self, uniforms):
        self.uniforms = uniforms

    def choose(self, weights, i):
        return self.uniforms.choose(weights)

    def race(self, weights, i):
        return self.uniforms.race(weights, i)

    def uniform(self, i):
        return self.uniforms()


@cache
def in_fractions(row):
    return [Fraction(w).limit_denominator(1000) for w in row]


def whole_texts(rule, sharing):
    """A decoding loop of two drafts a step. The zoo's numbers are compared in Fractions, so the models are."""

    def generate(target, draft, length, uniforms):
        noise, text = sharing(Steps(uniforms)), ()
        models = [lambda t, m=m: in_fractions(tuple(m(t))) for m in (target, draft)]
        while len(text) < length:
            drafter, verifier = noise(len(text))
            text = (*text, *rule(*chain(*models, text, 2, drafter.choose), verifier))
        return text

    return generate


def test_noise_shared_by_steps_is_seen_in_whole_texts():
    """A step alone shows nothing of it."""
    each = BY_NAME["block, noise by position"]
    shape = {"vocab": 2, "length": 2, "search": 0, "pairs": panel(2, 2)[:2]}
    verdict = judge_text(whole_texts(each.rule, each.sharing), **shape)
    assert not verdict
    assert verdict.like == (each.name,)
    right = judge_text(whole_texts(each.right_rule, each.right_sharing), **shape)
    assert right
    assert right.like == ("a right rule",)


@pytest.mark.parametrize("known", RIGHT, ids=lambda known: known.name)
def test_a_right_rule_passes_and_is_named(known):
    # A tree of two candidates a node has 216 drafts.
    verdict = judge(
        as_sampler(known.rule, known.sharing), draft=known.propose, search=0, gamma=1 + (known.name != "tree")
    )
    assert verdict
    assert verdict.bias < 1e-9
    assert known.name in verdict.like


@pytest.mark.parametrize("each", ZOO, ids=lambda each: each.name)
def test_what_stands_beside_a_wrong_rule_passes(each):
    rule = each.right_rule if each.right_sharing is not on_a_grid else rules.token_wise
    assert judge(as_sampler(rule), draft=each.right_propose, search=0)


def test_numbers_alone_will_do():
    """As many as the sampler likes, compared, multiplied and searched for in cumulative sums."""
    verdict = judge(token_wise, search=3)
    assert verdict
    assert verdict.like == ("token-wise",)
    assert verdict.numbers == 3


def in_float32(draft, target, tokens, uniforms):
    """As engines do it: all numbers read at once, in torch's float32."""
    p, q = (torch.tensor(each, dtype=torch.float32) for each in (target, draft))
    x, places = torch.tensor(tokens), torch.arange(len(tokens))
    u = torch.tensor(uniforms.take(len(tokens) + 1), dtype=torch.float32)
    n = int((u[:-1] < p[places, x] / q[places, x]).cumprod(0).sum())
    rest = (p[n] - q[n]).clamp(min=0) if n < len(tokens) else p[n]
    sums = (rest if rest.any() else p[n]).cumsum(0)
    return torch.cat([x[:n], torch.searchsorted(sums / sums[-1], u[-1:], right=True)])


def test_float32_is_exact_to_its_precision():
    verdict = judge(in_float32, tolerance=1e-5, search=0)
    assert verdict
    assert 1e-10 < verdict.bias < 1e-6
    assert verdict.like == ("token-wise",)
    assert verdict.numbers == 3


def test_the_search_finds_worse():
    """And what it finds is so: the zoo's enumeration, in fractions, gives the same step."""
    quick, long = (judge(as_sampler(mutants.lenient), search=n, seed=1) for n in (0, 20))
    assert long.bias > quick.bias
    law = step_law(long.worst.target, long.worst.draft, 2, mutants.lenient)
    subject = Subject(
        lambda pair, choose: drafted(pair, chain, 2, choose),
        lambda handed, u: emitted_by(as_sampler(mutants.lenient), (*handed, u), 3, 1, 3),
        3,
        2,
        3,
        False,
    )
    computed = subject.law(long.worst).probability
    assert total_variation({text: float(w) for text, w in law.items()}, computed) < 1e-8


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=4, unique=True), st.booleans())
def test_a_step_function_is_integrated(cuts, second):
    """The pieces of one number, and those of a second one that only some of them read."""
    cuts = sorted(cuts)

    def program(uniforms):
        u = uniforms()
        piece = sum(u >= cut for cut in cuts)
        return piece, (second and piece % 2 == 1 and uniforms() < 0.3)

    law = integrate(program).probability
    widths = np.diff([0.0, *cuts, 1.0])
    shown = [sum(p for (piece, _), p in law.items() if piece == i) for i in range(len(widths))]
    assert shown == pytest.approx(list(widths), abs=1e-8)
    assert law.get((1, True), 0) == pytest.approx(0.3 * widths[1] if second else 0, abs=1e-8)


def test_races_of_one_place_share_their_noise():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    law = integrate(lambda u: (u.race(q, 0), u.race(p, 0))).probability
    for i in range(3):
        behind = second_winner(q, i, p)
        behind = behind / behind.sum()
        assert [law.get((i, j), 0) for j in range(3)] == pytest.approx([q[i] * w for w in behind])


def test_a_number_of_a_key_stays_what_it_is():
    law = integrate(lambda u: (u["a"] < 0.5, u["a"] < 0.25, u["b"] < 0.5)).probability
    assert law[True, True, True] == pytest.approx(0.125)
    assert (False, True, True) not in law


def test_no_step_function_says_so():
    with pytest.raises(NotAStepFunction, match="judge by a test"):
        integrate(lambda u: u() + u() < 1, most_boxes=200)


def test_what_is_no_token_is_refused():
    with pytest.raises(ValueError, match=r"returned \[3\]: expected 1 to 3 tokens from 0 to 2"):
        judge(lambda draft, target, tokens, uniforms: [3])
    with pytest.raises(ValueError, match="at least 2 tokens"):
        judge(token_wise, vocab=1)
    with pytest.raises(ValueError, match="one of them positive"):
        judge(lambda draft, target, tokens, uniforms: [uniforms.choose(target[0] * 0)])


def by_seed(rule):
    return lambda draft, target, tokens, seed: as_sampler(rule)(draft, target, tokens, Noise(seed, 0))


class Torch:
    """As engines draw."""

    def __init__(self, generator):
        self.generator = generator

    def choose(self, weights, i):
        return int(torch.multinomial(torch.tensor(weights), 1, generator=self.generator))

    def uniform(self, i):
        return float(torch.rand((), dtype=torch.float64, generator=self.generator))


def test_a_sampler_with_its_own_noise_is_tested():
    right = judge(by_seed(rules.block), noise="seed", sees=0.1)
    assert right, right
    assert "block" in right.like
    assert "no bias seen" in str(right)
    assert "0.1 is seen with probability 0.9" in str(right)
    wrong = judge(lambda q, p, x, g: as_sampler(mutants.no_residual)(q, p, x, Torch(g)), noise="generator", sees=0.1)
    assert not wrong
    assert wrong.like[0] == "no residual"
    with pytest.raises(ValueError, match="uniforms"):
        judge(by_seed(rules.block), noise="sobol")


LEVEL, POWER, SEES = 0.01, 0.9, 0.28


PAIRS = panel(2, 1)[:4]


def short(accept):
    """Two tokens and one draft, of a sampler whose target is p but for what `accept` does."""

    def run(handed, noise):
        draft, target, (x,) = handed
        number = noise if callable(noise) else random.Random(noise).random
        if number() * draft[0, x] < accept(target[0, x]):
            return x, int(number() >= target[1, 0])
        rest = np.maximum(target[0] - draft[0], 0)
        return (int(number() * rest.sum() >= rest[0]),)

    return Subject(lambda pair, choose: drafted(pair, chain, 1, choose), run, 2, 1, 2, False)


def found_out(subject, seed):
    return not sampled_test(subject, PAIRS, "seed", LEVEL, POWER, SEES, seed)[0].passed


def test_false_alarms_are_below_the_level():
    right = short(lambda p: p)
    assert sum(found_out(right, seed) for seed in range(1000)) <= 1000 * LEVEL


def test_the_power_is_what_is_stated():
    """Of a bias hardly above `sees` on one pair, and far below it on the others."""
    wrong = short(lambda p: 1.8 * p)
    laws = {pair: continued(wrong.law(pair).probability, pair, 2) for pair in PAIRS}
    biases = sorted(total_variation(law, wrong.right(pair)) for pair, law in laws.items())
    assert biases[-2] < SEES / 2 < SEES < biases[-1] < 1.1 * SEES
    assert sum(found_out(wrong, seed) for seed in range(100)) >= 100 * POWER
    assert samples_for(4, LEVEL, POWER, SEES / 2) > 3.5 * samples_for(4, LEVEL, POWER, SEES)


def test_the_panel_is_of_distributions():
    for vocab in (2, 4):
        pairs = panel(vocab, 2)
        assert len({pair.name for pair in pairs}) == len(pairs)
        assert all(len(row) == vocab for pair in pairs for row in pair.target_rows.values())


def test_the_fixture_fails_with_the_verdict(tmp_path):
    test = tmp_path / "test_theirs.py"
    test.write_text(
        "from inference_opt.lab.exactness.mutants import no_residual\n"
        "from inference_opt.speculative.rules import token_wise\n"
        "def test_right(assert_exact):\n"
        "    assert assert_exact(lambda q, p, x, u: token_wise(p, q, x, u), search=0).numbers == 2\n"
        "def test_wrong(assert_exact):\n"
        "    assert_exact(lambda q, p, x, u: no_residual(p, q, x, u), search=0)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "inference_opt.lab.exactness.plugin", "-q", str(test)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "it behaves like: no residual" in done.stdout


def test_the_page_s_ten_lines_print_what_it_says(capsys):
    page = (Path(__file__).parents[3] / "docs/kit.md").read_text(encoding="utf-8")
    code, printed = (page.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "text"))
    exec(code, {})
    assert capsys.readouterr().out == printed
