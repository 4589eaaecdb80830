"""SmolLM2's tokenizer against that of `transformers`, the other pre-tokenizers against published regular expressions.

A stream of tokens against the text that they make at once.
"""

import inspect
import json
import re
import unicodedata

import pytest
import regex
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from inference_opt import naive
from inference_opt.generate import generate_text
from inference_opt.loading import checkpoint
from inference_opt.loading.checkpoint import GGUFFile
from inference_opt.loading.load import load_model
from inference_opt.loading.tokenizer import Detokenizer, Tokenizer, tokenizer_from_folder, tokenizer_from_gguf
from inference_opt.loading.vocabulary import end_token_ids
from inference_opt.sampling import SamplingParams
from tests.loading.test_checkpoint_errors import write_folder

VOCABULARY = 49152
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<jupyter_code>"]
FRAGMENTS = [
    *SPECIAL,
    "<|im_end",
    "|>",
    " ",
    "  ",
    "\n",
    "\n    ",
    "\t",
    "\r\n",
    "\u3000",
    "\u00a0",
    "12345",
    " 3.14",
    "½",
]
FRAGMENTS += [
    "'s",
    "'LL",
    "don't",
    "’re",
    " the",
    "def f(x):\n    return x[0]",
    "{}();",
    "--",
    "🙂",
    "👩‍👩‍👧",
    "é",
    "e\u0301",
]
# Unassigned code points (Cn) stay out: Python and the library know different versions of Unicode.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=8)
TEXTS = st.lists(st.one_of(TEXT, st.sampled_from(FRAGMENTS)), max_size=10).map("".join)
IDS = st.lists(st.integers(0, VOCABULARY - 1) | st.integers(0, 300), max_size=20)  # the first 300: special, then bytes
MESSAGES = st.lists(TEXTS, min_size=1, max_size=5)


@pytest.fixture(scope="module")
def fields(smollm2_path):
    return GGUFFile(smollm2_path).fields


@pytest.fixture(scope="module")
def ours(fields):
    return tokenizer_from_gguf(fields)


@pytest.fixture(scope="module")
def theirs(smollm2_path):
    return transformers.AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)


@pytest.fixture(scope="module")
def special(fields):
    """Splits at the control tokens, and keeps them."""
    named = zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"])
    return re.compile("(" + "|".join(re.escape(token) for token, kind in named if kind == 3) + ")")


def pieces(text, special):
    """`transformers` does not read the file's pre-tokenizer "smollm", which isolates every digit before all else.

    So it is given one piece at a time: a special token, a numeric character, or the text between.
    """
    for part in special.split(text):
        if special.fullmatch(part):
            yield part
            continue
        start = 0
        for i, c in enumerate(part):
            if unicodedata.category(c).startswith("N"):
                yield from (part[start:i], c)
                start = i + 1
        yield part[start:]


def expected_ids(theirs, special, text):
    parts = [part for part in pieces(text, special) if part]
    return [i for ids in (theirs(parts)["input_ids"] if parts else []) for i in ids]


