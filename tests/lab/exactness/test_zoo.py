"""Every wrong rule of the zoo is caught, by enumeration and by name, and what stands beside it is right."""

from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.lab.exactness import mutants
from inference_opt.lab.exactness.exact import joint_law, output_law, step_law, total_variation
from inference_opt.lab.exactness.noise_sharing import by_position
from inference_opt.lab.exactness.zoo import DRAFT, NEVER_0, OFTEN_0, TARGET, ZOO, Mutant, table
from inference_opt.sampling import Noise
from inference_opt.speculative import rules

NAMED = {each.name: each for each in ZOO}


@cache
def bias(name):
    return NAMED[name].bias()


@pytest.mark.parametrize("each", ZOO, ids=lambda each: each.name)
def test_the_wrong_is_biased_and_the_right_is_not(each):
    assert each.right_law() == each.true_law()
    law = each.law()
    assert sum(law.values()) == 1
    assert all(len(text) == each.length for text in law)
    assert bias(each.name) > 0
    assert each.what
    assert all(link.startswith("https://") for link in each.sources)
    assert each.samples() > 100


def test_no_name_comes_twice():
    assert len(NAMED) == len(ZOO)


def caught(name, at_least):
    """That the bug is worth so much on its pair."""
    return bias(name) >= Fraction(at_least)


def test_argmax_draft_scored_with_its_softmax():  # jaymody/speculative-sampling#3, romsto's default processor
    assert caught("argmax draft, softmax q", "0.6")


def test_draft_greedy_but_scored_as_sampled():  # transformers#32867: the assistant is greedy, its logits are softmaxed
    assert caught("argmax draft, softmax q", "0.6")


def test_candidates_that_return_a_q_they_did_not_sample_from():  # transformers#47932: filters and temperature left out
    assert caught("top-k draft, raw q", "0.3")
    assert caught("cold draft, raw q", "0.05")


def test_beam_search_scored_as_sampled():  # apple/ml-recurrent-drafter#6
    assert caught("beam search, q", "0.5")


def test_draft_sampled_in_bfloat16_and_the_ratio_in_float32():  # DeepSpec#31
    each = NAMED["draft in low precision"]
    assert 0 < bias(each.name) < Fraction(1, 100)
    assert each.samples() > 100_000, "too small to be seen by a test of ordinary size"


def test_acceptance_count_always_full():  # transformers#28508; vllm-ascend#13730, where u is 0 throughout
    each = NAMED["everything accepted"]
    assert caught(each.name, "0.2")
    assert {len(emitted) for emitted in step_law(TARGET, DRAFT, 2, each.rule)} == {3}


def test_residual_put_through_a_softmax():  # transformers#28508
    assert caught("softmax of the residual", "0.1")


def test_residual_subtracted_at_the_rejected_token_only():  # EAGLE#20
    assert caught("residual at the token only", "0.05")
    # Two tokens do not show it: what is left besides the rejected one is the other one.
    two = table(start="1 3"), table(start="2 2")
    assert output_law(*two, 2, mutants.residual_at_the_token, 3) == joint_law(two[0], 3)


def test_bonus_token_from_the_stale_residual_after_full_acceptance():  # EAGLE#47, #50
    assert caught("stale bonus", "0.3")
    first = output_law(TARGET, DRAFT, 2, mutants.stale_bonus, 2)
    assert total_variation(first, joint_law(TARGET, 2)) == 0, "the third token is the first that is wrong"


def test_without_replacement_q_not_updated():  # EAGLE#74
    assert caught("siblings, original q", "0.01")


def test_block_verification_with_the_residual_of_token_wise():  # vllm-ascend#7808
    assert 0 < bias("block, unscaled residual") < Fraction(1, 200)


def test_reseeded_before_every_uniform():  # feifeibear/LLMSpeculativeSampling
    assert caught("one uniform number", "0.02")
    one = output_law(TARGET, DRAFT, 1, mutants.one_uniform, 3)
    assert one == joint_law(TARGET, 3), "a single draft does not show it"


def test_draft_and_recovery_share_their_noise():  # vllm#47386, #54282
    assert caught("draft and target share noise", "0.005")


def test_noise_by_position_is_harmless_to_token_wise_and_not_to_block():
    """A rejected draft's noise draws for the same position in the next step: `block` has looked at it before."""
    each = NAMED["block, noise by position"]
    assert each.gamma == 2, "with more drafts a position is raced for more than twice"
    assert caught(each.name, "0.005")
    for rule, exact in ((rules.token_wise, True), (rules.block, False)):
        law = Mutant("", "", (), rule, sharing=by_position, length=2).law()
        assert (law == joint_law(TARGET, 2)) is exact
    assert Mutant("", "", (), rules.block).bias() == 0, "with noise of its own a step is right"


