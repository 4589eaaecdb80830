"""`inference-opt bench decode`: plain decoding beside `transformers`, and beside the limit that memory sets.

One decoding step of any decoder reads every weight once, and every key and value of every request (`work.py`). So no
decoder of b requests can be faster than

    tokens a second ≤ b · read bandwidth / (bytes of weights + bytes of the requests' keys and values)

Each case is measured with both decoders in
turn, several times over, in one process, on the same weights and prompts. The figures are medians; the spread is
printed.
"""

import time
from collections.abc import Callable
from statistics import mean, median
from typing import Any

import torch
from rich.progress import Progress

from inference_opt.cache import generate as static
from inference_opt.environment import command_line, describe, elapsed
from inference_opt.lab.bench.machine import read_bandwidth
from inference_opt.lab.bench.peers import Clock, transformers_model
from inference_opt.lab.bench.work import Limits, work
from inference_opt.loading.load import load_model
from inference_opt.loading.prompts import load_prompts
from inference_opt.loading.tokenizer import Tokenizer, needed
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams

# Prompts, new tokens → seconds until every prompt has its first token, seconds from there to the last, texts.
Decoder = Callable[[list[list[int]], int], tuple[float, float, list[list[int]]]]


def our_decoder(model: Transformer) -> Decoder:
    """The contiguous cache's own loop."""

    def decode(prompts: list[list[int]], new: int) -> tuple[float, float, list[list[int]]]:
        texts: list[list[int]] = [[] for _ in prompts]
        times = [time.perf_counter()]
        for tokens in static.stream(model, prompts, SamplingParams(max_new_tokens=new, ignore_eos=True)):
            for i, token in tokens.items():
                texts[i].append(token)
            times.append(time.perf_counter())
        return elapsed(times[0], times[1]), elapsed(times[1], times[-1]), texts

    return decode


def transformers_decoder(source: str, dtype: torch.dtype) -> Decoder:
    """`generate` of `transformers` on the same file as `transformers` reads it. Prompts are padded on the left."""
    model = transformers_model(source, dtype)

    def decode(prompts: list[list[int]], new: int) -> tuple[float, float, list[list[int]]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        clock = Clock()
        start = time.perf_counter()
        options: dict[str, Any] = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, "streamer": clock}
        out = model.generate(ids, attention_mask=mask, **options)
        assert out.shape[1] == width + new
        return elapsed(start, clock.times[1]), elapsed(clock.times[1], clock.times[-1]), out[:, width:].tolist()

    return decode


def prompt_ids(tokenizer: Tokenizer, batch: int) -> list[list[int]]:
    ids = [p.ids(tokenizer) for p in load_prompts() if p.name != "chat: summary"]
    return [ids[i % len(ids)] for i in range(batch)]


def bench_decode(
    source: str, dtypes: list[str], batches: list[int], new: int, repeats: int, peer: bool, progress: Progress
) -> dict[str, Any]:
    """Tokens a second in decode, without the prefill, by dtype and batch: ours, the peer's, and the limit."""
    task = progress.add_task("bench decode", total=len(dtypes) * len(batches) * repeats * (1 + peer))
    results = []
    for dtype in dtypes:
        model, tokenizer = load_model(source, dtype=dtype)
        decoders = {"inference-opt": our_decoder(model)}
        if peer:
            decoders["transformers"] = transformers_decoder(source, model.dtype)
        for batch in batches:
            prompts = prompt_ids(needed(tokenizer), batch)
            rates: dict[str, list[float]] = {name: [] for name in decoders}
            prefill: dict[str, list[float]] = {name: [] for name in decoders}
            bandwidth = []
            for decode in decoders.values():
                decode(prompts, 4)  # warm up
            for _ in range(repeats):
                bandwidth.append(read_bandwidth(repeats=3))
                for name, decode in decoders.items():
                    first, rest, texts = decode(prompts, new + 1)
                    prefill[name].append(first)
                    # A text may be shorter than asked for: the context may end first.
                    rates[name].append(sum(len(text) - 1 for text in texts) / rest)
                    progress.advance(task)
            # On average a request has half of its new tokens.
            step = work(model.config, model.dtype.itemsize, batch, 1, mean(map(len, prompts)) + new / 2)
            limits = [batch / step.seconds(Limits(b)) for b in bandwidth]
            row: dict[str, Any] = {"dtype": dtype, "batch": batch, "bytes": step.moved, "bandwidth": median(bandwidth)}
            row |= {"limit": median(limits), "limits": limits}
            for name in decoders:
                spread = [min(rates[name]), max(rates[name])]
                row[name] = {"decode": median(rates[name]), "spread": spread, "prefill_seconds": median(prefill[name])}
            # Ratios are taken repeat by repeat: a shared machine's bandwidth drifts, so each rate has its own limit.
            row["of_limit"] = median(a / b for a, b in zip(rates["inference-opt"], limits))
            if peer:
                pairs = zip(rates["inference-opt"], rates["transformers"])
                row["over_transformers"] = median(a / b for a, b in pairs)
            results.append(row)
    head = {"command": command_line(), "machine": describe(), "model": source, "new_tokens": new, "repeats": repeats}
    return head | {"results": results}
