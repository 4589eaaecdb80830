"""The layout's rule: a part imports only parts that stand below it, so that each can be read alone."""

import ast
from pathlib import Path

import inference_opt

# From the ground up; a part may import what stands before it.
ORDER = [
    "values",
    "files",
    "steps",
    "room",
    "model",
    "sampling",
    "naive",
    "kernels",
    "kv",
    "speculative",
    "prompts",
    "mla",
    "engine",
    "agreement",
    "figures",
    "optimizations",
    "options",
    "bench",
    "experiment",
    "tour",
    "scenarios",
]
ORDER += ["generate", "cli"]
# Exceptions to the order, each narrower than it: parts that must not know these although they stand below them.
NEVER = {"sampling": {"model"}, "naive": {"kv"}}
ALLOWED = {("kv", "model.attention")}  # the attend seam itself

ROOT = Path(inference_opt.__file__).parent


def part_of(module: str) -> str:
    return module.removeprefix("inference_opt").lstrip(".").split(".")[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("inference_opt"):
            names = [f"{node.module}.{alias.name}" for alias in node.names] if part_of(node.module) == "" else []
            found |= set(names or [node.module])
    return found


def test_every_part_imports_only_what_stands_below_it():
    wrong = []
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        assert part in ORDER, f"{part} has no place in the order"
        for module in imports(path):
            other = part_of(module)
            inner = module.removeprefix("inference_opt.")
            above = ORDER.index(other) > ORDER.index(part) or other in NEVER.get(part, set())
            knows_models = part == "kv" and other == "model" and (part, inner) not in ALLOWED
            if above or knows_models:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, wrong
