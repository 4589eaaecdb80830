"""`inference-opt bench load`: requests that arrive at random times, and how long they wait for their tokens.

An *open loop*: requests arrive by a Poisson process of a given rate, whether or not the engine keeps up, as those of
many independent users do. (In a closed loop a request is sent when another has ended. Then a slow engine gets less
work, and its queue cannot grow: Schroeder, Wierman and Harchol-Balter 2006,
https://www.usenix.org/conference/nsdi-06/open-versus-closed-cautionary-tale.) An engine takes requests in between its
steps. One that arrives during a step has waited since its arrival, and that counts.

What is measured is defined as in vLLM 0.33.0 (vllm/benchmarks/serve.py) and SGLang 0.5.23 (sglang/benchmark/serving.py
and goodput.py). For a request that arrives at t₀ and gets n tokens, the first at t₁ and the last at tₙ:

    TTFT  t₁ − t₀              time to first token, the wait in the queue included
    TPOT  (tₙ − t₁)/(n − 1)    time per output token after the first; one value a request, where n > 1
    ITL   tᵢ₊₁ − tᵢ            inter-token latency: each gap between two deliveries of tokens. TPOT is a mean, and hides
                               the gaps in which a step computed another's prompt
    E2E   tₙ − t₀              end to end
    goodput                    the requests of which TTFT and TPOT keep within given limits (Zhong et al. 2024,
                               2401.09670): as a share of all, and in a second

The rates are shares of a capacity: the requests a second of the plain engine if all of them arrive at once. It is
measured at the beginning of each repeat, on the same requests. In a repeat every variation gets the same requests at
the same times. What is measured in all repeats is put together. The interval of a 99th percentile holds 95% of those of
1,000 resamples (bootstrap). Of a hundred requests, the 99th percentile lies between the two slowest: read the interval.
"""

import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.progress import Progress

from inference_opt.engine.engine import Engine
from inference_opt.environment import command_line, describe, elapsed
from inference_opt.loading.load import load_model
from inference_opt.loading.prompts import load_prompts
from inference_opt.loading.tokenizer import Tokenizer, needed
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams

PAGE = 16  # tokens
PLAIN = "plain"
RESAMPLES = 1_000
COLOURS = ("#4c72b0", "#b35417", "#2e7d4f", "#c44e52", "#6a55a3", "#7a5c42")


@dataclass
class Timeline:
    """When a request arrived, and when it got how many tokens. Seconds since the start."""

    arrived: float
    request: Any = None  # the engine's handle
    times: list[float] = field(default_factory=list)  # of each delivery
    counts: list[int] = field(default_factory=list)  # its tokens: several at a time with drafts

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.times[0] - self.arrived

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None for one token. Tokens that come with the first came with it."""
        tokens = sum(self.counts)
        return (self.times[-1] - self.times[0]) / (tokens - 1) if tokens > 1 else None

    @property
    def gaps(self) -> list[float]:
        """Between one delivery and the next."""
        return [after - before for before, after in zip(self.times, self.times[1:])]

    @property
    def e2e(self) -> float:
        """From the arrival to the last token."""
        return self.times[-1] - self.arrived

    def good(self, ttft: float, tpot: float) -> bool:
        """Whether both limits are kept. One token has no TPOT, which counts as 0."""
        return self.ttft <= ttft and (self.tpot or 0.0) <= tpot


class Clock:
    """The real one. A test has another, in which time passes only as it says."""

    def now(self) -> float:
        """Seconds, from anywhere."""
        return time.perf_counter()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)


Asked = tuple[list[int], SamplingParams]


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Times of a Poisson process: independent exponential gaps. They are scaled so that the last is at count / rate.

    (As vLLM does. Otherwise the rate of some dozens of requests would be off by several percent.)
    """
    rng = random.Random(seed)
    times = np.cumsum([rng.expovariate(1.0) for _ in range(count)])
    return (times * (count / rate / times[-1])).tolist()


