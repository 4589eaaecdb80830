"""`inference-opt bench engine`: the whole engine on CUDA, beside `transformers` and the limit of the card's memory.

A decoding step reads every weight, and every key and value of every request, once:

    tokens a second ≤ batch · read bandwidth / (bytes of weights + bytes of the requests' keys and values)

The weights are random, in the shape of a real model, because a step's time does not depend on their values. Prompts are
random, so no prefix is shared. Decoding is timed from the moment when every request has its first token. `transformers`
does not report that moment, so the time of a run with one token is subtracted. A decoder whose runs take more than
PATIENCE seconds in all is not repeated further.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import Progress

from inference_opt.engine.engine import Engine
from inference_opt.environment import command_line, describe, elapsed
from inference_opt.lab.bench.engine_peers import Decoder, continuous_batching, gpt_fast, transformers
from inference_opt.lab.bench.machine import read_bandwidth
from inference_opt.lab.bench.shapes import SHAPES, random_model
from inference_opt.model.config import ModelConfig
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams

PROMPT = 128  # tokens
PAGE = 16  # tokens
PATIENCE = 10  # seconds


def _ours(config: ModelConfig, batch: int, longest: int, decode_steps: int) -> Decoder:
    """Our engine on one model of this shape, with pages for one request more than the batch."""
    model = random_model(config, torch.bfloat16, torch.device("cuda"))
    num_pages = (batch + 1) * -(-longest // PAGE)
    engine = Engine(
        model,
        radix=False,
        page_size=PAGE,
        num_pages=num_pages,
        token_budget=8_192,
        max_running=batch,
        decode_steps=decode_steps,
    )

    def decode(prompts: list[list[int]], new: int) -> tuple[float, float]:
        began = time.perf_counter()
        requests = [engine.add(prompt, SamplingParams(max_new_tokens=new, ignore_eos=True)) for prompt in prompts]
        while not all(request.output for request in requests):
            engine.step()
        # Some requests have more than their first token by now: only what is new from here on is counted.
        prefilled = time.perf_counter()
        known = sum(len(request.output) for request in requests)
        while engine.requests:
            engine.step()
        return prefilled - began, (batch * new - known) / elapsed(prefilled)

    return decode


def bench_engine(
    shapes: Iterable[str],
    batches: list[int],
    new: int,
    decode_steps: int,
    repeats: int,
    peer: bool,
    gpt_fast_folder: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Tokens a second in decode, without the prefill, by shape and batch: ours, the peers', and the limit.

    ValueError for an unknown shape, and without CUDA.
    """
    shapes = list(shapes)
    if unknown := set(shapes) - set(SHAPES):
        raise ValueError(f"unknown shapes {sorted(unknown)}: expected some of {', '.join(SHAPES)}")
    if not torch.cuda.is_available():
        raise ValueError("bench engine needs CUDA: on a processor, use `bench decode` and `bench radix`")

    def decoders(config: ModelConfig, batch: int) -> dict[str, Callable[[], Decoder]]:
        """How to make each decoder. One is made at a time, so that each has the card's memory to itself."""
        longest = PROMPT + new
        make: dict[str, Callable[[], Decoder]] = {"inference-opt": partial(_ours, config, batch, longest, decode_steps)}
        if peer:
            make["transformers"] = partial(transformers, config)
            make["continuous batching"] = partial(continuous_batching, config)
        if gpt_fast_folder and batch == 1:
            make["gpt-fast"] = partial(gpt_fast, config, gpt_fast_folder, longest)
        return make

    bandwidth = read_bandwidth(4096, device="cuda")
    cases = [(shape, batch) for shape in shapes for batch in batches]
    total = sum(len(decoders(SHAPES[shape], batch)) for shape, batch in cases)
    task = progress.add_task("bench engine", total=total)
    results = []
    for shape, batch in cases:
        config = SHAPES[shape]
        generator = torch.Generator().manual_seed(batch)
        prompts = torch.randint(config.vocab_size, (batch, PROMPT), generator=generator).tolist()
        row: dict[str, Any] = {"shape": shape, "batch": batch}
        for name, make in decoders(config, batch).items():
            row[name] = _measure(make(), prompts, new, repeats)
            torch.cuda.empty_cache()
            progress.advance(task)
        # On average a request has half of its new tokens.
        step_bytes = _bytes(config, batch * (PROMPT + new / 2))
        row |= {"bytes": step_bytes, "limit": batch * bandwidth / step_bytes}
        row["of_limit"] = row["inference-opt"]["decode"] / row["limit"]
        results.append(row)

    machine = {**describe(), "device": torch.cuda.get_device_name()}
    sizes = {
        "prompt": PROMPT,
        "new_tokens": new,
        "decode_steps": decode_steps,
        "repeats": repeats,
        "page_size": PAGE,
        "dtype": "bfloat16",
    }
    head = {"command": command_line(), "machine": machine, "read_bandwidth": bandwidth}
    return head | sizes | {"results": results}


def _measure(decode: Decoder, prompts: list[list[int]], new: int, repeats: int) -> dict[str, Any]:
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


def _bytes(config: ModelConfig, tokens: float) -> float:
    """Bytes that a step reads, in bfloat16: the weights, and the keys and values of `tokens` tokens."""
    with torch.device("meta"):
        weights = Transformer(config).to(torch.bfloat16).weight_bytes()
    return weights + tokens * 2 * config.kv_elements_per_token
