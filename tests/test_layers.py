"""The layout's rule: a part imports only parts that stand below it, so that each can be read alone."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import inference_opt

# From the ground up; a part may import what stands before it.
ORDER = ["values", "elsewhere", "files", "room", "environment", "trace"]
ORDER += ["sampling", "model", "loading", "kernels", "naive"]
ORDER += ["radix", "cache", "conversion", "speculative", "engine", "api", "generate"]
ORDER += ["options", "lab", "experiment", "explain", "exercises", "cli"]
WINGS = ["lab", "experiment", "explain"]  # what proves, measures and shows; the techniques stand before it
# Exceptions to the order, each narrower than it: parts that must not know these although they stand below them.
NEVER = {
    "sampling": {"trace"},
    "model": {"sampling", "trace"},
    "conversion": {"trace"},
    "speculative": {"trace"},
    "kernels": {"model", "loading"},  # they draw as `sampling` says
    "radix": {"sampling", "model", "loading", "kernels", "naive"},
    "explain": {"experiment"},
}
# Of a model they know the `attend` seam alone; they are pure, too, and recorded from outside.
SEAM = {"cache.contiguous", "cache.paged", "cache.paged_kernel"}

ROOT = Path(inference_opt.__file__).parent


def part_of(module: str) -> str:
    return module.removeprefix("inference_opt").lstrip(".").split(".")[0]


def imports(path: Path) -> set[str]:
    """What a file imports of the package, wherever it does: on top, within a function, or to check types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("inference_opt"):
            face = part_of(node.module) == ""
            found |= {f"{node.module}.{alias.name}" for alias in node.names if face and alias.name != "__version__"}
            found |= set() if face else {node.module}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("inference_opt.")}
    return found


def forbidden(module: str, imported: str) -> bool:
    """Whether a module of ours, named from within the package, must not import another."""
    part, other = part_of(module), part_of(imported)
    above = ORDER.index(other) > ORDER.index(part) or other in NEVER.get(part, set())
    seam = module in SEAM and other in ("model", "trace") and imported != "inference_opt.model.attention"
    return above or seam


@cache
def modules() -> dict[str, Path]:
    """{name within the package: file}, the package's own face left out."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in names.items() if name != "__init__"}


def test_every_part_has_a_place_and_imports_only_what_stands_below_it():
    assert {part_of(module) for module in modules()} == set(ORDER)
    wrong = [
        f"{module} imports {imported}"
        for module, path in modules().items()
        for imported in imports(path)
        if forbidden(module, imported)
    ]
    assert not wrong, wrong


def test_what_is_forbidden():
    assert all(forbidden("engine.engine", f"inference_opt.{wing}.x") for wing in WINGS)
    assert forbidden("lab.agreement", "inference_opt.explain.tour")
    assert not forbidden("explain.tour", "inference_opt.lab.agreement")
    assert forbidden("radix.tree", "inference_opt.kernels")
    assert forbidden("model.attention", "inference_opt.cache.paged")
    assert forbidden("cache.paged", "inference_opt.model.transformer")
    assert forbidden("cache.paged", "inference_opt.trace")
    assert forbidden("speculative.rules", "inference_opt.trace")
    assert not forbidden("cache.paged", "inference_opt.model.attention")


def test_the_tree_knows_no_torch():
    for module, path in modules().items():
        if part_of(module) == "radix":
            assert "torch" not in imported_on_top(path), module


def imported_on_top(path: Path) -> set[str]:
    """Modules that a file imports when it is imported itself."""
    return named_in(ast.parse(path.read_text(encoding="utf-8")).body)


def imported(tree: ast.AST) -> set[str]:
    """Modules that a file's code imports, on top or when it is called; not for types alone."""
    inner = [
        node for node in ast.iter_child_nodes(tree) if getattr(getattr(node, "test", 0), "id", "") != "TYPE_CHECKING"
    ]
    return named_in(inner).union(*map(imported, inner))


def named_in(nodes: Iterable[ast.AST]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}".removeprefix("inference_opt.") for alias in node.names}
            found |= inner & modules().keys() or {node.module.removeprefix("inference_opt.")}
    return found


def test_there_is_no_circle_of_files():
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in modules().items()}
    below = {module: imported(tree) - {module} for module, tree in trees.items()}
    while free := [module for module in below if not below[module] & below.keys()]:
        for module in free:
            del below[module]
    assert not below, f"there is a circle among {sorted(below)}"
