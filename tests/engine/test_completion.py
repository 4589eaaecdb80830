"""Text in, text out: what a caller may give, and what comes back whole or as it grows."""

from contextlib import redirect_stderr
from functools import cache
from io import StringIO

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt import Engine, SamplingParams, load_model, naive
from inference_opt.engine import completion
from inference_opt.engine.completion import Text
from inference_opt.engine.prompts import is_one
from inference_opt.loading.detokenizer import Detokenizer
from inference_opt.loading.tokenizer import Tokenizer
from inference_opt.sampling import cut_at_stop
from inference_opt.speculative import DRAFTERS
from tests.engine.invariants import Echo, dump
from tests.toys import tokens_of, toy

GREEDY = SamplingParams(max_new_tokens=5, ignore_eos=True)


def byte_level():
    """A tokenizer whose tokens are the bytes of UTF-8."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return Tokenizer(backend)


CHAT = [{"role": "user", "content": "Why is the sky blue?"}]


@given(
    st.text("abc é🙂", max_size=12),
    st.lists(st.text("abc é🙂", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(1, 4), min_size=1, max_size=8),
)
def test_a_growing_text_shows_only_what_stays_and_in_the_end_all(text, stop, sizes):
    tokenizer, shown = byte_level(), ""
    tokens = tokenizer.encode(text)
    growing, at = Text(tokenizer, stop), 0
    for size in sizes * 9:
        shown += growing.add(tokens[at : at + size], finished=False)
        at += size
        assert cut_at_stop(text, stop).startswith(shown)
    assert shown + growing.add([], finished=True) == cut_at_stop(text, stop)


def test_a_text_is_held_back_only_while_it_may_become_a_stop_string():
    growing, tokenizer = Text(byte_level(), ["xyz"]), byte_level()
    added = [growing.add(tokenizer.encode(piece), finished=False) for piece in ("a", "x", "y", "b", "xy", "z")]
    assert added == ["a", "", "", "xyb", "", ""]


def test_stop_strings_are_looked_for_in_the_end_of_a_growing_text_only(monkeypatch):
    searched = []
    monkeypatch.setattr(completion, "cut_at_stop", lambda text, stop: searched.append(text) or cut_at_stop(text, stop))
    growing, tokenizer = Text(byte_level(), ["xyz"]), byte_level()
    for _ in range(50):
        growing.add(tokenizer.encode("abcx"), finished=False)
    assert set(searched) == {"abcx", "xabcx"}


ONE = [
    np.str_("ab"),
    pd.Series([1, 2]),
    [1, 2],
    (1, 2),
    torch.tensor([1, 2]),
    np.array([1, 2]),
    "ab",
    CHAT,
    [np.int64(1)],
    range(1, 3),
]
SEVERAL = [
    np.array(["x", "y"]),
    np.array([[1, 2], [3]], dtype=object),
    pd.Series(["a"]),
    pd.Series([[1, 2], [3]]),
    pd.Series([CHAT]),
    [[1, 2]],
    [(1, 2), [3]],
    ["ab", [1]],
    [CHAT],
    [torch.tensor([1])],
    (r for r in [[1]]),
]


def test_one_prompt_is_told_from_a_list_of_prompts():
    assert all(map(is_one, ONE))
    assert not any(map(is_one, SEVERAL))


@pytest.mark.parametrize("prompt", [each for each in ONE if not isinstance(each, str) and each is not CHAT])
def test_one_prompt_gives_its_completion_and_several_or_n_a_list(prompt):
    model = toy(3)
    one = Engine(model).generate(prompt, GREEDY)
    ids = [int(token) for token in prompt]
    assert (one.prompt, one.tokens) == (ids, naive.generate(model, ids, GREEDY))
    assert tokens_of(Engine(model).generate([prompt], GREEDY)) == [one.tokens]
    assert tokens_of(Engine(model).generate(prompt, GREEDY, n=1)) == [one.tokens]
    assert tokens_of(Engine(model).generate(prompt, GREEDY, n=2)) == [one.tokens] * 2


def test_parameters_by_name_are_those_of_an_object():
    model, named = toy(3), {"max_new_tokens": 6, "temperature": 2.0, "seed": 5, "ignore_eos": True}
    whole = naive.generate(model, [1, 2], SamplingParams(**named))
    engine = Engine(model)
    assert engine.generate([1, 2], **named).tokens == engine.generate([1, 2], SamplingParams(**named)).tokens == whole
    named["max_tokens"] = named.pop("max_new_tokens")
    assert [token for new in engine.stream([1, 2], **named) for token in new.tokens] == whole
    request = engine.add([1, 2], **named)
    while not request.finished:
        engine.step()
    assert request.output == whole
    assert engine.generate([1, 2], seed=7).params == SamplingParams(seed=7)


real_model = cache(load_model)  # in a process of its own


def test_a_completion_says_what_was_seen(apart, smollm2_path):
    apart(a_completion_says_what_was_seen, smollm2_path)


def a_completion_says_what_was_seen(path):
    model, tokenizer = real_model(path, dtype="float32")
    engine = Engine(model, tokenizer=tokenizer, num_pages=64)
    ids = tokenizer.chat(CHAT)
    asked = {"max_new_tokens": 24, "stop": "light", "logprobs": True}
    done = engine.generate(CHAT, **asked)
    assert done.prompt == ids
    assert done.tokens == naive.generate(model, ids, SamplingParams(24, stop="light"), tokenizer)
    assert done.finish_reason == "stop"
    assert done.text == cut_at_stop(tokenizer.decode(done.tokens), "light")
    assert "light" in tokenizer.decode(done.tokens)
    assert len(done.logprobs) == len(done.tokens)
    assert max(done.logprobs) <= 0
    assert done.metrics.prefill_tokens == len(ids)
    assert done.metrics.first_token < done.metrics.finished
    assert repr(done).startswith("<Completion 'The ")
    assert repr(done).endswith("finish_reason 'stop'>")
    # The same as it grows, with text given as text.
    text = "The sky is"
    deltas = list(engine.stream(text, **asked | {"max_new_tokens": 6}))
    whole = engine.generate(text, max_new_tokens=6, stop="light")
    assert whole.logprobs is None
    assert "".join(new.text for new in deltas) == whole.text
    assert [token for new in deltas for token in new.tokens] == whole.tokens
    assert [new.finish_reason for new in deltas] == [None] * (len(deltas) - 1) + [whole.finish_reason]
    both = engine.generate([text, CHAT], max_new_tokens=4)
    assert [each.prompt for each in both] == [tokenizer.encode(text), ids]
    assert both[0].text == tokenizer.decode(both[0].tokens)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_drafter_goes_by_its_name(apart, smollm2_path, drafter):
    apart(a_drafter_goes_by_its_name, smollm2_path, drafter)


def a_drafter_goes_by_its_name(path, drafter):
    model, tokenizer = real_model(path, dtype="float32")
    engine = Engine(model, tokenizer=tokenizer, drafter=drafter, num_pages=64)
    assert type(engine.speculation.drafter) is DRAFTERS[drafter]
    text, new = "one two three four, " * 6, SamplingParams(12)
    assert engine.generate(text, new).tokens == naive.generate(model, tokenizer.encode(text), new)
    assert engine.stats.drafted_tokens > 0


WRONG = {
    "a text needs a tokenizer": (
        "text and stop strings need a tokenizer: Engine.model, tokenizer=",
        lambda e: e.generate("ab"),
    ),
    "a chat, too": ("text and stop strings need a tokenizer", lambda e: e.generate(CHAT)),
    "a matrix": (
        "2-dimensional array, whose rows may be padded: give a list",
        lambda e: e.generate(torch.ones(2, 2).long()),
    ),
    "one message": ("a chat is a list of messages", lambda e: e.generate(CHAT[0])),
    "what transformers' tokenizers give": ("give its input_ids", lambda e: e.generate({"input_ids": [[1]]})),
    "bytes": ("a prompt must be a text, a chat .* or a list of token ids; got b'ab'", lambda e: e.generate(b"ab")),
    "a number": ("prompts must be a list", lambda e: e.generate(5)),
    "a number among prompts": ("prompt 1: a prompt must be a text, a chat", lambda e: e.generate([[1], 5], GREEDY)),
    "a list of prompts for one": ("got a list of prompts: generate and stream take", lambda e: e.add([[1], [2]])),
    "a dict of parameters": ("params must be SamplingParams, got {", lambda e: e.generate([1], {"seed": 1})),
    "a switch that is a number": ("progress must be True or False", lambda e: e.generate([1], GREEDY, progress=1)),
    "a stop string": ("text and stop strings need a tokenizer", lambda e: e.generate([1], stop="x")),
    "no prompts": ("there are no prompts", lambda e: e.generate([])),
    "an empty prompt": ("prompt 1: the prompt is empty", lambda e: e.generate([[1], []], GREEDY)),
    "a token that there is not": ("^token id 99 is outside", lambda e: e.generate([1, 99])),
    "both ways": ("params and seed= were given", lambda e: e.generate([1], GREEDY, seed=3)),
    "both ways of add": ("params and seed= were given", lambda e: e.add([1], GREEDY, seed=3)),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_prompt_is_refused_and_changes_nothing(what, untyped):
    message, call = WRONG[what]
    engine = Engine(Echo(64), page_size=2, num_pages=30)
    engine.add([1, 2], GREEDY)
    before = dump(engine)
    with pytest.raises(ValueError, match=message):
        call(engine)
    assert dump(engine) == before


def test_text_needs_a_tokenizer_on_the_way_out_too():
    done = Engine(toy()).generate([1, 2], GREEDY)
    with pytest.raises(ValueError, match="text and stop strings need a tokenizer"):
        _ = done.text
    assert "tokens [" in repr(done)


class Raises:
    """A tokenizer that fails at one of its calls."""

    def __init__(self, at):
        self.real, self.left, self.special_ids = byte_level(), at, {}

    def detokenizer(self):
        return Detokenizer(self, unfinished=1)

    def decode(self, ids):
        self.left -= 1
        if not self.left:
            raise RuntimeError("a tokenizer that fails")
        return self.real.decode(ids)


@pytest.mark.parametrize("drafter", [None, "prompt-lookup"])
def test_a_tokenizer_that_fails_in_a_stream_loses_and_doubles_nothing(drafter, untyped):
    model, asked = toy(3, vocab_size=256), {"max_new_tokens": 9, "ignore_eos": True, "stop": "\n\n\n"}
    whole = Engine(model, tokenizer=byte_level()).generate([65, 66, 67], **asked)
    failed = 0
    for at in range(1, 120, 3):
        engine = Engine(model, tokenizer=Raises(at), drafter=drafter)
        stream, tokens, text = engine.stream([65, 66, 67], **asked), [], ""
        while True:
            try:
                new = next(stream, None)
            except RuntimeError:
                failed += 1
                continue
            if new is None:
                break
            tokens, text = tokens + new.tokens, text + new.text
        assert (tokens, text) == (whole.tokens, whole.text)
    assert failed > 10


def test_a_stream_ends_its_requests_with_its_block():
    engine = Engine(toy(3))
    with engine.stream([1, 2], GREEDY) as stream:
        next(stream)
        assert "1 not ended" in repr(stream)
    assert not engine.requests


def test_everything_has_a_short_repr(apart, smollm2_path):
    apart(everything_has_a_short_repr, smollm2_path)


def everything_has_a_short_repr(path):
    model, tokenizer = real_model(path, dtype="float32")
    engine = Engine(model, tokenizer=tokenizer, drafter="prompt-lookup", num_pages=64)
    request = engine.add("one two three " * 30, max_new_tokens=3)
    (output,) = engine.step()
    with redirect_stderr(StringIO()) as said:
        engine.generate("one two three one two three", max_new_tokens=4, progress=True)
    assert "requests" in said.getvalue()
    stats = engine.stats
    for thing in (
        engine,
        request,
        output,
        stats,
        tokenizer,
        tokenizer.detokenizer(),
        *(kind() for kind in DRAFTERS.values()),
    ):
        assert len(repr(thing)) < 250
        assert " object at 0x" not in repr(thing)
    assert "PromptLookup(max_ngram=4, min_ngram=2)" in repr(engine)
    assert f"{stats.new_tokens} new tokens in {stats.steps} steps" in repr(stats)
    assert stats.new_tokens == 3 + 4
    assert stats.tokens_per_second == pytest.approx(stats.new_tokens / stats.seconds)
    assert "<td>acceptance</td>" in stats._repr_html_()
    assert isinstance(tokenizer, Tokenizer)
