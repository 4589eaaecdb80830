"""SmolLM2's tokenizer against `transformers`; streaming against decoding all at once; other files' tokenizers."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from inference_opt.model.checkpoint import GGUFFile
from inference_opt.model.tokenizer import tokenizer_from_folder, tokenizer_from_gguf

PIECES = [
    "  ",
    "\n",
    "\t",
    " the",
    "Hello",
    "n't",
    "'s",
    "12",
    "3.14",
    "    x = 5",
    "é",
    "日本語",
    "👩‍🚀",
    "ß",
    "½",
    "٣",
]
PIECES += ["👩‍🚀", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\n", "def f(a):", "...", "—", "\u0301", "\r\n"]
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join).filter(str.isprintable)
    | st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
)


@pytest.fixture(scope="module")
def fields(smollm2_path):
    return GGUFFile(smollm2_path).fields


@pytest.fixture(scope="module")
def ours(fields):
    return tokenizer_from_gguf(fields)


@pytest.fixture(scope="module")
def theirs(smollm2_path):
    return AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)


def digits_apart(theirs, text):
    """`transformers`, with the file's own rule put before it.

    The file names the pre-tokenizer "smollm": every numeric character is isolated before anything else.
    `transformers` does not read that line of a GGUF file, so the rule is applied here, after the special tokens.
    """
    ids = []
    for part in re.split(r"(<\|[a-z_]+\|>|<[a-z_]+>)", text):
        if part in theirs.all_special_tokens or part in theirs.added_tokens_encoder:
            ids.append(theirs.convert_tokens_to_ids(part))
            continue
        runs = [""]
        for c in part:
            number = unicodedata.category(c).startswith("N")
            runs += [c, ""] if number else []
            runs[-1] += "" if number else c
        ids += [i for run in runs if run for i in theirs(run, add_special_tokens=False).input_ids]
    return ids


@settings(max_examples=3000)
@given(text=TEXTS)
def test_tokens_are_those_of_transformers(ours, theirs, text):
    ids = ours.encode(text)
    assert ids == digits_apart(theirs, text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_the_rule_that_transformers_leaves_out(ours, theirs):
    text = "x\n    3"
    assert ours.encode(text) == digits_apart(theirs, text) != theirs(text).input_ids


@given(
    st.booleans(),
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|"), max_size=9), min_size=1, max_size=5
    ),
)
def test_conversations_are_those_of_transformers(ours, theirs, system, turns):
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": "system", "content": "Be brief."}] if system else []
    messages += [{"role": role, "content": text} for role, text in zip(roles, turns)]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.chat(messages) == ours.encode(rendered)


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    return [stream.add(i) for i in ids], stream


@settings(max_examples=300)
@given(text=TEXTS)
def test_streamed_text_never_shows_half_a_character(ours, text):
    ids = ours.encode(text)
    whole = ours.decode(ids)
    pieces, stream = streamed(ours, ids)
    for n in range(len(pieces) + 1):
        assert whole.startswith("".join(pieces[:n]))
    assert "".join(pieces) + stream.finish() == whole == stream.text


@settings(max_examples=300)
@given(ids=st.lists(st.integers(17, 300) | st.integers(0, 49151), max_size=15))
def test_any_tokens_at_all_stream_to_their_text(ours, ids):
    # Tokens 17 to 272 are single bytes: most such lists are no valid UTF-8.
    pieces, stream = streamed(ours, ids)
    assert "".join(pieces) + stream.finish() == ours.decode(ids)


def test_text_that_is_not_unicode(ours):
    with pytest.raises(ValueError, match="Unicode"):
        ours.encode("a\ud800b")


def test_a_folder_s_tokenizer_is_the_same(ours, theirs, tmp_path):
    ours.backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="chat template"):
        tokenizer_from_folder(tmp_path).chat("Hi")
    (tmp_path / "chat_template.jinja").write_text(ours.chat_template)
    again = tokenizer_from_folder(tmp_path)
    text = "Numbers 123 and <|im_end|> tokens"
    assert again.encode(text) == ours.encode(text)
    assert again.chat("Hi") == ours.chat("Hi")
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system messages') }}")
    with pytest.raises(ValueError, match="no system messages"):
        tokenizer_from_folder(tmp_path).chat("Hi")


@pytest.mark.parametrize(
    ("cut", "text", "pieces"),
    [
        ("qwen2", "a 12345b's", ["a", " ", "1", "2", "3", "4", "5", "b", "'s"]),
        ("llama-bpe", "a 12345b's", ["a", " ", "123", "45", "b", "'s"]),
        ("llama-bpe", "x  y\n\n z", ["x", " ", " y", "\n\n", " z"]),
        ("gpt-2", "a 12345b's", ["a", " 12345", "b", "'s"]),
        ("smollm", "a 12345b's", ["a", " ", "1", "2", "3", "4", "5", "b", "'s"]),
    ],
)
def test_texts_are_cut_as_the_file_says(fields, cut, text, pieces):
    backend = tokenizer_from_gguf(fields | {"tokenizer.ggml.pre": cut}).backend
    spans = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[a:b] for a, b in spans] == pieces


@pytest.mark.parametrize("change", [{"tokenizer.ggml.model": "llama"}, {"tokenizer.ggml.pre": "unheard-of"}])
def test_tokenizers_that_are_not_built_here(fields, change):
    with pytest.raises(ValueError, match=next(iter(change.values()))):
        tokenizer_from_gguf(fields | change)