# [drive]
def drive(engine: Any, asked: Sequence[Asked], times: Sequence[float], clock: Clock) -> list[Timeline]:
    """Add each request when its time has come, whatever the engine does, and note when its tokens come.

    `engine`: what has the `requests`, `add` and `step` of an Engine. Handles are hashable.
    """
    lines = [Timeline(at) for at in times]
    due = deque(zip(asked, lines))
    lines_of: dict[Any, Timeline] = {}
    start = clock.now()
    while due or engine.requests:
        while due and due[0][1].arrived <= clock.now() - start:
            (prompt, params), line = due.popleft()
            line.request = engine.add(prompt, params)
            lines_of[line.request] = line
        if not engine.requests:
            clock.wait(max(due[0][1].arrived - (clock.now() - start), 0.0))
            continue
        outputs = engine.step()
        now = clock.now() - start
        for output in outputs:
            if output.tokens:
                line = lines_of[output.request]
                line.times.append(now)
                line.counts.append(len(output.tokens))
    return lines


# [/drive]


def percentiles(values: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Median, 99th percentile (interpolated, as NumPy does), how many values, and the 99th's interval."""
    given = np.asarray(values)
    p50, p99 = np.percentile(given, [50, 99])
    drawn = np.random.default_rng(seed).choice(given, (RESAMPLES, len(given)))
    low, high = np.percentile(np.percentile(drawn, 99, axis=1), [2.5, 97.5])
    return {"p50": float(p50), "p99": float(p99), "p99_interval": [float(low), float(high)], "count": len(given)}


def summary(runs: Sequence[Sequence[Timeline]], ttft: float, tpot: float) -> dict[str, Any]:
    """What a variation gave at one rate, over all repeats."""
    lines = [line for run in runs for line in run]
    good = sum(line.good(ttft, tpot) for line in lines)
    seconds = sum(max(line.times[-1] for line in run) for run in runs)  # of all runs, one after another
    return {
        "ttft": percentiles([line.ttft for line in lines]),
        "tpot": percentiles([each for line in lines if (each := line.tpot) is not None]),
        "itl": percentiles([gap for line in lines for gap in line.gaps]),
        "e2e": percentiles([line.e2e for line in lines]),
        "goodput_share": good / len(lines),
        "goodput": good / seconds,
        "throughput": len(lines) / seconds,
    }


def workload(tokenizer: Tokenizer, count: int, new: int, seed: int) -> list[Asked]:
    """Requests: parts of the built-in texts, every other one after one of three stems; a few tokens or many to come.

    One prompt in eight has 512 tokens, the others 16 to 96. A stem has 96. Texts of `new / 2` to `3 new / 2` tokens, so
    `new` on average, are greedy and are not ended before.
    """
    rng = random.Random(seed)
    text = tokenizer.encode(
        "\n\n".join(prompt.text for name in ("prompts", "speculative") for prompt in load_prompts(name))
    )

    def part(length: int) -> list[int]:
        start = rng.randrange(max(len(text) - length, 1))
        return text[start : start + length]

    stems = [part(96) for _ in range(3)]
    asked = []
    for i in range(count):
        length = 512 if i % 8 == 5 else rng.randint(16, 96)
        prompt = (rng.choice(stems) if i % 2 else []) + part(length)
        tokens = rng.randint(max(new // 2, 2), max(3 * new // 2, 2))
        asked.append((prompt, SamplingParams(max_new_tokens=tokens, ignore_eos=True)))
    return asked


def variations(budgets: Sequence[int], pool: int, drafter: str) -> dict[str, dict[str, Any]]:
    """How each differs from the plain engine, in one thing each."""
    found: dict[str, dict[str, Any]] = {PLAIN: {}}
    found |= {f"budget {budget}": {"token_budget": budget} for budget in budgets}
    found["in order of arrival"] = {"patience": 0}
    found["small pool"] = {"num_pages": pool}
    return found | {drafter: {"drafter": drafter}}


def bench_load(
    source: str,
    dtype: str,
    device: str,
    shares: Sequence[float],
    only: Sequence[str] | None,
    budgets: Sequence[int],
    drafter: str,
    requests: int,
    new: int,
    limits: tuple[float, float],
    repeats: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Latencies by variation and rate. Ctrl-C ends it early: whole runs are kept, and `interrupted` is true.

    `shares`: rates, in shares of the capacity. `only`: some of the variations; the plain engine is always measured.
    `limits`: of TTFT and of TPOT, in seconds. ValueError for an unknown variation, and for numbers that are not finite.
    """
    if not np.isfinite([*shares, *limits]).all():
        raise ValueError("shares of the capacity and the limits of TTFT and TPOT must be finite numbers")
    model, tokenizer = load_model(source, dtype=dtype, device=device)
    drawn = [workload(needed(tokenizer), requests, new, seed + repeat) for repeat in range(repeats)]
    # The longest text fits, and no other with it: so few that requests in decode run out of pages.
    longest = max(len(prompt) + params.max_new_tokens for asked in drawn for prompt, params in asked)
    pool = -(-longest // PAGE)
    chosen = variations(budgets, pool, drafter)
    if unknown := set(only or ()) - chosen.keys():
        raise ValueError(f"unknown variation {min(unknown)!r}: expected some of {', '.join(chosen)}")
    chosen = {name: how for name, how in chosen.items() if not only or name in (PLAIN, *only)}
    task = progress.add_task("bench load", total=repeats * (1 + len(shares) * len(chosen)))
    runs: dict[tuple[str, float], list[list[Timeline]]] = {}
    stats: dict[tuple[str, float], list[dict[str, int | float]]] = {}
    capacities: list[float] = []
    interrupted = False
    try:
        run_once(model, drawn[0][:4], [0.0] * 4, {})  # warm up
        for repeat, asked in enumerate(drawn):
            burst, _ = run_once(model, asked, [0.0] * requests, {})
            capacities.append(requests / elapsed(0.0, max(line.times[-1] for line in burst)))
            progress.advance(task)
            for share in shares:
                times = arrivals(requests, share * capacities[-1], seed + repeat)
                for name, how in chosen.items():
                    lines, counts = run_once(model, asked, times, how)
                    runs.setdefault((name, share), []).append(lines)
                    stats.setdefault((name, share), []).append(counts)
                    progress.advance(task)
    except KeyboardInterrupt:
        if not runs:
            raise
        interrupted = True
    results = []
    for (name, share), whole in runs.items():
        counted = {key: mean(each[key] for each in stats[name, share]) for key in stats[name, share][0]}
        rates = [share * capacity for capacity, _ in zip(capacities, whole)]
        row = {"variation": name, "share": share, "rate": median(rates), "runs": len(whole)}
        results.append(row | summary(whole, *limits) | counted)
    head = {"command": command_line(), "machine": describe(), "model": source, "dtype": dtype, "device": device}
    sizes: dict[str, Any] = {
        "requests": requests,
        "new_tokens": new,
        "repeats": repeats,
        "seed": seed,
        "page_size": PAGE,
    }
    tokens = [len(prompt) for asked in drawn for prompt, _ in asked]
    sizes |= {"prompt_tokens": {"mean": mean(tokens), "longest": max(tokens)}, "small_pool": pool}
    kept = {"limits": {"ttft": limits[0], "tpot": limits[1]}, "capacity": median(capacities), "capacities": capacities}
    return head | sizes | kept | {"variations": chosen, "interrupted": interrupted, "results": results}


def run_once(
    model: Transformer, asked: Sequence[Asked], times: Sequence[float], how: dict[str, Any]
) -> tuple[list[Timeline], dict[str, int | float]]:
    """One run on an engine of its own, with an empty tree; and what the engine counted."""
    engine = Engine(model, page_size=PAGE, **how)
    if model.device.type == "cuda":  # steps are captured when they first run
        drive(engine, asked, [0.0] * len(asked), Clock())
        engine.forget()
    before = engine.stats
    lines = drive(engine, asked, times, Clock())
    stats = engine.stats
    return lines, {
        "preemptions": stats.preemptions - before.preemptions,
        "overtaken": sum(line.request.metrics.overtaken for line in lines),
        "hit_rate": stats.hit_rate,
        "acceptance": stats.acceptance,
        "steps": stats.steps - before.steps,
    }


def load_figure(figures: dict[str, Any], names: Sequence[str] | None = None) -> Figure:
    """TTFT and TPOT against the rate, for some of the variations: the median solid, the 99th percentile dashed."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    names = names or list(figures["variations"])
    for axes, key, label in zip(figure.subplots(1, 2), ("ttft", "tpot"), ("TTFT", "TPOT")):
        for name, colour in zip(names, COLOURS):
            rows = sorted((row for row in figures["results"] if row["variation"] == name), key=lambda row: row["share"])
            shares = [row["share"] for row in rows]
            for percentile, style in (("p50", "o-"), ("p99", "o--")):
                values = [row[key][percentile] for row in rows]
                axes.plot(shares, values, style, color=colour, ms=3, lw=1.2, label=name if style == "o-" else None)
        axes.set(yscale="log", xlabel="rate / capacity", title=f"{label}, seconds")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.axvline(1, color="#999", lw=0.8, ls=":")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=4, loc="outside upper center")
    return figure