def test_a_uniform_of_zero_admits_a_token_of_probability_zero():  # older vLLM and SGLang kernels
    class Zero:
        def uniform(self, i):
            return Fraction(0)

        def choose(self, weights, i):
            return int(np.argmax(weights))

    p, q = ([np.array(model(()), dtype=object)] * 2 for model in (NEVER_0, OFTEN_0))
    assert mutants.at_most(p, q, [0], Zero())[0] == 0
    assert rules.token_wise(p, q, [0], Zero())[0] != 0
    law = NAMED["u ≤ p / q, and u = 0"].law()
    impossible = sum(weight for text, weight in law.items() if 0 in text)
    assert Fraction(1, 2**25) < impossible < Fraction(3, 2**24)


def test_an_adaptive_stop_that_drops_the_token_already_drawn():  # drafters with a least confidence
    assert caught("unsure token dropped", "0.2")


def test_lossy_by_design():  # 2211.17192 A.5; 2401.10774
    assert caught("lenience ½", "0.2")
    assert caught("typical acceptance", "0.3")


def test_no_residual():
    assert caught("no residual", "0.05")


@pytest.mark.parametrize("name", ["draft and target share noise", "block, noise by position"])
def test_shared_noise_by_counting(name):
    """The enumeration of races that two draws share, against draws by the engine's own noise."""
    each = NAMED[name]
    shared, law, counts = name.startswith("draft"), each.law(), {}
    trials = 4000
    for seed in range(trials):
        text = ()
        while len(text) < each.length:
            start = len(text)
            if shared:
                drafter = judge = Noise(seed, start)
            else:
                drafter, judge = ByPosition(seed, start, 1), ByPosition(seed, start, 0)
            floats = {model: lambda t, m=model: np.array(m(t), dtype=float) for model in (each.target, each.draft)}
            drafted, laws = (), []
            for i in range(each.gamma):
                laws.append(floats[each.draft](text + drafted))
                drafted += (drafter.choose(laws[-1], i),)
            read = [floats[each.target](text + drafted[:i]) for i in range(each.gamma + 1)]
            text += tuple(each.rule(read, laws, list(drafted), judge))
        text = text[: each.length]
        counts[text] = counts.get(text, 0) + 1
    for text, p in law.items():
        spread = (float(p) * (1 - float(p)) / trials) ** 0.5
        assert abs(counts.get(text, 0) / trials - float(p)) < 4.5 * spread


class ByPosition(Noise):
    """Noise that depends on the position of the draw alone."""

    def words(self, i, kind, n):
        return Noise(self.seed, self.start + i, self.lane).words(0, kind, n)


class Exact(Noise):
    """The engine's noise, its numbers taken as the rationals that they are."""

    def uniform(self, i):
        return Fraction(super().uniform(i))

    def choose(self, weights, i):
        return super().choose(np.array(weights, dtype=float), i)


CHAINS = [each for each in ZOO if each.propose is not mutants.original_q]  # that one draws siblings


@pytest.mark.parametrize("each", CHAINS, ids=lambda each: each.name)
@given(seed=st.integers(0, 999))
def test_floats_and_fractions_take_the_same_turns(each, seed):
    """A rule is one piece of code: what is enumerated in fractions is what would run in an engine."""
    rng = np.random.default_rng(seed)
    eighths = rng.multinomial(5, [1 / 3] * 3, size=2 * each.gamma + 1) + 1  # over 8: the same number in either
    target, draft = eighths[: each.gamma + 1], eighths[each.gamma + 1 :]
    tokens = rng.integers(3, size=each.gamma).tolist()
    floats = each.rule(list(target / 8), list(draft / 8), tokens, Noise(seed, 0))
    exact = [[np.array([Fraction(int(n), 8) for n in row], dtype=object) for row in rows] for rows in (target, draft)]
    assert floats == each.rule(*exact, tokens, Exact(seed, 0))


@pytest.mark.parametrize("each", ZOO, ids=lambda each: each.name)
def test_the_chapter_s_table_is_what_the_code_says(each):
    text = (Path(__file__).parents[3] / "chapters/07_exactness.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"| {each.name} | {each.what} |"))
    distance = float(bias(each.name))
    shown = f"{distance:.4f}" if distance > 1e-3 else f"{distance:.1e}"
    assert line.endswith(f" | {shown} | {each.samples():,} |")
    assert all(f"({link})" in line for link in each.sources)
    assert f" | {each.there} | {shown} |" in line


def test_the_chapter_s_question_about_a_quiet_bug():
    text = (Path(__file__).parents[3] / "chapters/07_exactness.md").read_text(encoding="utf-8")
    each = NAMED["draft in low precision"]
    assert f"the total variation is {float(bias(each.name)):.4f}" in text
    assert f"about {round(each.samples(), -3):,} texts" in " ".join(text.split())


def test_the_chapter_counts_the_mistakes_that_were_somebody_s():
    kinds = Counter(each.there for each in ZOO)
    assert kinds == {"a bug": 13, "right": 2, "harmless": 1, "lossy by design": 2, "found here": 1}
    text = " ".join((Path(__file__).parents[3] / "chapters/07_exactness.md").read_text(encoding="utf-8").split())
    assert "Of the nineteen wrong rules in this chapter's [zoo](#the-zoo), thirteen were bugs in published code" in text
