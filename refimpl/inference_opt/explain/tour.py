"""The tour: the same prompts through every stage, in the order in which a reader meets them.

Each stage decodes greedily. The naive stage is the oracle that the others are compared with, token by token, and the
baseline for their speed. It is slow, so it decodes the first tokens only, and speeds are compared over these. Beyond
them, what naive decoding would say after a text is computed in one pass over the text, without a cache.
"""

import io
import itertools
import math
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
from inference_opt.explain.figures import latency_figure
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
NAIVE_TOKENS = 16  # new tokens of a prompt that the naive stage decodes

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
    step: float = 1.0  # about how long a token takes, in steps of the KV cache's stage


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
    Stage("paged", "keep them in pages that are taken when needed", partial(_engine, radix=False), step=1.1),
    Stage("radix", "find the pages of earlier prompts with the same beginning", _engine, step=1.1),
    Stage("MLA", "keep one latent in their place: another model, with its own oracle", _engine, latent=True, step=1.3),
    Stage("speculative", "guess several tokens, check them in one step", _speculative, step=0.7),
    Stage("continuous batching", "all prompts at once, a new batch every step", _engine, together=True, step=0.5),
)


@dataclass
class Run:
    """One prompt through one stage."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # from one token to the next; the first includes the prefill
    text: str = ""
    oracle: list[int] | None = None  # the naive tokens, up to the first that differs; None for the naive run itself
    agreement: Agreement | None = None  # with the oracle


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
    reused: dict[str, int] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)  # stages of another model, compared with its own oracle
    together: set[str] = field(default_factory=set)  # stages that decode all prompts at once
    machine: dict[str, Any] = field(default_factory=describe)
    command: str = field(default_factory=command_line)

    @property
    def naive_tokens(self) -> int:
        """New tokens of a prompt that the naive stage decodes: speeds are compared over these."""
        return min(NAIVE_TOKENS, self.max_new_tokens)

    @property
    def exact(self) -> bool:
        """Whether every stage gave the oracle's tokens, except for ties within rounding."""
        return all(run.agreement is None or run.agreement.exact for runs in self.runs.values() for run in runs)

    def rate(self, name: str, first: int | None = None) -> float:
        """Tokens a second of a stage, prefill included: over all tokens, or the first of each prompt."""
        seconds = [sum(run.seconds[:first]) for run in self.runs[name]]
        tokens = sum(len(run.tokens[:first]) for run in self.runs[name])
        return tokens / (max(seconds) if name in self.together else sum(seconds))

    def rows(self) -> list[dict[str, Any]]:
        """One row for each stage, with totals over the prompts."""
        baseline = self.rate(next(iter(self.runs)))
        rows = []
        for name, runs in self.runs.items():
            verdicts = [run.agreement for run in runs if run.agreement is not None]
            differing = [str(v) for v in verdicts if not v.identical]
            same = f"identical{' to its own oracle' * (name in self.others)}" if verdicts else "the oracle"
            rows.append(
                {
                    "stage": name,
                    "tokens_per_second": self.rate(name),
                    "first_token_seconds": median(run.seconds[0] for run in runs),
                    "kv_bytes_per_token": self.kv_bytes[name],
                    "prompt_tokens_reused": self.reused[name],
                    "speedup_over_naive": self.rate(name, self.naive_tokens) / baseline,
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
                | ({} if run.oracle is None else {"oracle": run.oracle})
                for p, run in zip(self.prompts, runs)
            ]
            for name, runs in self.runs.items()
        }
        head = {"command": self.command, "machine": self.machine, "model": self.model, "dtype": self.dtype}
        lengths = {"new_tokens": self.max_new_tokens, "naive_tokens": self.naive_tokens}
        return head | lengths | {"exact": self.exact, "stages": self.rows(), "prompts": prompts, "runs": runs}


@dataclass
class TimeLeft:
    """How long the tour still takes, by what it took so far. Work is counted in decoding steps with a KV cache."""

    work: float
    done: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def __str__(self) -> str:
        if not self.done:
            return "the time left is measured"
        seconds = elapsed(self.began) * (self.work / self.done - 1)
        return f"about {5 * math.ceil(seconds / 5)} s left"


def _work(stage: Stage, prompt_tokens: int, new: int) -> float:
    """Decoding steps that a stage's run and its comparison take as long as. A pass over n tokens takes 1 + n / 30."""
    if stage is STAGES[0]:
        passes = range(prompt_tokens, prompt_tokens + min(new, NAIVE_TOKENS))
        return sum(1 + n / 30 for n in passes)
    return new * stage.step + 2 + (2 * prompt_tokens + new) / 30


