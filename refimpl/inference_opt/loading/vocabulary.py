"""A GGUF file's tokens: their texts, their types, and which of them end a text."""

from collections.abc import Mapping
from typing import Any

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # GGUF token types

# Tokens that end a text or a turn, under any chat template and whatever type a file gives them. A file names only one
# end-of-sequence token, but models emit others as well. llama.cpp ends a text at these.
_ENDS = frozenset(
    ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<|return|>", "<|call|>",
     "<|calls|>", "<|flush|>", "<end_of_turn>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "</s>",
     "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~[", "<｜end▁of▁sentence｜>", "<|fim_pad|>", "<|repo_name|>",
     "<|file_sep|>")
)  # fmt: skip


def field(fields: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """The field `tokenizer.ggml.NAME`, or the default if it is missing. ValueError if it is of another type."""
    value = fields.get(f"tokenizer.ggml.{name}")
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        got = f"{str(value)[:60]!r}, expected {kind.__name__}"
        raise ValueError(f"the GGUF file's tokenizer.ggml.{name} is {got}")
    return value


def array(fields: Mapping[str, Any], name: str, kind: type) -> list[Any] | None:
    """An array of one type, or None if it is missing."""
    values = field(fields, name, list)
    if values is not None and not all(isinstance(value, kind) for value in values):
        raise ValueError(f"the GGUF file's tokenizer.ggml.{name} must hold only values of type {kind.__name__}")
    return values


def token_id(fields: Mapping[str, Any], name: str, size: int) -> int | None:
    """The id `tokenizer.ggml.NAME_token_id`. ValueError if it is outside the vocabulary (`size`; 0: not known)."""
    value = field(fields, f"{name}_token_id", int)
    if value is not None and not 0 <= value < (size or 2**31):
        raise ValueError(f"the GGUF file's tokenizer.ggml.{name}_token_id is {value}, outside its {size} tokens")
    return value


def tokens_and_types(fields: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Every token's text and type. Without types, all tokens are normal.

    A token that ends a text is a control token, even if the file says otherwise.
    """
    tokens = array(fields, "tokens", str) or []
    types = array(fields, "token_type", int) or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ValueError(f"the GGUF file's tokenizer.ggml.token_type has {len(types)} types for {len(tokens)} tokens")
    return tokens, [CONTROL if token in _ENDS else kind for token, kind in zip(tokens, types)]


def end_token_ids(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that end a text: those that the file names, and those that are known by their text."""
    tokens, _ = tokens_and_types(fields)
    ids = [token_id(fields, name, len(tokens)) for name in ("eos", "eot", "eom")]
    named = {i for i in ids if i is not None} | set(array(fields, "eos_token_ids", int) or [])
    if tokens and not named <= set(range(len(tokens))):
        raise ValueError(f"the GGUF file's tokenizer.ggml.eos_token_ids has ids outside its {len(tokens)} tokens")
    return tuple(sorted(named | known_ends({token: i for i, token in enumerate(tokens)})))


def known_ends(ids: Mapping[str, int]) -> set[int]:
    """The ids of those tokens, given by their text, that end a text or a turn under any chat template."""
    known = {token: ids[token] for token in _ENDS & ids.keys()}
    if {"<|return|>", "<|call|>"} <= known.keys() or {"<|calls|>", "<|flush|>"} <= known.keys():
        known.pop("<|end|>", None)  # in such a vocabulary it ends only a part of a turn
    return set(known.values())
