"""Names of other libraries are answered with the names here."""

import re
from dataclasses import replace
from typing import ClassVar

import pytest

from inference_opt import Engine, SamplingParams, load_model
from inference_opt.elsewhere import Elsewhere, elsewhere
from inference_opt.engine.arguments import ARGUMENTS, METHODS
from inference_opt.sampling.params import ELSEWHERE
from tests.engine.invariants import Echo


@elsewhere(other="second", gone="there is none")
def function(first, *, second=2, third=3):
    return first, second, third


@elsewhere(gone="there is none")
def open_to_all(first, **variables):
    return first, variables


def test_an_alias_is_the_argument():
    assert function(1, other=5) == function(1, second=5) == (1, 5, 3)
    assert open_to_all(1, thing=2) == (1, {"thing": 2})
    assert SamplingParams(max_tokens=7) == SamplingParams(max_new_tokens=7)


WRONG = {
    "function has no argument 'gone': there is none": lambda: function(1, gone=1),
    "did you mean 'third'?": lambda: function(1, thirt=1),
    "expected one of first, second, third": lambda: function(1, zzz=1),
    "other and second are the same": lambda: function(1, other=1, second=2),
    "write max_new_tokens= alone, in dataclasses.replace, too": lambda: replace(SamplingParams(), max_tokens=5),
    "open_to_all has no argument 'gone': there is none": lambda: open_to_all(1, gone=1),
    "only first may be given without a name; the others are second=, third=": lambda: function(1, 2),
}


@pytest.mark.parametrize("message", WRONG)
def test_the_error_says_what_to_write(message):
    with pytest.raises(TypeError, match=re.escape(message)):
        WRONG[message]()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_every_name_of_sampling_elsewhere_is_answered(name):
    if name == "max_tokens":
        return
    engine = Engine(Echo())
    for call in (lambda **named: engine.generate([1], **named), SamplingParams)[name in ("n", "params", "progress") :]:
        with pytest.raises(TypeError, match=re.escape(f"has no argument {name!r}: {ELSEWHERE[name]}")):
            call(**{name: 1})


def test_names_elsewhere_are_not_names_here():
    fields = SamplingParams.__dataclass_fields__
    assert not set(ELSEWHERE) & set(fields)
    for name, hint in ARGUMENTS.items():
        with pytest.raises(TypeError, match=re.escape(f"Engine has no argument {name!r}: {hint}")):
            Engine(Echo(), **{name: 1})
    engine = Engine(Echo())
    for name, hint in METHODS.items():
        if name == "()":
            with pytest.raises(TypeError, match=re.escape(hint)):
                engine([1, 2])
        else:
            with pytest.raises(AttributeError, match=re.escape(f"Engine has no {name!r}: {hint}")):
                getattr(engine, name)
    with pytest.raises(AttributeError, match="'Engine' object has no attribute 'nothing'"):
        _ = engine.nothing
    assert not hasattr(engine, "chat")


def test_an_error_within_a_property_is_told():
    class Broken(Elsewhere):
        @property
        def value(self):
            raise AttributeError("what is really wrong")

    with pytest.raises(AttributeError, match="what is really wrong"):
        _ = Broken().value


def test_a_base_with_attributes_of_its_own_is_asked_next():
    class Base:
        def __getattr__(self, name):
            return name.upper()

    class Both(Elsewhere, Base):
        ELSEWHERE: ClassVar = {"a": "b"}

    assert Both().x == "X"
    with pytest.raises(AttributeError, match="Both has no 'a': b"):
        _ = Both().a


def test_as_users_of_other_libraries_would_type_it(apart, smollm2_path):
    apart(as_users_of_other_libraries_would_type_it, smollm2_path)


