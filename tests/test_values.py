"""Values are what they say: nothing is taken for a number, a switch or a token that is none, and nothing read twice."""

import math
from array import array
from collections import UserList, deque
from fractions import Fraction

import numpy as np
import pytest
import torch

from inference_opt import TransformerWithOptimizations, naive
from inference_opt.cache import generate as static
from inference_opt.cache.paged import PagedCache
from inference_opt.cache.pool import PagePool
from inference_opt.engine.engine import Engine
from inference_opt.radix.tree import RadixTree
from inference_opt.sampling import SamplingParams
from inference_opt.speculative import DRAFTERS, FirstLayers, NGram, PromptLookup, SmallerModel
from tests.engine.invariants import Echo, dump
from tests.toys import tokens_of, toy

pytestmark = pytest.mark.usefixtures("untyped")
SHORT = SamplingParams(max_new_tokens=2, ignore_eos=True)
NO_INTEGERS = (True, np.True_, 1.0, np.float64(2.0), "1", b"1", [1], math.nan, torch.tensor(True), torch.tensor(1.0))


class Drawn:
    """A tokenizer as far as an engine looks."""

    def detokenizer(self):
        return self


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "seed", "gamma"])
def test_a_number_of_parameters_that_counts_is_an_integer(name):
    for value in NO_INTEGERS:
        with pytest.raises(ValueError, match=f"{name} must be an integer"):
            SamplingParams(**{name: value})
    for value in (3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)):
        kept = getattr(SamplingParams(**{name: value}), name)
        assert (kept, type(kept)) == (3, int)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p"])
def test_a_number_of_parameters_that_measures_is_finite(name):
    for value in (True, np.True_, "0.8", None, [0.5], math.nan, math.inf, np.float32("nan"), 1j, 10**400):
        with pytest.raises(ValueError, match=name):
            SamplingParams(**{name: value})
    for value in (1, np.float32(0.5), np.int64(1), Fraction(1, 2), torch.tensor(0.5)):
        kept = getattr(SamplingParams(**{name: value}), name)
        assert (kept, type(kept)) == (float(value), float)


@pytest.mark.parametrize("name", ["ignore_eos", "logprobs"])
def test_a_switch_is_on_or_off(name):
    for value in (0, 1, 2, None, "yes", 1.0, np.int64(1)):
        with pytest.raises(ValueError, match=f"{name} must be True or False"):
            SamplingParams(**{name: value})
    assert getattr(SamplingParams(**{name: np.True_}), name) is True


def test_stop_strings_are_read_once():
    assert SamplingParams(stop=(s for s in ("a", "b"))).stop == ("a", "b")
    for value in (b"x", 3, None, [1], [None], [b"x"]):
        with pytest.raises(ValueError, match="stop must be"):
            SamplingParams(stop=value)


PROMPT = [1, 2, 3]
PROMPTS = [
    (1, 2, 3), range(1, 4), array("i", PROMPT), deque(PROMPT), UserList(PROMPT), np.array(PROMPT),
    np.array(PROMPT, dtype=np.uint8), torch.tensor(PROMPT), torch.tensor(PROMPT, dtype=torch.int32),
    list(np.array(PROMPT)), list(torch.tensor(PROMPT)),
]  # fmt: skip
NO_PROMPTS = [
    "123", ["1", "2"], b"123", [1.0, 2.0], [1, 1.5], [1, True], [True], [1, None], [[1, 2]], np.array([1.0]),
    np.array([True]), np.array([[1]]), np.array(1), torch.tensor([1.0]), torch.tensor([True]), torch.tensor([[1]]),
    torch.tensor(1), {1: 2}, {1, 2}, 1, None, iter([1, 2]), (t for t in PROMPT), map(int, "12"),
]  # fmt: skip


def test_a_prompt_is_a_sequence_of_integers():
    config = toy().config
    for prompt in PROMPTS:
        ids = config.check_prompt(prompt)
        assert (ids, {*map(type, ids)}) == (PROMPT, {int})
    for prompt in NO_PROMPTS:
        with pytest.raises(ValueError, match="the prompt"):
            config.check_prompt(prompt)


def test_a_refused_prompt_is_not_read():
    prompt = iter(PROMPT)
    with pytest.raises(ValueError, match=r"prompt 0: a prompt must be a text, a chat .* or a list of token ids"):
        Engine(toy()).generate([prompt], SHORT)
    assert list(prompt) == PROMPT


def test_prompts_and_their_parameters_are_read_once():
    model = toy()
    right = static.generate(model, [PROMPT, [4]], SHORT)
    engine = Engine(model)
    for generate in (lambda *asked: tokens_of(engine.generate(*asked)), lambda *asked: static.generate(model, *asked)):
        assert generate(iter([PROMPT, [4]]), SHORT) == right
        assert generate(iter([PROMPT, [4]]), (p for p in (SHORT, SHORT))) == right
        for prompts, params in (("text", SHORT), (3, SHORT), (None, SHORT), ([PROMPT], {}), ([PROMPT], [None])):
            with pytest.raises(ValueError, match=r"prompt|params|tokenizer"):
                generate(prompts, params)
    for prompts, params in ((PROMPT, SHORT), ([PROMPT], None)):
        with pytest.raises(ValueError, match=r"prompt|params"):
            static.generate(model, prompts, params)
    for params in ({}, [SHORT], "SHORT"):
        with pytest.raises(ValueError, match="params must be SamplingParams"):
            naive.generate(model, PROMPT, params)
        with pytest.raises(ValueError, match="params must be SamplingParams"):
            Engine(model).add(PROMPT, params)


