"""The tour: the same prompts through every stage, in the order in which a reader meets them.

Each stage decodes greedily, for the same number of tokens. The naive stage is the oracle that the others are compared
with, token by token, and the baseline for their speed.
"""

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inference_opt import naive
from inference_opt.cache import generate as static
from inference_opt.cache.contiguous import ContiguousCache
from inference_opt.conversion.pretrained import latent_model
from inference_opt.engine.engine import Engine
from inference_opt.environment import command_line, describe, elapsed
from inference_opt.files import printable, write_whole
from inference_opt.lab.agreement import Agreement, compare, teacher_forced_greedy
from inference_opt.loading.prompts import Prompt, load_prompts
from inference_opt.loading.tokenizer import Tokenizer
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams
from inference_opt.speculative.drafter import Drafter
from inference_opt.speculative.eagle import Eagle
from inference_opt.speculative.lookup import PromptLookup

PROMPTS = ("chat: rainbow", "code: has_close_elements", "chat: summary")  # short, medium, long

# Prompts, parameters → at each step, the new token of each prompt that has one, by the prompt's number.
Decode = Callable[[list[list[int]], SamplingParams], Iterator[dict[int, int]]]


@dataclass(frozen=True)
class Decoder:
    """One stage at work on one model. It may remember earlier prompts."""

    decode: Decode
    kv_bytes: int = 0  # stored for each token
    reused: Callable[[], int] = lambda: 0  # prompt tokens so far that were found in the cache and not computed


@dataclass(frozen=True)
class Stage:
    """One way to decode. `latent`: on the model's latent form; `together`: all prompts at once, not one by one."""

    name: str
    what: str
    start: Callable[[Transformer], Decoder]
    latent: bool = False
    together: bool = False


def _naive(model: Transformer) -> Decoder:
    return Decoder(lambda prompts, params: ({0: token} for token in naive.stream(model, prompts[0], params)))


def _contiguous(model: Transformer) -> Decoder:
    one = ContiguousCache(**model.config.kv_shape, capacity=[1], dtype=model.dtype, device=model.device)
    return Decoder(lambda prompts, params: static.stream(model, prompts, params), one.bytes_per_token())


def _engine(model: Transformer, radix: bool = True, drafter: Drafter | None = None) -> Decoder:
    engine = Engine(model, radix=radix, drafter=drafter)

    def stream(prompts: list[list[int]], params: SamplingParams) -> Iterator[dict[int, int]]:
        return ({new.index: token} for new in engine.stream(prompts, params) for token in new.tokens)

    return Decoder(stream, engine.cache.bytes_per_token(), lambda: engine.stats.cached_tokens)


def _speculative(model: Transformer) -> Decoder:
    """With the trained drafter if it was made for a model like this one, else with prompt lookup."""
    try:
        return _engine(model, drafter=Eagle())
    except ValueError:
        return _engine(model, drafter=PromptLookup())


STAGES = (
    Stage("naive", "recompute everything for every token", _naive),
    Stage("KV cache", "keep keys and values, compute the new token only", _contiguous),
    Stage("paged", "keep them in pages that are taken when needed", partial(_engine, radix=False)),
    Stage("radix", "find the pages of earlier prompts that begin alike", _engine),
    Stage("MLA", "keep one latent in their place: another model, held against its own oracle", _engine, latent=True),
    Stage("speculative", "guess several tokens, check them in one step", _speculative),
    Stage("continuous batching", "all prompts at once, a new batch every step", _engine, together=True),
)