@settings(max_examples=3000)
@given(TEXTS)
def test_text_has_the_ids_of_transformers(ours, theirs, special, text):
    ids = ours.encode(text)
    assert ids == expected_ids(theirs, special, text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_digits_stand_alone_where_transformers_overlooks_it(ours, theirs, special):
    text = "x\n    3"
    assert ours.encode(text) == expected_ids(theirs, special, text) != theirs.encode(text)


@given(IDS)
def test_ids_have_the_text_of_transformers(ours, theirs, ids):
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def conversation(texts, system):
    roles = ["system"] * system + ["user", "assistant"] * 3
    return [{"role": role, "content": text} for role, text in zip(roles, texts)]


@given(MESSAGES, st.booleans())
def test_a_conversation_has_the_ids_of_transformers(ours, theirs, special, texts, system):
    messages = conversation(texts, system)
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.chat(messages) == expected_ids(theirs, special, text)


@given(TEXTS)
def test_a_string_is_one_user_message(ours, text):
    assert ours.chat(text) == ours.chat([{"role": "user", "content": text}])


class Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.most, self.all = tokenizer, 0, 0

    def decode(self, ids):
        self.most, self.all = max(self.most, len(ids)), self.all + len(ids)
        return self.tokenizer.decode(ids)


@settings(max_examples=300)
@given(TEXTS | IDS | st.lists(st.integers(0, 300)), st.sampled_from([1, 3]))
def test_a_stream_shows_what_is_certain_and_in_the_end_all(ours, text_or_ids, unfinished):
    """For any ids, even those whose bytes are no valid text: what was shown is never taken back."""
    ids = ours.encode(text_or_ids) if isinstance(text_or_ids, str) else text_or_ids
    counting = Counting(ours)
    whole, stream, shown = ours.decode(ids), Detokenizer(counting, unfinished), ""
    for n, token in enumerate(ids, 1):
        shown += stream.add(token)
        assert shown == stream.text
        assert whole.startswith(shown)  # a half character would show as U+FFFD here, and not there
        now = ours.decode(ids[:n])
        held = now.removeprefix(shown)
        assert held == "\ufffd" * min(unfinished, len(now) - len(now.rstrip("\ufffd")), len(held))  # the least
        assert not held or now.endswith("\ufffd")
    assert shown + stream.finish() == whole
    assert counting.most <= 12


@pytest.mark.parametrize("kind", ["text", "special", "no character"])
def test_a_stream_decodes_few_tokens_for_each(ours, kind):
    byte = next(i for i in range(300) if ours.decode([i]) == "\ufffd")
    token = {"text": ours.encode("a")[0], "special": 2, "no character": byte}[kind]
    counting = Counting(ours)
    stream = Detokenizer(counting)
    shown = "".join(stream.add(token) for _ in range(400))
    assert counting.all < 20 * 400
    assert len(shown) == {"text": 400, "special": 0, "no character": 397}[kind]


@given(st.lists(st.sampled_from(["the", " ", "  ", "é", "日", "🙂", "<s>", "\n", "a"]), max_size=12).map("".join))
def test_a_stream_over_byte_fallback_shows_every_character_as_it_ends(text):
    read = byte_fallback()
    ids, stream = read.encode(text), read.detokenizer()
    shown = [stream.add(token) for token in ids]
    assert "".join(shown) == read.decode(ids)
    assert stream.finish() == ""
    for ids in (read.encode("日🙂")[:-4], read.encode("日🙂")):  # a character stands before the next is complete
        stream = read.detokenizer()
        assert "".join([stream.add(token) for token in ids]) == read.decode(ids)


def byte_fallback():
    """As Llama 2's: words begin with ▁, what is not in the vocabulary is bytes, the text's first space is dropped."""
    vocab = {"<unk>": 0, "<s>": 1, "▁": 2, "t": 3, "h": 4, "e": 5, "th": 6, "the": 7, "▁the": 8}
    vocab |= {f"<0x{b:02X}>": 9 + b for b in range(256)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    norm, dec = tokenizers.normalizers, tokenizers.decoders
    backend.normalizer = norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")])
    backend.decoder = dec.Sequence([dec.Replace("▁", " "), dec.ByteFallback(), dec.Fuse(), dec.Strip(" ", 1, 0)])
    backend.add_special_tokens(["<s>"])
    return Tokenizer(backend)


def test_a_character_of_several_tokens_is_shown_whole(ours):
    ids = ours.encode("👩‍👩‍👧")
    stream = ours.detokenizer()
    shown = [stream.add(token) for token in ids]
    assert "" in shown  # some token holds a part only
    assert set("".join(shown)) == set("👩‍👧")


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder_tokenizer(folder):
    return tokenizer_from_folder(folder)


@given(TEXTS, MESSAGES)
def test_a_folder_has_the_ids_of_transformers(theirs, folder_tokenizer, text, texts):
    messages = conversation(texts, system=True)
    assert folder_tokenizer.encode(text) == theirs.encode(text)
    assert folder_tokenizer.chat(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True).input_ids
    assert folder_tokenizer.names == theirs.special_tokens_map


def test_a_chat_template_may_stand_in_the_configuration(tmp_path, folder, folder_tokenizer):
    assert folder_tokenizer.chat_template == (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").symlink_to(folder / "tokenizer.json")
    config = '{"chat_template": "{{ bos_token }}{{ messages[0].content }}", "bos_token": {"content": "<repo_name>"}}'
    (tmp_path / "tokenizer_config.json").write_text(config)
    read = tokenizer_from_folder(tmp_path)
    assert read.chat("a") == read.encode("<repo_name>a")


def test_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path.name} holds no tokenizer\.json"):
        tokenizer_from_folder(tmp_path)


@given(st.data())
def test_a_damaged_tokenizer(tmp_path_factory, folder, data):
    content, path = (folder / "tokenizer.json").read_bytes(), tmp_path_factory.mktemp("damaged") / "tokenizer.json"
    path.write_bytes(content[: data.draw(st.integers(0, 2000))])
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        tokenizer_from_folder(path.parent)


def test_no_chat_template(ours):
    with pytest.raises(ValueError, match="no chat template"):
        Tokenizer(ours.backend).chat("hello")


@pytest.mark.parametrize("template", ["{{ raise_exception('only users may speak') }}", "{% if %}"])
def test_a_chat_template_that_refuses(ours, template):
    with pytest.raises(ValueError, match=r"refuses these messages: (only users may speak|Expected an expression)"):
        Tokenizer(ours.backend, template).chat("hello")


@given(TEXTS, st.characters(categories=["Cs"]), TEXTS)
def test_a_lone_surrogate_is_no_text(ours, before, surrogate, after):
    with pytest.raises(ValueError, match="not valid Unicode"):
        ours.encode(before + surrogate + after)


FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
TEMPLATE = "{{ bos_token }}{{ pad_token }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": TEMPLATE}
CONFIG |= {"tokenizer_class": "PreTrainedTokenizerFast"}
SPOKEN = "<|im_start|>the  <s>fox\n <|im_end|> the</s> end"
MAP = {"bos_token": {"content": "<s>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}}


def files(*extra, changes=None, **more):
    """A folder's files: bytes, then <s>, </s>, <pad> and `extra` tokens in tokenizer.json, and `more` configuration."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<pad>", *extra])
    config = {name: value for name, value in (CONFIG | more).items() if value is not None}
    return {"tokenizer.json": json.loads(backend.to_str()) | (changes or {}), "tokenizer_config.json": config}


def write(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


CUT = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
FILL = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None}
FILL |= {"pad_id": 2, "pad_type_id": 0, "pad_token": "<pad>"}
ADDED = {"259": FLAGS | {"content": "<|im_start|>"}, "260": FLAGS | {"content": "<|im_end|>", "lstrip": True}}
FOLDERS = {
    "plain": files("<|im_start|>", "<|im_end|>"),
    "truncation": files("<|im_start|>", "<|im_end|>", changes={"truncation": CUT}),
    "padding": files("<|im_start|>", "<|im_end|>", changes={"padding": FILL}),
    "added in the configuration": files(added_tokens_decoder=ADDED),
    "other flags in the configuration": files(
        "<|im_start|>", "<|im_end|>", added_tokens_decoder={"260": FLAGS | {"content": "<|im_end|>", "rstrip": True}}
    ),
    "single words": files(added_tokens_decoder={"259": FLAGS | {"content": "the", "single_word": True}}),
    "no special one": files(added_tokens_decoder={"259": FLAGS | {"content": "fox", "special": False}}),
    "added_tokens.json": files() | {"added_tokens.json": {"<|im_start|>": 259, "<|im_end|>": 260}},
    "special by name": files(extra_special_tokens=["<|im_end|>"]) | {"added_tokens.json": {"<|im_start|>": 259}},
    "older list": files(additional_special_tokens=["<|im_end|>", "<|im_start|>"]),
    "special_tokens_map.json": files(bos_token=None) | {"special_tokens_map.json": MAP},
    "a name of its own": files(image_token="<|im_start|>", num_image_token=5),
    "add_bos_token": files(add_bos_token=True, add_eos_token=True),
    "template files": files(chat_template="not this") | {"chat_template.jinja": TEMPLATE},
    "named templates": files(chat_template=[{"name": "default", "template": TEMPLATE}, {"name": "x", "template": "y"}]),
    "further template files": files(chat_template="not this")
    | {"chat_template.jinja": TEMPLATE, "additional_chat_templates/rag.jinja": "r"},
}


@pytest.mark.parametrize("contents", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_is_read_as_transformers_reads_it(tmp_path, contents):
    write(tmp_path, contents | {"config.json": {"model_type": "llama"}})
    read, theirs = tokenizer_from_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs(SPOKEN)["input_ids"]
    assert read.encode(SPOKEN) == ids
    assert read.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    messages = [{"role": "user", "content": "fox"}]
    assert read.chat(messages) == theirs.apply_chat_template(messages).input_ids
    assert read.chat_template == theirs.chat_template
    assert read.names == theirs.special_tokens_map


@pytest.mark.parametrize(
    "more", [{}, {"legacy": True}, {"add_prefix_space": False}, {"legacy": False, "add_bos_token": False}]
)
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("byte_level", [False, True])
def test_the_class_of_llama_2_says_how_spaces_are_read(tmp_path, kind, more, byte_level):
    contents = files() if byte_level else {"tokenizer.json": byte_fallback().backend.to_str()}
    contents |= {"tokenizer_config.json": {"tokenizer_class": kind} | more, "config.json": {"model_type": "llama"}}
    read, theirs = (
        tokenizer_from_folder(write(tmp_path, contents)),
        transformers.AutoTokenizer.from_pretrained(tmp_path),
    )
    assert read.names == theirs.special_tokens_map
    for text in ("the the", " the", "<s>the<s> the", "é the"):
        ids = theirs(text)["input_ids"]
        assert read.encode(text) == ids
        assert read.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


DAMAGED = {
    "a token that is none": files(bos_token={"x": 1}),
    "a number for a token": files(eos_token=3),
    "flags that are none": files(added_tokens_decoder={"259": {"content": "x", "lstrip": "no"}}),
    "an id that is none": files(added_tokens_decoder={"x": {"content": "x"}}),
    "an id that is not free": files(added_tokens_decoder={"270": {"content": "<|im_start|>"}}),
    "tokens in a list": files(added_tokens_decoder=["x"]),
    "further tokens that are none": files(extra_special_tokens=[3]),
}


@pytest.mark.parametrize("contents", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_configuration_is_named(tmp_path, contents):
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: .*(expected|do not belong together)"):
        tokenizer_from_folder(write(tmp_path, contents))


def test_a_model_without_a_tokenizer_loads_and_what_needs_one_says_so(tmp_path, monkeypatch):
    model, tokenizer = load_model(write_folder(tmp_path))
    assert tokenizer is None
    with pytest.raises(ValueError, match=r"without a tokenizer \(its folder holds no tokenizer\.json\)"):
        generate_text(str(tmp_path), "float32", "hi", False, SamplingParams())
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        naive.generate(model, [1], SamplingParams(stop="x"), tokenizer)


def test_a_tokenizer_is_refused_before_the_weights_are_read(tmp_path, monkeypatch):
    write(write_folder(tmp_path), {"tokenizer.json": "{"})
    monkeypatch.setattr(checkpoint, "build", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(ValueError, match="is not a tokenizer"):
        load_model(tmp_path)


def test_a_folders_texts_end_where_its_generation_settings_say_and_its_tokenizer_adds_no_end(tmp_path):
    vocab = {c: i for i, c in enumerate("abcde")}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    backend.add_special_tokens(["<|im_end|>", "<end>", "<|eot_id|>"])  # 5, 6, and one beyond the model's vocabulary
    contents = {"tokenizer.json": backend.to_str(), "tokenizer_config.json": {"eos_token": "<end>"}}
    write(write_folder(tmp_path, {"eos_token_id": 2}), contents)
    assert load_model(tmp_path)[0].config.eos_token_ids == (2,)
    write(tmp_path, {"generation_config.json": {"eos_token_id": [3, 2]}})
    assert load_model(tmp_path)[0].config.eos_token_ids == (3, 2)


def small(cut, kind="gpt2", added=()):
    """A tokenizer of single bytes, and `added` tokens: {text: GGUF's type}."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": kind,
            "tokenizer.ggml.pre": cut,
            "tokenizer.ggml.tokens": [*alphabet, *dict(added)],
            "tokenizer.ggml.token_type": [1] * len(alphabet) + list(dict(added).values()),
            "tokenizer.ggml.merges": [],
        }
    )


PUBLISHED = {
    "qwen2": PRETOKENIZE_REGEX,
    "llama-bpe": inspect.signature(TikTokenConverter).parameters["pattern"].default,
}
TOKENIZERS = {cut: small(cut) for cut in PUBLISHED}


def cuts(cut, text):
    """Back from the byte-level alphabet to text."""
    parts = TOKENIZERS[cut].backend.pre_tokenizer.pre_tokenize_str(text)
    return [tokenizers.decoders.ByteLevel().decode([part]) for part, _ in parts]


@pytest.mark.parametrize("cut", PUBLISHED)
@settings(max_examples=300)
@given(text=TEXTS)
def test_text_is_cut_as_the_published_expression_cuts_it(cut, text):
    assert cuts(cut, text) == regex.findall(PUBLISHED[cut], text)


@pytest.mark.parametrize(
    ("cut", "text", "expected"),
    [
        ("qwen2", "12345", ["1", "2", "3", "4", "5"]),
        ("llama-bpe", "12345", ["123", "45"]),
        ("llama-bpe", "It's  1234, ok?\n\n", ["It", "'s", " ", " ", "123", "4", ",", " ok", "?\n\n"]),
        ("qwen2", "I'LL go\n  now", ["I", "'LL", " go", "\n", " ", " now"]),
    ],
)
def test_text_is_cut_like_this(cut, text, expected):
    assert cuts(cut, text) == expected


def test_qwen_composes_characters_and_llama_leaves_them():
    assert len(small("qwen2").encode("e\u0301")) == 2  # é: two bytes
    assert len(small("llama-bpe").encode("e\u0301")) == 3


def test_tokens_of_the_user_are_shown_and_control_tokens_are_not():
    read = small("gpt-2", added={"<end>": 3, "<think>": 4})
    ids = read.encode("<think>a<end>b")
    assert len(ids) == 4
    assert read.decode(ids) == "<think>ab"


@pytest.mark.parametrize(
    ("kind", "cut"),
    [("llama", "default"), *(("gpt2", cut) for cut in ("falcon", "deepseek-llm", "default", "qwen35", "tekken", None))],
)
def test_a_tokenizer_not_built_here(kind, cut):
    with pytest.raises(ValueError, match=f"tokenizer '{kind}' with pre-tokenizer {cut!r}.* is not built here"):
        small(cut, kind)


@pytest.mark.parametrize(
    ("alias", "cut"),
    [("llama3", "llama-bpe"), ("llama-v3", "llama-bpe"), ("deepseek-r1-qwen", "qwen2"), ("phi-2", "gpt-2")],
)
def test_other_names_of_a_cut(alias, cut):
    ours, known = small(alias).backend, small(cut).backend
    assert ours.to_str() == known.to_str()


def fields_of(**more):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "abc", "<s>", "</s>", "<|im_end|>", "<|end|>"]
    known = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": tokens,
        "merges": [],
        "token_type": [1] * 257 + [3, 3, 1, 3],
    }
    return {f"tokenizer.ggml.{k}": v for k, v in (known | {"bos_token_id": 257, "eos_token_id": 258} | more).items()}


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_an_end_of_turn_is_a_special_token_whatever_its_type(kind):
    fields = fields_of(token_type=[1] * 257 + [3, 3, kind, 3])
    read = tokenizer_from_gguf(fields)
    assert read.encode("a<|im_end|>")[-1] == 259
    assert read.decode(read.encode("a<|im_end|>b")) == "ab"
    assert end_token_ids(fields) == (258, 259, 260)


