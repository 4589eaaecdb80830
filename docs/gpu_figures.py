"""Draws figures of cards: memory, two states, a pipeline, the roofline (08, docs/gpu.md), what drafts gain (06)."""

import json
from pathlib import Path

import numpy as np
from drawings import ACCENT, FILL, INK, SOFT, arrow
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from inference_opt.lab.bench.known import predicted_speedup

RESULTS = Path(__file__).resolve().parent / "results"
BLUE, ORANGE, GREEN, RED = "#a9c1e8", "#e8b48a", "#9fcfad", "#c44e52"

# One H100 SXM with 80 GB (docs/gpu.md names the sources).
PEAK, BANDWIDTH = 989e12, 3.35e12  # operations a second in bfloat16, bytes a second of device memory
FLOAT32 = 67e12  # operations a second, without tensor cores
MULTIPROCESSORS = 132
CLOCK = PEAK / (MULTIPROCESSORS * 4 * 1024)  # 4 tensor cores, 1,024 operations of each a clock: 1.83 GHz
SHARED_RATE = MULTIPROCESSORS * 32 * 4 * CLOCK  # 32 banks of 4 bytes a clock
REGISTER_RATE = FLOAT32 / 2 * 3 * 4  # a multiplication with an addition reads three numbers of 4 bytes
HOST_RATE = 64e9  # PCIe 5 with 16 lanes, each way

# The keys of the worked example, each (exponential of its score, value), and how many are program A's.
KEYS, SPLIT = ((1, 4), (3, 8), (4, 5), (8, 2)), 2


def measured() -> dict[str, float]:
    """The ceilings of the committed run: operations and bytes a second; and the rate at which it read the L2 cache."""
    run = json.loads((RESULTS / "bench_kernels.json").read_text(encoding="utf-8"))
    (latent,) = (each for each in run["results"] if each["case"]["name"] == "mla128-128x4096")
    twice = 2 * latent["bytes"] / latent["times"]["inference-opt"]["seconds"]  # each key, for two tiles of 64 rows
    return {"peak": run["ceilings"]["product_flops"], "bandwidth": run["ceilings"]["read_bandwidth"], "l2": twice}


def memory_figure() -> Figure:
    """The places where numbers lie, the fastest on top, and how fast they are read."""
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.subplots()
    found = measured()
    places = (
        ("registers", "256 KiB in each multiprocessor", 4.4),
        ("shared memory", "228 KiB in each multiprocessor", 5.4),
        ("L2 cache", "50 MB, one for all multiprocessors", 6.4),
        ("device memory", "80 GB: weights, KV cache", 7.4),
        ("memory of the host", "next to the processor", 8.4),
    )
    rates = (
        f"{SHARED_RATE / 1e12:.0f} TB/s",
        f"{found['l2'] / 1e12:.1f} TB/s and more",
        f"{BANDWIDTH / 1e12:.2f} TB/s ({found['bandwidth'] / 1e12:.2f} measured)",
        f"{HOST_RATE / 1e12:.3f} TB/s",
    )
    axes.add_patch(
        FancyBboxPatch((-3.1, -1.75), 6.2, 3.0, boxstyle="round,pad=0.05", fc="#f3f5f8", ec=SOFT, ls="--", zorder=-1)
    )
    axes.text(-3.0, 1.02, "a multiprocessor, one of 132", fontsize=10, color=INK, va="center")
    for row, (name, what, width) in enumerate(places):
        y = 0.3 - 1.45 * row - 0.55 * (row > 1)
        face = ACCENT if row == 0 else FILL
        box = FancyBboxPatch((-width / 2, y - 0.42), width, 0.84, boxstyle="round,pad=0.03", fc=face, ec=SOFT)
        axes.add_patch(box)
        colour = "white" if row == 0 else INK
        axes.text(0, y + 0.17, name, ha="center", va="center", fontsize=11, weight="bold", color=colour)
        axes.text(0, y - 0.2, what, ha="center", va="center", fontsize=10, color=colour)
        if row:
            above = 0.3 - 1.45 * (row - 1) - 0.55 * (row > 2) - 0.47
            arrow(axes, (0, y + 0.47), (0, above))
            axes.text(0.2, (y + 0.47 + above) / 2, rates[row - 1], ha="left", va="center", fontsize=10, color=INK)
    axes.set(xlim=(-4.4, 4.4), ylim=(-6.6, 1.4))
    axes.set_axis_off()
    return figure


