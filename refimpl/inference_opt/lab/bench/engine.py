"""`inference-opt bench engine`: the whole engine on CUDA, beside `transformers`, vLLM and the limit of the memory.

A decoding step reads every weight, and every key and value of every request, once:

    tokens a second ≤ batch · read bandwidth / (bytes of weights + bytes of the requests' keys and values)

Of E experts, of which each token chooses k, a step with B tokens reads E (1 − (1 − k/E)^B) on average, if the choices
are independent and all experts are equally likely. (Tokens that choose alike read fewer. So the limit is an estimate.)

The weights are random, in the shape of a real model, because a step's time does not depend on their values. (That of
top-p does: the flat distributions of random weights keep the most tokens.) Every request is greedy, then every one is
as a mode says. Prompts are random, so no prefix is shared. Decoding is timed from the moment when every request has its
first token. The peers do not report that moment, so the time of a run with one token is subtracted. A decoder whose
runs take more than PATIENCE seconds in all is not repeated further.

The time to the first tokens (TTFT) is that of all prompts of a batch, which arrive together: it is measured for the
short prompts of the batches, and for LONG ones, which are read in one step. The time per output token (TPOT) of a
request is batch / (tokens a second).
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import Progress

from inference_opt.engine.engine import Engine
from inference_opt.environment import command_line, describe, elapsed
from inference_opt.lab.bench.engine_peers import Decoder, continuous_batching, gpt_fast, has_vllm, transformers, vllm
from inference_opt.lab.bench.machine import read_bandwidth
from inference_opt.lab.bench.shapes import SHAPES, random_model
from inference_opt.lab.bench.work import Limits, work
from inference_opt.model.config import ModelConfig
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams

PROMPT = 128  # tokens
LONG = 8, 2_048  # prompts, tokens
PAGE = 16  # tokens
LATENT_PAGE = 64  # what the kernel for many queries on latents loads at once
PATIENCE = 10  # seconds
WARM = 20  # runs, at most
QUIET = 2  # runs without captures, one after another
MODES: dict[str, dict[str, Any]] = {
    "sampled": {"temperature": 0.8},
    "top-p": {"temperature": 0.8, "top_p": 0.95},
    "log-probabilities": {"logprobs": True},
}
Sampled = Callable[[dict[str, Any]], Decoder]  # how requests sample → a decoder


def engine_decoder(model: Transformer, batch: int, longest: int, decode_steps: int, budget: int = 8_192) -> Sampled:
    """Our engine, with pages for one request more than the batch."""
    page = LATENT_PAGE if model.config.latent else PAGE
    num_pages = (batch + 1) * -(-longest // page)
    engine = Engine(
        model,
        radix=False,
        page_size=page,
        num_pages=num_pages,
        token_budget=budget,
        max_running=batch,
        decode_steps=decode_steps,
    )

    return lambda sampling: partial(decoded, engine, sampling)


def decoded(engine: Engine, sampling: dict[str, Any], prompts: list[list[int]], new: int) -> tuple[float, float]:
    """Seconds until every request has its first token, and tokens a second from then on."""
    began = time.perf_counter()
    each = SamplingParams(max_new_tokens=new, ignore_eos=True, **sampling).split(len(prompts))
    requests = [engine.add(prompt, own) for prompt, own in zip(prompts, each)]
    while not all(request.output for request in requests):
        engine.step()
    # Some requests have more than their first token by now: only what is new from here on is counted.
    prefilled = time.perf_counter()
    known = sum(len(request.output) for request in requests)
    while engine.requests:
        engine.step()
    return prefilled - began, (len(prompts) * new - known) / elapsed(prefilled)


def warm(engine: Engine, run: Callable[[], Any]) -> None:
    """Run until nothing was captured QUIET times in a row, at most WARM times. Without captures: not at all."""
    quiet = 0
    for _ in range(WARM):
        before = getattr(engine.runner, "captures", 0)
        if not before or quiet == QUIET:
            return
        run()
        quiet = quiet + 1 if getattr(engine.runner, "captures", 0) == before else 0


def bench_engine(
    shapes: Iterable[str],
    batches: list[int],
    modes: Iterable[str],
    new: int,
    decode_steps: int,
    repeats: int,
    peer: bool,
    with_vllm: bool,
    gpt_fast_folder: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Tokens a second in decode, without the prefill, by shape and batch: ours, the peers', and the limit.

    Greedy, and ours and vLLM's (if it is installed) in each of `modes` as well, ours with its share of the greedy rate.
    The other peers are measured on Llama's shapes only.
    Besides, the seconds of a prefill of LONG prompts. ValueError for an unknown shape or mode, and without CUDA.
    """
    shapes, modes = list(shapes), list(modes)
    for what, given, known in (("shapes", shapes, SHAPES), ("modes", modes, MODES)):
        if unknown := set(given) - set(known):
            raise ValueError(f"unknown {what} {sorted(unknown)}: expected some of {', '.join(known)}")
    if not torch.cuda.is_available():
        raise ValueError("bench engine needs CUDA: on a processor, use `bench decode` and `bench radix`")

    def decoders(config: ModelConfig, batch: int) -> dict[str, Callable[[], Decoder]]:
        """How to make each peer. One decoder is made at a time, so that each has the card's memory to itself."""
        make: dict[str, Callable[[], Decoder]] = {}
        if peer and not (config.latent or config.experts):
            make["transformers"] = partial(transformers, config)
            make["continuous batching"] = partial(continuous_batching, config)
        if gpt_fast_folder and batch == 1 and not (config.latent or config.experts):
            make["gpt-fast"] = partial(gpt_fast, config, gpt_fast_folder, PROMPT + new)
        return make

    def random(shape: str) -> Transformer:
        return random_model(SHAPES[shape], torch.bfloat16, torch.device("cuda"))

    bandwidth = read_bandwidth(4096, device="cuda")
    cases = [(shape, batch) for shape in shapes for batch in batches]
    beside = {shape: with_vllm and has_vllm(SHAPES[shape]) for shape in shapes}
    total = sum((1 + len(modes)) * (1 + beside[shape]) + len(decoders(SHAPES[shape], batch)) for shape, batch in cases)
    total += len(shapes) + sum(beside.values())
    task = progress.add_task("bench engine", total=total)
    results, prefill = [], []
    for shape in shapes:
        prompts = torch.randint(SHAPES[shape].vocab_size, LONG, generator=torch.Generator().manual_seed(0)).tolist()
        who = {
            "inference-opt": engine_decoder(random(shape), LONG[0], LONG[1] + 2, decode_steps, LONG[0] * LONG[1])({})
        }
        if beside[shape]:
            who["vllm"] = vllm(SHAPES[shape])({})
        long: dict[str, Any] = {"shape": shape, "batch": LONG[0], "prompt": LONG[1]}
        for name, decode in who.items():
            long[name] = measure(decode, prompts, 2, repeats)["prefill_seconds"]
            progress.advance(task)
        prefill.append(long)
        del who
        torch.cuda.empty_cache()
    for shape, batch in cases:
        config = SHAPES[shape]
        generator = torch.Generator().manual_seed(batch)
        prompts = torch.randint(config.vocab_size, (batch, PROMPT), generator=generator).tolist()
        ours = engine_decoder(random(shape), batch, PROMPT + new, decode_steps)
        row: dict[str, Any] = {"shape": shape, "batch": batch}
        row["inference-opt"] = measure(ours({}), prompts, new, repeats)
        progress.advance(task)
        row["modes"] = {mode: measure(ours(MODES[mode]), prompts, new, repeats) for mode in modes}
        for figures in row["modes"].values():
            figures["of_greedy"] = figures["decode"] / row["inference-opt"]["decode"]
            progress.advance(task)
        del ours
        torch.cuda.empty_cache()
        if beside[shape]:
            row["vllm"] = measure(vllm(config)({}), prompts, new, repeats)
            progress.advance(task)
            for mode in modes:
                row["modes"][mode]["vllm"] = measure(vllm(config)(MODES[mode]), prompts, new, repeats)
                progress.advance(task)
        for name, make in decoders(config, batch).items():
            row[name] = measure(make(), prompts, new, repeats)
            torch.cuda.empty_cache()
            progress.advance(task)
        # On average a request has half of its new tokens.
        step = work(config, 2, batch, 1, PROMPT + new / 2)
        row |= {"bytes": step.moved, "limit": batch / step.seconds(Limits(bandwidth))}
        row["of_limit"] = row["inference-opt"]["decode"] / row["limit"]
        results.append(row)

    machine = {**describe(), "device": torch.cuda.get_device_name()}
    sizes = {
        "prompt": PROMPT,
        "new_tokens": new,
        "decode_steps": decode_steps,
        "repeats": repeats,
        "page_size": PAGE,
        "latent_page_size": LATENT_PAGE,
        "dtype": "bfloat16",
    }
    head = {"command": command_line(), "machine": machine, "read_bandwidth": bandwidth}
    return head | sizes | {"prefill": prefill, "results": results, "layers": layer_seconds(results)}


