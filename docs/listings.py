"""Writes the chapters' excerpts of code from the source: python docs/listings.py (`make listings`).

A chapter says which code stands where, so that it can be read on GitHub as well:

    <!-- listing: ../refimpl/inference_opt/naive.py generate -->
    …
    <!-- /listing -->

A name is that of a function, a class or a method (`RadixTree.match`), or of the lines between `# [name]` and
`# [/name]` (in Coq `(* [name] *)`). Several pieces of one name are joined by a line `# …`. `A.py name to B.py name`
shows the second excerpt as a change of the first.

Left out of Python, so that the essence fits: what follows the first paragraph of a docstring, checks (`if …: raise …`,
`assert`, `n = integer(…)`), and events for the player (`emit(…)`).
"""

import ast
import difflib
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "chapters").glob("*.md"))
LONGEST = 25  # lines that are not blank
LANGUAGES = {".py": "python", ".v": "coq"}


def fill(text: str, folder: Path) -> str:
    """The text of a page in `folder`, its listings written anew. ValueError for one that cannot be written."""
    whole = re.compile(r"<!-- listing: ([^\n]+) -->\n(?:(?!<!-- listing:).)*?<!-- /listing -->", flags=re.DOTALL)
    if re.search(r"<!-- /?listing\b", whole.sub("", text)):
        raise ValueError("a listing is opened and not closed, or closed and not opened")
    return whole.sub(lambda each: f"<!-- listing: {each[1]} -->\n{listing(each[1], folder)}\n<!-- /listing -->", text)


def listing(what: str, folder: Path) -> str:
    """The fenced code, and the link to its file."""
    parts = [each.split() for each in what.split(" to ")]
    codes = ["\n\n".join(excerpt(folder / path, name) for name in names) for path, *names in parts]
    language, code = LANGUAGES[Path(parts[0][0]).suffix], codes[0]
    if len(codes) == 2:
        lines = list(difflib.unified_diff(*(each.splitlines() for each in codes), n=99, lineterm=""))
        language, code = "diff", "\n".join(line.rstrip() for line in lines[3:])  # after the names of the files
    if (count := sum(bool(line.strip()) for line in code.splitlines())) > LONGEST:
        raise ValueError(f"{what}: {count} lines, of {LONGEST} at most. Mark the essence in the source: # [name]")
    paths = dict.fromkeys(path for path, *_ in parts)
    links = (f"[`{re.sub(r'^[./]*(refimpl/inference_opt/)?', '', path)}`]({path})" for path in paths)
    return f"```{language}\n{code}\n```\n\nWhole file: {', '.join(links)}"


def excerpt(path: Path, name: str) -> str:
    """The code of one name. ValueError if the file has no such name."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source if path.suffix == ".py" else "")
    lines: list[str | None] = [None, *source.splitlines()]  # as they are counted in the tree; None: left out
    pieces = list(marked(source, name)) or [(d.lineno, d.end_lineno) for d in [definition(tree, name)] if d]
    if not pieces:
        raise ValueError(f"{path.name} has no {name}: neither a definition nor a piece between markers")
    for node in ast.walk(tree):
        shorten(node, lines)
    kept = [[line for line in lines[a : b + 1] if line is not None and not is_marker(line)] for a, b in pieces]
    for before, after in itertools.pairwise(kept):
        after[0] = f"{min(re.match(' *', line)[0] for line in (before[-1], after[0]))}# …\n{after[0]}"
    code = textwrap.dedent("\n".join(itertools.chain(*kept))).strip("\n")
    return re.sub(r"\n\s*\n(\s*\n)*", "\n\n", code)


def is_marker(line: str) -> bool:
    """Whether a line begins or ends a piece."""
    return re.fullmatch(r"\s*(# \[/?[\w-]+\]|\(\* \[/?[\w-]+\] \*\))", line) is not None


def marked(source: str, name: str) -> Iterator[tuple[int, int]]:
    """The first and the last line of each piece between markers of a name."""
    begun = 0
    for i, line in enumerate(source.splitlines(), 1):
        if is_marker(line) and f"[{name}]" in line:
            begun = i
        elif is_marker(line) and f"[/{name}]" in line:
            yield begun + 1, i - 1


def definition(tree: ast.AST, name: str) -> ast.stmt | None:
    """The function, class or method of a name with dots; a decorator is part of it."""
    for part in name.split("."):
        found = [each for each in ast.iter_child_nodes(tree) if getattr(each, "name", None) == part]
        if not found:
            return None
        tree = found[0]
    tree.lineno = min([tree.lineno, *(each.lineno for each in tree.decorator_list)])
    return tree


def shorten(node: ast.AST, lines: list[str | None]) -> None:
    """Leave out lines of one node: the end of its docstring, or the node itself, with the comment above it."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
        text = node.body[0]
        blank = next((i for i in range(text.lineno, text.end_lineno) if not (lines[i] or "").strip()), None)
        if blank:
            lines[blank - 1] = f'{lines[blank - 1]}"""'
            lines[blank : text.end_lineno + 1] = [None] * (text.end_lineno + 1 - blank)
    if isinstance(node, ast.stmt) and is_detail(node):
        start = node.lineno
        while (lines[start - 1] or "").strip().startswith("# ") and not is_marker(lines[start - 1] or ""):
            start -= 1
        lines[start : node.end_lineno + 1] = [None] * (node.end_lineno + 1 - start)


def is_detail(node: ast.stmt) -> bool:
    """Whether a statement is only a check, or an event for the player."""
    match node:
        case ast.Assert() | ast.Expr(ast.Call(ast.Name("emit"))):
            return True
        case ast.Assign([ast.Name()], ast.Call(ast.Name("integer")) | ast.ListComp(ast.Call(ast.Name("integer")))):
            return True
        case ast.If(orelse=[], body=body):
            check = isinstance(body[-1], ast.Raise) and body[-1].cause is None
            return check or all(map(is_detail, body))
        case ast.For(body=body):
            return all(map(is_detail, body))
    return False


def main() -> None:
    """Every chapter."""
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8"), page.parent), encoding="utf-8")


if __name__ == "__main__":
    main()
