"""One trial of the study: one combination of techniques, once, on all requests of a workload.

A trial is a plain dictionary, so that it can be sent to another process or machine, and hashed: the hash names the file
that keeps its figures. All combinations run on one engine; a technique is one of its switches:

    continuous_batching    many requests in a step (off: one request after another)
    radix_attention        prefixes are found in the radix tree and reused; runs under continuous batching
    mla                    latent attention: from random weights another model; of a pretrained one a conversion
    speculative_decoding   a drafter guesses, the model verifies

The combination without any is plain decoding with a KV cache. Requests arrive all at once and are decoded greedily, by
`max_new_tokens` each, its end or not: combinations do the same work, and who stops sooner does not seem slower.
"""

import contextlib
import functools
import gc
import hashlib
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from inference_opt import naive
from inference_opt.api import TransformerWithOptimizations
from inference_opt.engine.engine import Engine
from inference_opt.environment import describe, elapsed
from inference_opt.lab.agreement import Agreement, compare, teacher_forced_greedy
from inference_opt.lab.quality import quality
from inference_opt.loading.tokenizer import Tokenizer
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams
from inference_opt.speculative import DRAFTERS

TECHNIQUES = ("continuous_batching", "radix_attention", "mla", "speculative_decoding")
MAX_RUNNING = 64
NAIVE_TOKENS = 8  # a token costs the whole text: few tell the rate
QUALITY_TOKENS = 2048  # of a workload's texts, whole ones until there are so many
Trial = dict[str, Any]
Job = tuple[Trial, list[list[int]], list[list[int]]]  # a trial, the prompts and, to read, the answers


def key(job: Job) -> str:
    """Names a trial by all that its figures depend on but the machine."""
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:20]


@functools.lru_cache(maxsize=2)
def _build(model: str, dtype: str, mla: bool) -> tuple[Transformer, Tokenizer | None]:
    config = json.loads(model)
    if isinstance(config, str):
        front = TransformerWithOptimizations.from_pretrained(config, dtype=dtype, use_mla=mla)
    else:
        front = TransformerWithOptimizations(**config, dtype=dtype, use_mla=mla)
    return front.model.pack().eval(), front.tokenizer


def build(model: str | dict[str, Any], dtype: str, mla: bool) -> tuple[Transformer, Tokenizer | None]:
    """A pretrained model by name, or random weights of these sizes; kept for the trials that follow."""
    return _build(json.dumps(model, sort_keys=True), dtype, mla)