@dataclass
class Run:
    """One prompt through one stage."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # from one token to the next; the first includes the prefill
    text: str = ""
    agreement: Agreement | None = None  # with the naive run of the same model; None for the naive run itself


@dataclass
class Tour:
    """Everything measured, by stage and prompt."""

    model: str
    dtype: str
    max_new_tokens: int
    prompts: list[Prompt]
    prompt_tokens: list[int]
    kv_bytes: dict[str, int]
    runs: dict[str, list[Run]]
    wall: dict[str, float] = field(default_factory=dict)  # seconds of each stage, all prompts
    reused: dict[str, int] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)  # stages of another model, compared with its own oracle
    machine: dict[str, Any] = field(default_factory=describe)
    command: str = field(default_factory=command_line)

    @property
    def exact(self) -> bool:
        """Whether every stage gave the oracle's tokens, except for ties within rounding."""
        return all(run.agreement is None or run.agreement.exact for runs in self.runs.values() for run in runs)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each stage, with totals over the prompts."""
        rates = {name: sum(len(run.tokens) for run in runs) / self.wall[name] for name, runs in self.runs.items()}
        baseline = next(iter(rates.values()))
        rows = []
        for name, runs in self.runs.items():
            verdicts = [run.agreement for run in runs if run.agreement is not None]
            differing = [str(v) for v in verdicts if not v.identical]
            same = f"identical{' to its own oracle' * (name in self.others)}" if verdicts else "the oracle"
            rows.append(
                {
                    "stage": name,
                    "tokens_per_second": rates[name],
                    "first_token_seconds": median(run.seconds[0] for run in runs),
                    "kv_bytes_per_token": self.kv_bytes[name],
                    "prompt_tokens_reused": self.reused[name],
                    "speedup_over_naive": rates[name] / baseline,
                    "identical_to_naive": "; ".join(differing) or same,
                }
            )
        return rows

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON values, with the command and the machine that made them."""
        prompts = [
            {"name": p.name, "source": p.source, "licence": p.licence, "tokens": n}
            for p, n in zip(self.prompts, self.prompt_tokens)
        ]
        runs = {
            name: [
                {"prompt": p.name, "tokens": run.tokens, "seconds": run.seconds, "text": run.text}
                for p, run in zip(self.prompts, runs)
            ]
            for name, runs in self.runs.items()
        }
        head = {"command": self.command, "machine": self.machine, "model": self.model, "dtype": self.dtype}
        return head | {"exact": self.exact, "stages": self.rows(), "prompts": prompts, "runs": runs}


def run_tour(model: Transformer, tokenizer: Tokenizer, name: str, max_new_tokens: int, console: Console) -> Tour:
    """Run every stage on every prompt, showing the text as it grows."""
    prompts = [p for wanted in PROMPTS for p in load_prompts() if p.name == wanted]
    ids = [p.ids(tokenizer) for p in prompts]
    dtype = str(model.dtype).removeprefix("torch.")
    tour = Tour(name, dtype, max_new_tokens, prompts, list(map(len, ids)), {}, {})
    for stage in STAGES:
        console.rule(Text.assemble((stage.name, "bold"), f": {stage.what}"))
        form = _latent_form(model, tokenizer, name) if stage.latent else model
        if form is None:
            console.print("left out: this model has no such form\n")
        else:
            _run_stage(stage, form, tokenizer, tour, ids, console)
    return tour


def _latent_form(model: Transformer, tokenizer: Tokenizer, name: str) -> Transformer | None:
    """The same model with latent attention; None if it cannot be converted."""
    try:
        return latent_model(model, tokenizer, name)
    except ValueError:
        return None


def _run_stage(
    stage: Stage, model: Transformer, tokenizer: Tokenizer, tour: Tour, ids: list[list[int]], console: Console
) -> None:
    """Run one stage on every prompt and enter what it measures into the tour."""
    warm, decoder = stage.start(model), stage.start(model)
    list(warm.decode(ids[:1], SamplingParams(max_new_tokens=2)))  # warm up; the decoder that is measured starts anew
    tour.kv_bytes[stage.name] = decoder.kv_bytes
    if stage.latent:
        tour.others.add(stage.name)
    runs = tour.runs[stage.name] = [Run() for _ in ids]
    everyone = list(range(len(ids)))
    for group in [everyone] if stage.together else [[i] for i in everyone]:
        console.print(", ".join(f"{tour.prompts[i].name} ({len(ids[i])} tokens)" for i in group), style="cyan")
        steps = decoder.decode([ids[i] for i in group], SamplingParams(max_new_tokens=tour.max_new_tokens))
        seconds = _timed(steps, [runs[i] for i in group], tokenizer, console)
        tour.wall[stage.name] = tour.wall.get(stage.name, 0.0) + seconds
        new = sum(len(runs[i].tokens) for i in group)
        summary = f"{new} tokens in {seconds:.1f} s, {new / seconds:.1f} tokens/s"
        if stage is not STAGES[0]:
            for i in group:
                oracle = tour.runs[STAGES[0].name][i].tokens
                if stage.latent:
                    oracle = teacher_forced_greedy(model, ids[i], runs[i].tokens)
                runs[i].agreement = compare(model, ids[i], oracle, runs[i].tokens)
            summary += "".join(f", {runs[i].agreement}" for i in group)
        console.print(f"\n{summary}\n", style="dim", markup=False, highlight=False)
    tour.reused[stage.name] = decoder.reused()


