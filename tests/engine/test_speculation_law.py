"""The engine's decoder as a whole has the target's law: every turn that chance can take is taken, and summed up.

The engine runs as it is, schedule, drafts, rollback and commit, on a toy with a vocabulary of two or three tokens; only
where it asks for noise does it get `Branching`. What comes out is compared with the product of the model's own laws.
"""

from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
import torch

from inference_opt.engine import eager_runner
from inference_opt.engine.engine import Engine
from inference_opt.engine.speculation import Speculation
from inference_opt.lab.exactness.enumerate import every_path
from inference_opt.model.attention import NoCache
from inference_opt.sampling import SamplingParams, probabilities
from inference_opt.speculative import rules
from inference_opt.speculative.choice import Choice
from inference_opt.speculative.drafter import Draft, Drafter
from inference_opt.speculative.eagle import Eagle
from inference_opt.speculative.lookup import NGram, PromptLookup
from inference_opt.speculative.models import FirstLayers, SmallerModel
from tests.engine.invariants import random_head
from tests.toys import tokens_of, toy

pytestmark = pytest.mark.usefixtures("untyped")  # thousands of paths: checked signatures take half of their time

SIZES = {"dim": 4, "heads": 1, "kv_heads": 1, "head_dim": 4, "ffn_dim": 4, "max_context": 12}


def tiny(seed, vocab, depth=2):
    model = toy(seed, vocab_size=vocab, depth=depth, **SIZES)
    with torch.no_grad():
        model.head.weight.div_(10)  # no token too rare to count
    return model


class Number:
    """A uniform number, compared with floats, exactly."""

    def __init__(self, uniform):
        self.uniform = uniform

    def __lt__(self, threshold):
        return self.uniform < Fraction(float(threshold))


class Randomness:
    """Branching, for a step from `start`: on exact numbers, and with races that go by the place in the text."""

    def __init__(self, branching, start, common):
        self.branching, self.start, self.common = branching, start, common

    def uniform(self, i):
        return Number(self.branching.uniform(i))

    def choose(self, weights, i):
        weights = np.array([Fraction(float(weight)) for weight in weights], dtype=object)
        return (self.branching.race if self.common else self.branching.choose)(weights, self.start + i)

    def gumbel(self, i, tokens):
        """The drafter may know the race, and need not: what is emitted does not depend on it."""
        return np.zeros(len(tokens))


def as_accepted(choice, texts, wanted, lefts, most_steps):
    """In the place of `Choice.best`, which asks a clock: two drafts, then as many as a step gave tokens."""
    (own,) = texts
    return min(round(own.tokens / own.steps[-1]) if own.tokens else 2, *wanted), 1


def engine_law(monkeypatch, model, prompt, params, **arguments):
    """{text: its probability}, over all paths of the engine; and how many of its steps had drafts."""
    common, law, drafted = arguments["rule"] in (rules.coupled, None), defaultdict(Fraction), 0
    monkeypatch.setattr(Choice, "best", as_accepted)

    def program(branching):
        nonlocal drafted
        monkeypatch.setattr(
            Speculation, "_noise", lambda self, request, drafting: Randomness(branching, len(request.tokens), common)
        )
        monkeypatch.setattr(
            eager_runner,
            "sample",
            lambda logits, params, position: Randomness(branching, position, common).choose(
                probabilities(logits, params).numpy(), 0
            ),
        )
        engine = Engine(model, page_size=2, num_pages=8, **arguments)
        (text,) = tokens_of(engine.generate([prompt], params))
        drafted += engine.stats.drafted_tokens
        return tuple(text)

    for paths, (text, probability) in enumerate(every_path(program)):
        law[text] += probability
        assert paths < 20_000, "more paths than this test should have"
    assert drafted
    return law


def model_law(model, prompt, params):
    """The product of the model's own laws along every text."""
    law = {(): 1.0}
    for _ in range(params.max_new_tokens):
        longer = {}
        for text, weight in law.items():
            if text and text[-1] in model.config.eos_token_ids:
                longer[text] = weight
                continue
            ids = torch.tensor([*prompt, *text])
            with torch.inference_mode():
                logits = model(ids, torch.arange(len(ids)), NoCache([len(ids)]))[-1]
            longer |= {(*text, x): weight * p for x, p in enumerate(probabilities(logits, params).tolist()) if p > 0}
        law = longer
    return law


def SMALLER(vocab):
    return SmallerModel(tiny(7, vocab, depth=1))


class Drawn(Drafter):
    """Two candidates behind the text and behind each of these, drawn without replacement, as the rules allow."""

    trees = True

    def __init__(self, vocab):
        self.q = np.arange(1, vocab + 1) / sum(range(1, vocab + 1))

    def propose(self, requests):
        return [self.draw(request) for request in requests]

    def draw(self, request):
        draft = Draft([], [], [])
        for parent in range(-1, 2 if request.depth > 1 else 0):
            left = self.q.copy()
            for _ in range(2):
                if len(draft.tokens) == request.gamma:
                    return draft
                draft.probs.append(left / left.sum())
                draft.tokens.append(request.rng.choose(draft.probs[-1], len(draft.tokens)))
                draft.parents.append(parent)
                left[draft.tokens[-1]] = 0
        return draft


def TRAINED(vocab):
    return Eagle(random_head(tiny(3, vocab), reduced=2))


