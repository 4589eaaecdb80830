"""`inference-opt bench engine --context`: decoding from long contexts, of shapes side by side.

The bytes that a cache keeps for a token decide how fast long contexts are decoded, for two reasons: a step reads all of
them, and the batch can only be as large as

    batch ≤ (memory of the card − weights − RESERVE) / (context · bytes a token)

A batch that does not fit is cut to the largest that does. Contexts are random tokens, and are really prefilled, once:
the radix tree keeps them. A timed run finds all of each prompt but its last page there, so that all requests begin to
decode in the same step.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rich.progress import Progress

from inference_opt.engine.engine import Engine
from inference_opt.environment import command_line, describe
from inference_opt.lab.bench.engine import LATENT_PAGE, decoded, measure
from inference_opt.lab.bench.machine import read_bandwidth
from inference_opt.lab.bench.shapes import SHAPES, random_model
from inference_opt.lab.bench.work import Limits, work
from inference_opt.model.config import ModelConfig
from inference_opt.model.transformer import Transformer, count_weights

BUDGET = 8_192  # tokens of a step
RESERVE = 4 * 2**30  # bytes for what else a step needs


def most_requests(config: ModelConfig, context: int, itemsize: int, memory: int) -> int:
    """The largest batch whose contexts fit in memory beside the weights; 0 if none does."""
    free = memory - RESERVE - itemsize * count_weights(config)
    return max(free // (itemsize * config.kv_elements_per_token * context), 0)


def decode_from(
    model: Transformer, batch: int, context: int, new: int, decode_steps: int, repeats: int
) -> dict[str, Any]:
    """Tokens a second of `batch` requests from contexts of this length, the prefill not counted."""
    # Pages for what a run adds to each text, and for what the run before has left.
    pages = batch * (-(-context // LATENT_PAGE) + 2 * -(-(new + 1) // LATENT_PAGE))
    engine = Engine(
        model,
        page_size=LATENT_PAGE,
        num_pages=pages,
        token_budget=BUDGET,
        max_running=batch,
        decode_steps=decode_steps,
    )
    generator = torch.Generator().manual_seed(batch)
    prompts = torch.randint(model.config.vocab_size, (batch, context), generator=generator).tolist()
    figures = measure(partial(decoded, engine, {}), prompts, new, repeats)
    del figures["prefill_seconds"]  # only what is not found in the tree
    return figures | {"bytes_per_token": engine.cache.bytes_per_token()}


def bench_contexts(
    shapes: Sequence[str],
    batches: Sequence[int],
    contexts: Sequence[int],
    new: int,
    decode_steps: int,
    repeats: int,
    progress: Progress,
) -> dict[str, Any]:
    """A row for each shape, batch and context. ValueError for an unknown shape, and without CUDA."""
    if unknown := set(shapes) - set(SHAPES):
        raise ValueError(f"unknown shapes {sorted(unknown)}: expected some of {', '.join(SHAPES)}")
    if not torch.cuda.is_available():
        raise ValueError("bench engine needs CUDA: on a processor, use `bench decode` and `bench radix`")
    memory, bandwidth = torch.cuda.mem_get_info()[1], read_bandwidth(4096, device="cuda")
    task = progress.add_task("bench engine", total=len(shapes) * len(batches) * len(contexts))
    results = []
    for shape in shapes:
        config = replace(SHAPES[shape], max_context=max(contexts) + new)
        model = random_model(config, torch.bfloat16, torch.device("cuda"))
        for context in contexts:
            fits = most_requests(config, context + new, 2, memory)
            for asked in batches:
                batch = min(asked, fits)
                row: dict[str, Any] = {"shape": shape, "context": context, "asked": asked, "fits": fits, "batch": batch}
                if batch:
                    row |= decode_from(model, batch, context, new, decode_steps, repeats)
                    step = work(config, 2, batch, 1, context + new / 2)
                    row["limit"] = batch / step.seconds(Limits(bandwidth))
                    row["of_limit"] = row["decode"] / row["limit"]
                results.append(row)
                progress.advance(task)
                torch.cuda.empty_cache()
        del model
        torch.cuda.empty_cache()
    machine = {**describe(), "device": torch.cuda.get_device_name(), "memory": memory}
    head = {"command": command_line(), "machine": machine, "read_bandwidth": bandwidth, "dtype": "bfloat16"}
    sizes = {"new_tokens": new, "decode_steps": decode_steps, "repeats": repeats, "page_size": LATENT_PAGE}
    return head | sizes | {"reserve": RESERVE, "results": results}
