"""The tour: the same prompts through every stage, in the order in which a reader meets them.

Each stage generates the same number of tokens greedily; the naive stage is the oracle that the others are held
against, token by token, and the baseline that their speed is a multiple of.
"""

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from inference_opt import naive
from inference_opt.agreement import Agreement, compare
from inference_opt.bench.machine import command_line, describe
from inference_opt.engine import static
from inference_opt.kv.contiguous import ContiguousCache
from inference_opt.model.tokenizer import Tokenizer
from inference_opt.model.transformer import Transformer
from inference_opt.prompts import Prompt, load_prompts
from inference_opt.sampling import SamplingParams

PROMPTS = ("chat: rainbow", "code: has_close_elements", "chat: summary")  # short, middling, long

TokenStream = Callable[[Transformer, list[int], SamplingParams], Iterator[int]]


@dataclass(frozen=True)
class Stage:
    """One way to decode: `stream` yields the new tokens of one prompt; `kv_bytes` is what it stores for a token."""

    name: str
    what: str
    stream: TokenStream
    kv_bytes: Callable[[Transformer], int]


def _cached(model: Transformer, ids: list[int], params: SamplingParams) -> Iterator[int]:
    return (emitted[0] for emitted in static.stream(model, [ids], params))


def _contiguous_bytes(model: Transformer) -> int:
    c = model.config
    return ContiguousCache(c.depth, c.kv_heads, c.head_dim, [1], model.dtype, model.device).bytes_per_token()


STAGES = (
    Stage("naive", "recompute everything for every token", naive.stream, lambda model: 0),
    Stage("KV cache", "keep keys and values, compute the new token only", _cached, _contiguous_bytes),
)


@dataclass
class Run:
    """One prompt through one stage."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # from one token to the next; the first includes the prefill
    text: str = ""
    agreement: Agreement | None = None  # with the naive run; None for the naive run itself


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
    machine: dict[str, Any] = field(default_factory=describe)
    command: str = field(default_factory=command_line)

    @property
    def exact(self) -> bool:
        """Whether every stage gave the oracle's tokens, ties of rounding excepted."""
        return all(run.agreement is None or run.agreement.exact for runs in self.runs.values() for run in runs)

    def rows(self) -> list[dict[str, Any]]:
        """One row a stage: totals over the prompts."""
        first = next(iter(self.runs.values()))
        baseline = sum(sum(run.seconds) for run in first) / sum(len(run.tokens) for run in first)
        rows = []
        for name, runs in self.runs.items():
            seconds, tokens = sum(sum(run.seconds) for run in runs), sum(len(run.tokens) for run in runs)
            verdicts = [run.agreement for run in runs if run.agreement is not None]
            differing = [str(v) for v in verdicts if not v.identical]
            rows.append(
                {
                    "stage": name,
                    "tokens_per_second": tokens / seconds,
                    "first_token_seconds": median(run.seconds[0] for run in runs),
                    "kv_bytes_per_token": self.kv_bytes[name],
                    "speedup_over_naive": baseline * tokens / seconds,
                    "identical_to_naive": "; ".join(differing) or ("identical" if verdicts else "the oracle"),
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
    kv_bytes = {stage.name: stage.kv_bytes(model) for stage in STAGES}
    dtype = str(model.dtype).removeprefix("torch.")
    tour = Tour(name, dtype, max_new_tokens, prompts, list(map(len, ids)), kv_bytes, {s.name: [] for s in STAGES})
    for stage in STAGES:
        console.rule(f"[bold]{stage.name}[/]: {stage.what}")
        list(stage.stream(model, ids[0], SamplingParams(max_new_tokens=2)))  # warm up
        for index, (prompt, prompt_ids) in enumerate(zip(prompts, ids)):
            console.print(f"[cyan]{prompt.name}[/] ({len(prompt_ids)} tokens)", highlight=False)
            run = _timed(stage.stream(model, prompt_ids, params), tokenizer, console)
            rate = len(run.tokens) / sum(run.seconds)
            note = f"{len(run.tokens)} tokens in {sum(run.seconds):.1f} s, {rate:.1f} tokens/s"
            if stage is not STAGES[0]:
                run.agreement = compare(model, prompt_ids, tour.runs[STAGES[0].name][index].tokens, run.tokens)
                note += f", {run.agreement}"
            console.print(f"\n[dim]{note}[/]\n", highlight=False)
            tour.runs[stage.name].append(run)
    return tour


def _timed(tokens: Iterator[int], tokenizer: Tokenizer, console: Console) -> Run:
    run, stream = Run(), tokenizer.stream()
    last = time.perf_counter()
    for token in tokens:
        now = time.perf_counter()
        run.tokens.append(token)
        run.seconds.append(now - last)
        console.print(stream.add(token), end="", markup=False, highlight=False, soft_wrap=True)
        last = time.perf_counter()  # printing is not decoding
    console.print(stream.finish(), end="", markup=False, highlight=False, soft_wrap=True)
    run.text = stream.text
    return run


def table(tour: Tour) -> Table:
    """The stages side by side."""
    result = Table(title=f"{tour.model}, {tour.dtype}, greedy, {len(tour.prompts)} prompts", title_style="bold")
    for heading in ("stage", "tokens/s", "KV bytes a token", "speed-up over naive", "identical to naive"):
        result.add_column(heading, justify="left" if heading in ("stage", "identical to naive") else "right")
    for row in tour.rows():
        result.add_row(
            row["stage"],
            f"{row['tokens_per_second']:.1f}",
            f"{row['kv_bytes_per_token']:,}",
            f"{row['speedup_over_naive']:.1f}×",
            row["identical_to_naive"],
        )
    return result


def latency_figure(tour: Tour) -> Figure:
    """Milliseconds for each new token against how long the text is by then: what a cache changes, in one picture."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, runs), marker, colour in zip(tour.runs.items(), "os^Dvp", ("#c44e52", "#4c72b0", "#55a868", "#8172b2")):
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
    path.write_text(template.render(tour=tour, rows=tour.rows(), figure=figure), encoding="utf-8")
