"""Plan the trials, refuse what cannot work, run what is not done yet, and gather the figures."""

import difflib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from inference_opt.api import TransformerWithOptimizations
from inference_opt.engine.engine import Engine
from inference_opt.environment import command_line
from inference_opt.experiment.datasets import Dataset, load_dataset
from inference_opt.experiment.results import MEMORY, QUALITY, THROUGHPUT, Results
from inference_opt.experiment.trials import TECHNIQUES, Job, Trial, build, key, models_freed, pages_needed, run_trial
from inference_opt.files import folder as writable_folder
from inference_opt.files import write_json
from inference_opt.loading.load import parse_dtype
from inference_opt.loading.tokenizer import Tokenizer, needed
from inference_opt.model.config import ModelConfig
from inference_opt.model.transformer import Transformer
from inference_opt.speculative import DRAFTERS

METRICS = ("throughput", "memory_usage", "quality")
SIZES = ("dim", "depth", "heads", "kv_heads", "ffn_dim", "vocab_size", "max_context", "seed")
DESIGNS = ("full", "one-in", "one-out")
ATTEMPTS = 3
FIGURES = {"run": THROUGHPUT + MEMORY, "quality": ("perplexity", "favourites"), "naive": ("tokens_per_second",)}


@models_freed()
def run_ablation_study(
    input_dataset: str | Path | Sequence[str | Path],
    model_config: str | dict[str, Any] = "smollm2-135m",
    techniques_to_test: Iterable[str] = TECHNIQUES,
    metrics: Iterable[str] = METRICS,
    *,
    design: str = "full",
    repeats: int = 3,
    requests: int = 32,
    max_new_tokens: int | None = None,
    drafter: str = "prompt-lookup",
    page_size: int = 16,
    dtype: str = "float32",
    folder: str | Path | None = None,
    executor: Executor | None = None,
) -> Results:
    """Run every combination of techniques on the first `requests` of each dataset, `repeats` times, interleaved.

    `input_dataset`: files, folders or built-in workloads (`datasets.py`). `model_config`: a pretrained model's name, or
    sizes as for `TransformerWithOptimizations` (random weights; text is read as bytes). `design`: all combinations
    ("full"), each technique alone ("one-in"), or all but one ("one-out"); none and all are always included.
    Every request is continued by `max_new_tokens` (None: the number of its workload). With a `folder`, each trial's
    figures are saved there when they are known, and a study that was killed continues where it stopped. `executor` runs
    the trials (`concurrent.futures`; Dask's `Client.get_executor()` for a cluster). Trials that share a machine slow
    each other, so give each worker a machine of its own, or leave the throughput out of the metrics.
    ValueError, before any work, for datasets, techniques, metrics or sizes that cannot be studied.
    """
    techniques = _known("technique", techniques_to_test, TECHNIQUES)
    wanted = _known("metric", metrics, METRICS)
    _known("design", [design], DESIGNS)
    _known("drafter", [drafter], tuple(DRAFTERS))
    _check_sizes(model_config, repeats, requests, page_size, max_new_tokens)
    parse_dtype(dtype)
    saved = None if folder is None else writable_folder(folder)
    datasets = _load_datasets(input_dataset, max_new_tokens)
    if isinstance(model_config, dict):
        model_config = _with_context(model_config, datasets, requests)
        _check_memory(_sizes_only(model_config, dtype), 0, executor)
    model, tokenizer = build(model_config, dtype, False)
    if "mla" in techniques and model.config.latent is not None:
        raise ValueError(f"{model_config} has latent attention of its own: leave mla out of the techniques")
    if isinstance(model_config, str):  # a model of random weights reads the texts' bytes
        needed(tokenizer)

    common = {"model": model_config, "dtype": dtype, "page_size": page_size, "drafter": drafter, "metrics": wanted}
    plan: list[Job] = []
    for dataset in datasets:
        prompts, answers = _requests(dataset, requests, model.config, tokenizer)
        here = common | {"workload": dataset.name, "max_new_tokens": dataset.new_tokens}
        for trial in _trials(techniques, wanted, design, repeats):
            plan.append((trial | here, prompts, answers if trial["kind"] == "quality" else []))

    _check_memory(model, max(pages_needed(trial, prompts) for trial, prompts, _ in plan) * page_size, executor)
    for mla in {False, "mla" in techniques}:  # so that a conversion or a drafter that is not possible is refused now
        form, _ = build(model_config, dtype, mla)
        if "speculative_decoding" in techniques:
            Engine(form, drafter=DRAFTERS[drafter](), num_pages=1)
    figures = _run_all(plan, saved, executor)
    trials = [trial | {"figures": each} for (trial, _, _), each in zip(plan, figures)]
    return Results(command_line(), techniques, wanted, trials)


