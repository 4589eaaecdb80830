"""Draws the site's own pictures: the map of the book, the layers, the seams. `make figures` draws them."""

import runpy
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

PACKAGE = Path(__file__).resolve().parent.parent / "refimpl" / "inference_opt"
INK, SOFT, FILL, ACCENT = "#1d2733", "#8a94a0", "#d9dee8", "#4c72b0"
# {chapter: (name, column, row, the chapters it needs)}
CHAPTERS = {
    "00": ("naive oracle", 0, 1, ()),
    "01": ("KV cache", 1, 1, ("00",)),
    "02": ("paging", 2, 1, ("01",)),
    "03": ("radix\nattention", 3, 1, ("02",)),
    "04": ("continuous\nbatching", 4, 1, ("03",)),
    "05": ("latent\nattention", 2, 0, ("01",)),
    "06": ("speculative\ndecoding", 5, 2, ("04",)),
    "07": ("exactness", 6, 2, ("06",)),
    "08": ("kernels", 3, 0, ("02", "05")),
    "09": ("all together", 7, 1, ("04", "07", "08")),
    "10": ("to\nproduction", 8, 1, ("09",)),
}
# A mechanism each: (what, our file, SGLang 0.5.23's, vLLM 0.33.0's, TensorRT-LLM's), their paths within the package.
ENGINES = ("SGLang", "vLLM", "TensorRT-LLM")
FILES = (
    ("pages", "cache/pool.py", "mem_cache/allocator/paged.py", "v1/core/block_pool.py",
     "pyexecutor/resource_manager.py"),
    ("prefixes", "radix/tree.py", "mem_cache/unified_radix_cache.py", "v1/core/kv_cache_utils.py",
     "kvCacheManager.cpp"),
    ("eviction", "radix/eviction.py", "mem_cache/evict_policy.py", "v1/core/kv_cache_utils.py", "evictionPolicy.cpp"),
    ("one step", "engine/scheduler.py", "managers/schedule_policy.py", "v1/core/sched/scheduler.py",
     "pyexecutor/scheduler/"),
    ("latents", "model/mla.py", "deepseek_common/…/forward_mla.py", "attention/mla_attention.py",
     "attention/mla.py"),
    ("drafters", "speculative/*.py", "speculative/*_worker*.py", "worker/gpu/spec_decode/", "speculative/*.py"),
    ("verdict", "speculative/rules.py", "ops/speculative/reject_sampling.py", "…/rejection_sampler_utils.py",
     "speculative/interface.py"),
    ("kernels", "kernels/attention.py", "layers/attention/", "v1/attention/backends/", "attention/backends/"),
    ("capture", "engine/captured_steps.py", "runner/decode_cuda_graph_runner.py", "worker/gpu/cudagraph_utils.py",
     "pyexecutor/cuda_graph_runner.py"),
    ("cards", "model/parallel.py", "layers/linear.py", "layers/linear.py", "modules/linear.py"),
)  # fmt: skip
LAYERS = runpy.run_path(str(PACKAGE.parents[1] / "tests" / "test_layers.py"))  # whose test holds the order
PARTS = LAYERS["ORDER"]  # from the ground up
SEAMS = (
    ("model", "attend(layer, q, k, v, scale)", "cache.batch(…)"),
    ("engine", "run(chunks, drafts): γ = 0 is plain decoding", "runner"),
    ("drafter", "propose: tokens and their distribution; accept: what to emit", "rule"),
    ("who owns state", "emit(event, self, data)", "trace"),
)


def box(axes: Axes, x: float, y: float, text: str, width: float = 0.8, colour: str = FILL, size: float = 9) -> None:
    """A rounded box about (x, y)."""
    shape = FancyBboxPatch((x - width / 2, y - 0.26), width, 0.52, boxstyle="round,pad=0.02", fc=colour, ec=SOFT)
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color="white" if colour == ACCENT else INK)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0, style: str = "->"
) -> None:
    """From one point to another, behind the boxes."""
    look = {"arrowstyle": style, "color": SOFT, "lw": 1, "connectionstyle": f"arc3,rad={bend}"}
    axes.annotate("", xy=end, xytext=start, arrowprops=look, zorder=0)