def pages_needed(trial: Trial, prompts: Sequence[Sequence[int]]) -> int:
    """Every request's own pages, so that nothing is evicted or preempted: the study compares techniques, not pools."""
    return sum(-(-(len(prompt) + trial["max_new_tokens"]) // trial["page_size"]) for prompt in prompts) + 1


def run_trial(trial: Trial, prompts: list[list[int]], references: list[list[int]]) -> dict[str, Any]:
    """The figures of a trial, and the machine's name.

    Its `kind`: "run" times a combination, "quality" reads texts, "naive" times the oracle.
    """
    model, tokenizer = build(trial["model"], trial["dtype"], "mla" in trial["techniques"])
    if trial["kind"] == "quality":
        figures = _quality(trial, model, prompts, references)
    elif trial["kind"] == "naive":
        figures = _naive(trial, model, prompts)
    else:
        figures = _run(trial, model, tokenizer, prompts)
    return figures | {"machine": describe()}


def _quality(trial: Trial, model: Transformer, prompts: list[list[int]], references: list[list[int]]) -> dict[str, Any]:
    """Of the model as it stands in this trial, beside the model without MLA."""
    original, _ = build(trial["model"], trial["dtype"], False)
    texts: list[list[int]] = []
    for prompt, answer in zip(prompts, references):
        if sum(map(len, texts)) < QUALITY_TOKENS:
            texts.append([*prompt, *answer][: model.config.max_context])
    found = quality(model, original, texts)
    return {"perplexity": found.perplexity, "favourites": found.agreement, "tokens": found.tokens}


def _naive(trial: Trial, model: Transformer, prompts: list[list[int]]) -> dict[str, Any]:
    """The request of median length is enough: each is decoded by itself. It may not end early."""
    prompt = sorted(prompts, key=len)[len(prompts) // 2]
    new = min(NAIVE_TOKENS, trial["max_new_tokens"])
    began = time.perf_counter()
    tokens = naive.generate(model, prompt, SamplingParams(max_new_tokens=new, ignore_eos=True))
    return {"tokens_per_second": len(tokens) / elapsed(began)}


def _run(trial: Trial, model: Transformer, tokenizer: Tokenizer | None, prompts: list[list[int]]) -> dict[str, Any]:
    techniques = trial["techniques"]
    radix = "radix_attention" in techniques
    together = radix or "continuous_batching" in techniques
    drafter = DRAFTERS[trial["drafter"]]() if "speculative_decoding" in techniques else None
    pages = pages_needed(trial, prompts)
    gc.collect()
    _reset_peak()
    engine = Engine(
        model,
        radix,
        drafter,
        trial["page_size"],
        pages,
        tokenizer=tokenizer,
        max_running=MAX_RUNNING if together else 1,
    )
    params = SamplingParams(max_new_tokens=trial["max_new_tokens"], ignore_eos=True)
    # [run]
    began = time.perf_counter()
    requests = [engine.add(prompt, params) for prompt in prompts]
    prefill = decode = 0.0
    while engine.requests:
        at = time.perf_counter()
        outputs = engine.step()
        took = elapsed(at)
        # A step's time is shared out by the tokens that it fed: those of prompts, and those of texts being decoded.
        fed = {stage: sum(o.fed for o in outputs if (o.start < len(o.request.prompt)) == stage) for stage in (0, 1)}
        prefill += took * fed[1] / (fed[0] + fed[1])
        decode += took * fed[0] / (fed[0] + fed[1])
    seconds = elapsed(began)
    # [/run]
    texts = [request.output for request in requests]
    new = sum(map(len, texts))
    page_bytes = trial["page_size"] * model.config.kv_elements_per_token * model.dtype.itemsize
    stats = engine.stats
    firsts = [request.metrics.first_token - began for request in requests if request.metrics.first_token]
    gaps = [
        (r.metrics.finished - r.metrics.first_token) / (len(text) - 1)
        for r, text in zip(requests, texts)
        if len(text) > 1 and r.metrics.finished and r.metrics.first_token
    ]
    figures: dict[str, Any] = {
        "seconds": seconds,
        "new_tokens": new,
        "tokens_per_second": new / seconds,
        "prefill_tokens_per_second": sum(map(len, prompts)) / prefill,  # reused tokens count: they were asked for
        "decode_tokens_per_second": (new - len(texts)) / decode if decode else None,
        "first_token_seconds": median(firsts),
        "between_tokens_seconds": median(gaps) if gaps else None,
        "reused": stats.hit_rate,
        "accepted": stats.acceptance if drafter else None,
        "kv_bytes_in_use": engine.pool.peak * page_bytes,
        "kv_bytes_allocated": pages * page_bytes,
        "peak_bytes": _peak(),
    }
    if trial["repeat"] == 0 and "quality" in trial["metrics"]:
        figures |= _exactness(trial, prompts, texts)
    return figures


def _exactness(trial: Trial, prompts: list[list[int]], texts: list[list[int]]) -> dict[str, Any]:
    """Against the oracle on the same weights, request by request; why, where one differs."""
    form = json.dumps(trial["model"], sort_keys=True), trial["dtype"], "mla" in trial["techniques"]
    found = [_verdict(*form, tuple(prompt), tuple(text)) for prompt, text in zip(prompts, texts)]
    reasons = [f"request {i}: {each}" for i, each in enumerate(found, 1) if not each.identical]
    verdict = {"exact": all(each.exact for each in found), "identical": sum(each.identical for each in found)}
    return verdict | {"requests": len(found), "reasons": reasons}


@functools.cache
def _verdict(model: str, dtype: str, mla: bool, prompt: tuple[int, ...], text: tuple[int, ...]) -> Agreement:
    """Kept, since combinations are expected to give the same texts."""
    form, _ = _build(model, dtype, mla)
    return compare(form, prompt, teacher_forced_greedy(form, prompt, text), text)


def _reset_peak() -> None:
    """Linux counts a process's peak anew when told to; elsewhere the peak is that of the process so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    import resource  # not on every system

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
