"""Scenarios of plain decoding: everything computed again for every token, and with a KV cache beside it."""

from collections.abc import Iterator
from typing import Any

from inference_opt import naive
from inference_opt.cache import generate as static
from inference_opt.explain.record import record
from inference_opt.explain.scenarios.toys import ids, new, spell, toy
from inference_opt.explain.views import counters
from inference_opt.model.transformer import Transformer
from inference_opt.trace import Trace


class Evaluations:
    """Tokens that went through a model, counted as they go in, for each way of decoding with it."""

    def __init__(self, model: Transformer) -> None:
        self.so_far = {"naive": 0}
        self.way = "naive"
        model.register_forward_pre_hook(self._count)

    def _count(self, model: Any, arguments: Any) -> None:
        self.so_far[self.way] = self.so_far.get(self.way, 0) + len(arguments[0])

    def next(self, way: str, tokens: Iterator[Any]) -> bool:
        """One step of a way. False where there is none left."""
        self.way = way
        return next(tokens, None) is not None


@counters.register
def evaluated(evaluations: Evaluations) -> dict[str, Any]:
    """So far, beside the naive way's where there is another."""
    cached = evaluations.so_far.get("cached")
    total = evaluations.so_far["naive"]
    return {"token evaluations so far": total if cached is None else {"value": cached, "naive": total}}


def naive_decoding(prompt: str = "again, and", new_tokens: int = 6, temperature: float = 1.0, seed: int = 0) -> Trace:
    """For every new token the whole text goes through the model, and a distribution of the next token comes out.

    Every row is a step, filled cells are tokens that it computed. The token was drawn from the bars.
    """
    model = toy(depth=2)
    counts = Evaluations(model)
    with record(watch=[counts], label=spell, only="naive.") as trace:
        tokens = naive.stream(model, ids(prompt), new(new_tokens, temperature=temperature, seed=seed))
        while counts.next("naive", tokens):
            pass
    return trace


def kv_cache(prompt: str = "again, and", new_tokens: int = 6, temperature: float = 1.0, seed: int = 0) -> Trace:
    """The same text twice, token by token: all computed again, and with keys and values kept in a cache.

    Pale cells are tokens whose keys and values lie in the cache; dashed ones are room that is reserved.
    """
    model = toy(depth=2)
    counts = Evaluations(model)
    params = new(new_tokens, temperature=temperature, seed=seed)
    with record(watch=[counts], label=spell, only=("naive.", "cache.")) as trace:
        both = naive.stream(model, ids(prompt), params), static.stream(model, [ids(prompt)], params)
        while counts.next("naive", both[0]):
            counts.next("cached", both[1])
    return trace