def as_users_of_other_libraries_would_type_it(path):
    """vLLM's, transformers' and llama-cpp-python's ways: what is the same here works, all else leads on."""
    both = model, tokenizer = load_model(path)  # load_model("smollm2-135m")

    def leads_to(hint, error, call):
        with pytest.raises(error, match=re.escape(hint)):
            call()

    # vLLM: LLM(model="…"), generate(prompts, sampling_params), chat, outputs[0].text
    leads_to("model must be a Transformer, as load_model returns it first", ValueError, lambda: Engine("smollm2-135m"))
    leads_to("model, tokenizer = load_model(…)", ValueError, lambda: Engine(both))
    leads_to("only model may be given without a name", TypeError, lambda: Engine(model, tokenizer))
    leads_to("write num_pages=", TypeError, lambda: Engine(model, gpu_memory_utilization=0.9))
    leads_to("write drafter=, and gamma=", TypeError, lambda: Engine(model, speculative_config={"method": "ngram"}))
    leads_to("prompt-lookup, n-gram, first-layers, trained", ValueError, lambda: Engine(model, drafter="ngram"))
    leads_to("write radix=True or radix=False", TypeError, lambda: Engine(model, enable_prefix_caching=True))
    llm = Engine(model, tokenizer=tokenizer)
    params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=8, seed=1)
    outputs = llm.generate(["Hello, my name is", "The capital of France is"], params)
    assert [type(output.text) for output in outputs] == [str, str]
    assert len({output.text for output in llm.generate("Once", params, n=3)}) == 3
    leads_to("write params=", TypeError, lambda: llm.generate("Hello", sampling_params=params))
    leads_to("it is an argument of generate and stream", TypeError, lambda: SamplingParams(n=3))
    leads_to("logprobs must be True or False", ValueError, lambda: SamplingParams(logprobs=2))
    leads_to("give the messages to generate", AttributeError, lambda: llm.chat([]))
    # transformers: tokenizer(text), apply_chat_template, model.generate(max_new_tokens=, do_sample=, streamer=)
    chat = tokenizer.chat
    leads_to("chat returns the token ids of one conversation", TypeError, lambda: chat("Hello", tokenize=False))
    leads_to("chat returns the token ids of one conversation", TypeError, lambda: chat("Hello", return_tensors="pt"))
    assert chat("Hello", enable_thinking=False) == chat("Hello")
    leads_to("write encode(text), or chat(messages)", TypeError, lambda: tokenizer("Hello"))
    leads_to("write tokenizer.chat(messages)", AttributeError, lambda: tokenizer.apply_chat_template([]))
    leads_to("write Engine(model, tokenizer=tokenizer).generate(prompt)", TypeError, lambda: model.generate([[1]]))
    leads_to("a temperature above 0 samples", TypeError, lambda: llm.generate("Hello", do_sample=True))
    leads_to("which does not count the prompt", TypeError, lambda: llm.generate("Hello", max_length=20))
    leads_to("Engine.stream yields a text as it grows", TypeError, lambda: llm.generate("Hello", streamer=print))
    messages = [{"role": "user", "content": "Name a fruit."}]
    reply = llm.generate(messages, max_new_tokens=12)
    assert reply.prompt == tokenizer.chat(messages)
    # llama-cpp-python: llm("…", max_tokens=, stop=[…], stream=True), create_chat_completion, draft_model=
    leads_to("write generate(prompt)", TypeError, lambda: llm("Q: Name the planets. A:", max_tokens=8))
    leads_to("Engine.stream yields a text as it grows", TypeError, lambda: llm.generate("Hello", stream=True))
    leads_to("give the messages to generate", AttributeError, lambda: llm.create_chat_completion(messages=messages))
    leads_to("the context's length is the model's own", TypeError, lambda: Engine(model, n_ctx=2048))
    asked = {"max_tokens": 16, "stop": ["Q:", "\n"], "logprobs": True}
    whole = llm.generate("Q: Name the planets. A:", **asked)
    assert "".join(new.text for new in llm.stream("Q: Name the planets. A:", **asked)) == whole.text
    assert "\n" not in whole.text
    assert len(whole.logprobs) == len(whole.tokens)
    drafted = Engine(model, tokenizer=tokenizer, drafter="trained")
    assert drafted.generate(messages, max_new_tokens=12).text == reply.text
    assert "drafts accepted" in repr(drafted.stats)
