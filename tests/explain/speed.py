"""Prints what steps cost: python -m tests.explain.speed. Unrecorded, in the engine; and a long trace in the browser."""

import tempfile
import time
import timeit
from pathlib import Path

from inference_opt.cache.pool import PagePool
from inference_opt.engine.engine import Engine
from inference_opt.explain.player.page import page as html_page
from inference_opt.explain.record import record
from inference_opt.explain.scenarios.toys import arrivals, toy
from inference_opt.radix.tree import RadixTree
from inference_opt.trace import emit
from tests.explain.browser import launched, opened

PROMPTS = "first come: 12\nsecond: 12\nthird one: 8"


def decode(recorded):
    """Seconds and steps of a small engine serving three requests; events, if recorded."""
    engine = Engine(toy(), page_size=2, num_pages=32)
    with record() if recorded else tempfile.TemporaryDirectory() as trace:
        arrivals(engine, PROMPTS)
        began = time.perf_counter()
        while engine.requests:
            engine.step()
        seconds = time.perf_counter() - began
    return seconds, engine.stats.steps, len(trace) if recorded else 0


def unrecorded():
    """The price of a call that records nothing, times the calls in a step of the engine."""
    subject = object()

    def call():
        emit("radix.match", subject, tokens=1, found=2, pages=3, namespace=4)

    def nothing():
        pass

    price = min(timeit.repeat(call, number=100_000, repeat=5)) - min(timeit.repeat(nothing, number=100_000, repeat=5))
    seconds, steps, _ = min(decode(False) for _ in range(5))
    events = decode(True)[2] / steps
    price /= 100_000
    share = price * events / (seconds / steps)
    print(f"unrecorded: {price * 1e9:.0f} ns a call, {events:.1f} calls a step of the engine")
    print(f"a step of the toy engine takes {seconds / steps * 1e6:.0f} µs: {share:.2%} of it")
    print(f"of a step of 40 ms, as SmolLM2 takes: {price * events / 0.04:.4%}")


def long_trace(steps=5000):
    """A tree and a pool that are used again and again."""
    tree, pool = RadixTree(2), PagePool(64, 2)
    with record("five thousand steps", watch=[tree, pool]) as trace:
        number = 0
        while len(trace) < steps:
            tokens = [number // 64 % 4, number // 16 % 4, number // 4 % 4, number % 4, number % 7, number % 5]
            found = tree.match(tokens)
            tree.lock(found.node)
            need = 3 - len(found.pages)
            if need > pool.free:
                pool.release(tree.evict(need - pool.free))
            tree.insert(tokens, found.pages + pool.allocate(need))
            tree.unlock(found.node)
            number += 1
    trace.steps = trace.steps[:steps]
    return trace


def in_browser():
    """Opening, one step, and scrubbing to the middle and the end."""
    trace = long_trace()
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        file = Path(folder) / "long.html"
        file.write_text(html_page(trace), encoding="utf-8")
        began = time.perf_counter()
        with opened(browser, file) as page:
            page.locator(".scene svg").first.wait_for()
            opening = time.perf_counter() - began
            took = page.evaluate(
                """async () => {
                    const root = document.getElementById("player").shadowRoot, all = [];
                    const next = root.querySelector("[data-do=forward]"), range = root.querySelector("input");
                    for (const at of [0, 2500, 4900]) {
                        range.value = at;
                        range.dispatchEvent(new Event("input"));
                        for (let i = 0; i < 30; i++) {
                            const began = performance.now();
                            next.click();
                            root.querySelector(".scenes").getBoundingClientRect();
                            all.push(performance.now() - began);
                            await new Promise(requestAnimationFrame);
                        }
                    }
                    return all.sort((a, b) => a - b);
                }"""
            )
        size = file.stat().st_size / 1e6
    print(f"a trace of {len(trace):,} steps ({size:.1f} MB): opened in {opening:.2f} s")
    print(f"a step: median {took[len(took) // 2]:.1f} ms, longest {took[-1]:.1f} ms")


if __name__ == "__main__":
    unrecorded()
    in_browser()
