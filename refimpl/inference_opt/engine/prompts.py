"""What a caller may give as a prompt: a text, a chat, or token ids; one, or a list of them."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from inference_opt.values import listed, shown

Prompt = Any  # a text, a chat, or token ids: in a sequence, an array or a tensor
EXPECTED = "a text, a chat (a list of messages, each with a role and a content) or a list of token ids"


def is_one(given: Any) -> bool:
    """Whether it is one prompt, not a list of prompts."""
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0:
        return isinstance(given[0], Mapping | Integral)
    if getattr(given, "ndim", None) == 1:  # an array, a tensor, a column of a table
        first = next(iter(given), 0)
        return isinstance(first, Integral) or (getattr(first, "shape", None) == () and not isinstance(first, str))
    return isinstance(given, str | bytes | Mapping)


def prompts_of(given: Any) -> list[Any]:
    """A list of prompts, of what may be one alone. ValueError for a matrix: its rows would be padded."""
    if getattr(given, "ndim", 1) > 1:
        raise ValueError(
            f"prompts must be {EXPECTED}, or a list of these; got a {len(given.shape)}-dimensional array, whose rows "
            "may be padded: give a list of rows without padding, [[1, 2, 3], [4, 5]]"
        )
    return [given] if is_one(given) else listed("prompts", given, "prompts")


def needed(tokenizer: Any) -> Any:
    """The engine's tokenizer. ValueError if it was given none."""
    if tokenizer is None:
        hint = "Engine(model, tokenizer=tokenizer), with the one that load_model returns beside the model"
        raise ValueError(f"text and stop strings need a tokenizer: {hint}; or give token ids, and read .tokens")
    return tokenizer


def ids_of(prompt: Any, tokenizer: Any) -> Any:
    """A prompt's token ids. ValueError for what is no prompt, and for text without a tokenizer."""
    if isinstance(prompt, str):
        return needed(tokenizer).encode(prompt)
    if isinstance(prompt, Mapping):
        hint = "give its input_ids, as lists" if "input_ids" in prompt else "a chat is a list of messages"
        raise ValueError(f"a prompt must be {EXPECTED}; got one {type(prompt).__name__}: {hint}")
    if isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping):
        return needed(tokenizer).chat(prompt)
    if isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], str | Sequence):
        raise ValueError(f"a prompt must be {EXPECTED}; got a list of prompts: generate and stream take several")
    if isinstance(prompt, bytes) or not (isinstance(prompt, Sequence) or getattr(prompt, "ndim", 0) == 1):
        raise ValueError(f"a prompt must be {EXPECTED}; got {shown(prompt)}")
    return prompt
