"""A study's results: a row for each combination, effects and interactions, as a frame, JSON, figures and a page."""

import io
import itertools
import json
from dataclasses import dataclass
from importlib import resources
from math import exp, log
from pathlib import Path
from statistics import mean, median
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from inference_opt.files import home, write_json, write_whole

SHORT = {
    "continuous_batching": "batching",
    "radix_attention": "radix",
    "mla": "MLA",
    "speculative_decoding": "speculation",
}
THROUGHPUT = (
    "tokens_per_second",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "first_token_seconds",
    "between_tokens_seconds",
    "reused",
    "accepted",
)
MEMORY = ("kv_bytes_in_use", "kv_bytes_allocated", "peak_bytes")
QUALITY = ("exact", "identical", "requests", "reasons")


def name_of(combination: tuple[str, ...]) -> str:
    """A combination's name in the tables."""
    return " + ".join(SHORT[name] for name in combination) or "none"


@dataclass(frozen=True, repr=False)
class Results:
    """All trials of a study, with the command that ran them."""

    command: str
    techniques: list[str]
    metrics: list[str]
    trials: list[dict[str, Any]]

    @classmethod
    def read(cls, path: str | Path) -> "Results":
        """Read a file that `write` or `ablate --json` wrote. ValueError for any other file."""
        try:
            study = json.loads(home(path).read_text(encoding="utf-8"))
            return cls(*(study[name] for name in ("command", "techniques", "metrics", "trials")))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no study: {type(error).__name__}: {error}") from None

    def __repr__(self) -> str:
        what = f"{len(self.trials)} trials of {', '.join(self.techniques)} on {len(self.workloads)} workloads"
        return f"<Results of {what}: see to_pandas() and write(folder)>"

    @property
    def workloads(self) -> list[str]:
        """The workloads' names, in the order given."""
        return list(dict.fromkeys(trial["workload"] for trial in self.trials))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each workload and combination: medians over the repeats, and the throughput's spread."""
        rows = []
        for workload in self.workloads:
            here = [trial for trial in self.trials if trial["workload"] == workload]
            runs = [trial for trial in here if trial["kind"] == "run"]
            naive = [trial["figures"]["tokens_per_second"] for trial in here if trial["kind"] == "naive"]
            quality = {"mla" in t["techniques"]: t["figures"] for t in here if t["kind"] == "quality"}
            for combo in dict.fromkeys(tuple(trial["techniques"]) for trial in runs):
                each = [trial["figures"] for trial in runs if tuple(trial["techniques"]) == combo]
                row: dict[str, Any] = {"workload": workload, "combination": name_of(combo)}
                row["max_new_tokens"] = runs[0]["max_new_tokens"]
                row |= {name: name in combo for name in self.techniques}
                if "throughput" in self.metrics:
                    row |= {name: _median(each, name) for name in THROUGHPUT}
                    rates = [figures["tokens_per_second"] for figures in each]
                    row |= {"slowest": min(rates), "fastest": max(rates), "repeats": len(each)}
                    row["over_baseline"] = row["tokens_per_second"] / self._rate(workload, ())
                    row["over_naive"] = row["tokens_per_second"] / naive[0]
                if "memory_usage" in self.metrics:
                    row |= {name: _median(each, name) for name in MEMORY}
                if "quality" in self.metrics:
                    row |= {name: each[0][name] for name in QUALITY}
                    row |= {name: quality["mla" in combo][name] for name in ("perplexity", "favourites")}
                rows.append(row)
        return rows

    def effects(self) -> dict[str, dict[str, float]]:
        """By workload: the speed-up of each technique, and the interaction of each two.

        The effect of A is the ratio of throughputs with A and without it: the geometric mean over all pairs of
        combinations that differ in A alone. The interaction "A × B" is the effect of A with B, divided by the effect of
        A without B.
        """
        found: dict[str, dict[str, float]] = {}
        for workload in self.workloads:
            combos = {tuple(c["techniques"]) for c in self.trials if c["workload"] == workload and c["kind"] == "run"}
            rate = {frozenset(combo): self._rate(workload, combo) for combo in combos}
            effects = found[workload] = {}
            for a in self.techniques:
                ratios = [rate[c | {a}] / rate[c] for c in rate if a not in c and c | {a} in rate]
                if ratios:
                    effects[SHORT[a]] = _geometric(ratios)
            for a, b in itertools.combinations(self.techniques, 2):
                ratios = [
                    rate[c | {a, b}] * rate[c] / (rate[c | {a}] * rate[c | {b}])
                    for c in rate
                    if not {a, b} & c and {c | {a}, c | {b}, c | {a, b}} <= rate.keys()
                ]
                if ratios:
                    effects[f"{SHORT[a]} × {SHORT[b]}"] = _geometric(ratios)
        return found

    def to_pandas(self) -> Any:
        """The rows as a DataFrame. ValueError if pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise ValueError("to_pandas needs pandas: pip install 'inference-opt[study]'") from error
        return pandas.DataFrame(self.rows())

    def as_json(self) -> dict[str, Any]:
        """Rows, effects and all trials, with the command and the machines."""
        machines = [trial["figures"]["machine"] for trial in self.trials]
        machines = [machine for i, machine in enumerate(machines) if machine not in machines[:i]]
        first = {name: self.trials[0][name] for name in ("model", "dtype", "page_size", "drafter")}
        head = {name: getattr(self, name) for name in ("command", "techniques", "metrics")}
        head |= {"machines": machines} | first
        return head | {"rows": self.rows(), "effects": self.effects(), "trials": self.trials}

    def speed_figure(self) -> Figure:
        """Each combination's speed as a multiple of plain decoding's, by workload. Whiskers: slowest to fastest.

        Bars begin at 1, on an axis in doublings that all workloads share: to the right is a gain, to the left a loss.
        """
        rows = self.rows()
        names = list(dict.fromkeys(row["combination"] for row in rows))
        figure, panels = _panels(len(self.workloads), (2.2, 2.3), 0.8 + 0.24 * len(names), sharex=True, sharey=True)
        for axes, workload in zip(panels, self.workloads):
            here = [row for row in rows if row["workload"] == workload]
            base = self._rate(workload, ())
            middle = [row["over_baseline"] for row in here]
            low, high = ([row[name] / base for row in here] for name in ("slowest", "fastest"))
            ends = [[m - x for m, x in zip(middle, low)], [x - m for m, x in zip(middle, high)]]
            axes.barh(names, [m - 1 for m in middle], left=1, color="#4c72b0")
            axes.errorbar(middle, names, xerr=ends, fmt="none", ecolor="black", lw=1)
            for i, value in enumerate(middle):
                where = {"xytext": (3, 0), "textcoords": "offset points"}  # from the whisker's end
                axes.annotate(f"{value:.1f}", (max(high[i], 1), i), **where, va="center", fontsize=9)
            axes.axvline(1, color="#888", lw=1)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_title(workload, fontsize=10)
            axes.margins(x=0.15)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].invert_yaxis()
        figure.supxlabel("times the throughput of plain cached decoding, in doublings", fontsize=9)
        return figure

    def effects_figure(self) -> Figure:
        """Effects on the diagonal, interactions beside it. Above 1 is a gain; below 1 the two hinder each other."""
        names = [SHORT[name] for name in self.techniques]
        effects = self.effects()
        figure, panels = _panels(len(effects), (1.0, 2.5), 2.7)
        for axes, (workload, found) in zip(panels, effects.items()):
            grid = [[found.get(a if a == b else f"{a} × {b}") for b in names] for a in names]
            shown = [[float("nan") if x is None else log(x, 2) for x in line] for line in grid]
            axes.imshow(shown, cmap="RdBu", vmin=-4, vmax=4)
            for i, j in itertools.product(range(len(names)), repeat=2):
                value = grid[i][j]
                if value is not None:
                    dark = abs(log(value, 2)) > 2
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color="w" if dark else "k")
            axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=9)
            axes.set_yticks(range(len(names)), names, fontsize=9)
            axes.set_title(workload, fontsize=10)
        return figure

    def write(self, folder: str | Path) -> Path:
        """Write `study.json` and a self-contained `report.html`, whole or not at all. Returns the report's path."""
        folder = home(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "study.json", self.as_json())
        source = (resources.files("inference_opt") / "templates" / "study.html.j2").read_text(encoding="utf-8")
        template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
        figures = {}
        if "throughput" in self.metrics:
            figures = {
                "How many times the plain baseline, by workload and combination": _svg(self.speed_figure()),
                "Effects (diagonal) and interactions, as factors of the throughput": _svg(self.effects_figure()),
            }
        report = folder / "report.html"
        write_whole(report, template.render(study=self.as_json(), figures=figures, results=self))
        return report

    def _rate(self, workload: str, combo: tuple[str, ...]) -> float:
        return median(
            trial["figures"]["tokens_per_second"]
            for trial in self.trials
            if trial["workload"] == workload and trial["kind"] == "run" and tuple(trial["techniques"]) == combo
        )