def map_figure() -> Figure:
    """The chapters in order; an arrow leads from each to those that need it."""
    figure = Figure(figsize=(9.8, 3.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, x, y, needs) in CHAPTERS.items():
        box(axes, x, y, f"{number}\n{name}", width=0.84)
        for need in needs:
            _, left, below, _ = CHAPTERS[need]
            arrow(axes, (left + 0.42, below), (x - 0.42, y))
    axes.set(xlim=(-0.6, 8.6), ylim=(-0.5, 2.5))
    axes.set_axis_off()
    return figure


def imports() -> set[tuple[str, str]]:
    """(part, part that it imports), read off the code."""
    found = {
        (path.relative_to(PACKAGE).parts[0].removesuffix(".py"), LAYERS["part_of"](module))
        for path in PACKAGE.rglob("*.py")
        for module in LAYERS["imports"](path)
    }
    return {(part, other) for part, other in found if {part, other} <= set(PARTS) and part != other}


def layers_figure() -> Figure:
    """A row a part, the ground at the bottom; a square where it imports the part of the column."""
    figure = Figure(figsize=(7.6, 6.2), layout="constrained")
    axes = figure.subplots()
    for y in range(len(PARTS)):
        axes.add_patch(Rectangle((0, y), y, 1, facecolor="#f3f5f8", edgecolor="white"))
        axes.add_patch(Rectangle((y, y), 1, 1, facecolor=FILL, edgecolor="white"))
    for part, other in sorted(imports()):
        axes.add_patch(Rectangle((PARTS.index(other), PARTS.index(part)), 1, 1, facecolor=ACCENT, edgecolor="white"))
    middles = [i + 0.5 for i in range(len(PARTS))]
    axes.set_xticks(middles, PARTS, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(middles, PARTS)
    axes.set(xlim=(0, len(PARTS)), ylim=(0, len(PARTS)), aspect="equal", ylabel="a part …", xlabel="… imports")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def seams_figure() -> Figure:
    """Two sides and what passes between them, a row each."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for row, (left, question, right) in enumerate(SEAMS):
        y = -row * 0.8
        box(axes, 0, y, left, 1.2)
        box(axes, 6, y, right, 1.2, ACCENT)
        arrow(axes, (0.65, y), (5.35, y), style="<->")
        axes.text(3, y + 0.1, question, ha="center", va="bottom", fontsize=9, color=INK)
    axes.set(xlim=(-0.8, 6.8), ylim=(-len(SEAMS) * 0.8 + 0.4, 0.5))
    axes.set_axis_off()
    return figure


def files_figure() -> Figure:
    """A row a mechanism: our file in a box, and beside it, a line an engine, the files that do the same."""
    figure = Figure(figsize=(5.6, 7.2), layout="constrained")
    axes = figure.subplots()
    for row, (what, ours, *theirs) in enumerate(FILES):
        y = -row
        axes.axhline(y + 0.5, color=FILL, lw=0.8)
        axes.text(0.08, y + 0.28, what, ha="left", va="center", fontsize=10, weight="bold", color=INK)
        box(axes, 0.97, y - 0.14, ours, 1.74, ACCENT, size=9)
        for line, (engine, file) in enumerate(zip(ENGINES, theirs)):
            axes.text(2.0, y + 0.28 * (1 - line), engine, ha="left", va="center", fontsize=9, color=INK)
            axes.text(3.1, y + 0.28 * (1 - line), file, ha="left", va="center", fontsize=9, color=INK)
    axes.set(xlim=(0, 5.6), ylim=(0.5 - len(FILES), 0.55))
    axes.set_axis_off()
    return figure


DRAWINGS = {"map.svg": map_figure, "layers.svg": layers_figure, "seams.svg": seams_figure}