def _check_sizes(
    model_config: str | dict[str, Any], repeats: int, requests: int, page_size: int, max_new_tokens: int | None
) -> None:
    sizes = {"repeats": repeats, "requests": requests, "page_size": page_size}
    sizes |= {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    if isinstance(model_config, dict):
        _known("field of model_config", model_config, SIZES)
        sizes |= model_config
    for name, size in sizes.items():
        minimum = 0 if name == "seed" else 1
        if not isinstance(size, int) or isinstance(size, bool) or not minimum <= size < 2**31:
            raise ValueError(
                f"{name} must be a whole number of at least {minimum} and below 2^31, got {str(size)[:60]}"
            )


def _load_datasets(given: str | Path | Sequence[str | Path], new_tokens: int | None) -> list[Dataset]:
    """The datasets, with another number of new tokens if one is given. ValueError for none, or for two of one name."""
    sources = [given] if isinstance(given, (str, Path)) else list(given)
    datasets = [load_dataset(source) for source in sources]
    if new_tokens is not None:
        datasets = [replace(dataset, new_tokens=new_tokens) for dataset in datasets]
    names = [dataset.name for dataset in datasets]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"expected one or more datasets of different names, got {names}")
    return datasets


def _requests(
    dataset: Dataset, count: int, config: ModelConfig, tokenizer: Tokenizer | None
) -> tuple[list[list[int]], list[list[int]]]:
    """The first prompts and answers as token ids. ValueError for a prompt that the model cannot continue so far."""
    rows = dataset.rows[:count]
    prompts = [row.ids(tokenizer) for row in rows]
    answers = [_answer(row.reference, tokenizer) for row in rows]
    for i, prompt in enumerate(prompts, 1):
        try:
            config.check_prompt(prompt)
            if len(prompt) + dataset.new_tokens > config.max_context:
                raise ValueError(f"with {dataset.new_tokens} new tokens it exceeds {config.max_context}")
        except ValueError as error:
            raise ValueError(f"dataset {dataset.name}, request {i} ({len(prompt)} tokens): {error}") from None
    return prompts, answers