def run_tour(model: Transformer, tokenizer: Tokenizer, name: str, max_new_tokens: int, console: Console) -> Tour:
    """Run every stage on every prompt, showing the text as it grows and the time left."""
    prompts = [p for wanted in PROMPTS for p in load_prompts() if p.name == wanted]
    ids = [p.ids(tokenizer) for p in prompts]
    dtype = str(model.dtype).removeprefix("torch.")
    tour = Tour(name, dtype, max_new_tokens, prompts, list(map(len, ids)), {}, {})
    left = TimeLeft(sum(_work(stage, len(prompt), max_new_tokens) for stage in STAGES for prompt in ids))
    for stage in STAGES:
        console.rule(Text.assemble((stage.name, "bold"), f": {stage.what}"))
        form = _latent_form(model, tokenizer, name) if stage.latent else model
        if form is None:
            console.print("left out: this model has no such form\n")
            left.work -= sum(_work(stage, len(prompt), max_new_tokens) for prompt in ids)
        else:
            _run_stage(stage, form, tokenizer, tour, ids, console, left)
    return tour


def _latent_form(model: Transformer, tokenizer: Tokenizer, name: str) -> Transformer | None:
    """The same model with latent attention; None if it cannot be converted."""
    try:
        return latent_model(model, tokenizer, name)
    except ValueError:
        return None


def _run_stage(
    stage: Stage,
    model: Transformer,
    tokenizer: Tokenizer,
    tour: Tour,
    ids: list[list[int]],
    console: Console,
    left: TimeLeft,
) -> None:
    """Run one stage on every prompt and enter what it measures into the tour."""
    naive = tour.runs.get(STAGES[0].name)
    warm, decoder = stage.start(model), stage.start(model)
    list(warm.decode(ids[:1], SamplingParams(max_new_tokens=2)))  # warm up; the decoder that is measured starts anew
    tour.kv_bytes[stage.name] = decoder.kv_bytes
    if stage.latent:
        tour.others.add(stage.name)
    if stage.together:
        tour.together.add(stage.name)
    runs = tour.runs[stage.name] = [Run() for _ in ids]
    everyone = list(range(len(ids)))
    for group in [everyone] if stage.together else [[i] for i in everyone]:
        names = ", ".join(f"{tour.prompts[i].name} ({len(ids[i])} tokens)" for i in group)
        console.print(f"{names}; {left}", style="cyan")
        new = tour.naive_tokens if naive is None else tour.max_new_tokens
        steps = decoder.decode([ids[i] for i in group], SamplingParams(max_new_tokens=new))
        seconds = _timed(steps, [runs[i] for i in group], tokenizer, console)
        count = sum(len(runs[i].tokens) for i in group)
        summary = f"{count} tokens in {seconds:.1f} s, {count / seconds:.1f} tokens/s"
        for i in group:
            left.done += _work(stage, len(ids[i]), tour.max_new_tokens)
            if naive is not None:
                decoded = [] if stage.latent else naive[i].tokens
                oracle = runs[i].oracle = naive_tokens(model, ids[i], decoded, runs[i].tokens, new)
                runs[i].agreement = compare(model, ids[i], oracle, runs[i].tokens)
                summary += f", {runs[i].agreement}"
        console.print(f"\n{summary}\n", style="dim", markup=False, highlight=False)
    tour.reused[stage.name] = decoder.reused()


def naive_tokens(
    model: Transformer, prompt_ids: list[int], decoded: list[int], tokens: list[int], max_new_tokens: int
) -> list[int]:
    """The tokens of greedy naive decoding, up to the first that differs from `tokens`. `decoded`: its first, as it ran.

    It ends where naive decoding ends: texts of unequal length differ.
    """
    limit = min(max_new_tokens, model.config.max_context - len(prompt_ids) + 1)
    if len(decoded) == limit:
        return decoded
    # No token is -1: after a text that could go on, naive decoding is asked how it does.
    rest = [*tokens[len(decoded) : limit], *[-1] * (len(tokens) < limit)]
    oracle = decoded + teacher_forced_greedy(model, [*prompt_ids, *decoded], rest)
    ends = (i for i, token in enumerate(oracle) if token in model.config.eos_token_ids)
    return oracle[: next(ends, limit) + 1]


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
    result = Table(
        title=Text(f"{tour.model}, {tour.dtype}, greedy, {len(tour.prompts)} prompts", style="bold"),
        caption=f"naive, and speed-up: the first {tour.naive_tokens} new tokens of each prompt; "
        f"identical: all of them, at most {tour.max_new_tokens}",
    )
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


def tour_figure(tour: Tour) -> Figure:
    """Milliseconds for each new token with the first two stages: what a cache changes, in one picture."""
    first_two = itertools.islice(tour.runs.items(), 2)
    return latency_figure({name: [run.seconds for run in runs] for name, runs in first_two}, tour.prompt_tokens)


def write_report(tour: Tour, path: Path) -> None:
    """A self-contained HTML page with the table, the figure and every text. It loads nothing from elsewhere."""
    svg = io.StringIO()
    tour_figure(tour).savefig(svg, format="svg")
    source = (resources.files("inference_opt") / "templates" / "tour.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True).from_string(source)
    figure = svg.getvalue()[svg.getvalue().index("<svg") :]
    write_whole(path, template.render(tour=tour, rows=tour.rows(), figure=figure))
