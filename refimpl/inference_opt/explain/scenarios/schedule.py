"""Scenarios of the engine: requests that come, share, wait, are preempted and leave."""

from typing import Any

from inference_opt.engine.engine import Engine
from inference_opt.explain.record import record
from inference_opt.explain.scenarios.toys import Counts, arrivals, spell, toy
from inference_opt.trace import Trace

ENGINE = ("schedule.", "pool.", "engine.")  # events; those of the tree are too many where it is not the subject


def _play(engine: Engine, prompts: str, *events: str) -> Trace:
    counts = Counts(engine)
    with record(watch=[engine.scheduler, engine.pool, engine.tree, counts], label=spell, only=ENGINE + events) as trace:
        counts.requests = arrivals(engine, prompts)
        while engine.requests:
            engine.step()
    return trace


def continuous_batching(
    prompts: str = "a long prompt that is cut: 3\nshort: 9\nanother one: 6\nlate: 3",
    token_budget: int = 8, max_running: int = 3, page_size: int = 4, num_pages: int = 32,
) -> Trace:  # fmt: skip
    """Every step has a new batch: long prompts come in chunks, and a request that is done makes room at once.

    Dark: tokens of the prompt. Light: a new token that is fed back. In the notebook you can change the limits.
    """
    pages: dict[str, Any] = {"page_size": page_size, "num_pages": num_pages}
    engine = Engine(toy(), **pages, token_budget=token_budget, max_running=max_running)
    return _play(engine, prompts)


def equal_prompts(
    prompts: str = "the same text: 3\nthe same text: 3", page_size: int = 4, num_pages: int = 12
) -> Trace:
    """Two equal prompts arrive together: the second finds, in the same step, the pages that the first will fill.

    A page is in the tree as soon as its computation is scheduled: all keys of a layer are written before any is read.
    """
    return _play(Engine(toy(), page_size=page_size, num_pages=num_pages), prompts, "radix.")


def preemption(
    prompts: str = "first come: 12\nsecond: 12\nthird one: 8", page_size: int = 2, num_pages: int = 16
) -> Trace:
    """Pages run out: the latest arrival gives up its pages, waits, and finds again what the tree still has of them.

    What was computed is not lost at once: full pages of the prompt stay in the tree until they are evicted.
    """
    engine = Engine(toy(), page_size=page_size, num_pages=num_pages)
    return _play(engine, prompts, "radix.match", "radix.insert", "radix.evict")
