"""What an engine is built from, checked before anything is built."""

from typing import Any

from inference_opt.model.transformer import Transformer
from inference_opt.values import integer, shown, switch


class Name(str):
    """The id of a request that was given none: told as text, and equal to no id that a user could give."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Name) and str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((Name, str(self)))


SIZES = {  # and the least that each can be, unless someone else checks it
    "page_size": None, "num_pages": None, "gamma": None,
    "token_budget": 1, "max_running": 1, "patience": 0, "draft_rows": 0, "decode_steps": 1,
}  # fmt: skip
OPTIONAL = ("num_pages", "gamma")  # None stands for a default


def checked(model: Any, radix: Any, tokenizer: Any, **others: Any) -> tuple[Any, Any, Any, dict[str, int]]:
    """`page_size`, `num_pages`, `gamma` and the scheduler's limits, as integers. ValueError for anything else."""
    if not isinstance(model, Transformer):
        raise ValueError(f"model must be a Transformer, as load_model returns it, got {shown(model)}")
    if hasattr(radix, "detokenizer"):
        raise ValueError("radix must be True or False, got a tokenizer: pass it as tokenizer=")
    switch("radix", radix)
    if tokenizer is not None and not hasattr(tokenizer, "detokenizer"):
        raise ValueError(f"tokenizer must be a Tokenizer, as load_model returns it, or None, got {shown(tokenizer)}")
    sizes: dict[str, Any] = {
        name: None if name in OPTIONAL and others[name] is None else integer(name, others[name], least)
        for name, least in SIZES.items()
    }
    return sizes.pop("page_size"), sizes.pop("num_pages"), sizes.pop("gamma"), sizes
