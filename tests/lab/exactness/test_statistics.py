"""Sampling as the engine samples, on a real model's laws: a G-test sees no bias in the right rules, and sees the wrong.

The laws are SmolLM2's behind a few prefixes: the target's at temperature 1 with top-k 200, the draft's at 1.4 with
top-k 8. A step drafts two tokens; where it emits one, plain sampling goes on, so that every text has two tokens. They
are counted in cells, and a test has a false alarm once in a thousand (always or never, since the seeds are fixed).
"""

import math
from functools import cache

import numpy as np
import pytest
import torch

from inference_opt.lab.exactness import mutants
from inference_opt.lab.exactness.gtest import g_statistic, p_value, power, samples_needed
from inference_opt.lab.exactness.zoo import ZOO
from inference_opt.model.attention import NoCache
from inference_opt.sampling import CommonNoise, Noise, SamplingParams, probabilities
from inference_opt.speculative import rules

PREFIXES = ("The capital of France is", "Once upon a time there was a", "def add(a, b):\n    return")
TARGET, DRAFT = SamplingParams(temperature=1.0, top_k=200), SamplingParams(temperature=1.4, top_k=8)
SAMPLES, ALARM = 10_000, 1e-3


class Behind:
    """The laws behind a prefix and behind each token that may be drafted there, less the tokens that none uses."""

    def __init__(self, model, ids):
        first = self._logits(model, [ids])[0]
        drafted = probabilities(first, DRAFT).nonzero().flatten().tolist()
        second = self._logits(model, [[*ids, x] for x in drafted])
        rows = torch.stack([first, *second])
        p, q = probabilities(rows, TARGET).numpy(), probabilities(rows, DRAFT).numpy()
        used = np.flatnonzero((p > 0).any(axis=0))
        assert (q[:, np.setdiff1d(np.arange(q.shape[1]), used)] == 0).all()
        places = np.searchsorted(used, drafted).tolist()
        self.p, self.q = ({(): law[0, used], **dict(zip(places, law[1:, used]))} for law in (p, q))
        # What several rules draw from the same noise is drawn once.
        self.drafted, self.alone = cache(self._drafted), cache(self._alone)

    @staticmethod
    def _logits(model, texts):
        lengths = [len(text) for text in texts]
        tokens = torch.tensor([x for text in texts for x in text])
        positions = torch.cat([torch.arange(n) for n in lengths])
        with torch.inference_mode():
            return model(tokens, positions, NoCache(lengths), rows=torch.tensor(lengths).cumsum(0) - 1)

    def _drafted(self, noise, argmax):
        first = int(np.argmax(self.q[()])) if argmax else noise.choose(self.q[()], 0)
        return first, noise.choose(self.q[first], 1)

    def _alone(self, seed, first):
        return Noise(seed, 1).choose(self.p[first], 0)

    def step(self, rule, seed, argmax=False):
        """Two drafts, a verdict, and a second token where there is none yet."""
        noise = [CommonNoise(seed, 0)] * 2 if rule is rules.coupled else [Noise(seed, 0, 1), Noise(seed, 0)]
        drafted = self.drafted(noise[0], argmax)
        p, q = ([law[()], law[drafted[0]]] for law in (self.p, self.q))
        text = rule([*p, p[1]], q, drafted, noise[1])
        if len(text) == 1 and text[0] in self.p:
            text.append(self.alone(seed, text[0]))
        return text

    def cells(self):
        """A cell of the text (a, b): a itself if it may be drafted, with the rank of b behind it, else a's rank."""
        probability, cell_of = [], {}
        for a in [x for x in self.p if x != ()]:
            cell_of[a] = self._grouped(self.p[a], self.p[()][a], probability)
        rest = self.p[()].copy()
        rest[[x for x in self.p if x != ()]] = 0
        cell_of[()] = self._grouped(rest, 1.0, probability)
        return cell_of, np.array(probability)

    @staticmethod
    def _grouped(law, weight, probability, least=15 / SAMPLES):
        """Tokens in order of their probability, gathered until a cell expects 15 counts."""
        cells, mass, members = {}, 0.0, []
        for x in np.argsort(-law, kind="stable"):
            mass, members = mass + weight * law[x], [*members, x]
            if mass >= least:
                cells |= dict.fromkeys(members, len(probability))
                probability.append(mass)
                mass, members = 0.0, []
        if not cells:  # too rare to be split
            probability.append(0.0)
        cells |= dict.fromkeys(members, len(probability) - 1)
        probability[-1] += mass
        return cells

    def test(self, rule, **more):
        """The p-value of SAMPLES steps."""
        cell_of, law = self.cells()
        counts = np.zeros(len(law))
        for seed in range(SAMPLES):
            a, *b = self.step(rule, seed, **more)
            counts[cell_of[a][b[0]] if a in cell_of else cell_of[()][a]] += 1
        common = law * SAMPLES >= 5  # what is too rare is counted together
        law, counts = np.append(law[common], law[~common].sum()), np.append(counts[common], counts[~common].sum())
        keep = law > 0
        return p_value(g_statistic(counts[keep], law[keep]), int(keep.sum()))