def test_a_gguf_files_ends_are_those_that_it_names_and_those_known_by_name():
    plain = fields_of(tokens=["a", "b", "c", "d", "e", "f"], token_type=[1] * 6, eos_token_id=0)
    assert end_token_ids(plain) == (0,)
    named = {"tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eom_token_id": 4, "tokenizer.ggml.eos_token_ids": [0, 5]}
    assert end_token_ids(plain | named) == (0, 3, 4, 5)
    parts = ["a", "<|end|>", "<|return|>", "<|call|>", "e", "f"]  # there <|end|> ends a part of a turn
    assert end_token_ids(plain | {"tokenizer.ggml.tokens": parts}) == (0, 2, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("tokens", v) for v in (None, "abc", [1, 2], ["a", "a"])),
        *(("merges", v) for v in (None, ["xx yy"], ["ab"], [3], "ab")),
        *(("token_type", v) for v in ([1], [1] * 999, "3", [1.5] * 261)),
        *(("bos_token_id", v) for v in (-1, 261, 2**32 - 1, "x", True)),
        *(("eos_token_id", v) for v in (-1, 261, [1])),
        *(("eos_token_ids", v) for v in (5, [261], ["a"])),
        ("eot_token_id", 10**6),
        ("add_bos_token", "no"),
        ("pre", ["a"]),
        ("model", 3),
    ],
)
def test_a_gguf_field_that_is_wrong_is_named(name, value):
    fields = fields_of(**{name: value})
    with pytest.raises(ValueError, match=rf"tokenizer\.ggml\.(\w+ and )?(tokens|{name})|token_type has"):
        (end_token_ids(fields), tokenizer_from_gguf(fields))


