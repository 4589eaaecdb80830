"""Plots of what the notebooks measure, a function each: a cell computes, and what it hands over is drawn here."""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from inference_opt.engine.engine import Output
from inference_opt.explain.figures import BLUE, BROWN, CACHED, COLOURS, GREEN, GREY, ORANGE, RED, VIOLET
from inference_opt.speculative.cost import best_gamma, speedup

Numbers = Sequence[float] | np.ndarray


def blank(width: float, height: float, rows: int = 1, columns: int = 1, **shared: Any) -> tuple[Figure, Any]:
    """A figure in inches and its axes (one, or an array of them), all in one style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, **shared)
    for each in np.ravel(axes):
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def milliseconds_figure(seconds: Mapping[str, Numbers], first: int) -> Figure:
    """Milliseconds for each next token, by the length of the text; `first` is the length at the first of them."""
    figure, axes = blank(7.2, 3)
    for (name, each), marker, colour in zip(seconds.items(), "os", (RED, BLUE)):
        axes.plot(range(first, first + len(each)), 1000 * np.array(each), marker, ms=3, color=colour, label=name)
    axes.set(xlabel="tokens in the text", ylabel="milliseconds for the next token", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def distributions_figure(laws: Mapping[str, Any], tokens: Any, words: Sequence[str]) -> Figure:
    """The probabilities of the same few tokens in several distributions."""
    figure, panels = blank(11, 3, columns=len(laws), sharey=True)
    for axes, (name, law) in zip(panels, laws.items()):
        axes.barh(range(len(words)), law[tokens], color=BLUE)
        axes.set(title=name, xlim=(0, 1), xlabel="probability")
    panels[0].set_yticks(range(len(words)), words)
    panels[0].invert_yaxis()
    return figure


def reserved_figure(names: Sequence[str], reserved: Numbers, paged: Numbers, used: Numbers) -> Figure:
    """Tokens of room for each request: reserved for the longest answer, in pages, used."""
    figure, axes = blank(9, 3.2)
    axes.bar(range(len(names)), reserved, color=CACHED, label="reserved by a contiguous cache")
    axes.bar(range(len(names)), paged, color=ORANGE, label="in pages")
    axes.bar(range(len(names)), used, color=BLUE, label="used")
    axes.set_xticks(range(len(names)), [name.split(": ")[1].replace("_", "\n") for name in names], fontsize=8)
    axes.set(ylabel="tokens at the end of the text")
    figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside upper center")
    return figure


def lines_figure(
    lines: Mapping[str, tuple[Iterable[float], Any]], xlabel: str, ylabel: str, style: str = "-", **limits: Any
) -> Figure:
    """Lines in one plot: {name: (x, y)}; `limits` go to `Axes.set`."""
    figure, axes = blank(8, 2.8)
    for (name, (x, y)), colour in zip(lines.items(), (BLUE, RED, GREY)):
        axes.plot(list(x), y, style, color=colour, ms=4, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, **limits)
    figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside upper center")
    return figure


def bytes_figure(measured: Mapping[str, float]) -> Figure:
    """Bytes that a token takes in a layer, by kind of attention; the last one is red."""
    figure, axes = blank(7, 2.2)
    axes.barh(list(measured), list(measured.values()), color=[BLUE] * (len(measured) - 1) + [RED])
    axes.bar_label(axes.containers[0], fmt="{:,.0f}", padding=3)
    axes.set(xscale="log", xlabel="bytes a token and layer, bfloat16", xlim=(200, 300_000))
    axes.invert_yaxis()
    return figure


def forms_figure(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Rows of `bench mla`, a panel each: milliseconds of both forms by new tokens, measured and predicted (dotted)."""
    figure, panels = blank(9, 3.4, columns=len(results))
    for axes, row in zip(panels, results):
        for form, colour in (("explicit", BLUE), ("absorbed", RED)):
            axes.plot(row["new_tokens"], 1e3 * np.array(row[form]["seconds"]), "o-", ms=3, color=colour, label=form)
            limit = 1e3 * np.array(row[form]["limit"])
            axes.plot(row["new_tokens"], limit, ":", color=colour, label=f"{form}, predicted")
        axes.set(xscale="log", yscale="log", title=f"{row['shape']}, {row['context']:,} tokens kept")
        axes.set_xlabel("new tokens")
    panels[0].set_ylabel("milliseconds")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def ranks_figure(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Perplexity of converted models by the share of the cache that they keep, before and after fine-tuning."""
    figure, panels = blank(9, 3.4, columns=2, sharey=True)
    share = [run["kv_bytes_per_token"]["converted"] / run["kv_bytes_per_token"]["original"] for run in runs]
    for axes, (text, author) in zip(panels, (("sampled", "SmolLM2"), ("written", "people"))):
        for stage, colour, label in (("converted", RED, "converted"), ("healed", BLUE, "fine-tuned")):
            perplexity = [run["quality"][text][stage]["perplexity"] for run in runs]
            axes.plot(share, perplexity, "o-", color=colour, label=label)
        original = runs[0]["quality"][text]["original"]["perplexity"]
        axes.axhline(original, color="#555", lw=1, ls=":", label="original")
        axes.set_yscale("log", subs=[])
        axes.set_yticks([4, 6, 10, 20, 40, 80, 160], ["4", "6", "10", "20", "40", "80", "160"])
        axes.tick_params(which="minor", left=False)
        axes.yaxis.set_minor_formatter("")
        axes.set(ylim=(3.5, 220), xlabel="share of the cache that is kept", title=f"text that {author} wrote")
    panels[0].set_ylabel("perplexity")
    panels[0].legend(frameon=False)
    return figure


def layouts_figure(layouts: Sequence[Mapping[str, Any]]) -> Figure:
    """Held-out loss by bytes of cache: a dot for each seed, a bar for mean and spread; latent attention is red."""
    figure, axes = blank(6.4, 3)
    for row in layouts:
        colour = RED if row["layout"].startswith("MLA") else BLUE
        losses = [run["loss"] for run in row["runs"]]
        axes.plot([row["kv_bytes_per_token"]] * len(losses), losses, "o", color=colour, ms=4, alpha=0.5, mew=0)
        axes.errorbar(row["kv_bytes_per_token"], row["loss"], row["spread"], fmt="_", color=colour, ms=14, capsize=3)
        where = (row["kv_bytes_per_token"], row["loss"])
        axes.annotate(row["layout"], where, xytext=(10, -3), textcoords="offset points")
    axes.set(xlabel="bytes of cache a token", ylabel="held-out loss, nats a token", xlim=(500, 11_500))
    return figure


def verdicts_figure(verdicts: Sequence[tuple[Any, Any, int, int, bool]], show: Any) -> Figure:
    """The tokens that matter at each draft: (p, q, the draft, what was emitted, whether it was accepted)."""
    figure, panels = blank(9.5, 3.6, columns=len(verdicts), sharex=True, squeeze=False)
    for axes, (p, q, x, emitted, accepted) in zip(panels[0], verdicts):
        both = np.minimum(p, q)
        top = list(dict.fromkeys([x, *np.argsort(-p)[:5], *np.argsort(-q)[:3], emitted]))[:8]
        y = -np.arange(len(top))
        axes.barh(y, both[top], color=GREEN, label="min(p, q): accepted")
        axes.barh(y, np.maximum(p - q, 0)[top], left=both[top], color=BLUE, label="(p − q)⁺: residual")
        axes.barh(y, np.maximum(q - p, 0)[top], left=both[top], color=ORANGE, alpha=0.5, label="(q − p)⁺: rejected")
        axes.set_yticks(y, [show(token) for token in top])
        for label, token in zip(axes.get_yticklabels(), top):
            label.set_fontweight("bold" if token in (x, emitted) else "normal")
        verdict = "accepted" if accepted else f"rejected, {show(emitted)!r} instead"
        axes.set_title(f"{show(x)!r} drafted: {verdict}\nβ = {both.sum():.2f}", fontsize=9, loc="left")
        axes.set_xlabel("probability")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return figure


def speedup_figure(costs: Sequence[float], alphas: Sequence[float], most: int = 16) -> Figure:
    """Theorem 3.8: speed-up by the number of drafts; a panel for each cost of a draft. Dots mark the best number."""
    figure, panels = blank(2.3 * len(costs), 2.7, columns=len(costs), sharey=True, squeeze=False)
    for axes, c in zip(panels[0], costs):
        for alpha, colour in zip(alphas, (RED, ORANGE, GREEN, BLUE, VIOLET)):
            curve = [speedup(alpha, gamma, c) for gamma in range(most + 1)]
            best = best_gamma(alpha, c, most)
            axes.plot(curve, color=colour, label=f"α = {alpha}")
            axes.plot(best, curve[best], "o", color=colour, ms=5)
        axes.axhline(1, color="#999", lw=0.8)
        axes.set(xlabel="γ, drafts a step", title=f"c = {c}", ylim=(0, None))
    panels[0][0].set_ylabel("expected speed-up")
    panels[0][-1].legend(frameon=False, fontsize=9)
    return figure


def tasks_figure(tasks: Sequence[str], names: Sequence[str], alphas: Any, per_step: Any) -> Figure:
    """A group of bars for each task, a bar for each drafter: acceptance, and tokens a step."""
    figure, (left, right) = blank(9, 3, columns=2)
    for axes, values, title in (
        (left, alphas, "α, share of judged drafts accepted"),
        (right, per_step, "tokens a step"),
    ):
        for row, (name, colour) in enumerate(zip(names, (ORANGE, GREEN, BLUE))):
            axes.bar(np.arange(len(tasks)) + 0.27 * (row - 1), values[row], 0.25, color=colour, label=name)
        axes.set_xticks(range(len(tasks)), tasks)
        axes.set_title(title, fontsize=10, loc="left")
    left.set_ylim(0, 1)
    right.axhline(1, color="#999", lw=0.8)
    figure.legend(*right.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return figure


def prediction_figure(rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, str]) -> Figure:
    """Speed-up measured against expected: a panel for each prediction {key of the rows: title}."""
    colours = {"prompt-lookup": ORANGE, "n-gram": GREEN, "first-layers": GREY, "trained": BLUE}
    markers = {"editing": "o", "summarising": "s", "humaneval": "^", "chat": "D"}
    figure, panels = blank(9, 4, columns=len(predictions), sharex=True, sharey=True)
    most = 1.1 * max(row["expected"] for row in rows)
    ticks = [tick for tick in (1, 1.5, 2, 3, 4, 6) if tick < most]
    for axes, (key, title) in zip(panels, predictions.items()):
        axes.plot([0.85, most], [0.85, most], color="#999", lw=0.8)
        for row in rows:
            axes.plot(row[key], row["over_plain"], markers[row["task"]], color=colours[row["name"]], ms=6, alpha=0.8)
        axes.set(title=title, xlabel="expected speed-up", xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, [f"{tick}×" for tick in ticks])
            axis.set_ticks([], minor=True)
    panels[0].set_ylabel("measured speed-up")
    handles: list[Any] = [Patch(color=colour, label=name) for name, colour in colours.items()]
    handles += [Line2D([], [], marker=m, mfc="white", mec="#555", ls="", label=task) for task, m in markers.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def steps_figure(values: Mapping[str, Numbers]) -> Figure:
    """Whole numbers by step."""
    figure, axes = blank(8, 2.6)
    for (name, each), colour in zip(values.items(), (GREY, BLUE)):
        axes.step(range(1, len(each) + 1), each, color=colour, label=name, where="mid")
    axes.set(xlabel="step", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def scatter_figure(panels: Mapping[tuple[str, str], Mapping[str, Any]], ends: tuple[int, int]) -> Figure:
    """Points about the diagonal: {(x label, y label): {name: [(x, y), …]}}, a panel each."""
    figure, axes = blank(9, 3.8, columns=len(panels))
    for each, ((xlabel, ylabel), groups) in zip(axes, panels.items()):
        each.plot(ends, ends, color="#999", lw=0.8)
        for (name, points), colour, size in zip([*groups.items()][::-1], (BLUE, RED), (4, 6)):  # the first on top
            each.plot(*zip(*points), ".", ms=size, color=colour, label=name)
        each.set(xlabel=xlabel, ylabel=ylabel, aspect="equal")
        if len(groups) > 1:
            each.legend(frameon=False, fontsize=8)
    return figure


def tables_figure(tables: Mapping[str, Any]) -> Figure:
    """Joint probabilities of draft (rows) and target (columns), a table each, with the sum of the diagonal."""
    figure, panels = blank(9, 3, columns=len(tables))
    for axes, (name, table) in zip(panels, tables.items()):
        axes.imshow(table, cmap="Blues", vmin=0, vmax=0.5)
        for (i, j), share in np.ndenumerate(table):
            axes.text(j, i, f"{share:.3f}", ha="center", va="center", color="white" if share > 0.3 else "black")
        axes.set(xlabel="target", ylabel="draft", xticks=range(len(table)), yticks=range(len(table)))
        axes.set_title(f"{name}: equal {np.trace(table):.3f}", fontsize=10)
    return figure


def counterexample_figure(laws: Mapping[str, Sequence[Any]]) -> Figure:
    """Distributions over few tokens side by side, each bar with its probability."""
    figure, axes = blank(5, 2.8)
    for i, ((name, law), colour) in enumerate(zip(laws.items(), (BLUE, ORANGE, RED))):
        places = np.arange(len(law)) + 0.25 * (i - 1)
        bars = axes.bar(places, [float(share) for share in law], width=0.23, color=colour, label=name)
        axes.bar_label(bars, [str(share) for share in law], fontsize=9)
    axes.set(xticks=range(2), xlabel="token", ylabel="probability", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    return figure


def power_figure(tests: Mapping[str, tuple[Numbers, Numbers, Sequence[tuple[float, float]]]], least: int) -> Figure:
    """How often a test notices, by texts: {name: (sizes, promised, measured points)}. Dotted: the fewest allowed."""
    figure, axes = blank(9, 3.8)
    for (name, (sizes, promised, measured)), colour in zip(tests.items(), COLOURS):
        axes.plot(sizes, promised, color=colour, label=name)
        axes.plot(*zip(*measured), "o", ms=4, color=colour)
    axes.axvline(least, color="#999", lw=0.8, ls=":")
    axes.set(xscale="log", xlabel="texts", ylabel="share of experiments that notice")
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    return figure


def roofline_figure(run: Mapping[str, Any]) -> Figure:
    """`bench kernels`: operations a second by operations for each byte that must be read, under the two limits."""
    figure, axes = blank(8, 4.6)
    roof, slope = run["ceilings"]["product_flops"] / 1e12, run["ceilings"]["read_bandwidth"] / 1e12
    axes.plot([1, roof / slope, 40_000], [slope, roof, roof], color="#555", lw=1)
    styles = {"inference-opt": ("o", RED), "FlashInfer": ("x", BLUE), "versions 1 to 3": (".", BROWN)}
    for row in run["results"]:
        for who, timed in row["times"].items():
            if not row["case"]["stem"]:  # with a shared prefix, fewer bytes must be read
                marker, colour = styles["versions 1 to 3" if who.startswith("step") else who]
                intensity = row["operations"] / row["bytes"]
                axes.plot(intensity, timed["operations_per_second"] / 1e12, marker, color=colour, ms=6)
    for who, (marker, colour) in styles.items():
        axes.plot([], [], marker, color=colour, label=who)
    axes.set(xscale="log", yscale="log", ylim=(0.04, 1500), xlim=(2, 40_000))
    axes.set(xlabel="operations a byte", ylabel="TFLOP/s")
    kinds = {4: "GQA 32/8", 30.2: "MLA, 16 heads", 242: "MLA, 128 heads", 1_100: "two queries", 11_000: "prompts"}
    for at, name in kinds.items():
        axes.annotate(name, (at, 0.05), ha="center", fontsize=8, color="#555")
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    return figure


def interaction_figure(rates: Mapping[str, Mapping[str, Numbers]]) -> Figure:
    """{workload: {name: (tokens/s one by one, batching)}}: every panel spans the same number of decades."""
    figure, panels = blank(11, 2.8, columns=len(rates))
    values = {workload: np.concatenate([*map(np.array, lines.values())]) for workload, lines in rates.items()}
    span = 1.3 * max(max(each) / min(each) for each in values.values())
    for axes, (workload, lines) in zip(panels, rates.items()):
        for (name, ends), colour in zip(lines.items(), (BLUE, RED)):
            axes.plot([0, 1], ends, "o-", color=colour, label=name)
        middle = (max(values[workload]) * min(values[workload])) ** 0.5
        low, high = middle / span**0.5, middle * span**0.5
        ticks = [tick for tick in (5, 10, 20, 50, 100, 200, 500) if low <= tick <= high]
        axes.set(yscale="log", title=workload, xlim=(-0.3, 1.3), ylim=(low, high))
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.set_yticks([], minor=True)
        axes.set_xticks([0, 1], ["one by one", "batching"])
    panels[0].set_ylabel("tokens/s")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def accepted_html(steps: Iterable[Output], decode: Callable[[list[int]], str], title: str) -> str:
    """A text in a box: accepted drafts on green, rejected ones struck out, the target's own tokens plain."""
    looks = {"span": f"background:{GREEN}40", "s": f"color:{RED};font-size:80%", "b": "font-weight:normal"}
    pieces = []
    for out in steps:
        kept = len(out.tokens) - 1
        fates = (("span", out.tokens[:kept]), ("s", out.drafted[kept : kept + 1]), ("b", out.tokens[kept:]))
        for element, tokens in fates:
            words = (html.escape(decode([token])) for token in tokens)
            pieces += [f'<{element} style="{looks[element]}">{word}</{element}>' for word in words]
    box = "display:inline-block;vertical-align:top;width:46%;margin:4px;padding:6px;border:1px solid #bbb"
    text = f'<pre style="white-space:pre-wrap;font-size:11px;line-height:1.5">{"".join(pieces)}</pre>'
    return f'<div style="{box};font-size:12px">{title}{text}</div>'
