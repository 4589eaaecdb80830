"""`inference-opt bench radix`: the tree alone. Its hit rate by policy and capacity, and its speed.

Hit rates come from a replay: each prompt is matched, then inserted, then pages are evicted down to the capacity. The
hit rate is the share of blocks that were found. The same prompts are run with a bound, Belady's policy, which knows the
future, and with two peers: a dictionary of all prefixes, with which every unbounded match is compared, and SGLang's own
tree.
"""

import gc
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.progress import Progress

from inference_opt.environment import command_line, describe, elapsed
from inference_opt.lab.bench.sglang import SGLangTree
from inference_opt.lab.bench.workloads import GENERATED, Workload, read_trace
from inference_opt.lab.eviction.learned import FadingFrequency, Odds
from inference_opt.radix.eviction import FIFO, LFU, LRU, Belady, Policy
from inference_opt.radix.tree import RadixTree

SIZES = [1_000, 10_000, 100_000]  # numbers of cached sequences with which matches are timed

POLICIES: dict[str, Callable[[Workload, int], Policy]] = {
    "FIFO": lambda prompts, capacity: FIFO(),
    "LFU": lambda prompts, capacity: LFU(),
    "LRU": lambda prompts, capacity: LRU(),
    "fading frequency": lambda prompts, capacity: FadingFrequency(capacity, 1),
    "odds": lambda prompts, capacity: Odds(capacity, 1),
    "Belady": lambda prompts, capacity: Belady([p.tobytes() for p in prompts], 1),
}


def replay(prompts: Workload, capacity: int, policy: Policy) -> tuple[float, float]:
    """(Hit rate in blocks, seconds for a prompt) of a tree of `capacity` pages, each of one block."""
    tree = RadixTree(1, policy)
    names = count()
    hits = asked = 0
    start = time.perf_counter()
    for prompt in prompts:
        pages = tree.match(prompt).pages
        hits += len(pages)
        asked += len(prompt)
        tree.insert(prompt, pages + [next(names) for _ in range(len(prompt) - len(pages))])
        tree.evict(max(len(tree) - capacity, 0))
    return hits / asked, elapsed(start) / len(prompts)


def hit_rates(prompts: Workload, capacities: list[int], progress: Progress, name: str) -> list[dict[str, Any]]:
    """A row for each policy, with two figures for each capacity."""
    task = progress.add_task(name, total=len(POLICIES) * len(capacities))
    rows = []
    for policy, make in POLICIES.items():
        row: dict[str, Any] = {"policy": policy, "hit_rate": [], "microseconds": []}
        for capacity in capacities:
            rate, seconds = replay(prompts, capacity, make(prompts, capacity))
            row["hit_rate"].append(rate)
            row["microseconds"].append(1e6 * seconds)
            progress.advance(task)
        rows.append(row)
    return rows


def _rates(prompts: Workload, prepare: Callable, match: Callable, insert: Callable) -> tuple[float, float, int]:
    """(Matches a second, insertions a second, pages matched). Making keys and new pages is not timed."""
    names = count()
    keys = [prepare(prompt) for prompt in prompts]
    pages = [[next(names) for _ in range(len(prompt))] for prompt in prompts]
    matching = inserting = 0.0
    found = 0
    gc.collect()
    for key, new in zip(keys, pages):
        start = time.perf_counter()
        hit = match(key)
        middle = time.perf_counter()
        matching += middle - start
        found += len(hit)
        values = torch.tensor(new) if isinstance(hit, torch.Tensor) else new
        start = time.perf_counter()
        insert(key, values)
        inserting += elapsed(start)
    return len(prompts) / matching, len(prompts) / inserting, found


