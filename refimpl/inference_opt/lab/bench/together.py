"""`inference-opt bench together`: radix reuse, latent attention and speculation, each on and off: eight ways.

Requests that share a stem arrive together. Each way runs on the same engine, and a technique is one of its switches:

    radix          the stem is prefilled once and kept once; off: for each request
    MLA            latents are kept; off: the keys and values of a grouped-query model with the same experts and as many
                   weights of attention. It is another model, because the engine attends to latents as they are
    speculation    drafts that are accepted with probability α (`known.py`), as many as the engine chooses

The weights are random, and both models continue a text alike: each token is the one before it, plus 1. So all eight
ways must give the same tokens. The tokens of a text differ, so that the rows of its drafts choose different experts.

Every repeat runs in a namespace of its own: nothing is found in the radix tree that another repeat has left.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.progress import Progress

from inference_opt.engine.engine import Engine
from inference_opt.environment import command_line, describe, elapsed
from inference_opt.lab.bench.engine import warm
from inference_opt.lab.bench.known import Known, repeating_model
from inference_opt.lab.bench.shapes import SHAPES
from inference_opt.loading.load import parse_device, parse_dtype
from inference_opt.sampling import SamplingParams

GROUPED = " grouped-query"  # behind a shape's name: the model without latents
PAGE = 64  # tokens: what the kernel for many queries on latents loads at once
TAIL = 64  # tokens of a prompt behind the stem
BUDGET = 8_192  # tokens of a step


@dataclass(frozen=True)
class Timed:
    """All requests, once."""

    first: float  # seconds until every request has its first token
    seconds: float
    decode: float  # tokens a second from then on
    texts: list[list[int]]


def run(engine: Engine, prompts: Sequence[list[int]], new: int, namespace: int) -> Timed:
    """From the arrival of all requests to the last token."""
    began, params = time.perf_counter(), SamplingParams(max_new_tokens=new, ignore_eos=True)
    requests = [engine.add(prompt, params, namespace=namespace) for prompt in prompts]
    while not all(request.output for request in requests):
        engine.step()
    first, known = time.perf_counter(), sum(len(request.output) for request in requests)
    while engine.requests:
        engine.step()
    decode = (len(prompts) * new - known) / elapsed(first)
    return Timed(elapsed(began, first), elapsed(began), decode, [request.output for request in requests])


def bench_together(
    shape: str,
    dtype: str,
    device: str,
    requests: int,
    stem: int,
    new: int,
    alpha: float,
    repeats: int,
    progress: Progress,
) -> dict[str, Any]:
    """A row for each of the eight ways. ValueError for a shape that has no grouped-query one beside it."""
    pairs = [name for name in SHAPES if name + GROUPED in SHAPES]
    if shape not in pairs:
        raise ValueError(f"unknown shape {shape!r}: expected one of {', '.join(pairs)}")
    length = stem + TAIL + new
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(SHAPES[shape].vocab_size, (stem + requests * TAIL,), generator=generator)
    prompts = [[*ids[:stem].tolist(), *tail.tolist()] for tail in ids[stem:].split(TAIL)]
    pages = requests * -(-(length + PAGE) // PAGE)
    task = progress.add_task("bench together", total=8 * (1 + repeats))
    spaces = itertools.count()

    def serve(engine: Engine) -> Timed:
        return run(engine, prompts, new, next(spaces))

    rows: list[dict[str, Any]] = []
    for latent in (False, True):
        config = replace(SHAPES[shape if latent else shape + GROUPED], max_context=length)
        model = repeating_model(config, parse_dtype(dtype), parse_device(device), stride=1)
        for radix in (False, True):
            for drafter in (None, Known(alpha, stride=1)):
                engine = Engine(
                    model,
                    radix=radix,
                    drafter=drafter,
                    page_size=PAGE,
                    num_pages=pages,
                    token_budget=BUDGET,
                    max_running=requests,
                    draft_rows=16 * requests,
                )
                timed = []
                for repeat in range(1 + repeats):
                    timed.append(serve(engine))
                    if not repeat:  # the first run finds the tree empty, and captures steps
                        peak, stats = engine.pool.peak, engine.stats
                        warm(engine, partial(serve, engine))
                    progress.advance(task)
                kept = engine.cache.bytes_per_token()
                rows.append(
                    {
                        "radix": radix,
                        "mla": latent,
                        "speculation": drafter is not None,
                        "first_token_seconds": median(each.first for each in timed[1:]),
                        "decode_tokens_per_second": median(each.decode for each in timed[1:]),
                        "seconds": median(each.seconds for each in timed[1:]),
                        "spread": [f(each.seconds for each in timed[1:]) for f in (min, max)],
                        "prefill_tokens": stats.prefill_tokens,
                        "acceptance": engine.stats.acceptance if drafter else None,
                        "bytes_per_token": kept,
                        "pages": peak,
                        "bytes": peak * PAGE * kept,
                        "texts": timed[-1].texts,
                    }
                )
                del engine
        del model
        torch.cuda.empty_cache()
    plain = rows[0]
    right = [[(prompt[-1] + 1 + i) % config.vocab_size for i in range(new)] for prompt in prompts]
    for row in rows:
        texts = row.pop("texts")
        row["same_texts"] = sum(a == b for a, b in zip(texts, right))
        row["over_plain"] = plain["seconds"] / row["seconds"]
    card = {"device": torch.cuda.get_device_name()} if device == "cuda" else {}
    head = {"command": command_line(), "machine": describe() | card, "shape": shape, "dtype": dtype, "repeats": repeats}
    sizes = {"requests": requests, "stem": stem, "tail": TAIL, "new_tokens": new, "alpha": alpha, "page_size": PAGE}
    return head | sizes | {"results": rows, "exact": all(row["same_texts"] == requests for row in rows)}