def _known(what: str, given: Iterable[str], expected: Sequence[str]) -> list[str]:
    """The given names, in the order of `expected`. ValueError, with the nearest name, for an unknown one."""
    chosen = [given] if isinstance(given, str) else list(given)
    for name in chosen:
        if name not in expected:
            near = difflib.get_close_matches(str(name), expected, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown {what} {name!r}: {hint}expected some of {', '.join(expected)}")
    if not chosen:
        raise ValueError(f"expected at least one {what} of {', '.join(expected)}")
    return [name for name in expected if name in chosen]


def combinations(techniques: Sequence[str], design: str) -> list[tuple[str, ...]]:
    """Combinations from none to all. `radix_attention` is tried only with `continuous_batching`, if that is tested."""
    every = [
        tuple(name for name, on in zip(techniques, switches) if on)
        for switches in itertools.product((False, True), repeat=len(techniques))
    ]
    if "continuous_batching" in techniques:
        every = [c for c in every if "radix_attention" not in c or "continuous_batching" in c]
    chosen = [(), tuple(techniques)]
    if design == "full":
        chosen = every
    elif design == "one-out":
        chosen += [c for c in every if len(c) == len(techniques) - 1]
    else:  # two together only if one needs the other
        chosen += [c for c in every if len(c) == 1 or c == ("continuous_batching", "radix_attention")]
    return sorted(set(chosen), key=lambda c: (len(c), [techniques.index(name) for name in c]))


def _trials(techniques: list[str], metrics: list[str], design: str, repeats: int) -> list[Trial]:
    """The trials of a workload, with repeats interleaved: a slow phase of the machine slows all combinations alike."""
    combos = combinations(techniques, design)
    forms = [[], ["mla"]] if "mla" in techniques else [[]]
    trials: list[Trial] = []  # trials that are not timed, or only once, come first: they warm the process up
    if "quality" in metrics:
        trials += [{"kind": "quality", "techniques": form, "repeat": 0} for form in forms]
    if "throughput" in metrics:
        trials.append({"kind": "naive", "techniques": [], "repeat": 0})
    runs = itertools.product(range(repeats), combos)
    return trials + [{"kind": "run", "techniques": list(combo), "repeat": repeat} for repeat, combo in runs]


def _with_context(config: dict[str, Any], datasets: list[Dataset], requests: int) -> dict[str, Any]:
    """Sizes for random weights that read bytes: a vocabulary of 256, and a context for the longest request."""
    longest = max(len(row.ids(None)) + dataset.new_tokens for dataset in datasets for row in dataset.rows[:requests])
    return {"vocab_size": 256, "max_context": longest} | config


def _answer(reference: str | None, tokenizer: Any) -> list[int]:
    if not reference:
        return []
    return list(reference.encode()) if tokenizer is None else tokenizer.encode(reference, begin=False)


def _sizes_only(config: dict[str, Any], dtype: str) -> Transformer:
    """A model of these sizes without weights."""
    with torch.device("meta"):
        return TransformerWithOptimizations(**config, dtype=dtype, device="meta").model


def _check_memory(model: Transformer, tokens: int, executor: Executor | None) -> None:
    """ValueError if weights, keys and values of `tokens` exceed this machine's memory. An executor's is not known."""
    if executor is not None or not hasattr(os, "sysconf"):
        return
    pool = tokens * model.config.kv_elements_per_token * model.dtype.itemsize
    needed = pool + model.weight_bytes()
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > installed:
        raise ValueError(
            f"the study needs {needed / 2**30:,.1f} GiB ({pool / 2**30:,.1f} of keys and values) and this machine has "
            f"{installed / 2**30:,.1f}: choose fewer requests, fewer new tokens or a smaller model"
        )


def _run_all(plan: Sequence[Job], folder: Path | None, executor: Executor | None) -> list[dict[str, Any]]:
    """Figures in the order of the plan, whichever trial finishes first."""
    paths = [folder / f"{key(job)}.json" if folder else None for job in plan]
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    found = {i: _saved(path, plan[i][0]) for i, path in enumerate(paths) if path and path.is_file()}
    columns = (TextColumn("ablation"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("trials", total=len(plan), completed=len(found))
        todo = {i: job for i, job in enumerate(plan) if i not in found}
        for i, figures in _fan_out(todo, executor) if executor else ((i, run_trial(*job)) for i, job in todo.items()):
            write_json(paths[i], figures)
            found[i] = figures
            progress.advance(task)
    return [found[i] for i in range(len(plan))]


def _saved(path: Path, trial: Trial) -> dict[str, Any]:
    expected = {"machine", *FIGURES[trial["kind"]]}
    if trial["kind"] == "run" and trial["repeat"] == 0 and "quality" in trial["metrics"]:
        expected |= {*QUALITY}
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(figures, dict) or not expected <= figures.keys():
            raise ValueError("other JSON")
        return figures
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no trial's figures ({error}): delete it to measure the trial again") from None


def _fan_out(todo: dict[int, Job], executor: Executor) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, figures) as they come. A trial whose worker was lost is given to others, `ATTEMPTS` times in all."""
    tries = dict.fromkeys(todo, 1)
    waiting: dict[Future[Any], int] = {executor.submit(run_trial, *job): i for i, job in todo.items()}
    try:
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                i = waiting.pop(future)
                try:
                    figures = future.result()
                except ValueError:
                    raise
                except Exception as error:
                    if tries[i] == ATTEMPTS or isinstance(error, BrokenExecutor):
                        hint = "with a folder, the same call goes on from what is done"
                        raise ValueError(f"a trial failed {tries[i]} times ({error!r}); {hint}") from error
                    tries[i] += 1
                    waiting[executor.submit(run_trial, *todo[i])] = i
                else:
                    yield i, figures
    finally:
        for future in waiting:
            future.cancel()
