"""Draws the chapters' figures: python docs/figures.py (or `make figures`). Pictures of mechanisms, no measurements."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

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


FIGURES = {
    "00_recompute.svg": lambda: steps_figure(cached=False),
    "01_cache.svg": lambda: steps_figure(cached=True),
}

if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        draw().savefig(OUT / name, metadata={"Date": None})
        print(OUT / name)