def merge_figure() -> Figure:
    """The worked example: a bar is as wide as its sum of exponentials and as high as its output."""
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")

    def state(keys: tuple[tuple[int, int], ...]) -> tuple[int, float]:
        total = sum(weight for weight, _ in keys)
        return total, sum(weight * value for weight, value in keys) / total

    rows = (
        ("four keys", KEYS, (BLUE, BLUE, ORANGE, ORANGE)),
        ("two states", (state(KEYS[:SPLIT]), state(KEYS[SPLIT:])), (BLUE, ORANGE)),
        ("merged", (state(KEYS),), (GREEN,)),
    )
    for axes, (title, bars, colours) in zip(figure.subplots(3, 1, sharex=True, sharey=True), rows):
        left = 0.0
        for (width, height), colour in zip(bars, colours):
            axes.add_patch(Rectangle((left, 0), width, height, facecolor=colour, edgecolor="white", lw=2))
            axes.text(left + width / 2, height / 2, f"{height:g}", ha="center", va="center", fontsize=11, color=INK)
            left += width
        axes.set(xlim=(0, left), ylim=(0, 8.6), yticks=(0, 4, 8), xticks=(0, 1, 4, 8, 16))
        axes.set_ylabel("output" if len(bars) < 3 else "value")
        axes.set_title(title, fontsize=10, loc="left", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("sum of exponentials")
    return figure


def timeline(blocks: int, buffers: int, parts: tuple[tuple[str, ...], ...]) -> dict[tuple[str, int], int]:
    """{(stage, block): when it starts}, if every stage takes one unit of time.

    `parts`: stages that the same warps do, one after another, block by block. A block's load waits for a buffer: of
    the block `buffers` before it, the sum must be done.
    """
    start: dict[tuple[str, int], int] = {}
    free = [0] * len(parts)
    for block in range(blocks):
        ready = 0
        for stage in ("load", "score", "sum"):
            (who,) = (i for i, part in enumerate(parts) if stage in part)
            if stage == "load" and block >= buffers:
                ready = start["sum", block - buffers] + 1
            start[stage, block] = max(ready, free[who])
            ready = free[who] = start[stage, block] + 1
    return start


PIPELINES = {
    "one after another": (("load", "score", "sum"),),
    "loads ahead": (("load",), ("score", "sum")),
    "each stage has its own warps": (("load",), ("score",), ("sum",)),
}
BLOCKS, BUFFERS = 4, 3


def pipeline_figure() -> Figure:
    """When four blocks are loaded, scored and summed: in turn, with loads ahead, and all three at once."""
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    colours = (BLUE, ORANGE, GREEN, "#cdb8dc")
    for axes, (title, parts) in zip(figure.subplots(3, 1, sharex=True), PIPELINES.items()):
        starts = timeline(BLOCKS, BUFFERS, parts)
        for (stage, block), at in starts.items():
            y = ("load", "score", "sum").index(stage)
            axes.add_patch(Rectangle((at, y + 0.08), 1, 0.84, facecolor=colours[block], edgecolor="white", lw=1.5))
            axes.text(at + 0.5, y + 0.5, str(block), ha="center", va="center", fontsize=10, color=INK)
        end = max(starts.values()) + 1
        axes.axvline(end, color=RED, lw=1.2)
        axes.set(xlim=(0, 3 * BLOCKS + 0.1), ylim=(3, 0), xticks=range(0, 3 * BLOCKS + 1, 3))
        axes.set_yticks((0.5, 1.5, 2.5), ("load", "score", "sum"))
        axes.set_title(f"{title}: {end}", fontsize=10, loc="left", color=INK)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("time")
    return figure


def roofline_figure() -> Figure:
    """What an H100 could do at each intensity, and what the kernel did in the committed run."""
    run = json.loads((RESULTS / "bench_kernels.json").read_text(encoding="utf-8"))
    found = measured()
    figure = Figure(figsize=(5.5, 4.0), layout="constrained")
    axes = figure.subplots()
    reach = (2.0, 40_000.0)
    for peak, bandwidth, style, colour, name in (
        (PEAK, BANDWIDTH, "--", SOFT, "data sheet"),
        (found["peak"], found["bandwidth"], "-", INK, "measured"),
    ):
        x = (reach[0], peak / bandwidth, reach[1])
        axes.plot(x, [min(peak, bandwidth * i) / 1e12 for i in x], style, color=colour, lw=1.2, label=name)
    points = [
        (each["operations"] / each["bytes"], each["times"]["inference-opt"]["operations_per_second"] / 1e12)
        for each in run["results"]
        if not each["case"]["stem"]
    ]
    axes.plot(*zip(*points), "o", color=RED, ms=5, label="our kernels")
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="10¹² operations a second")
    axes.set(xlim=reach, ylim=(4, 1500))
    for at, height, name, side in (
        (4, 7, "decode", "left"),
        (15, 130, "drafts to\nverify", "right"),
        (45, 70, "latents,\n16 heads", "left"),
        (242, 330, "latents,\n128 heads", "left"),
        (9_000, 190, "prompts", "center"),
    ):
        axes.annotate(name, (at, height), ha=side, va="top", fontsize=9, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    return figure


GAINS = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 8)  # between two of them one colour
SHADES = ("#eeb9b4", "#f7dfdc", "#e9f0fa", "#d5e2f5", "#bfd3ef", "#a9c4e9", "#93b5e2", "#7da6dc")


