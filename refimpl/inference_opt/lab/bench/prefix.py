"""`inference-opt bench prefix`: requests that share a prefix, with the prefix reused and with it computed anew.

n requests share a prefix of s tokens, and each has a tail of its own of t tokens. Without reuse n·(s + t) tokens are
prefilled, with reuse s + n·t. Three engines run in turn, several times over, in one process, on the same weights and
prompts: ours with its radix tree (empty at the start of each run), ours without it, and `generate` of `transformers` on
one padded batch. All decode greedily, and all must give the same tokens.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from rich.progress import Progress

from inference_opt.engine.engine import Engine, Stats
from inference_opt.environment import command_line, describe, elapsed
from inference_opt.lab.agreement import compare
from inference_opt.lab.bench.decode import transformers_decoder
from inference_opt.loading.load import load_model
from inference_opt.loading.prompts import load_prompts
from inference_opt.loading.tokenizer import Tokenizer, needed
from inference_opt.model.transformer import Transformer

Run = Callable[[list[list[int]], int], tuple[float, list[list[int]], Stats | None]]  # seconds, texts, counts


def stem_prompts(tokenizer: Tokenizer, requests: int, stem: int) -> list[list[int]]:
    """Prompts that ask a question each on one prefix: the built-in prompts' texts, repeated if they are too short."""
    texts = [prompt.text for prompt in load_prompts()]
    document = tokenizer.encode("\n\n".join(f"Text {i + 1}:\n{text}" for i, text in enumerate(texts)) + "\n\n")
    shared = (document * (stem // len(document) + 1))[:stem]
    question = "\nQuestion {}: what does text {} ask for? Answer in one sentence.\n"
    return [shared + tokenizer.encode(question.format(i + 1, i % len(texts) + 1)) for i in range(requests)]


def _engine(model: Transformer, radix: bool) -> Run:
    def run(prompts: list[list[int]], new: int) -> tuple[float, list[list[int]], Stats | None]:
        pages = sum(-(-(len(prompt) + new) // 16) for prompt in prompts)  # enough for all, so that none is preempted
        engine = Engine(model, radix=radix, page_size=16, num_pages=pages, max_running=len(prompts))
        start = time.perf_counter()
        texts = [c.tokens for c in engine.generate(prompts, max_new_tokens=new, ignore_eos=True)]
        return elapsed(start), texts, engine.stats

    return run


def bench_prefix(
    source: str, dtype: str, requests: int, stem: int, new: int, repeats: int, peer: bool, progress: Progress
) -> dict[str, Any]:
    """Seconds from the arrival of all requests to the last token, and whether all tokens are the same."""
    model, tokenizer = load_model(source, dtype=dtype)
    prompts = stem_prompts(needed(tokenizer), requests, stem)
    runs: dict[str, Run] = {"with reuse": _engine(model, True), "without reuse": _engine(model, False)}
    if peer:
        decode = transformers_decoder(source, model.dtype)
        runs["transformers"] = lambda prompts, new: (sum((timed := decode(prompts, new))[:2]), timed[2], None)
    task = progress.add_task("bench prefix", total=len(runs) * (repeats + 1))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    texts: dict[str, list[list[int]]] = {}
    stats: dict[str, Stats | None] = {}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            took, texts[name], stats[name] = run(prompts, new if repeat else 1)  # the first round warms up
            if repeat:
                seconds[name].append(took)
            progress.advance(task)
    results = []
    for name in runs:
        verdicts = [compare(model, *case) for case in zip(prompts, texts["without reuse"], texts[name])]
        same = sum(verdict.identical for verdict in verdicts)
        row: dict[str, Any] = {
            "name": name,
            "seconds": median(seconds[name]),
            "spread": [min(seconds[name]), max(seconds[name])],
            "tokens_per_second": sum(map(len, texts[name])) / median(seconds[name]),
            "ratio": median(a / b for a, b in zip(seconds[name], seconds["with reuse"])),
            "prefill_tokens": sum(map(len, prompts)),
            "exact": all(verdict.exact for verdict in verdicts),
            "agreement": f"{same} of {requests}" + "".join(f"; {v}" for v in verdicts if not v.identical),
        }
        if (counted := stats[name]) is not None:
            row["prefill_tokens"] = counted.prefill_tokens
            row["hit_rate"] = counted.hit_rate
            row["overhead"] = counted.schedule_seconds / elapsed(0.0, counted.schedule_seconds + counted.run_seconds)
        results.append(row)
    head = {"command": command_line(), "machine": describe(), "model": source, "dtype": dtype, "repeats": repeats}
    workload = {"requests": requests, "stem": stem, "prompt_tokens": sum(map(len, prompts)), "new_tokens": new}
    return head | workload | {"exact": all(row["exact"] for row in results), "results": results}
