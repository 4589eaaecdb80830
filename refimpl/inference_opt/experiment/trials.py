"""One trial of the study: one combination of techniques, once, on all requests of a workload.

A trial is a dictionary of JSON values, so that it can be sent to another process or machine, and hashed: the hash names
the file with its figures. All combinations run on the same engine. A technique is one of its switches:

    continuous_batching    many requests in a step (off: one request after another)
    radix_attention        prefixes are found in the radix tree and reused; runs under continuous batching
    mla                    latent attention: another random model, or a pretrained model converted
    speculative_decoding   a drafter guesses, the model verifies

The combination of none is plain decoding with a KV cache. All requests arrive at once and are decoded greedily for
`max_new_tokens` each, whether the text ends or not. So all combinations do the same work, and one whose texts end early
does not seem slower.
"""

import contextlib
import functools
import gc
import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
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
NAIVE_TOKENS = 8  # naive decoding reads the whole text for each token, so a few tokens give its rate
QUALITY_TOKENS = 2048  # quality is measured on whole texts of a workload, until they have this many tokens
Trial = dict[str, Any]
Job = tuple[Trial, list[list[int]], list[list[int]]]  # a trial, the prompts and, for quality, the answers


def key(job: Job) -> str:
    """The name of a trial: a hash of everything that its figures depend on, except the machine."""
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
    """A pretrained model by name, or random weights of these sizes. It is cached for the next trials."""
    return _build(json.dumps(model, sort_keys=True), dtype, mla)


@contextlib.contextmanager
def models_freed() -> Iterator[None]:
    """Free the cached models at the end, whatever happens. Those of other processes end with their process."""
    try:
        yield
    finally:
        _build.cache_clear()


def pages_needed(trial: Trial, prompts: Sequence[Sequence[int]]) -> int:
    """Pages for all requests at once. Nothing is evicted or preempted: the study compares techniques, not pools."""
    return sum(-(-(len(prompt) + trial["max_new_tokens"]) // trial["page_size"]) for prompt in prompts) + 1


def run_trial(trial: Trial, prompts: list[list[int]], references: list[list[int]]) -> dict[str, Any]:
    """The figures of a trial, with a description of the machine.

    Kinds of trials: "run" times a combination, "quality" measures perplexity on texts, "naive" times the oracle.
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
    """The quality of this trial's model, beside the model without MLA."""
    original, _ = build(trial["model"], trial["dtype"], False)
    texts: list[list[int]] = []
    for prompt, answer in zip(prompts, references):
        if sum(map(len, texts)) < QUALITY_TOKENS:
            texts.append([*prompt, *answer][: model.config.max_context])
    found = quality(model, original, texts)
    return {"perplexity": found.perplexity, "favourites": found.agreement, "tokens": found.tokens}


def _naive(trial: Trial, model: Transformer, prompts: list[list[int]]) -> dict[str, Any]:
    """The rate of naive decoding, on the request of median length. It does not end early."""
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
        tokenizer=tokenizer,
        radix=radix,
        drafter=drafter,
        page_size=trial["page_size"],
        num_pages=pages,
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
        # A step's time is divided by the tokens that it fed: those of prompts, and those of texts being decoded.
        fed = sum(output.fed for output in outputs)
        fed_prompts = sum(output.fed for output in outputs if output.start < len(output.request.prompt))
        prefill += took * fed_prompts / fed
        decode += took * (fed - fed_prompts) / fed
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
        "prefill_tokens_per_second": sum(map(len, prompts)) / prefill,  # reused tokens count as well
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
    """Compare each request's text with the oracle's, on the same weights. `reasons`: the differences."""
    form = json.dumps(trial["model"], sort_keys=True), trial["dtype"], "mla" in trial["techniques"]
    found = [_verdict(*form, tuple(prompt), tuple(text)) for prompt, text in zip(prompts, texts)]
    reasons = [f"request {i}: {each}" for i, each in enumerate(found, 1) if not each.identical]
    verdict = {"exact": all(each.exact for each in found), "identical": sum(each.identical for each in found)}
    return verdict | {"requests": len(found), "reasons": reasons}


@functools.cache
def _verdict(model: str, dtype: str, mla: bool, prompt: tuple[int, ...], text: tuple[int, ...]) -> Agreement:
    """One comparison. It is cached, because combinations are expected to give the same texts."""
    form, _ = _build(model, dtype, mla)
    return compare(form, prompt, teacher_forced_greedy(form, prompt, text), text)


def _reset_peak() -> None:
    """Start the count of the process's peak memory anew, on Linux. Elsewhere the peak is that of the whole process."""
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

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # in bytes on macOS, in KiB elsewhere
