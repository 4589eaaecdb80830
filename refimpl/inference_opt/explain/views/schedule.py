"""The engine at work: the page pool, requests, the scheduler, and what a step did."""

from typing import Any

from inference_opt.cache.pool import PagePool
from inference_opt.engine.request import Request
from inference_opt.engine.scheduler import Scheduler
from inference_opt.engine.stats import Output
from inference_opt.explain.views.registry import SENTENCES, counters, invariants, snapshot

SENTENCES |= {
    "pool.allocate": "{count:page} taken from the pool: {pages}",
    "pool.release": "given back to the pool: pages {pages}",
    "schedule.arrive": "{id} arrives, {tokens:token} long",
    "schedule.refuse": "{id} must wait: its pages cannot be had",
    "schedule.admit": "{id} is let in; {saved:token} of it were found",
    "schedule.prefill": "{id}: {count:token} from {start} on",
    "schedule.decode": "{id}: {count:token} from {start} on",
    "schedule.draft": "{id} may draft {gamma:token}",
    "schedule.preempt": "{id} is preempted: it gives up its pages and waits again",
    "schedule.leave": "{id} leaves: {why}",
    "engine.commit": "{id}: {output.fed:token} through the model, out comes {tokens:text}",
    "engine.step": "step {n} of the engine is done",
}


@snapshot.register
def pool_state(pool: PagePool) -> dict[str, Any]:
    """Which pages are free, the next to be taken last."""
    return {"kind": "pool", "pages": pool.num_pages, "page_size": pool.page_size, "free": pool.free_pages}


@invariants.register
def sound_pool(pool: PagePool) -> dict[str, bool]:
    """The stack of free pages and the flags say the same."""
    free = pool.free_pages
    flagged = [page for page in range(pool.num_pages) if pool.is_free(page)]
    return {"every free page is on the stack once": sorted(free) == flagged}


@counters.register
def pages_in_use(pool: PagePool) -> dict[str, int]:
    """Pages that someone owns."""
    return {"pages in use": pool.num_pages - pool.free}


@snapshot.register
def request_state(request: Request) -> dict[str, Any]:
    """What there is of a request."""
    names = ("id", "arrival", "table", "computed", "decoding", "finish_reason")
    known = {"prompt": len(request.prompt), "tokens": len(request.tokens), "cached": request.metrics.cached_tokens}
    return {name: getattr(request, name) for name in names} | {"shared": request.pages.shared} | known


@snapshot.register
def output_state(output: Output) -> dict[str, Any]:
    """What a step did for one request."""
    names = ("start", "count", "tokens", "drafted")
    prompt = output.start < len(output.request.prompt)
    return {"id": output.request.id, "prompt": prompt} | {name: getattr(output, name) for name in names}


@snapshot.register
def queues(scheduler: Scheduler) -> dict[str, Any]:
    """Who runs and who waits."""
    running = [request_state(request) for request in scheduler.running]
    waiting = [request_state(request) for request in scheduler.waiting.values()]
    return {"kind": "schedule", "token_budget": scheduler.token_budget, "running": running, "waiting": waiting}


@invariants.register
def sound_ownership(scheduler: Scheduler) -> dict[str, bool]:
    """What holds whenever the scheduler tells of something."""
    running, pool, tree = scheduler.running, scheduler.cache.pool, scheduler.cache.tree
    owned = [page for request in running for page in request.table[request.pages.shared :]]
    owned += [page for node in tree.nodes() for page in node.pages]
    owned += pool.free_pages
    return {
        "a page is free, the tree's, or one request's own": sorted(owned) == list(range(pool.num_pages)),
        "no page table names a free page": not any(pool.is_free(page) for each in running for page in each.table),
        "a waiting request holds no page": not any(each.table for each in scheduler.waiting.values()),
        "requests run in the order of arrival": running == sorted(running, key=lambda each: each.arrival),
    }