def _panels(count: int, widths: tuple[float, float], height: float, **shared: Any) -> tuple[Figure, list[Any]]:
    """A figure of panels, two in a row. `widths`: of what is left of a row, and of a panel."""
    columns, rows = min(count, 2), -(-count // 2)
    figure = Figure(figsize=(widths[0] + widths[1] * columns, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels


def table(results: Results) -> Table:
    """The rows for the terminal, with the most important columns only."""
    shown = Table("techniques", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns: list[tuple[str, str, str]] = []
    if "throughput" in results.metrics:
        columns += [("tokens_per_second", "tokens/s", ".1f"), ("over_baseline", "× none", ".1f")]
        columns += [("over_naive", "× naive", ".1f"), ("first_token_seconds", "first, s", ".2f")]
    if "memory_usage" in results.metrics:
        columns += [("kv_bytes_in_use", "KV bytes", ".2e")]
    if "quality" in results.metrics:
        columns += [("perplexity", "perplexity", ".2f"), ("exact", "exact", "")]
    for _, title, _ in columns:
        shown.add_column(title, justify="right", no_wrap=True)
    rows = results.rows()
    for workload in results.workloads:
        shown.add_section()
        shown.add_row(Text(workload, style="bold"))
        for row in rows:
            if row["workload"] == workload:
                shown.add_row(row["combination"], *(format(row[name], form) for name, _, form in columns))
    return shown


def _median(each: list[dict[str, Any]], name: str) -> float | int | None:
    values = [figures[name] for figures in each if figures[name] is not None]
    return median(values) if values else None


def _geometric(ratios: list[float]) -> float:
    return exp(mean(map(log, ratios)))


def _svg(figure: Figure) -> str:
    svg = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):  # text, not outlines: shorter, and it can be searched
        figure.savefig(svg, format="svg")
    return svg.getvalue()[svg.getvalue().index("<svg") :]
