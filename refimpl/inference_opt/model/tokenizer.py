"""Text to tokens and back: byte-level BPE through the `tokenizers` library, chat templates through `chat.py`.

The library does the work; this file reads what a checkpoint says (a `tokenizer.json`, or a GGUF file's vocabulary,
merges and name of the pre-tokenizer) and adds what generation needs: a stream that never shows half a character.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from inference_opt.model.chat import render
from inference_opt.model.formats import read_json

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

    def __init__(
        self, backend: Backend, chat_template: str | Mapping[str, str] | None = None, names: Mapping[str, str] = {}
    ) -> None:
        """`chat_template`: one, or several by name; `names`: the special tokens that they may mention, as bos_token."""
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
        # The bytes of an unfinished character decode to one U+FFFD together, or (byte fallback) to one each.
        return TextStream(self, unfinished=1 if isinstance(self.backend.decoder, decoders.ByteLevel) else 3)

    @property
    def special_ids(self) -> dict[str, int]:
        """The tokens that are no part of a text, by name."""
        return {t.content: i for i, t in self.backend.get_added_tokens_decoder().items() if t.special}

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

        `tools`: JSON schemas; `variables`: what else the template knows, such as enable_thinking; `chat_template`: the
        name of one, where there are several (None: "tool_use" for tools, else "default").
        ValueError for what is no conversation and for all that the template refuses.
        """
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
        return self.encode(text, begin=False)  # templates write the beginning themselves


# [stream]
class TextStream:
    """Text that grows by tokens: after any number of `add`, `text` is what `decode` gives, less an unfinished end.

    A character may take several tokens. A text that ends with U+FFFD may end within a character: as many of these as
    one unfinished character decodes to are held back, all before them is certain and shown. `finish` gives up waiting.
    Tokens are decoded again only while their text is not shown, and for as long as the next ones need them as context:
    a step costs the same however long the text is. (Where a decoder falls back to bytes, `decode` takes a whole run of
    them as invalid if one is; the stream, which has shown the characters before that one, does not take them back.)
    """

    def __init__(self, tokenizer: Any, unfinished: int = 3) -> None:
        """`tokenizer`: whatever has `decode`; `unfinished`: most U+FFFD that a character's first bytes decode to."""
        self.tokenizer, self.unfinished = tokenizer, unfinished
        self.text = ""
        self.context: list[int] = []  # the tokens shown last: some decoders treat a text's first token differently
        self.pending: list[int] = []  # tokens whose text is not all shown
        self.shown = 0  # characters of the pending tokens' text that are

    @property
    def special_ids(self) -> Mapping[str, int]:
        """The tokens that are no part of the text, by name."""
        return self.tokenizer.special_ids

    def add(self, token: int) -> str:
        """Take one token; return the text that it completes, often empty."""
        if not self.tokenizer.decode([token, token]):  # twice: the first of a text may lose a space
            return ""  # a special token
        self.pending.append(token)
        return self._grow(self.unfinished)

    def finish(self) -> str:
        """Return what is left; bytes that form no character become U+FFFD."""
        return self._grow(0)

    def _grow(self, unfinished: int) -> str:
        rest = self._rest()
        held = min(unfinished, len(rest) - max(self.shown, len(rest.rstrip("\ufffd"))))
        certain = len(rest) - held
        new = rest[self.shown : certain]
        self.text += new
        if not held:
            self.context, self.pending, self.shown = self.pending or self.context, [], 0
            return new
        self.shown = certain
        if len(self.tokenizer.decode(self.pending[:1])) > certain:
            return new
        # All of the first token is shown: let it go. Counted from the end, what is held stays the same.
        self.context, self.pending = [], self.pending[1:]
        self.shown = max(0, len(self._rest()) - held)
        return new + self._grow(unfinished)

    def _rest(self) -> str:
        """The pending tokens' text."""
        shown, both = self.tokenizer.decode(self.context), self.tokenizer.decode(self.context + self.pending)
        if both.startswith(shown):
            return both[len(shown) :]
        self.context = []  # bytes that would change the text of those before them
        return self.tokenizer.decode(self.pending)


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
