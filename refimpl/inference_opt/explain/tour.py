"""The tour: the same prompts through every stage, in the order in which a reader meets them.

Each stage generates the same number of tokens greedily; the naive stage is the oracle that the others are held
against, token by token, and the baseline that their speed is a multiple of.
"""

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
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

PROMPTS = ("chat: rainbow", "code: has_close_elements", "chat: summary")  # short, middling, long

# Prompts, parameters → step by step, the new token of each prompt that has one.
Decode = Callable[[list[list[int]], SamplingParams], Iterator[dict[int, int]]]


@dataclass(frozen=True)
class Subject:
    """What the tour is of."""

    model: Transformer
    tokenizer: Tokenizer
    name: str

    @cached_property
    def latent(self) -> Transformer | None:
        """The same model with latent attention; None where there is no converting it."""
        try:
            return latent_model(self.model, self.tokenizer, self.name)
        except ValueError:
            return None


@dataclass(frozen=True)
class Session:
    """One stage at work on one model: it may remember from prompt to prompt."""

    model: Transformer
    decode: Decode
    kv_bytes: int = 0  # stored for a token
    reused: Callable[[], int] = lambda: 0  # prompt tokens so far that were found and not computed


@dataclass(frozen=True)
class Stage:
    """One way to decode. `together`: all prompts are handed over at once, not one after the other.

    `start` gives None where there is no such way for the model.
    """

    name: str
    what: str
    start: Callable[[Subject], Session | None]
    together: bool = False


def _naive(subject: Subject) -> Session:
    model = subject.model
    return Session(model, lambda prompts, params: ({0: token} for token in naive.stream(model, prompts[0], params)))


def _contiguous(subject: Subject) -> Session:
    model = subject.model
    one = ContiguousCache(**model.config.kv_shape, capacity=[1], dtype=model.dtype, device=model.device)
    return Session(model, lambda prompts, params: static.stream(model, prompts, params), one.bytes_per_token())


def _engine(subject: Subject, radix: bool, drafter: Drafter | None = None) -> Session:
    engine = Engine(subject.model, radix=radix, drafter=drafter)
    reused = lambda: engine.stats.cached_tokens  # noqa: E731
    return Session(subject.model, engine.stream, engine.cache.bytes_per_token(), reused)


def _speculative(subject: Subject) -> Session:
    """With the trained drafter where it was made for a model like this, else with prompt lookup."""
    try:
        return _engine(subject, True, Eagle())
    except ValueError:
        return _engine(subject, True, PromptLookup())


def _latent(subject: Subject) -> Session | None:
    """Another model: the same one with latent attention."""
    return None if subject.latent is None else _engine(replace(subject, model=subject.latent), radix=True)


STAGES = (
    Stage("naive", "recompute everything for every token", _naive),
    Stage("KV cache", "keep keys and values, compute the new token only", _contiguous),
    Stage("paged", "keep them in pages that are taken when needed", partial(_engine, radix=False)),
    Stage("radix", "find the pages of earlier prompts that begin alike", partial(_engine, radix=True)),
    Stage("MLA", "keep one latent in their place: another model, held against its own oracle", _latent),
    Stage("speculative", "guess several tokens, check them in one step", _speculative),
    Stage("continuous batching", "all prompts at once, a new batch every step", partial(_engine, radix=True), True),
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
    others: set[str] = field(default_factory=set)  # stages of another model, which are held against its own oracle
    machine: dict[str, Any] = field(default_factory=describe)
    command: str = field(default_factory=command_line)

    @property
    def exact(self) -> bool:
        """Whether every stage gave the oracle's tokens, ties of rounding excepted."""
        return all(run.agreement is None or run.agreement.exact for runs in self.runs.values() for run in runs)

    def rows(self) -> list[dict[str, Any]]:
        """One row a stage: totals over the prompts."""
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
        """Plain figures, with the command and the machine that made them."""
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
    params = SamplingParams(max_new_tokens=max_new_tokens)
    prompts = [p for wanted in PROMPTS for p in load_prompts() if p.name == wanted]
    ids = [p.ids(tokenizer) for p in prompts]
    dtype = str(model.dtype).removeprefix("torch.")
    tour = Tour(name, dtype, max_new_tokens, prompts, list(map(len, ids)), {}, {})
    subject = Subject(model, tokenizer, name)
    for stage in STAGES:
        console.rule(Text.assemble((stage.name, "bold"), f": {stage.what}"))
        warm, session = stage.start(subject), stage.start(subject)
        if warm is None or session is None:
            console.print("left out: this model has no such form\n")
            continue
        list(warm.decode(ids[:1], SamplingParams(max_new_tokens=2)))  # warm up, and forget
        tour.kv_bytes[stage.name] = session.kv_bytes
        if session.model is not model:
            tour.others.add(stage.name)
        runs = tour.runs[stage.name] = [Run() for _ in prompts]
        together = list(range(len(prompts)))
        for group in [together] if stage.together else [[i] for i in together]:
            console.print(", ".join(f"{prompts[i].name} ({len(ids[i])} tokens)" for i in group), style="cyan")
            steps = session.decode([ids[i] for i in group], params)
            seconds = _timed(steps, [runs[i] for i in group], tokenizer, console)
            tour.wall[stage.name] = tour.wall.get(stage.name, 0.0) + seconds
            new = sum(len(runs[i].tokens) for i in group)
            note = f"{new} tokens in {seconds:.1f} s, {new / seconds:.1f} tokens/s"
            if stage is not STAGES[0]:
                for i in group:
                    oracle = tour.runs[STAGES[0].name][i].tokens
                    if session.model is not model:
                        oracle = teacher_forced_greedy(session.model, ids[i], runs[i].tokens)
                    runs[i].agreement = compare(session.model, ids[i], oracle, runs[i].tokens)
                note += "".join(f", {runs[i].agreement}" for i in group)
            console.print(f"\n{note}\n", style="dim", markup=False, highlight=False)
        tour.reused[stage.name] = session.reused()
    return tour


def _timed(steps: Iterator[dict[int, int]], runs: list[Run], tokenizer: Tokenizer, console: Console) -> float:
    """Fill the runs, showing the first one's text as it grows; return the seconds spent decoding."""
    streams = [tokenizer.detokenizer() for _ in runs]

    def show(text: str) -> None:
        plain = printable(text, console.encoding)
        console.print(plain, end="", markup=False, emoji=False, highlight=False, soft_wrap=True)

    total, before = 0.0, [0.0] * len(runs)  # the decoding time at which each run got its last token
    last = time.perf_counter()
    for emitted in steps:
        total += elapsed(last)
        for i, token in emitted.items():
            runs[i].tokens.append(token)
            runs[i].seconds.append(total - before[i])
            before[i] = total
            text = streams[i].add(token)
            if i == 0:
                show(text)
        last = time.perf_counter()  # printing is not decoding
    for i, (run, stream) in enumerate(zip(runs, streams)):
        rest = stream.finish()
        run.text = stream.text
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
    """Milliseconds for each new token against how long the text is by then: what a cache changes, in one picture."""
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
    """A self-contained HTML page: table, figure, every text. Nothing is loaded from anywhere."""
    svg = io.StringIO()
    latency_figure(tour).savefig(svg, format="svg")
    source = (resources.files("inference_opt") / "templates" / "tour.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True).from_string(source)
    figure = svg.getvalue()[svg.getvalue().index("<svg") :]
    write_whole(path, template.render(tour=tour, rows=tour.rows(), figure=figure))
