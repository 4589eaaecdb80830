"""Text to tokens and back: byte-level BPE through the `tokenizers` library, chat templates through `chat.py`.

The library does the work. This file reads a checkpoint's description (a `tokenizer.json`, or a GGUF file's vocabulary,
merges and name of the pre-tokenizer) and adds what generation needs: a detokenizer that never shows half a character.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from inference_opt.elsewhere import Elsewhere, elsewhere
from inference_opt.loading.detokenizer import Detokenizer
from inference_opt.loading.folder import read_json
from inference_opt.loading.vocabulary import CONTROL, USER_DEFINED, array, field, token_id, tokens_and_types
from inference_opt.values import shown

# How text is split before merging, by the name that GGUF files give it. The byte-level step follows in every case.
_QWEN_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "qwen2": [pre_tokenizers.Split(Regex(_QWEN_LLAMA3 % ""), "isolated")],
    "llama-bpe": [pre_tokenizers.Split(Regex(_QWEN_LLAMA3 % "{1,3}"), "isolated")],
}
_OWN_REGEX = ("qwen2", "llama-bpe")  # these have a regular expression of their own; the others use GPT-2's

# Other names in llama.cpp for the same split.
_ALIASES: dict[str, tuple[str, ...]] = {
    "gpt-2": ("phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4"),
    "smollm": (),
    "qwen2": ("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
}
# Arguments of `apply_chat_template` in transformers that are no variables of a template, and what to know here.
_CHAT_ELSEWHERE = {
    "conversation": "write chat(messages)",
    "continue_final_message": "not implemented here",
    "sanitize_control_tokens": "not implemented here",
} | dict.fromkeys(
    ("tokenize", "return_tensors", "return_dict", "return_assistant_tokens_mask", "padding", "truncation", "max_length",
     "tokenizer_kwargs"), "chat returns the token ids of one conversation, all of them, as a list"
)  # fmt: skip
_NAMES = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]


def needed(tokenizer: "Tokenizer | None") -> "Tokenizer":
    """The tokenizer. ValueError if the model was loaded without one."""
    if tokenizer is None:
        raise ValueError(
            "this model was loaded without a tokenizer (its folder holds no tokenizer.json), and text needs one: give "
            "token ids, or put the model's tokenizer.json into its folder"
        )
    return tokenizer


class Tokenizer(Elsewhere):
    """`encode`, `decode`, `chat`, `detokenizer`. Special tokens are recognised in a text and left out when decoding."""

    ELSEWHERE: ClassVar = {
        "()": "write encode(text), or chat(messages)",
        "apply_chat_template": "write tokenizer.chat(messages), which gives token ids",
        "batch_decode": "write [tokenizer.decode(ids) for ids in …]",
        "tokenize": "write tokenizer.encode(text)",
        "detokenize": "write tokenizer.decode(ids)",
        "eos_token_id": "it is in model.config.eos_token_ids",
        "stream": "write tokenizer.detokenizer(), and add its tokens to it",
    }

    def __init__(
        self, backend: Backend, chat_template: str | Mapping[str, str] | None = None, names: Mapping[str, str] = {}
    ) -> None:
        """`chat_template`: one, or several by name. `names`: special tokens for the templates, such as bos_token."""
        self.backend = backend
        self.chat_template = chat_template
        self.names = dict(names)

    def __repr__(self) -> str:
        chats = "a chat template" if self.chat_template else "no chat template"
        return f"<Tokenizer of {self.backend.get_vocab_size()} tokens, with {chats}>"

    def encode(self, text: str, begin: bool = True) -> list[int]:
        """Token ids of a text. `begin`: put the tokenizer's beginning-of-text token, if it has one, before them.

        Raises ValueError for text that is not valid Unicode (a lone surrogate).
        """
        if not isinstance(text, str):
            raise ValueError(f"the text must be a string, got {shown(text)}: encode texts one at a time")
        try:
            return self.backend.encode(text, add_special_tokens=begin).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError(f"the text is not valid Unicode: {error}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids. Bytes that form no character become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def detokenizer(self) -> Detokenizer:
        """A decoder that takes one token after another."""
        # The bytes of an unfinished character decode to one U+FFFD together or, with byte fallback, to one each.
        return Detokenizer(self, unfinished=1 if isinstance(self.backend.decoder, decoders.ByteLevel) else 3)

    @property
    def special_ids(self) -> dict[str, int]:
        """The ids of special tokens, which are no part of a text, by name."""
        return {t.content: i for i, t in self.backend.get_added_tokens_decoder().items() if t.special}

    @elsewhere(**_CHAT_ELSEWHERE)
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | str,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn. A plain string is one user message.

        `tools`: JSON schemas. `variables`: other variables of the template, such as enable_thinking. `chat_template`:
        the name of one of several templates (None: "tool_use" with tools, else "default").
        ValueError for messages of another form, and for whatever the template refuses.
        """
        from inference_opt.loading.chat import render

        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not self.chat_template:
            raise ValueError("this model's tokenizer has no chat template: give it plain text instead")
        several = {"default": self.chat_template} if isinstance(self.chat_template, str) else self.chat_template
        name = chat_template or ("tool_use" if tools is not None and "tool_use" in several else "default")
        if name not in several:
            raise ValueError(f"there is no chat template {name!r}: chat_template must be one of {', '.join(several)}")
        called = "the chat template" if isinstance(self.chat_template, str) else f"the chat template {name!r}"
        variables = self.names | {"add_generation_prompt": add_generation_prompt} | variables
        text = render(several[name], called, messages, tools, documents, **variables)
        return self.encode(text, begin=False)  # the template writes the beginning-of-text token itself


