"""Draws the chapters' figures: python docs/figures.py (or `make figures`). Of mechanisms; of committed results."""

import itertools
import json
import os
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import study_tables
import torch
from drawings import DRAWINGS, files_figure
from gpu_figures import GPU_FIGURES
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from inference_opt import Engine, SamplingParams, TransformerWithOptimizations
from inference_opt.experiment import Results
from inference_opt.explain.figures import (
    BLUE,
    CACHED,
    ORANGE,
    RED,
    draw_pool,
    draw_schedule,
    draw_tree,
    latency_figure,
    pieces_figure,
)
from inference_opt.explain.plots import speedup_figure
from inference_opt.explain.views import exactness
from inference_opt.kernels import plan_batch, shared_prefixes
from inference_opt.lab.bench.load import load_figure
from inference_opt.lab.bench.radix import hit_rate_figure
from inference_opt.lab.exactness.zoo import ZOO
from inference_opt.options import save_figure
from inference_opt.radix.tree import RadixTree
from inference_opt.speculative import rules

OUT = Path(__file__).resolve().parent.parent / "chapters" / "figures"
OWN = Path(__file__).resolve().parent / "figures"  # the site's
COMPUTED, NEW = BLUE, RED  # computed in this step, just sampled; CACHED: kept from before
KEPT, DRAFTED = "#b5d9bf", ORANGE
PROMPT, STEPS = 5, 6

mpl.rcParams |= {"font.size": 10, "svg.hashsalt": "inference-opt", "svg.fonttype": "none", "font.family": "sans-serif"}


def steps_figure(cached: bool) -> Figure:
    """One row a step, one square a token: which are computed, which kept, which is sampled at the end of the step."""
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    axes = figure.subplots()
    total = 0
    for step in range(STEPS):
        length = PROMPT + step
        for position in range(length):
            fresh = not cached or step == 0 or position == length - 1
            total += fresh
            colour = COMPUTED if fresh else CACHED
            axes.add_patch(Rectangle((position, -step), 0.9, 0.8, color=colour))
        axes.add_patch(Rectangle((length, -step), 0.9, 0.8, facecolor="white", edgecolor=NEW, lw=1.5))
        computed = length if not cached or step == 0 else 1
        axes.text(PROMPT + STEPS + 0.6, -step + 0.4, f"{computed} computed", va="center")
        axes.text(-0.3, -step + 0.4, f"step {step + 1}", va="center", ha="right")
    axes.text(PROMPT + STEPS + 0.6, -STEPS + 0.4, f"{total} in all", va="center", weight="bold")
    axes.set(xlim=(-1.6, PROMPT + STEPS + 4), ylim=(-STEPS, 1.9))
    axes.set_axis_off()
    handles = [Patch(color=COMPUTED, label="computed in this step")]
    handles += [Patch(color=CACHED, label="kept from earlier steps")] if cached else []
    handles.append(Patch(facecolor="white", edgecolor=NEW, label="sampled at its end"))
    axes.legend(handles=handles, ncols=len(handles), frameon=False, loc="upper left")
    return figure


def toy_engine(**options) -> Engine:
    """A real engine on a tiny random model: what it schedules is what is drawn."""
    return Engine(TransformerWithOptimizations(dim=16, depth=1, heads=2, vocab_size=64).model, **options)


def new(tokens: int) -> SamplingParams:
    """So many new tokens."""
    return SamplingParams(max_new_tokens=tokens, ignore_eos=True)


def pages_figure() -> Figure:
    """Three requests in one pool: the first leaves, and the others take its pages one by one."""
    engine = toy_engine(page_size=4, num_pages=16, radix=False)
    requests = {
        name: engine.add(range(length), new(tokens))
        for name, length, tokens in (("A", 10, 4), ("B", 7, 20), ("C", 5, 24))
    }
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    for axes, until in zip(figure.subplots(2, 1), (3, 14)):
        while engine.stats.steps < until:
            engine.step()
        draw_pool(axes, engine.pool, engine.tree, requests, f"after step {until}")
    return figure


