"""What a GGUF file says of its tokens: their texts, their types, and which of them end a text."""

from collections.abc import Mapping
from typing import Any

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # GGUF token types

# Tokens that end a text or a turn, under any chat template and whatever type a file gives them: a file names one
# end-of-sequence token, models emit the others. llama.cpp ends a text at these.
_ENDS = frozenset(
    ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<|return|>", "<|call|>",
     "<|calls|>", "<|flush|>", "<end_of_turn>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "</s>",
     "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~[", "<｜end▁of▁sentence｜>", "<|fim_pad|>", "<|repo_name|>",
     "<|file_sep|>")
)  # fmt: skip


def field(fields: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """A field `tokenizer.ggml.NAME`, which may be missing; ValueError names one of another type."""
    value = fields.get(f"tokenizer.ggml.{name}")
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        got = f"{str(value)[:60]!r}, expected {kind.__name__}"
        raise ValueError(f"the GGUF file's tokenizer.ggml.{name} is {got}")
    return value


def array(fields: Mapping[str, Any], name: str, kind: type) -> list[Any] | None:
    """An array of one type, None where it is missing."""
    values = field(fields, name, list)
    if values is not None and not all(isinstance(value, kind) for value in values):
        raise ValueError(f"the GGUF file's tokenizer.ggml.{name} holds other things than {kind.__name__}")
    return values


def token_id(fields: Mapping[str, Any], name: str, size: int) -> int | None:
    """The id `tokenizer.ggml.NAME_token_id`; ValueError for one outside the vocabulary (of a size that is known)."""
    value = field(fields, f"{name}_token_id", int)
    if value is not None and not 0 <= value < (size or 2**31):
        raise ValueError(f"the GGUF file's tokenizer.ggml.{name}_token_id is {value}, outside its {size} tokens")
    return value


def tokens_and_types(fields: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Every token's text and type (no types: all normal).

    A token that ends a text is a control token, even where the file says otherwise.
    """
    tokens = array(fields, "tokens", str) or []
    types = array(fields, "token_type", int) or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ValueError(f"the GGUF file's tokenizer.ggml.token_type has {len(types)} types for {len(tokens)} tokens")
    return tokens, [CONTROL if token in _ENDS else kind for token, kind in zip(tokens, types)]


def end_token_ids(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that end a text: those that the file names, and those known by their text."""
    tokens, _ = tokens_and_types(fields)
    ids = [token_id(fields, name, len(tokens)) for name in ("eos", "eot", "eom")]
    named = {i for i in ids if i is not None} | set(array(fields, "eos_token_ids", int) or [])
    if tokens and not named <= set(range(len(tokens))):
        raise ValueError(f"the GGUF file's tokenizer.ggml.eos_token_ids go outside its {len(tokens)} tokens")
    return tuple(sorted(named | known_ends({token: i for i, token in enumerate(tokens)})))


def known_ends(ids: Mapping[str, int]) -> set[int]:
    """Of tokens by their text, those that end a text or a turn under any chat template."""
    known = {token: ids[token] for token in _ENDS & ids.keys()}
    if {"<|return|>", "<|call|>"} <= known.keys() or {"<|calls|>", "<|flush|>"} <= known.keys():
        known.pop("<|end|>", None)  # there it ends a part of a turn
    return set(known.values())
