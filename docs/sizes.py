"""How long the techniques are: the lines of each part, and how many of them are code (docs/architecture.md)."""

import ast
import io
import tokenize
from collections.abc import Callable, Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "refimpl" / "inference_opt"
PARTS = ("sampling", "model", "radix", "cache", "conversion", "speculative", "engine", "kernels")
APART = {  # what a reader may skip at first
    "how many drafts pay": ("speculative/acceptance", "speculative/choice", "speculative/step_costs", "engine/clock"),
    "steps captured on a card": (
        "cache/fused_forward", "cache/paged_kernel", "speculative/head_steps", "engine/captured_steps",
        "engine/collector", "engine/flight", "engine/graph_runner", "engine/step_plans",
    ),
}  # fmt: skip
SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(text: str) -> int:
    """Lines that are not empty, and not of a comment, a docstring or an import."""
    tree, said = ast.parse(text), set[int]()
    for node in ast.walk(tree):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            said |= {*range(node.lineno, node.end_lineno + 1)}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len({n for each in tokens if each.type not in SILENT for n in range(each.start[0], each.end[0] + 1)} - said)


def rows() -> list[list[str]]:
    """Parts with their files, lines and lines of code, to the nearest 50; their sum; then what else there is."""
    paths = {part: set((PACKAGE / part).rglob("*.py")) for part in PARTS}
    apart = {name: {PACKAGE / f"{each}.py" for each in files} for name, files in APART.items()}
    parts = {f"`{part}/`": own.difference(*apart.values()) for part, own in paths.items() if part != "kernels"}
    named = parts | {"**the techniques**": set().union(*parts.values())} | apart | {"`kernels/`": paths["kernels"]}
    return [
        [name, str(len(own)), about(own, lambda text: len(text.splitlines())), about(own, code_lines)]
        for name, own in named.items()
    ]


def about(paths: Iterable[Path], count: Callable[[str], int]) -> str:
    """What is counted in these files, to the nearest 50."""
    return f"{50 * round(sum(count(each.read_text(encoding='utf-8')) for each in paths) / 50):,}"