def gains_figure() -> Figure:
    """What drafts gain by batch and acceptance: the map is predicted from plain steps, the circles were measured."""
    run = json.loads((RESULTS / "bench_drafts_8b.json").read_text(encoding="utf-8"))
    sizes = sorted({each["batch"] for each in run["results"]})
    seconds: dict[int, list[float]] = {}
    for each in run["plain_steps"]:
        seconds.setdefault(each["gamma"], []).append(each["seconds"])
    batches, alphas = np.unique(np.geomspace(1, sizes[-1], 12).round().astype(int)), np.linspace(0, 1, 26)
    tokens = run["new_tokens"] - 1

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    for axes, gamma in zip(figure.subplots(1, 2, sharey=True), (3, 7)):
        gain = np.array(
            [[predicted_speedup(alpha, gamma, tokens, int(n), sizes, seconds) for n in batches] for alpha in alphas]
        )
        axes.contourf(batches, alphas, gain, GAINS, colors=SHADES)
        axes.contour(batches, alphas, gain, GAINS, colors=SOFT, linewidths=[0.7 + (level == 1) for level in GAINS])
        for level in GAINS[1:]:
            if gain[0, -1] < level < gain[-1, -1]:
                at = np.interp(level, gain[:, -1], alphas)
                axes.text(1.02 * batches[-1], at, f"{level:g}×", fontsize=9, va="center", color=INK)
        for each in run["results"]:
            (found,) = (row["over_plain"] for row in each["rows"] if row["name"] == f"γ = {gamma}")
            axes.plot(each["batch"], each["alpha"], "o", ms=6, color="white", mec=INK, clip_on=False)
            side = "right" if each["batch"] == batches[-1] else "left" if each["batch"] == 1 else "center"
            place = (each["batch"] * {"left": 1.12, "right": 0.88, "center": 1}[side], each["alpha"] - 0.07)
            paper = {"facecolor": "white", "alpha": 0.6, "linewidth": 0, "pad": 0.8}  # no line runs through the number
            axes.text(*place, f"{found:.2f}×", fontsize=9, ha=side, va="center", color=INK, bbox=paper)
        axes.set(xscale="log", xlabel="requests in the batch", ylim=(0, 1))
        axes.set_xticks((1, 2, 4, 8, 16, 32), ("1", "2", "4", "8", "16", "32"))
        axes.minorticks_off()
        axes.set_title(f"γ = {gamma}", fontsize=10, loc="left", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("α, acceptance")
    return figure


GPU_FIGURES = {
    "06_gains.svg": gains_figure,
    "08_memory.svg": memory_figure,
    "08_merge.svg": merge_figure,
    "08_pipeline.svg": pipeline_figure,
    "08_roofline.svg": roofline_figure,
}
