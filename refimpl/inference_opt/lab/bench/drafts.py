"""`inference-opt bench drafts`: what drafts gain by batch, on real tasks and at a known acceptance.

In each case one model decodes the same requests plainly, with drafts as long as the engine chooses, and with fixed
lengths, in turn and several times over, in one process. Only decoding is timed, from the moment when every request has
its first token. On tasks every text has as many tokens as plain decoding makes until it ends. A batch larger than the
number of a task's prompts repeats them, so its texts share what they gain (`prompts` says how many differ).

The first run of each engine is reported apart: in it steps are captured, and the engine knows neither prices nor
acceptance. Then it runs for some seconds that do not count, so the other runs find what it has learned, as in a server.

On a shape the drafter's acceptance α is known (`known.py`), and the speed-up is predicted before it is measured, from
plain decoding alone. A step of n texts with γ drafts each has n (γ + 1) rows. It is taken to cost what a plain step of
as many rows costs whose texts are together as long: then the weights, the rows and the keys and values are as many.

    speed-up = T t(n, 0) / E[Σ_k t(n_k, γ)]

    t(n, γ)   seconds of a plain step of n (γ + 1) texts, each as long as 1 / (γ + 1) of one of the n
    T         tokens of a text after its first one
    n_k       texts that still lack tokens after k steps

t(n, γ) was measured for the batches that were asked for. It is interpolated between these, and fewer texts than in the
smallest cost as much as it. Rows of one text meet more keys than those of several that are together as long: attention
computes γ + 1 times as much, which hardly counts as long as reading is the limit.

Every repeat has prompts of its own, since one text alone may have luck with its drafts.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from statistics import median
from types import MappingProxyType
from typing import Any

import torch
from rich.progress import Progress

from inference_opt.engine.engine import Engine
from inference_opt.environment import command_line, describe, elapsed
from inference_opt.lab.bench.drafts_peer import VLLM, Decoder, vllm_decoders
from inference_opt.lab.bench.engine import warm
from inference_opt.lab.bench.known import Known, predicted_speedup, repeating_model
from inference_opt.lab.bench.shapes import SHAPES
from inference_opt.lab.bench.speculative import TASKS
from inference_opt.loading.load import load_model, parse_device, parse_dtype
from inference_opt.loading.prompts import load_prompts
from inference_opt.loading.tokenizer import needed
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams
from inference_opt.speculative import DRAFTERS, Drafter

PAGE = 16  # tokens
PROMPT = 128  # tokens, on a shape
PLAIN, CHOSEN = "plain", "chosen"
SETTLED = 4.0  # seconds in which the engine that chooses learns


@dataclass(frozen=True)
class Timed:
    """All requests of a batch, decoded once; the prefill and its tokens are not counted."""

    tokens_per_second: float
    drafted: int
    accepted: int
    texts: list[list[int]]


@dataclass(frozen=True)
class Requests:
    """A batch of requests."""

    prompts: list[list[int]]
    lengths: list[int]
    temperature: float

    def engine(self, model: Transformer, drafter: Drafter | None, gamma: int | None) -> Engine:
        """One with room for all of it."""
        pages = sum(-(-(len(prompt) + new) // PAGE) + 1 for prompt, new in zip(self.prompts, self.lengths))
        budget = max(512, sum(map(len, self.prompts)))
        rows = len(self.prompts) * 16
        return Engine(
            model,
            radix=False,
            drafter=drafter,
            gamma=gamma,
            page_size=PAGE,
            num_pages=pages,
            token_budget=budget,
            max_running=len(self.prompts),
            draft_rows=rows,
        )

    def by_peer(self, decode: Decoder) -> Timed:
        """Decode all of it once, by another engine, which does not tell of its drafts."""
        texts, seconds = decode(self.prompts, self.lengths, self.temperature)
        return Timed((sum(map(len, texts)) - len(texts)) / seconds, 0, 0, texts)

    def run(self, engine: Engine) -> Timed:
        """Decode all of it once."""
        requests = [
            engine.add(prompt, SamplingParams(new, self.temperature, seed=i, ignore_eos=True))
            for i, (prompt, new) in enumerate(zip(self.prompts, self.lengths))
        ]
        while not all(request.output for request in requests):
            engine.step()
        before, began = engine.stats, time.perf_counter()
        while engine.requests:
            engine.step()
        seconds, after = elapsed(began), engine.stats
        return Timed(
            (after.new_tokens - before.new_tokens) / seconds,
            after.drafted_tokens - before.drafted_tokens,
            after.accepted_tokens - before.accepted_tokens,
            [request.output for request in requests],
        )


def measure(
    model: Transformer,
    works: Sequence[Requests],
    drafter: Drafter,
    lengths: Sequence[int],
    repeats: int,
    progress: Progress,
    bar: Any,
    peers: Mapping[str, Decoder] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """A row for plain decoding, for the engine's choice, and for each fixed length: medians of interleaved repeats.

    Each repeat takes the next of `works`, which are alike. A peer's rows follow, beside its own plain decoding.
    """
    work = works[0]
    engines = {PLAIN: work.engine(model, None, None), CHOSEN: work.engine(model, drafter, None)}
    engines |= {f"γ = {gamma}": work.engine(model, drafter, gamma) for gamma in lengths}
    first = {name: work.run(engine) for name, engine in engines.items()}  # captures steps, and learns what they cost
    for engine in engines.values():
        for other in works[1:]:
            other.run(engine)  # its texts end elsewhere, and smaller batches may want steps of their own
        warm(engine, partial(work.run, engine))
    began = time.perf_counter()
    while elapsed(began) < SETTLED:
        work.run(engines[CHOSEN])
    first |= {name: work.by_peer(decode) for name, decode in peers.items()}
    runs: dict[str, list[Timed]] = {name: [] for name in first}
    for i in range(repeats):
        work = works[i % len(works)]
        for name, engine in engines.items():
            runs[name].append(work.run(engine))
        for name, decode in peers.items():
            runs[name].append(work.by_peer(decode))
        progress.advance(bar)
    rows = []
    for name, timed in runs.items():
        base = VLLM if name in peers else PLAIN
        ratios = [one.tokens_per_second / plain.tokens_per_second for one, plain in zip(timed, runs[base])]
        drafted = sum(one.drafted for one in timed)
        same = sum(a == b for a, b in zip(timed[0].texts, runs[PLAIN][0].texts))
        rows.append(
            {
                "name": name,
                "tokens_per_second": median(one.tokens_per_second for one in timed),
                "over_plain": median(ratios),
                "over_plain_spread": [min(ratios), max(ratios)],
                "drafted": drafted // repeats,
                "acceptance": sum(one.accepted for one in timed) / drafted if drafted else 0.0,
                "same_texts": same,
                "first_tokens_per_second": first[name].tokens_per_second,
            }
        )
        if name in engines:
            stats = engines[name].stats
            rows[-1] |= {"steps_by_drafts": {str(k): v for k, v in stats.steps_by_drafts.items()}, "why": stats.why}
    return rows


def bench_tasks(
    source: str,
    dtype: str,
    device: str,
    tasks: Sequence[str],
    name: str,
    batches: Sequence[int],
    temperatures: Sequence[float],
    lengths: Sequence[int],
    new: int,
    repeats: int,
    progress: Progress,
    peer: bool = False,
    keep: Callable[[dict[str, Any]], None] = lambda figures: None,
) -> dict[str, Any]:
    """Real prompts of each task, several times over where the batch is larger than their number.

    `peer`: by vLLM, too. `keep` is called with the figures so far. ValueError for an unknown task or drafter, and where
    vLLM is asked for and not installed.
    """
    if unknown := {*tasks} - {*TASKS} or {name} - {*DRAFTERS}:
        raise ValueError(f"unknown {sorted(unknown)}: tasks are {', '.join(TASKS)}, drafters {', '.join(DRAFTERS)}")
    peers = vllm_decoders(source, lengths, max(batches)) if peer else {}
    model, tokenizer = load_model(source, dtype=dtype, device=device)
    bar = progress.add_task("bench drafts", total=len(tasks) * len(batches) * len(temperatures) * repeats)
    results: list[dict[str, Any]] = []
    figures = _head(source, dtype, device, repeats) | {"drafter": name, "results": results}
    if peer:
        figures["machine"]["vllm"] = version("vllm")
    for task in tasks:
        own = [p.ids(needed(tokenizer)) for p in load_prompts("speculative") if p.name.startswith(f"{task}: ")]
        for temperature in temperatures:
            few = Requests(own, [new] * len(own), temperature)
            ends = Engine(model, radix=False).generate(
                few.prompts, [SamplingParams(new, temperature, seed=i) for i in range(len(own))]
            )
            plain = [max(len(each.tokens), 2) for each in ends]
            for batch in batches:
                which = [i % len(own) for i in range(batch)]
                work = Requests([own[i] for i in which], [plain[i] for i in which], temperature)
                rows = measure(model, [work], DRAFTERS[name](), lengths, repeats, progress, bar, peers)
                case = {"task": task, "temperature": temperature, "batch": batch, "prompts": min(batch, len(own))}
                results.append(case | {"rows": rows})
                keep(figures)
    return figures


def bench_shape(
    shape: str,
    dtype: str,
    device: str,
    alphas: Sequence[float],
    batches: Sequence[int],
    lengths: Sequence[int],
    new: int,
    repeats: int,
    progress: Progress,
    keep: Callable[[dict[str, Any]], None] = lambda figures: None,
) -> dict[str, Any]:
    """A model of this shape, and a drafter of each acceptance. ValueError for an unknown shape or device.

    `keep` is called with the figures so far.
    """
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}: expected one of {', '.join(SHAPES)}")
    config = SHAPES[shape]
    model = repeating_model(config, parse_dtype(dtype), parse_device(device))
    lengths, batches = sorted({*lengths}), sorted({*batches})
    bar = progress.add_task("bench drafts", total=len(batches) * (1 + len(lengths) + len(alphas) * repeats))

    def work(seed: int, batch: int, parts: int = 1) -> Requests:
        """As many texts for each of the batch as `parts`, which together are as long."""
        generator = torch.Generator().manual_seed(seed)
        prompts = torch.randint(config.vocab_size, (batch * parts, max(PROMPT // parts, 1)), generator=generator)
        return Requests(prompts.tolist(), [max(new // parts, 2)] * len(prompts), 0.0)

    # The only thing that is fitted: seconds of a plain step. By number of drafts, then by number of texts.
    seconds: dict[int, list[float]] = {}
    priced = []
    for gamma in (0, *lengths):
        for batch in batches:
            plain = work(0, batch, gamma + 1)
            engine, rows = plain.engine(model, None, None), batch * (gamma + 1)
            took = rows / median(plain.run(engine).tokens_per_second for _ in range(4))
            seconds.setdefault(gamma, []).append(took)
            priced.append({"batch": batch, "gamma": gamma, "rows": rows, "seconds": took})
            progress.advance(bar)
    results: list[dict[str, Any]] = []
    figures = _head(shape, dtype, device, repeats) | {"new_tokens": new, "plain_steps": priced, "results": results}
    for alpha in alphas:
        for batch in batches:
            works = [work(seed, batch) for seed in range(repeats)]
            found = measure(model, works, Known(alpha), lengths, repeats, progress, bar)
            for gamma, row in zip(lengths, found[2:]):
                row["predicted"] = predicted_speedup(alpha, gamma, new - 1, batch, batches, seconds)
            results.append({"alpha": alpha, "batch": batch, "rows": found})
            keep(figures)
    return figures


def _head(model: str, dtype: str, device: str, repeats: int) -> dict[str, Any]:
    card = {"device": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {"command": command_line(), "machine": describe() | card, "model": model, "dtype": dtype, "repeats": repeats}
