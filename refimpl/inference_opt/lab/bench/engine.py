"""`inference-opt bench engine`: the whole engine on CUDA, beside `transformers` and what the card's memory allows.

A decoding step reads every weight, and every key and value of every request, once:

    tokens a second ≤ batch · read bandwidth / (bytes of weights + bytes of the requests' keys and values)

The weights are random, of a real model's shape: how long a step takes does not depend on them. Prompts are random, so
no prefix is shared. Decoding is timed from when every request has its first token; of `transformers`, which does not
say when that is, the time of one token is taken off. What takes more than PATIENCE seconds is not repeated further.
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

PROMPT, PAGE, PATIENCE = 128, 16, 10


def _ours(config: ModelConfig, batch: int, longest: int, ahead: int) -> Decoder:
    model = random_model(config, torch.bfloat16, torch.device("cuda"))
    num_pages = (batch + 1) * -(-longest // PAGE)
    engine = Engine(model, False, None, PAGE, num_pages, token_budget=8_192, max_running=batch, decode_steps=ahead)

    def decode(prompts: list[list[int]], new: int) -> tuple[float, float]:
        began = time.perf_counter()
        requests = [engine.add(prompt, SamplingParams(max_new_tokens=new, ignore_eos=True)) for prompt in prompts]
        while not all(request.output for request in requests):
            engine.step()
        prefilled, known = time.perf_counter(), sum(len(request.output) for request in requests)
        while engine.requests:
            engine.step()
        return prefilled - began, (batch * new - known) / elapsed(prefilled)

    return decode


def bench_engine(
    shapes: Iterable[str],
    batches: list[int],
    new: int,
    ahead: int,
    repeats: int,
    peer: bool,
    gpt_fast_folder: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Tokens a second in decode, prefill apart, by shape and batch; ours, the peer's, and the limit.

    ValueError for a shape that is not known, and without CUDA.
    """
    shapes = list(shapes)
    if unknown := set(shapes) - set(SHAPES):
        raise ValueError(f"unknown shapes {sorted(unknown)}: expected some of {', '.join(SHAPES)}")
    if not torch.cuda.is_available():
        raise ValueError(
            "the engine is timed on CUDA here; for the processor there are `bench decode` and `bench radix`"
        )
    bandwidth = read_bandwidth(4096, device="cuda")
    task = progress.add_task(
        "bench engine",
        total=len(shapes) * len(batches) * (1 + 2 * peer) + (1 in batches) * len(shapes) * bool(gpt_fast_folder),
    )
    results = []
    for shape in shapes:
        config = SHAPES[shape]
        for batch in batches:
            generator = torch.Generator().manual_seed(batch)
            prompts = torch.randint(config.vocab_size, (batch, PROMPT), generator=generator).tolist()
            row: dict[str, Any] = {"shape": shape, "batch": batch}
            make: dict[str, Callable[[], Decoder]]
            make = {"inference-opt": partial(_ours, config, batch, PROMPT + new, ahead)}
            if peer:
                make["transformers"] = partial(transformers, config)
                make["continuous batching"] = partial(continuous_batching, config)
            if gpt_fast_folder and batch == 1:
                make["gpt-fast"] = partial(gpt_fast, config, gpt_fast_folder, PROMPT + new)
            for name, of in make.items():
                decode = of()
                runs: list[tuple[float, float | None]] = []
                decode(prompts, new)  # warm up: compile, capture
                began = time.perf_counter()
                while not runs or (len(runs) < repeats and elapsed(began) < PATIENCE):
                    runs.append(decode(prompts, new))
                figures: dict[str, Any] = {"decode": None, "spread": None, "runs": len(runs)}
                if rates := [rate for _, rate in runs if rate is not None]:
                    figures |= {"decode": median(rates), "spread": [min(rates), max(rates)]}
                figures["prefill_seconds"] = median(prefill for prefill, _ in runs)
                row[name] = figures
                del decode
                torch.cuda.empty_cache()
                progress.advance(task)
            moved = _bytes(config, batch * (PROMPT + new / 2))
            row |= {"bytes": moved, "limit": batch * bandwidth / moved}
            row["of_limit"] = row["inference-opt"]["decode"] / row["limit"]
            results.append(row)
    machine = {**describe(), "device": torch.cuda.get_device_name()}
    sizes = {
        "prompt": PROMPT,
        "new_tokens": new,
        "ahead": ahead,
        "repeats": repeats,
        "page_size": PAGE,
        "dtype": "bfloat16",
    }
    head = {"command": command_line(), "machine": machine, "read_bandwidth": bandwidth}
    return head | sizes | {"results": results}


def _bytes(config: ModelConfig, tokens: float) -> float:
    """What a step reads, in bfloat16: the weights, the table as the head only, and so many tokens' keys and values."""
    with torch.device("meta"):
        weights = Transformer(config).to(torch.bfloat16).weight_bytes()
    return weights + tokens * 2 * config.kv_elements_per_token