@pytest.fixture(scope="module")
def behind(smollm2):
    model, tokenizer = smollm2
    return [Behind(model, tokenizer.encode(prefix)) for prefix in PREFIXES]


@pytest.mark.usefixtures("untyped")  # half of the time of so many small calls
@pytest.mark.parametrize("place", range(len(PREFIXES)))
@pytest.mark.parametrize("rule", [rules.token_wise, rules.block, rules.coupled, rules.point_mass])
def test_what_is_sampled_has_the_model_s_law(behind, rule, place):
    assert behind[place].test(rule) > ALARM


@pytest.mark.usefixtures("untyped")  # half of the time of so many small calls
@pytest.mark.parametrize("place", range(len(PREFIXES)))
def test_a_wrong_rule_is_seen(behind, place):
    """Negative controls: without them a test that sees nothing would pass as well."""
    assert behind[place].test(mutants.no_residual) < ALARM
    assert behind[place].test(rules.token_wise, argmax=True) < ALARM


def test_p_values_are_those_of_chi_squared():
    assert math.isclose(p_value(3.841458820694124, 2), 0.05, rel_tol=1e-9)
    assert math.isclose(p_value(18.307038053275146, 11), 0.05, rel_tol=1e-9)
    assert math.isclose(p_value(2 * math.log(2), 3), 0.5, rel_tol=1e-12)  # two degrees: e^(−g/2)
    assert p_value(math.inf, 5) == 0


def test_false_alarms_come_at_the_rate_that_is_stated():
    rng, law = np.random.default_rng(0), np.array([0.4, 0.3, 0.2, 0.1])
    alarms = [p_value(g_statistic(rng.multinomial(500, law), law), 4) < 0.05 for _ in range(4000)]
    assert abs(np.mean(alarms) - 0.05) < 4 * (0.05 * 0.95 / 4000) ** 0.5


@pytest.mark.parametrize("name", ["cold draft, raw q", "one uniform number", "siblings, original q"])
def test_the_power_is_what_was_promised(name):
    each = next(each for each in ZOO if each.name == name)
    law, truth = each.compared()
    n = samples_needed(law, truth, alarm=1e-3, power=0.9)
    promised = power(law, truth, n, 1e-3)
    assert promised >= 0.9 - 1e-6
    rng = np.random.default_rng(1)
    seen = [p_value(g_statistic(counts, law), len(law)) < 1e-3 for counts in rng.multinomial(n, truth, size=1000)]
    assert abs(np.mean(seen) - promised) < 0.05
    assert power(law, truth, n // 4, 1e-3) < promised
    assert math.isclose(power(law, law, n, 1e-3), 1e-3, rel_tol=1e-6)


def test_one_impossible_token_is_proof():
    assert g_statistic([1, 5, 5], [0, 0.5, 0.5]) == math.inf
    n = samples_needed([0, 0.5, 0.5], [0.01, 0.49, 0.5])
    assert 0.99**n <= 0.1 < 0.99 ** (n - 1)
    assert 1 - 0.99**n <= power([0, 0.5, 0.5], [0.01, 0.49, 0.5], n, 1e-3) < 1


def test_bad_input():
    with pytest.raises(ValueError, match="sum to one"):
        g_statistic([1, 2], [0.5, 0.6])
    with pytest.raises(ValueError, match="sum to one"):
        g_statistic([1, 2], [0.5, 0.25, 0.25])
    with pytest.raises(ValueError, match="same"):
        samples_needed([0.5, 0.5], [0.5, 0.5])