def layer_seconds(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds of one layer in a step, by batch: the difference of two shapes that differ in depth only.

    `least`: bytes of the difference / read bandwidth.
    """
    found = []
    for deep in results:
        for flat in results:
            a, b = SHAPES[deep["shape"]], SHAPES[flat["shape"]]
            if deep["batch"] == flat["batch"] and a.depth > b.depth and a == replace(b, depth=a.depth):
                layers = a.depth - b.depth
                steps = [row["batch"] / row["inference-opt"]["decode"] for row in (deep, flat)]
                least = [row["batch"] / row["limit"] for row in (deep, flat)]
                row = {"shape": deep["shape"], "batch": deep["batch"], "layers": layers}
                row |= {"seconds": (steps[0] - steps[1]) / layers, "least": (least[0] - least[1]) / layers}
                found.append(row)
    return found


def measure(decode: Decoder, prompts: list[list[int]], new: int, repeats: int) -> dict[str, Any]:
    """Median and spread of a decoder's runs, after one that warms it up (it compiles and captures)."""
    decode(prompts, new)
    runs: list[tuple[float, float | None]] = []
    began = time.perf_counter()
    while not runs or (len(runs) < repeats and elapsed(began) < PATIENCE):
        runs.append(decode(prompts, new))
    figures: dict[str, Any] = {"decode": None, "spread": None, "runs": len(runs)}
    if rates := [rate for _, rate in runs if rate is not None]:
        figures |= {"decode": median(rates), "spread": [min(rates), max(rates)]}
    return figures | {"prefill_seconds": median(prefill for prefill, _ in runs)}