def _timed(steps: Iterator[dict[int, int]], runs: list[Run], tokenizer: Tokenizer, console: Console) -> float:
    """Fill the runs, showing the first one's text as it grows; return the seconds spent decoding."""
    detokenizers = [tokenizer.detokenizer() for _ in runs]

    def show(text: str) -> None:
        text = printable(text, console.encoding)
        console.print(text, end="", markup=False, emoji=False, highlight=False, soft_wrap=True)

    total, before = 0.0, [0.0] * len(runs)  # the decoding time at which each run got its last token
    last = time.perf_counter()
    for emitted in steps:
        total += elapsed(last)
        for i, token in emitted.items():
            runs[i].tokens.append(token)
            runs[i].seconds.append(total - before[i])
            before[i] = total
            text = detokenizers[i].add(token)
            if i == 0:
                show(text)
        last = time.perf_counter()  # printing is not decoding
    for i, (run, detokenizer) in enumerate(zip(runs, detokenizers)):
        rest = detokenizer.finish()
        run.text = detokenizer.text
        show(rest if i == 0 else f"\n\n{run.text}")
    return total


def table(tour: Tour) -> Table:
    """The stages side by side."""
    result = Table(title=Text(f"{tour.model}, {tour.dtype}, greedy, {len(tour.prompts)} prompts", style="bold"))
    headings = ("stage", "tokens/s", "KV bytes a token", "prompt tokens reused", "speed-up over naive")
    for heading in (*headings, "identical to naive"):
        result.add_column(heading, justify="left" if heading in ("stage", "identical to naive") else "right")
    for row in tour.rows():
        result.add_row(
            row["stage"],
            f"{row['tokens_per_second']:.1f}",
            f"{row['kv_bytes_per_token']:,}",
            f"{row['prompt_tokens_reused']} of {sum(tour.prompt_tokens)}",
            f"{row['speedup_over_naive']:.1f}×",
            row["identical_to_naive"],
        )
    return result


def latency_figure(tour: Tour) -> Figure:
    """Milliseconds for each new token against the length of the text so far: what a cache changes, in one picture."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    colours = ("#c44e52", "#4c72b0", "#55a868", "#8172b2", "#64b5cd", "#dd8452", "#937860")
    for (name, runs), marker, colour in zip(tour.runs.items(), "os^DPvX", colours):
        for index, (run, start) in enumerate(zip(runs, tour.prompt_tokens)):
            lengths = range(start + 1, start + len(run.seconds))  # the first token's time is the prefill's
            milliseconds = [1000 * s for s in run.seconds[1:]]
            axes.plot(lengths, milliseconds, marker, ms=2.5, color=colour, label=name if index == 0 else None)
    axes.set(xlabel="tokens in the text so far", ylabel="milliseconds for the next token", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def write_report(tour: Tour, path: Path) -> None:
    """A self-contained HTML page with the table, the figure and every text. It loads nothing from elsewhere."""
    svg = io.StringIO()
    latency_figure(tour).savefig(svg, format="svg")
    source = (resources.files("inference_opt") / "templates" / "tour.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True).from_string(source)
    figure = svg.getvalue()[svg.getvalue().index("<svg") :]
    write_whole(path, template.render(tour=tour, rows=tour.rows(), figure=figure))