@pytest.mark.parametrize("begin", [True, False])
def test_a_gguf_file_says_what_stands_around_a_text(begin):
    around = [257] if begin else []
    for end in (True, False):
        read = tokenizer_from_gguf(fields_of(add_bos_token=begin, add_eos_token=end))
        inner = read.encode("ab", begin=False)
        assert read.encode("ab") == [*around, *inner, *([258] if end else [])]
        assert len(inner) == 2
    assert tokenizer_from_gguf(fields_of()).encode("ab") == [257, *inner]
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.add_eos_token"):
        tokenizer_from_gguf(fields_of(add_eos_token="yes"))


def test_settings_of_a_tokenizer_that_its_file_does_not_follow_are_refused_by_name(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate("abĠ")}, []))
    for prefix, kind, refused in (
        (False, "GPT2Tokenizer", True),
        (False, "Qwen2TokenizerFast", True),
        (False, "PreTrainedTokenizerFast", False),  # transformers takes tokenizer.json as it is
        (True, "GPT2Tokenizer", False),
    ):
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        config = {"tokenizer_class": kind, "add_prefix_space": True}
        write(tmp_path, {"tokenizer.json": backend.to_str(), "tokenizer_config.json": config})
        if refused:
            with pytest.raises(ValueError, match=r"tokenizer_config\.json: add_prefix_space is set"):
                tokenizer_from_folder(tmp_path)
        else:
            assert tokenizer_from_folder(tmp_path).encode("a") == ([2, 0] if prefix else [0])
    write(tmp_path, {"tokenizer_config.json": {"split_special_tokens": True}})
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: split_special_tokens is set"):
        tokenizer_from_folder(tmp_path)
    write(tmp_path, {"tokenizer_config.json": {"split_special_tokens": False}})
    assert tokenizer_from_folder(tmp_path).encode("ba") == [2, 1, 0]


def test_a_gguf_file_may_hold_several_chat_templates():
    templates = {"tokenizer.chat_template": "d", "tokenizer.chat_template.tool_use": "t"}
    assert tokenizer_from_gguf(fields_of() | templates).chat_template == {"default": "d", "tool_use": "t"}
    with pytest.raises(ValueError, match="chat_template holds"):
        tokenizer_from_gguf(fields_of() | {"tokenizer.chat_template": ["d"]})