CASES = {  # drafter, rule, gamma, vocabulary, length, other parameters
    "smaller, token by token": (SMALLER, rules.token_wise, 2, 3, 4, {}),
    "smaller, token by token, longer": (SMALLER, rules.token_wise, 3, 2, 5, {}),
    "smaller, as a block": (SMALLER, rules.block, 2, 2, 5, {}),
    "smaller, as a block, longer": (SMALLER, rules.block, 3, 2, 5, {}),
    "smaller, coupled": (SMALLER, rules.coupled, 1, 3, 4, {}),
    "smaller, coupled, filtered": (SMALLER, rules.coupled, 1, 3, 4, {"top_k": 2}),
    "smaller, filtered": (SMALLER, rules.token_wise, 2, 3, 4, {"top_k": 2, "temperature": 0.8}),
    "smaller, as a block, filtered": (SMALLER, rules.block, 2, 3, 4, {"top_k": 2}),
    "first layer": (lambda vocab: FirstLayers(), rules.token_wise, 2, 2, 5, {}),
    "first layer, as a block": (lambda vocab: FirstLayers(), rules.block, 3, 2, 5, {}),
    "ends after a doubtful token": (
        lambda vocab: SmallerModel(tiny(7, vocab, depth=1), confidence=0.52),
        rules.token_wise,
        3,
        2,
        5,
        {},
    ),
    "ends after a doubtful token, as a block": (
        lambda vocab: SmallerModel(tiny(7, vocab, depth=1), confidence=0.52),
        rules.block,
        3,
        2,
        5,
        {},
    ),
    "copies": (lambda vocab: PromptLookup(2, 1), rules.point_mass, 3, 3, 4, {}),
    "copies, filtered": (lambda vocab: PromptLookup(2, 1), rules.token_wise, 2, 3, 4, {"top_p": 0.7}),
    "copies, coupled": (lambda vocab: PromptLookup(2, 1), rules.coupled, 3, 3, 4, {}),
    "counts": (lambda vocab: NGram(2), rules.token_wise, 2, 3, 4, {}),
    "counts, as a block": (lambda vocab: NGram(3), rules.block, 3, 2, 5, {}),
    "adapts": (SMALLER, rules.token_wise, None, 2, 5, {}),
    "copies, a tree": (lambda vocab: PromptLookup(2, 1), rules.tree, 4, 3, 4, {}),
    "copies, candidates": (lambda vocab: PromptLookup(2, 1), rules.multi_draft, 2, 3, 4, {}),
    "smaller, a tree": (SMALLER, rules.tree, 3, 3, 4, {}),
    "smaller, a wider tree": (SMALLER, rules.tree, 6, 2, 5, {}),
    "smaller, a tree, filtered": (SMALLER, rules.tree, 4, 3, 4, {"top_k": 2, "temperature": 0.8}),
    "smaller, a tree, greedy": (SMALLER, rules.tree, 4, 3, 5, {"temperature": 0.0}),
    "smaller, candidates": (SMALLER, rules.multi_draft, 2, 3, 4, {}),
    "smaller, a tree, adapts": (SMALLER, rules.tree, None, 2, 5, {}),
    "first layer, a tree": (lambda vocab: FirstLayers(), rules.tree, 4, 3, 4, {}),
    "first layer, candidates": (lambda vocab: FirstLayers(), rules.multi_draft, 3, 3, 4, {}),
    "trained, a tree": (TRAINED, rules.tree, 4, 3, 4, {}),
    "trained, candidates": (TRAINED, rules.multi_draft, 2, 3, 4, {}),
    "trained, a tree, greedy": (TRAINED, rules.tree, 4, 3, 5, {"temperature": 0.0}),
    "smaller, a tree, coupled": (SMALLER, None, None, 3, 5, {"temperature": 0.0}),
    "trained, a tree, coupled": (TRAINED, None, None, 3, 5, {"temperature": 0.0}),
    "copies, a tree, coupled": (lambda vocab: PromptLookup(2, 1), None, None, 3, 4, {}),
    "smaller, the default, sampled": (SMALLER, None, None, 2, 4, {}),
    "counts, a tree of width one": (lambda vocab: NGram(2), rules.tree, 2, 3, 4, {}),
    "counts, one candidate": (lambda vocab: NGram(2), rules.multi_draft, 2, 3, 4, {}),
    "drawn without replacement, a tree": (Drawn, rules.tree, 6, 3, 4, {}),
    "drawn without replacement, candidates": (Drawn, rules.multi_draft, 2, 3, 4, {}),
}


def assert_lawful(monkeypatch, name, eos=()):
    drafter, rule, gamma, vocab, length, changes = CASES[name]
    model = tiny(3, vocab)
    object.__setattr__(model.config, "eos_token_ids", eos)
    params = SamplingParams(**({"max_new_tokens": length, "temperature": 1.0} | changes))
    prompt = [1, 0, 1]
    law = engine_law(monkeypatch, model, prompt, params, drafter=drafter(vocab), rule=rule, gamma=gamma)
    right = model_law(model, prompt, params)
    assert max(abs(float(law.get(text, 0)) - right.get(text, 0)) for text in {*law, *right}) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_all_paths_of_the_engine_sum_to_the_law_of_the_model(monkeypatch, name):
    assert_lawful(monkeypatch, name)


@pytest.mark.parametrize(
    "name",
    [
        "smaller, token by token, longer", "smaller, as a block, longer", "copies", "adapts",
        "smaller, a wider tree", "copies, a tree",
    ],
)  # fmt: skip
def test_so_they_do_where_a_text_may_end_early(monkeypatch, name):
    assert_lawful(monkeypatch, name, eos=(0,))
