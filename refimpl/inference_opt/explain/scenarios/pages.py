"""Scenarios of pages: who gets which, and how attention finds its keys through a table."""

from inference_opt.engine.engine import Engine
from inference_opt.explain.record import record
from inference_opt.explain.scenarios.toys import Counts, arrivals, spell, toy
from inference_opt.trace import Trace


def page_pool(prompts: str = "ten tokens: 4\nsevenish: 9\nfives: 11", page_size: int = 4, num_pages: int = 12) -> Trace:
    """Pages are taken one by one. When a request leaves, others use its pages again.

    Look at the page tables: a request's pages may be anywhere in the pool.
    """
    engine = Engine(toy(), radix=False, page_size=page_size, num_pages=num_pages)
    counts = Counts(engine)
    with record(
        watch=[engine.pool, engine.scheduler, counts], label=spell, only=("schedule.", "pool.", "engine.")
    ) as trace:
        counts.requests = arrivals(engine, prompts)
        while engine.requests:
            engine.step()
    return trace


def paged_attention(prompts: str = "a page: 6\nholds four: 5", page_size: int = 4, num_pages: int = 8) -> Trace:
    """A new token attends over keys that lie in pages, in the order of its page table.

    The bars are the weights of the last new token, a row a head. What is ringed was written in this step.
    """
    engine = Engine(toy(heads=4, kv_heads=2), radix=False, page_size=page_size, num_pages=num_pages)
    with record(label=spell, only="paged.") as trace:
        arrivals(engine, prompts)
        while engine.requests:
            engine.step()
    return trace