def tokenizer_from_gguf(fields: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes. ValueError for kinds that are not supported."""
    # What kind of tokenizer it is, and how it splits a text.
    kind = field(fields, "model", str)
    named = field(fields, "pre", str)
    cut = next((cut for cut, aliases in _ALIASES.items() if named in (cut, *aliases)), None)
    if kind != "gpt2" or cut is None:
        missing = "" if named else ", which the file does not name (tokenizer.ggml.pre),"
        raise ValueError(
            f"the GGUF file's tokenizer {kind!r} with pre-tokenizer {named!r}{missing} is not built here (byte-level "
            f"BPE with {', '.join(_CUTS)} is): load the model from a folder with a tokenizer.json"
        )
    tokens, types = tokens_and_types(fields)
    merges = array(fields, "merges", str)
    prefix = "tokenizer.chat_template."
    templates = {name.removeprefix(prefix): text for name, text in fields.items() if name.startswith(prefix)}
    templates |= {"default": fields[prefix[:-1]]} if prefix[:-1] in fields else {}
    vocabulary = {t: i for i, t in enumerate(tokens)}
    if merges is None or not tokens or len(vocabulary) < len(tokens):
        raise ValueError("the GGUF file's tokenizer.ggml.tokens or merges are missing, or a token occurs twice")
    try:
        pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
        # Llama 3 keeps a piece that is a token as a whole, whatever its merges would make of it.
        backend = Backend(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=cut == "llama-bpe"))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"the GGUF file's tokenizer.ggml.merges do not fit its tokens: {error}") from error
    if cut == "qwen2":
        backend.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut not in _OWN_REGEX)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*_CUTS[cut], byte_level])  # type: ignore[misc]
    backend.decoder = decoders.ByteLevel()
    # Special tokens, and the names that the file gives to some of them.
    typed = list(zip(tokens, types))
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in typed if k == CONTROL])
    backend.add_tokens([AddedToken(t, normalized=False) for t, k in typed if k == USER_DEFINED])
    ids = {f"{n}_token": token_id(fields, n, len(tokens)) for n in ("bos", "eos")}
    names = {name: tokens[i] for name, i in ids.items() if i is not None}
    # What is put around a text: as the file says, else as llama.cpp does it.
    defaults = {"bos": cut == "llama-bpe", "eos": False}
    around = {
        n: names.get(f"{n}_token") for n, default in defaults.items() if field(fields, f"add_{n}_token", bool, default)
    }
    if any(around.values()):
        begin, end = ([token] if (token := around.get(name)) else [] for name in defaults)
        backend.post_processor = processors.TemplateProcessing(
            single=[*begin, "$A", *end], special_tokens=[(token, vocabulary[token]) for token in {*begin, *end}]
        )
    return Tokenizer(backend, _one_or_several(templates, "the GGUF file"), names)


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """Read `tokenizer.json` and the files beside it: further special tokens, and the chat templates.

    ValueError, naming the file, if one is missing or not readable.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no tokenizer.json")
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer: {error}") from error
    # A training run may have left these set, but a prompt must be neither truncated nor padded.
    backend.no_truncation()
    backend.no_padding()
    config_path = folder / "tokenizer_config.json"
    config = _json(config_path)
    if "added_tokens_decoder" not in config:  # older files
        config |= _json(folder / "special_tokens_map.json")
    llama = str(config.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"
    if llama and '"ByteLevel"' not in path.read_text(encoding="utf-8"):  # Llama 2's kind; Llama 3's are byte-level
        config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | config
        _as_llama(backend, config)
    else:
        _refuse_prefix(backend, config, config_path)
    if config.get("split_special_tokens") not in (None, False):
        raise ValueError(
            f"{config_path}: split_special_tokens is set, but special tokens in a text are not split here: set it to "
            "false"
        )
    named, further = _special(config, config_path)
    _add_tokens(backend, folder, config, named, further)
    names = {name: token.content for name, token in named.items()}
    return Tokenizer(backend, _templates(folder, config.get("chat_template")), names)


def _as_llama(backend: Backend, config: Mapping[str, Any]) -> None:
    """Llama 2's treatment of spaces, which `transformers` 5 takes from the class and not from `tokenizer.json`."""
    space = config.get("add_prefix_space") in (None, True)
    legacy = bool(config.get("legacy"))
    backend.normalizer = None
    scheme = ("always" if legacy else "first") if space else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space else steps)


def _refuse_prefix(backend: Backend, config: Mapping[str, Any], path: Path) -> None:
    """ValueError if the configuration asks for a space before a text and `tokenizer.json` puts none there.

    Some classes of `transformers` follow the configuration in this, others ignore it.
    """
    ignored = str(config.get("tokenizer_class")).removesuffix("Fast") in ("PreTrainedTokenizer", "TokenizersBackend")
    if ignored or config.get("add_prefix_space") in (None, False):
        return
    does = f"{backend.normalizer!r}{backend.pre_tokenizer!r}"
    marks = ("Prepend(", "add_prefix_space=True", "prepend_scheme=first", "prepend_scheme=always")
    if not any(mark in does for mark in marks):
        raise ValueError(
            f"{path}: add_prefix_space is set, and tokenizer.json puts no space before a text: save the tokenizer "
            "anew, or set it to false"
        )


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _added(given: Any, path: Path, name: str, special: bool = False) -> AddedToken:
    """A token from its form in these files: its text, or an object of text and flags."""
    fields = given if isinstance(given, dict) else {"content": given}
    flags = {f: fields[f] for f in ("single_word", "lstrip", "rstrip", "normalized", "special") if f in fields}
    flags |= {"special": True} if special else {}
    if not isinstance(fields.get("content"), str) or not all(isinstance(flag, bool) for flag in flags.values()):
        raise ValueError(f"{path}: {name} is {str(given)[:80]}, expected a token: its text, or its content and flags")
    return AddedToken(fields["content"], **flags)


def _special(config: Mapping[str, Any], path: Path) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """A configuration's special tokens: those with a name (bos_token, eos_token, …), and those without."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    given = {name: config.get(name) for name in _NAMES}
    given |= {n: t for n, t in config.items() if n.endswith("_token") and n not in _NAMES and isinstance(t, str)}
    given |= extra if isinstance(extra, dict) else {}
    named = {n: _added(t, path, n, special=True) for n, t in given.items() if t is not None}
    return named, [] if isinstance(extra, dict) else [_added(t, path, "a special token", special=True) for t in extra]


def _add_tokens(
    backend: Backend, folder: Path, config: Mapping[str, Any], named: Mapping[str, AddedToken], more: list[AddedToken]
) -> None:
    """Add the tokens that are missing in `tokenizer.json` or have other flags there than in the files beside it."""
    path = folder / "tokenizer_config.json"
    decoder = config.get("added_tokens_decoder")
    special = {t.content for t in (*named.values(), *more)}
    if decoder is None:
        path = folder / "added_tokens.json"
        decoder = {i: {"content": t, "special": t in special} for t, i in _json(path).items()}
    if not isinstance(decoder, dict) or not all(str(i).isdecimal() for i in decoder):
        raise ValueError(f"{path}: the added tokens are {str(decoder)[:80]}, expected one token for each id")
    for i, given in sorted(decoder.items(), key=lambda item: int(item[0])):
        token = _added(given, path, f"the added token {i}")
        token.special = token.special or token.content in special
        backend.add_tokens([token])
        if (got := backend.token_to_id(token.content)) != int(i):
            raise ValueError(
                f"{path}: the added token {token.content!r} should have the id {i}, but after tokenizer.json it has "
                f"{got}: the files do not belong together"
            )
    present = {t.content for t in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([t for t in (*named.values(), *more) if t.content not in present])


def _templates(folder: Path, configured: Any) -> str | dict[str, str] | None:
    """The chat template, or several by name: from files of their own, else from `tokenizer_config.json`."""
    main = folder / "chat_template.jinja"
    path = folder / "tokenizer_config.json"
    files = {"default": main} if main.is_file() else {}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if files:
        try:
            found = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
        except UnicodeDecodeError as error:
            raise ValueError(f"{folder}: a chat template is not UTF-8 text: {error}") from error
    elif isinstance(configured, list) and all(isinstance(one, dict) for one in configured):
        found = {one.get("name"): one.get("template") for one in configured}
    else:
        found = {} if configured is None else {"default": configured}
    return _one_or_several(found, str(path))


def _one_or_several(templates: Mapping[Any, Any], where: str) -> str | dict[str, str] | None:
    if not all(isinstance(name, str) and isinstance(text, str) for name, text in templates.items()):
        got = str(dict(templates))[:80]
        raise ValueError(f"{where}: chat_template holds {got}, expected a text, or names and texts")
    return templates["default"] if list(templates) == ["default"] else dict(templates) or None
