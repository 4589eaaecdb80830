"""Draws the chapters' figures: python docs/figures.py (or `make figures`). Pictures of mechanisms, no measurements."""

import itertools
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from inference_opt import Engine, SamplingParams, TransformerWithOptimizations
from inference_opt.figures import draw_pool, draw_schedule, draw_tree
from inference_opt.kv.radix import RadixTree

OUT = Path(__file__).resolve().parent.parent / "chapters" / "figures"
COMPUTED, CACHED, NEW = "#4c72b0", "#d9dee8", "#c44e52"  # computed in this step, kept from before, just sampled
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
    axes.set(xlim=(-1.6, PROMPT + STEPS + 4), ylim=(-STEPS, 1.6))
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
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    for axes, until in zip(figure.subplots(2, 1), (3, 14)):
        while engine.stats.steps < until:
            engine.step()
        draw_pool(axes, engine.pool, engine.tree, requests, f"after step {until}")
    return figure


def tree_figure() -> Figure:
    """A tree grows, is split, is locked, loses leaves."""
    tree, pages = RadixTree(2), itertools.count()
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    axes = figure.subplots(4, 1, height_ratios=[1, 2, 2, 2])
    for ax, text, title in (
        (axes[0], "You are a cat. Purr!", "1. one text, one edge"),
        (axes[1], "You are a dog. Bark!", "2. another that begins alike: the edge is split, the stem is kept once"),
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
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
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


FIGURES = {
    "00_recompute.svg": lambda: steps_figure(cached=False),
    "01_cache.svg": lambda: steps_figure(cached=True),
    "02_pages.svg": pages_figure,
    "03_tree.svg": tree_figure,
    "04_schedule.svg": schedule_figure,
}

if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        draw().savefig(OUT / name, metadata={"Date": None})
        print(OUT / name)