def test_naive_and_static_streams_are_checked_when_they_are_asked_for():
    with pytest.raises(ValueError, match="outside the vocabulary"):
        naive.stream(toy(), [99], SHORT)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        static.stream(toy(), [[1], [99]], SHORT)


def test_a_name_that_the_engine_gives_is_no_user_s():
    engine = Engine(Echo(64), page_size=2, num_pages=60)
    engine.add([1], SHORT, id="request-1")
    unnamed = [engine.add([2], SHORT) for _ in range(3)]
    assert [f"{r.id}" for r in unnamed] == ["request-1", "request-2", "request-3"]
    assert repr(unnamed[2]).startswith("<Request request-3, "), "no quotes: it is not what abort() takes as a text"
    later = engine.add([3], SHORT, id="request-2")
    assert len({r.id for r in unnamed} | {"request-1", "request-2"}) == len(engine.requests) == 5
    assert engine.abort("request-2") is later
    assert engine.abort(unnamed[1].id) is unnamed[1]
    with pytest.raises(ValueError, match=r"no unfinished request .* has the id 'request-3': .* gave to add"):
        engine.abort("request-3")
    assert {r.prompt[0] for r in engine.requests.values()} == {1, 2}


def test_ids_that_are_equal_are_one_id():
    engine = Engine(Echo(), page_size=2)
    request = engine.add([1], SHORT, id=1)
    before = dump(engine)
    for same in (True, 1.0):
        with pytest.raises(ValueError, match="taken"):
            engine.add([2], SHORT, id=same)
    assert dump(engine) == before
    assert engine.abort(1.0) is request
    assert engine.requests == {}


SIZES = ("page_size", "num_pages", "token_budget", "max_running", "patience", "draft_rows", "gamma", "decode_steps")


@pytest.mark.parametrize("name", SIZES)
def test_an_engine_s_sizes_are_integers(name):
    for value in (*NO_INTEGERS, *(() if name in ("num_pages", "gamma", "draft_rows") else (None,))):
        with pytest.raises(ValueError, match=f"{name} must be an integer"):
            Engine(Echo(), **{name: value})
    engine = Engine(Echo(), **{name: np.int64(4)})
    assert type(engine.stats.pages) is type(engine.pool.page_size) is int


def test_an_engine_is_given_its_parts_by_their_names():
    with pytest.raises(TypeError, match="only model may be given without a name; the others are tokenizer=, radix="):
        Engine(Echo(), Drawn())
    for radix in (None, 1, "yes", SHORT):
        with pytest.raises(ValueError, match="radix must be True or False"):
            Engine(Echo(), radix=radix)
    for model in ("smollm2-135m", None, TransformerWithOptimizations(dim=8, depth=1, heads=2, vocab_size=5)):
        with pytest.raises(ValueError, match="model must be a Transformer"):
            Engine(model)
    with pytest.raises(ValueError, match="tokenizer must be a Tokenizer"):
        Engine(Echo(), tokenizer="gpt2")


def test_pools_trees_and_caches_have_sizes_that_are_integers():
    for value in (True, 1.0, 2.5, "1", None):
        for make in (
            lambda v: PagePool(v, 1),
            lambda v: PagePool(1, v),
            RadixTree,
            lambda v: PagedCache(1, 1, 2, v, 1, torch.float64, torch.device("cpu")),
            lambda v: PagedCache(1, 1, 2, 1, v, torch.float64, torch.device("cpu")),
        ):
            with pytest.raises(ValueError, match=r"(num_pages|page_size) must be an integer"):
                make(value)


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_drafter_is_not_made_of_a_model(name):
    with pytest.raises(ValueError, match=r"must be (an integer|a DraftHead, or None.*), got a Transformer"):
        DRAFTERS[name](toy())


def test_drafters_are_made_of_numbers():
    for make in (FirstLayers, NGram, PromptLookup, lambda v: PromptLookup(4, v)):
        for value in (True, 2.0, "2"):
            with pytest.raises(ValueError, match="must be an integer"):
                make(value)
    for value in (True, "0.5", math.nan, None):
        with pytest.raises(ValueError, match="confidence"):
            FirstLayers(1, value)
    for model in (None, 3, "smollm2-135m"):
        with pytest.raises(ValueError, match="model must be a Transformer"):
            SmallerModel(model)


def test_the_class_with_the_switches_takes_integers():
    model = TransformerWithOptimizations(dim=8, depth=1, heads=2, vocab_size=50, max_context=64)
    for ids, length in (([[1]], 5.0), ([[1]], True), ([[1]], "9"), ([[True]], 9), ([[1.0]], 9), ([[1j]], 9)):
        with pytest.raises(ValueError, match=r"integer|sequence"):
            model.generate(torch.tensor(ids), length)