def tree_figure() -> Figure:
    """A tree grows, is split, is locked, loses leaves."""
    tree, pages = RadixTree(2), itertools.count()
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    axes = figure.subplots(4, 1, height_ratios=[1, 2, 2, 2])
    for ax, text, title in (
        (axes[0], "You are a cat. Purr!", "1. one text, one edge"),
        (axes[1], "You are a dog. Bark!", "2. another with the same beginning, stored once: the edge is split"),
    ):
        tokens = [ord(letter) for letter in text]
        found = tree.match(tokens).pages
        tree.insert(tokens, found + list(itertools.islice(pages, len(tokens) // 2 - len(found))))
        draw_tree(ax, tree, chr, title)
    tree.lock(tree.match([ord(letter) for letter in "You are a dog. Fetch!"]).node)
    draw_tree(axes[2], tree, chr, "3. a request matches 14 letters and locks them (blue), up to the root")
    tree.evict(3)
    draw_tree(axes[3], tree, chr, "4. three pages are needed: from the end of the leaf used least recently")
    return figure


def schedule_figure() -> Figure:
    """The same six requests in static batches of two and continuously, two at a time."""
    lengths = {"A": 3, "B": 9, "C": 7, "D": 2, "E": 4, "F": 3}
    figure = Figure(figsize=(7, 4.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    steps, names = [], {}
    for pair in ("AB", "CD", "EF"):  # a static batch takes no one in before it is done
        engine = toy_engine()
        names |= {engine.add(range(4), new(lengths[name])): name for name in pair}
        while engine.requests:
            steps.append(engine.step())
    draw_schedule(above, steps, names, f"static batches of two: {len(steps)} steps")
    engine, steps = toy_engine(radix=False, max_running=2), []
    names = {engine.add(range(4), new(length)): name for name, length in lengths.items()}
    while engine.requests:
        steps.append(engine.step())
    draw_schedule(below, steps, names, f"continuously, two at a time: {len(steps)} steps")
    below.set_xticks([step + 0.5 for step in range(0, 20, 2)], [str(step + 1) for step in range(0, 20, 2)])
    above.set(xlabel="", xlim=(0, 20))
    return figure


def speculation_figure() -> Figure:
    """One step: four drafts, two kept, the third replaced by the target, and what that leaves in the pages."""
    known, drafts = ["the", "cat", "sat", "on", "the"], ["mat", "and", "then", "slept"]
    target = ["mat", "and", "ran", "", ""]  # what the target says after the last known token and after each draft
    kept, page_size = 2, 4
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()

    def square(x: int, y: float, word: str, face: str = "white", edge: str = "#999", colour: str = "black") -> None:
        axes.add_patch(Rectangle((x + 0.04, y), 0.92, 0.62, facecolor=face, edgecolor=edge, lw=1.4))
        axes.text(x + 0.5, y + 0.31, word, ha="center", va="center", fontsize=9, color=colour)

    rows = {"1. draft": 0.0, "2. verify": -0.95, "3. accept": -2.3, "4. roll back": -3.5}
    for name, y in rows.items():
        axes.text(-0.2, y + 0.31, name, ha="right", va="center", weight="bold")
        for x, word in enumerate(known):
            read = x < len(known) - 1 or name == "4. roll back"
            fed = not read and name == "2. verify"
            square(x, y, word, CACHED if read else COMPUTED if fed else "white", colour="white" if fed else "black")
    for i, word in enumerate(drafts):
        x, fate = len(known) + i, "keep" if i < kept else "reject" if i == kept else "skip"
        square(x, rows["1. draft"], word, "white", DRAFTED, DRAFTED)
        square(x, rows["2. verify"], word, COMPUTED, "#999", "white")
        square(x, rows["3. accept"], word, KEPT if i < kept else "white", KEPT if i < kept else NEW, "black")
        axes.text(x + 0.5, rows["3. accept"] - 0.2, fate, ha="center", va="center", fontsize=9)
        if i >= kept:
            axes.plot([x + 0.12, x + 0.88], [rows["3. accept"] + 0.31] * 2, color=NEW, lw=1.2)
    for i, word in enumerate(target):
        x, y = len(known) - 1 + i, rows["2. verify"]
        axes.text(x + 0.5, y - 0.06, f"$p_{i}$", ha="center", va="top", fontsize=13)
        axes.text(x + 0.5, y - 0.42, word, ha="center", va="top", fontsize=9)
    y = rows["4. roll back"]
    for i, word in enumerate(drafts[:kept]):
        square(len(known) + i, y, word, CACHED)
    square(len(known) + kept, y, target[kept], "white", NEW)
    for page in range(3):
        left, right = page * page_size, min((page + 1) * page_size, len(known) + len(drafts))
        free = page * page_size > len(known) + kept
        style = "#666" if free else "#222"
        axes.plot([left + 0.04, right - 0.04], [y - 0.14] * 2, color=style, lw=1.5, ls=":" if free else "-")
        label = "given back" if free else f"page {page + 1}"
        axes.text((left + right) / 2, y - 0.32, label, ha="center", va="center", fontsize=9, color=style)
    notes = {
        "1. draft": "four guesses, each with\nits distribution",
        "2. verify": "five rows, one step: the target's\ndistribution after each",
        "3. accept": "min(1, p/q), in order, up\nto the first rejection",
        "4. roll back": "its own word in their place;\nits slot is written next time",
    }
    for name, note in notes.items():
        axes.text(len(known) + len(drafts) + 0.25, rows[name] + 0.31, note, va="center", fontsize=9)
    axes.set(xlim=(-1.5, len(known) + len(drafts) + 4), ylim=(rows["4. roll back"] - 0.55, 0.8))
    axes.set_axis_off()
    return figure


def split_figure() -> Figure:
    """What p and q share, what is owed and what is too much; eighty drafts fall where they fall."""
    p, q, rng = [0.35, 0.1, 0.25, 0.3], [0.2, 0.4, 0.3, 0.1], random.Random(0)
    draws = [(rng.choices(range(4), q)[0], rng.random()) for _ in range(80)]
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    exactness.draw_split(axes, np.array(p), np.array(q), draws)
    figure.legend(handles=exactness.split_legend(), frameon=False, fontsize=9, loc="outside upper center", ncols=4)
    axes.set(xlabel="token", ylabel="probability")
    return figure


def paths_figure() -> Figure:
    """Every way that one step with one draft can go, vocabulary of two."""
    p, q = (np.array([Fraction(a, 3), Fraction(3 - a, 3)], dtype=object) for a in (1, 2))

    def step(drafter: exactness.Told, judge: exactness.Told) -> tuple[int, ...]:
        x = drafter.choose(q, 0)
        return tuple(rules.token_wise([p, p], [q], [x], judge))

    figure = Figure(figsize=(7, 2.7), layout="constrained")
    exactness.draw_paths(figure.subplots(), exactness.told_paths(step))
    return figure


def zoo_figure() -> Figure:
    """The law of each wrong rule beside the target's."""
    figure = Figure(figsize=(6.2, 8.4), layout="constrained")
    panels = figure.subplots(7, 3).ravel()
    for axes, each in zip(panels, ZOO):
        exactness.draw_law(axes, each)
    for axes in panels[len(ZOO) :]:
        axes.set_axis_off()
    bars = Patch(color=exactness.PALE, label="the target's")
    dots = Line2D([], [], color=exactness.WRONG, marker=".", ls="", label="what comes out")
    shared = {"frameon": False, "fontsize": 9, "title_fontsize": 9}
    panels[-2].legend(handles=[bars, dots], loc="upper left", title="probability of a text:", **shared)
    panels[-1].text(0, 0.78, "0.650", color=exactness.WRONG, fontsize=9)
    panels[-1].text(0.28, 0.78, "total variation", fontsize=9)
    figure.supxlabel("texts, the most probable under the target first", fontsize=9)
    figure.supylabel("probability (each panel has its own scale)", fontsize=9)
    return figure


def kept_figure() -> Figure:
    """What a token leaves in a layer's cache, by kind of attention: filled; outlined, what is made when needed."""
    heads = 8
    figure = Figure(figsize=(7, 2.7), layout="constrained")
    kinds = (("MHA", heads, "16 d"), ("GQA", 2, "4 d"), ("MQA", 1, "2 d"), ("MLA", heads, "4.5 d"))
    for axes, (name, kv_heads, numbers) in zip(figure.subplots(1, 4), kinds):
        latent, group = name == "MLA", heads // kv_heads
        for head in range(heads):
            axes.add_patch(Rectangle((head, 3), 0.8, 0.6, facecolor="white", edgecolor="#555555"))
            middle = head // group * group + group / 2 - 0.1
            axes.plot([head + 0.4, middle], [2.95, 2.45], color="#aaaaaa", lw=0.8)
        for kv in range(kv_heads):
            left = kv * group + group / 2 - 0.5
            for height in (1.8, 1.1):  # the key above the value
                face = "white" if latent else COMPUTED
                axes.add_patch(Rectangle((left, height), 0.8, 0.6, facecolor=face, edgecolor=COMPUTED))
            if latent:
                axes.plot([left + 0.4, heads / 2 - 0.6], [1.05, 0.65], color="#aaaaaa", lw=0.8)
        if latent:
            axes.add_patch(Rectangle((1.4, 0), 4, 0.6, color=COMPUTED))
            axes.add_patch(Rectangle((5.6, 0), 0.5, 0.6, color=NEW))
            axes.text(3.4, -0.35, "latent", ha="center", va="center", fontsize=9)
            axes.text(5.85, -0.35, "rotated key", ha="left", va="center", fontsize=9)
        axes.set(xlim=(-0.6, heads + 1.6), ylim=(-0.7, 3.8))
        axes.set_title(f"{name}: {numbers}", fontsize=10)
        axes.set_axis_off()
        for height, label in ((3.3, "q"), (2.1, "k"), (1.4, "v")):
            axes.text(-0.25, height, label, ha="right", va="center", fontsize=9)
    return figure


def plans_figure() -> Figure:
    """Two plans of one batch, for a machine of four processors: every sequence by itself, and a prefix read once."""
    os.environ["TRITON_INTERPRET"] = "1"
    lengths, prefix = [2600, 500, 1624, 1524, 1424], 1024
    pages = torch.empty(200, 64, 1, 64)
    own = iter(range(16, 200))
    tables = [[next(own) for _ in range(-(-n // 64))] for n in lengths]
    tables = [list(range(16)) + t[16:] if i >= 2 else t for i, t in enumerate(tables)]
    width = max(map(len, tables))
    table = torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32)
    prefixes = shared_prefixes(tables, [n - 1 for n in lengths], 64)
    assert prefixes == [(2, 3, prefix)]
    titles = {"each by itself": [], "a shared prefix read once": prefixes}
    return pieces_figure({t: plan_batch(table, lengths, [1] * 5, pages, 1, prefixes=p) for t, p in titles.items()})


def committed(name: str) -> dict[str, Any]:
    """What a command measured."""
    result: dict[str, Any] = json.loads((OUT.parents[1] / "docs" / "results" / name).read_text(encoding="utf-8"))
    return result


def tour_figure() -> Figure:
    """The first two stages of the committed tour."""
    tour = committed("tour.json")
    seconds = {name: [run["seconds"] for run in tour["runs"][name]] for name in ("naive", "KV cache")}
    return latency_figure(seconds, [prompt["tokens"] for prompt in tour["prompts"]])


def study() -> Results:
    """The committed one."""
    return Results.read(OUT.parents[1] / "docs" / "results" / "ablation.json")


def loaded(names: tuple[str, ...]) -> Figure:
    """Some engines of the committed run of `bench load`."""
    return load_figure(json.loads((OUT.parents[1] / "docs/results/bench_load.json").read_text("utf-8")), names)


FIGURES = {
    "00_recompute.svg": lambda: steps_figure(cached=False),
    "01_cache.svg": lambda: steps_figure(cached=True),
    "01_tour.svg": tour_figure,
    "02_pages.svg": pages_figure,
    "03_tree.svg": tree_figure,
    "03_hit_rate.svg": lambda: hit_rate_figure(committed("bench_radix.json"), "trace"),
    "04_schedule.svg": schedule_figure,
    "04_load.svg": lambda: loaded(study_tables.CHUNKS),
    "05_kept.svg": kept_figure,
    "06_speculation.svg": speculation_figure,
    "06_cost.svg": lambda: speedup_figure((0.05, 0.15, 0.4), (0.3, 0.5, 0.7, 0.9), most=12),
    "08_pieces.svg": plans_figure,
    "10_files.svg": files_figure,
    "07_split.svg": split_figure,
    "07_paths.svg": paths_figure,
    "07_zoo.svg": zoo_figure,
    "09_speed.svg": lambda: study().speed_figure(),
    "09_effects.svg": lambda: study().effects_figure(),
    **GPU_FIGURES,
    "09_load.svg": lambda: loaded(study_tables.TECHNIQUES),
}

if __name__ == "__main__":
    for folder, drawings in ((OUT, FIGURES), (OWN, DRAWINGS)):
        folder.mkdir(exist_ok=True)
        for name, draw in drawings.items():
            save_figure(draw(), folder / name)
            print(folder / name)
