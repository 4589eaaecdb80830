"""Pictures of real state: the radix tree, the page pool, the schedule, the work of a step.

They are drawn from the live objects.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from inference_opt.cache.pool import PagePool
from inference_opt.engine.engine import Output
from inference_opt.engine.request import Request
from inference_opt.kernels import Batch
from inference_opt.radix.node import Node, upwards
from inference_opt.radix.tree import RadixTree

# Words in these on white, and white words on these, have a contrast of 4.5:1, on dark pages too.
COLOURS = ("#4c72b0", "#b35417", "#2e7d4f", "#c44e52", "#6a55a3", "#7a5c42", "#b04a94", "#5f6670")
BLUE, ORANGE, GREEN, RED, VIOLET, BROWN, PINK, GREY = COLOURS
FREE, CACHED, LOCKED = "#ffffff", "#d9dee8", BLUE
TINT = 0.5  # of a colour that black words are on


def draw_tree(axes: Axes, tree: RadixTree, label: Callable[[int], str] = str, title: str = "") -> None:
    """A row for each branch, a square for each token at its position in the text, and under each page its number.

    Blue: locked. Grey: evictable. A leaf that can be evicted has a red edge.
    """
    bottom = 0.0

    def place(node: Node, start: int) -> float:
        """Draw a node after its children, at the height of the first one, and return that height."""
        nonlocal bottom
        end = start + len(node.tokens)
        heights = [place(child, end) for child in node.children.values()]
        if heights:
            y = heights[0]
        else:
            y, bottom = bottom, bottom - 1.6
        for child_y in heights:
            axes.plot([end - 0.05, end + 0.02], [y + 0.4, child_y + 0.4], color="#555", lw=1, zorder=0)
        for i, token in enumerate(node.tokens):
            colour = LOCKED if node.locks else CACHED
            axes.add_patch(Rectangle((start + i, y), 0.9, 0.8, color=colour))
            axes.text(
                start + i + 0.45,
                y + 0.4,
                label(token),
                ha="center",
                va="center",
                fontsize=9,
                color="white" if node.locks else "black",
            )
        if not node.children and not node.locks and node.tokens:
            axes.add_patch(Rectangle((start, y), len(node.tokens) - 0.1, 0.8, fill=False, edgecolor=RED, lw=1.5))
        for i, page in enumerate(node.pages):
            left = start + i * tree.page_size
            axes.plot([left, left + tree.page_size - 0.1], [y - 0.1] * 2, color="#555", lw=1)
            axes.text(left + tree.page_size / 2, y - 0.18, f"page {page}", ha="center", va="top", fontsize=9)
        return y

    for root in tree.roots.values():
        for child in root.children.values():
            place(child, 0)
    longest = max((sum(len(n.tokens) for n in upwards(node)) for node in tree.nodes()), default=1)
    axes.set(xlim=(-0.3, longest + 0.3), ylim=(bottom + 0.7, 1.1))
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_axis_off()


def draw_pool(axes: Axes, pool: PagePool, tree: RadixTree, requests: Mapping[str, Request], title: str = "") -> None:
    """A square for each page: free (white), the tree's (grey), or a request's own (its colour). Below: page tables."""
    for page in range(pool.num_pages):
        axes.add_patch(Rectangle((page, 0), 0.9, 0.9, facecolor=FREE, edgecolor="#999"))
        axes.text(page + 0.45, 0.45, str(page), ha="center", va="center", fontsize=9, zorder=3)
    for node in tree.nodes():
        for page in node.pages:
            axes.add_patch(Rectangle((page, 0), 0.9, 0.9, facecolor=CACHED, edgecolor="#999"))
    for row, ((name, request), colour) in enumerate(zip(requests.items(), COLOURS)):
        for page in request.table[request.pages.shared :]:
            axes.add_patch(Rectangle((page, 0), 0.9, 0.9, facecolor=colour, edgecolor="#999", alpha=TINT))
        y = -1.2 * (row + 1)
        axes.text(-0.2, y + 0.4, name, ha="right", va="center", fontsize=9, color=colour, weight="bold")
        for i, page in enumerate(request.table):
            own = i >= request.pages.shared
            face = colour if own else CACHED
            axes.add_patch(Rectangle((i, y), 0.9, 0.8, facecolor=face, edgecolor=colour, alpha=TINT if own else 1))
            axes.text(i + 0.45, y + 0.4, str(page), ha="center", va="center", fontsize=9)
        state = f"{request.computed} tokens computed"
        if len(tree):
            state += f", {request.pages.shared} of {len(request.table)} pages shared"
        if request.finished:
            state = f"finished after {len(request.output)} new tokens, pages given back"
        axes.text(len(request.table) + 0.2, y + 0.4, state, va="center", fontsize=9)
    axes.text(-0.2, 0.45, "pool", ha="right", va="center", fontsize=9)
    axes.set(xlim=(-2.2, max(pool.num_pages, 10) + 0.3), ylim=(-1.2 * len(requests) - 0.3, 1.1))
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_axis_off()


def draw_schedule(axes: Axes, steps: Sequence[Sequence[Output]], names: Mapping[Request, str], title: str = "") -> None:
    """A column for each step, a row for each request. Dark, with a number: prompt tokens computed. Light: decoding."""
    rows = {request: row for row, request in enumerate(names)}
    for step, outputs in enumerate(steps):
        for out in outputs:
            y = -rows[out.request]
            colour = COLOURS[rows[out.request] % len(COLOURS)]
            decode = out.start >= len(out.request.prompt)
            axes.add_patch(Rectangle((step + 0.04, y), 0.92, 0.8, facecolor=colour, alpha=0.35 if decode else 1.0))
            if len(steps) <= 30 and not decode:
                axes.text(step + 0.5, y + 0.4, str(out.count), ha="center", va="center", fontsize=9, color="white")
    for request, row in rows.items():
        axes.text(-0.2, -row + 0.4, names[request], ha="right", va="center", fontsize=9)
    axes.set(xlim=(0, len(steps)), ylim=(-len(rows) + 0.8, 1), xlabel="step", yticks=[])
    ticks = range(0, len(steps), 2 if len(steps) <= 30 else 10 if len(steps) <= 100 else 20)
    axes.set_xticks([s + 0.5 for s in ticks], [str(s + 1) for s in ticks])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(title, fontsize=9, loc="left")


def schedule_figure(schedules: Mapping[str, tuple[Sequence[Sequence[Output]], Mapping[Request, str]]]) -> Figure:
    """Schedules below each other: {title: (the outputs of each step, the name of each request)}."""
    rows = max(len(names) for _, names in schedules.values())
    figure = Figure(figsize=(9, (1 + 0.26 * rows) * len(schedules)), layout="constrained")
    panels = figure.subplots(len(schedules), 1, squeeze=False)[:, 0]
    for axes, (title, (steps, names)) in zip(panels, schedules.items()):
        draw_schedule(axes, steps, names, title)
    return figure


PIECES = {  # what becomes of a piece: its colour
    "written: the whole of its sequence": GREEN,
    "a state: one part of its sequence": BLUE,
    "states: a prefix, read once for several": ORANGE,
}


def draw_pieces(axes: Axes, batch: Batch) -> None:
    """Who reads what: a row for each sequence's queries, its keys along it, every piece a box, coloured as in `PIECES`.

    Shared prefixes span the rows of their sequences. One tile of rows a sequence, as in decoding. ValueError for a
    batch that was not planned for kernels.
    """
    if batch.plan is None:
        raise ValueError("this batch has no plan: pages on the CPU are planned under Triton's interpreter only")
    written, state, states = PIECES.values()
    token0 = list(itertools.accumulate(batch.counts, initial=0))
    for launch in batch.plan.launches:
        for sequence, start, queries, _, _, first, end, place in launch.rows:
            rows = sum(start <= t < start + queries for t in token0[:-1])
            colour = written if place < 0 else state if queries == 1 else states
            box = Rectangle(
                (first, sequence + 0.1), end - first, rows - 0.2, facecolor=colour, edgecolor="white", lw=1.5
            )
            axes.add_patch(box)
    axes.set(xlim=(0, max(batch.lengths)), ylim=(len(batch.lengths), 0), xlabel="keys, in the order of the text")
    axes.set_yticks([i + 0.5 for i in range(len(batch.lengths))], [f"sequence {i}" for i in range(len(batch.lengths))])
    axes.spines[["top", "right"]].set_visible(False)


def pieces_figure(plans: Mapping[str, Batch]) -> Figure:
    """Plans of a batch side by side, and what their colours mean."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    for axes, (title, batch) in zip(figure.subplots(1, len(plans), sharey=True, squeeze=False)[0], plans.items()):
        draw_pieces(axes, batch)
        axes.set_title(title, fontsize=9, loc="left")
    handles = [Patch(color=colour, label=name) for name, colour in PIECES.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def latency_figure(seconds: Mapping[str, Sequence[Sequence[float]]], lengths: Sequence[int]) -> Figure:
    """Milliseconds for the next token against the length of the text. A first token has the prefill: left out.

    seconds: {way to decode: for each prompt, the seconds that each new token took}; lengths: of the prompts, in tokens.
    """
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for (name, runs), marker, colour in zip(seconds.items(), "os", (RED, BLUE)):
        for i, (run, length) in enumerate(zip(runs, lengths)):
            milliseconds = [1000 * s for s in run[1:]]
            places = range(length + 1, length + len(run))
            axes.plot(places, milliseconds, marker, ms=2.5, color=colour, label=name if i == 0 else None)
    axes.set(xlabel="tokens in the text so far", ylabel="milliseconds for the next token", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, markerscale=2)
    return figure