def speed(prompts: Workload, wheel: Path | None, repeats: int, progress: Progress) -> dict[str, Any]:
    """Operations a second on the prompts, unbounded: ours, a dictionary of all prefixes, and SGLang's tree."""

    def ours() -> tuple[float, float, int]:
        tree = RadixTree(1)
        return _rates(prompts, lambda prompt: prompt, lambda key: tree.match(key).pages, tree.insert)

    def dictionary() -> tuple[float, float, int]:
        known: dict[bytes, int] = {}  # every prefix, whole: its matches are what the tree must find

        def match(key: bytes) -> list[int]:
            pages: list[int] = []
            while len(pages) * 4 < len(key) and (page := known.get(key[: 4 * len(pages) + 4])) is not None:
                pages.append(page)
            return pages

        def insert(key: bytes, pages: list[int]) -> None:
            for i, page in enumerate(pages):
                known.setdefault(key[: 4 * i + 4], page)

        return _rates(prompts, array.tobytes, match, insert)

    def sglang() -> tuple[float, float, int]:
        assert wheel is not None
        tree = SGLangTree(wheel, page_size=1)
        return _rates(prompts, tree.prepare, tree.match, tree.insert)

    runs = {"inference-opt": ours, "dictionary": dictionary} | ({"SGLang": sglang} if wheel else {})
    task = progress.add_task("operations a second", total=repeats * len(runs))
    measured: dict[str, list[tuple[float, float, int]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            measured[name].append(run())
            progress.advance(task)
    found = {name: cases[0][2] for name, cases in measured.items()}
    if len(set(found.values())) > 1:
        raise ValueError(f"the trees do not find the same prefixes: {found}")
    result: dict[str, Any] = {"pages_found": found["inference-opt"]}
    for name, cases in measured.items():
        result[name] = {"match": median(c[0] for c in cases), "insert": median(c[1] for c in cases)}
        for i, operation in enumerate(("match", "insert")):
            pairs = zip(measured["inference-opt"], cases)
            result[name][f"ours_over_{operation}"] = median(a[i] / b[i] for a, b in pairs)
    return result


def scaling(sizes: list[int], progress: Progress, seed: int) -> list[dict[str, Any]]:
    """Microseconds to match 1,024 tokens, by the number of cached sequences. Half of each is shared; pages of 16."""
    rng = random.Random(seed)
    rows = []
    task = progress.add_task("matches by size of the tree", total=sum(sizes))
    stems = [rng.choices(range(50_000), k=512) for _ in range(100)]
    for size in sizes:
        tree = RadixTree(16)
        names = count()
        some = []
        for i in range(size):
            text = array("i", rng.choice(stems) + rng.choices(range(50_000), k=512))
            pages = tree.match(text).pages
            tree.insert(text, pages + [next(names) for _ in range(64 - len(pages))])
            if i % (size // 1000 or 1) == 0:
                some.append(text)
            progress.advance(task)
        times = []
        for _ in range(9):
            rng.shuffle(some)
            start = time.perf_counter()
            for text in some:
                tree.match(text)
            times.append(elapsed(start) / len(some))
        rows.append({"sequences": size, "microseconds": 1e6 * median(times)})
    return rows


def bench_radix(
    trace: Path | None, capacities: list[int], wheel: Path | None, repeats: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """All figures of this benchmark. `trace` and `wheel` (SGLang's) may be missing; their parts are then left out."""
    workloads = {"trace": read_trace(trace)} if trace else {}
    workloads |= {name: make(seed) for name, make in GENERATED.items()}
    figures: dict[str, Any] = {"command": command_line(), "machine": describe(), "seed": seed, "capacities": capacities}
    for name, prompts in workloads.items():
        uses = Counter(block for prompt in prompts for block in prompt)
        counts = {"prompts": len(prompts), "blocks": uses.total(), "distinct": len(uses)}
        figures.setdefault("workloads", {})[name] = counts | {"used_once": sum(n == 1 for n in uses.values())}
    figures["hit_rates"] = {n: hit_rates(prompts, capacities, progress, n) for n, prompts in workloads.items()}
    first = next(iter(workloads))
    figures["speed"] = {"workload": first} | speed(workloads[first], wheel, repeats, progress)
    figures["scaling"] = scaling(SIZES, progress, seed)
    return figures


def hit_rate_figure(figures: dict[str, Any], workload: str) -> Figure:
    """Hit rate against capacity, with a line for each policy."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    colours = ("#999999", "#7a5c42", "#4c72b0", "#2e7d4f", "#b35417", "#222222")
    for row, colour in zip(figures["hit_rates"][workload], colours):
        style = "--" if row["policy"] == "Belady" else "o-"
        wide = 6 if row["policy"] == "FIFO" else 1.5  # under LRU's line, which mostly covers it
        axes.plot(figures["capacities"], row["hit_rate"], style, color=colour, ms=4, lw=wide, label=row["policy"])
    axes.set(
        xscale="log", xlabel="capacity in blocks of 512 tokens", ylabel="blocks found / blocks asked", ylim=(0, None)
    )
    axes.set_xticks(figures["capacities"], [f"{c:,}" for c in figures["capacities"]])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
