"""Figures of acceptance: where a draft falls, every path of a step, distributions compared. All from live runs."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from inference_opt.lab.exactness.enumerate import Branching, every_path
from inference_opt.lab.exactness.proposals import Prefix
from inference_opt.lab.exactness.zoo import Mutant
from inference_opt.speculative.rules import Probs

SHARED, OWED, TOO_MUCH = "#b5d9bf", "#4c72b0", "#f0c4c0"  # min(p, q), (p − q)⁺, (q − p)⁺
TARGET, DRAFT, WRONG, RIGHT = "#4c72b0", "#b35417", "#c44e52", "#2e7d4f"
PALE = "#c9d3e6"  # the bars under dots
NAMES = {"p, the target": TARGET, "q, the draft": DRAFT}


def draw_split(axes: Axes, p: Probs, q: Probs, draws: Sequence[tuple[int, float]] = (), title: str = "") -> None:
    """p and q as bars, cut into what they share, what is owed and what is too much; each draw (x, u) is a dot.

    A dot is at height u · q(x) in the bar of its token, so it is uniform under q. It is accepted if it is below p, too.
    """
    p, q = np.array(p, dtype=float), np.array(q, dtype=float)
    both = np.minimum(p, q)
    places = np.arange(len(p))
    axes.bar(places, both, color=SHARED, width=0.8)
    axes.bar(places, p - both, bottom=both, color=OWED, width=0.8)
    axes.bar(places, q - both, bottom=both, color=TOO_MUCH, width=0.8)
    for x, (a, b) in enumerate(zip(p, q)):
        axes.hlines(a, x - 0.44, x + 0.44, color=TARGET, lw=2.5)
        axes.hlines(b, x - 0.44, x + 0.44, color=DRAFT, lw=2.5)
    for i, (x, u) in enumerate(draws):
        fits = u * q[x] < p[x]
        offset = ((i * 0.618034) % 1 - 0.5) * 0.7  # spread out: the place within a bar says nothing
        axes.plot(x + offset, u * q[x], "o" if fits else "x", color="#222", ms=3 if fits else 4)
    axes.set_xticks(places, [str(x) for x in places])
    axes.set_ylim(0, 1.12 * max(p.max(), q.max()))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=9, loc="left")


def split_legend() -> list[Any]:
    """Handles for the colours and marks of `draw_split`."""
    names = {SHARED: "min(p, q): accepted", OWED: "(p − q)⁺: owed", TOO_MUCH: "(q − p)⁺: rejected"}
    marks = {"o": "a draft accepted", "x": "a draft rejected"}
    lines = [Line2D([], [], color=colour, lw=2.5, label=name) for name, colour in NAMES.items()]
    lines += [Line2D([], [], color="#222", marker=mark, ms=4, ls="", label=name) for mark, name in marks.items()]
    return [*lines, *(Patch(color=colour, label=name) for colour, name in names.items())]


Turn = tuple[str, Fraction]  # what happened, and how likely that was


class Told:
    """`Branching` that writes down its outcomes, turn by turn."""

    def __init__(self, rng: Branching, turns: list[Turn], name: str) -> None:
        self.rng = rng
        self.turns = turns
        self.name = name

    def choose(self, weights: Probs, i: int) -> int:
        """A token, as `Branching` draws it."""
        token = self.rng.choose(weights, i)
        self.turns.append((f"{self.name} {token}", Fraction(weights[token]) / sum(weights)))
        return token

    def uniform(self, i: int) -> "ToldUniform":
        """A number, as `Branching` gives it."""
        return ToldUniform(self)


class ToldUniform:
    """To be compared once."""

    def __init__(self, told: Told) -> None:
        self.told = told

    def __lt__(self, threshold: Any) -> bool:
        below = self.told.rng.uniform(0) < threshold
        share = min(Fraction(threshold), Fraction(1))
        if share < 1:
            self.told.turns.append(("accept" if below else "reject", share if below else 1 - share))
        else:
            self.told.turns.append(("accept", Fraction(1)))
        return below


def told_paths(step: Callable[[Told, Told], Prefix]) -> list[tuple[list[Turn], Prefix, Fraction]]:
    """Every path of a step: `step` gets the drafter's randomness and the rule's, and returns what is emitted."""
    paths = []

    def run(rng: Branching) -> tuple[list[Turn], Prefix]:
        turns: list[Turn] = []
        emitted = step(Told(rng, turns, "draft"), Told(rng, turns, "draw"))
        return turns, emitted

    for (turns, emitted), probability in every_path(run):
        paths.append((turns, emitted, probability))
    return sorted(paths, key=lambda path: [name for name, _ in path[0]])


def draw_paths(axes: Axes, paths: Sequence[tuple[list[Turn], Prefix, Fraction]], title: str = "") -> None:
    """A tree of turns from left to right; at each leaf, what is emitted and with which probability."""
    where: dict[tuple[str, ...], list[float]] = {}
    for row, (turns, _, _) in enumerate(paths):
        names = tuple(name for name, _ in turns)
        for depth in range(len(names) + 1):
            where.setdefault(names[:depth], []).append(-float(row))
    height = {names: (rows[0] + rows[-1]) / 2 for names, rows in where.items()}
    longest = max(len(turns) for turns, _, _ in paths)
    done = set()
    for row, (turns, emitted, probability) in enumerate(paths):
        names = tuple(name for name, _ in turns)
        for depth, (name, share) in enumerate(turns):
            start = height[names[:depth]]
            end = height[names[: depth + 1]]
            if names[: depth + 1] in done:
                continue
            done.add(names[: depth + 1])
            colour = WRONG if name == "reject" else RIGHT if name == "accept" else "#555"
            axes.plot([depth, depth + 0.3, depth + 1], [start, end, end], color=colour, lw=1.2)
            text = name if share == 1 else f"{name}: {share}"
            axes.text(depth + 0.34, end + 0.08, text, fontsize=9, va="bottom", color=colour)
        axes.plot([len(turns), longest], [-row, -row], color="#ccc", lw=0.8, ls=":")
        axes.text(longest + 0.08, -row, f"{' '.join(map(str, emitted))}", fontsize=9, va="center", weight="bold")
        axes.text(longest + 0.5, -row, str(probability), fontsize=9, va="center")
    axes.text(longest + 0.08, 0.75, "emitted", fontsize=9, color="#555")
    axes.text(longest + 0.5, 0.75, "probability", fontsize=9, color="#555")
    axes.set(xlim=(-0.05, longest + 1), ylim=(-len(paths) + 0.4, 1.1))
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_axis_off()


def draw_law(axes: Axes, each: Mutant) -> None:
    """One of the zoo: the target's distribution over texts as bars, likeliest first, and what comes out as dots."""
    right, wrong = (np.array(law) for law in each.compared())
    order = np.argsort(-right, kind="stable")
    axes.bar(range(len(right)), right[order], color=PALE, width=1.0)
    axes.plot(range(len(right)), wrong[order], ".", color=WRONG, ms=3)
    bias = float(each.bias())
    axes.set_title(each.name, fontsize=9, loc="left")
    text = f"{bias:.3f}" if bias > 1e-3 else f"{bias:.0e}"
    axes.text(1, 0.95, text, fontsize=9, transform=axes.transAxes, ha="right", va="top", color=WRONG)
    axes.set(xticks=[], yticks=[])
    axes.spines[["top", "right"]].set_visible(False)
