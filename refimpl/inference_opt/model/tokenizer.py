"""Text to tokens and back: byte-level BPE through the `tokenizers` library, chat templates through jinja2.

The library does the work; this file reads what a checkpoint says (a `tokenizer.json`, or a GGUF file's vocabulary,
merges and name of the pre-tokenizer) and adds what generation needs: a stream that never shows half a character.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from inference_opt.model.folder import read_json

# How text is cut before merging, by the name a GGUF file gives it. The byte-level step follows in every case.
_QWEN_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "qwen2": [pre_tokenizers.Split(Regex(_QWEN_LLAMA3 % ""), "isolated")],
    "llama-bpe": [pre_tokenizers.Split(Regex(_QWEN_LLAMA3 % "{1,3}"), "isolated")],
}
_OWN_REGEX = ("qwen2", "llama-bpe")  # these bring the whole regular expression; the others use GPT-2's
_CONTROL, _USER_DEFINED = 3, 4  # GGUF token types


class Tokenizer:
    """`encode`, `decode`, `chat` and `stream`. Special tokens in a text are recognised, and not shown when decoded."""

    def __init__(self, backend: Backend, chat_template: str | None = None, names: Mapping[str, str] = {}) -> None:
        """`names`: the special tokens a chat template may mention, such as bos_token."""
        self.backend = backend
        self.chat_template = chat_template
        self.names = dict(names)

    def encode(self, text: str, begin: bool = True) -> list[int]:
        """Token ids of a text; `begin`: with the token that texts begin with, where this tokenizer has one.

        Raises ValueError for text that is not valid Unicode (a lone surrogate).
        """
        try:
            return self.backend.encode(text, add_special_tokens=begin).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError(f"the text is not valid Unicode: {error}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that form no character become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> "TextStream":
        """A decoder that takes one token at a time."""
        return TextStream(self)

    def chat(self, messages: Sequence[Mapping[str, str]] | str) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn. A plain string is one user message."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not self.chat_template:
            raise ValueError("this model's tokenizer has no chat template: give it plain text instead")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            template = environment.from_string(self.chat_template)
            text = template.render(messages=messages, add_generation_prompt=True, **self.names)
        except Exception as error:  # a template is the checkpoint's own program: it may fail in any way
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        return self.encode(text, begin=False)  # templates write the beginning themselves


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


# [stream]
class TextStream:
    """Text that grows by tokens: after any number of `add`, `text` is what `decode` gives, less an unfinished end.

    A character may take several tokens. Decoding a window of tokens that starts at a clean cut and ends with U+FFFD
    means that the last character is still incomplete: keep the window and wait. `finish` gives up waiting.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self.window: list[int] = []  # tokens from the last cut on: the shown ones that give context, then the rest
        self.shown = 0  # tokens of the window whose text has been returned

    def add(self, token: int) -> str:
        """Take one token; return the text that it completes, often empty."""
        self.window.append(token)
        return self._grow(final=False)

    def finish(self) -> str:
        """Return what is left; bytes that form no character become U+FFFD."""
        return self._grow(final=True)

    def _grow(self, final: bool) -> str:
        before = self.tokenizer.decode(self.window[: self.shown])
        after = self.tokenizer.decode(self.window)
        if len(after) <= len(before) or (after.endswith("\ufffd") and not final):
            return ""
        new = after[len(before) :]
        self.text += new
        # The tokens just shown stay as context for a round: some decoders treat a text's first token differently.
        self.window, self.shown = self.window[self.shown :], len(self.window) - self.shown
        return new


# [/stream]


def tokenizer_from_gguf(fields: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes. ValueError for kinds that are not built here."""
    kind, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or cut not in _CUTS:
        raise ValueError(
            f"the GGUF file's tokenizer {kind!r} with pre-tokenizer {cut!r} is not built here (byte-level BPE with "
            f"{', '.join(_CUTS)} is): load the model from a folder with a tokenizer.json"
        )
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {t: i for i, t in enumerate(tokens)}
    # Llama 3 takes a piece that is a token as a whole, whatever its merges would make of it.
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut == "llama-bpe"))
    if cut == "qwen2":
        backend.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut not in _OWN_REGEX)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*_CUTS[cut], byte_level])  # type: ignore[misc]
    backend.decoder = decoders.ByteLevel()
    typed = list(zip(tokens, types))
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in typed if k == _CONTROL])
    backend.add_tokens([AddedToken(t, normalized=False) for t, k in typed if k == _USER_DEFINED])
    ids = {f"{n}_token": fields.get(f"tokenizer.ggml.{n}_token_id") for n in ("bos", "eos")}
    names = {name: tokens[i] for name, i in ids.items() if i is not None}
    if fields.get("tokenizer.ggml.add_bos_token", cut == "llama-bpe") and "bos_token" in names:
        begin = names["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, vocabulary[begin])]
        )
    return Tokenizer(backend, fields.get("tokenizer.chat_template"), names)


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """Read `tokenizer.json`, and the chat template from `chat_template.jinja` or `tokenizer_config.json`."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no tokenizer.json")
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer: {error}") from error
    config_path, template_path = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = read_json(config_path) if config_path.is_file() else {}
    template = template_path.read_text(encoding="utf-8") if template_path.is_file() else config.get("chat_template")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{config_path}: chat_template is a {type(template).__name__}, expected one template's text")
    named = {name: config.get(name) for name in ("bos_token", "eos_token")}
    names = {name: t["content"] if isinstance(t, dict) else t for name, t in named.items() if t}
    return Tokenizer(backend, template, names)
