"""What the book's plain Markdown is given when the site is built.

`<!-- step: SCENARIO -->` puts the player over the scenario's trace, in the place of the picture in the next line, if
there is one: on other sites the comment is not seen, and the picture is.

`<!-- modules: PART FIRST … -->` documents every module of a part of the package (`lab/bench` is one within another), or
the one module that it is; those named after it come first, in that order.

Links to folders and to package modules lead to their place in the reference; links to other files copy the file.
"""

import html
import inspect
import re
from functools import cache
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from inference_opt.explain.player import page
from inference_opt.explain.scenarios import play
from inference_opt.trace import Trace

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "refimpl" / "inference_opt"
recorded = cache(play)


class Step(Directive):
    """`{step} SCENARIO`: a player inline, and a plain table of the same in print and where no scripts run."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """ValueError if there is no such scenario: the build stops."""
        (name,) = self.arguments
        return [nodes.raw("", _inline(name, recorded(name)), format="html")]


def _inline(name: str, trace: Trace) -> str:
    label = html.escape(f"step through: {trace.title}", quote=True)
    return (
        f'<div class="stepped" id="step-{name}">'
        f'<div class="steps" aria-label="{label}" role="region"></div>'
        f'<script type="application/json">{page.inline(trace)}</script>'
        f'<div class="table-wrapper">{page.table(trace)}</div></div>'
    )


def player_script() -> str:
    """The player as a classic script, since pages opened from disk may not load modules."""
    return f"""(() => {{
{page.classic()}
for (const each of document.querySelectorAll(".stepped"))
  mount(each.querySelector(".steps"), each.querySelector("script").textContent, false), each.classList.add("plays");
}})();
"""


def modules_of(part: str, first: tuple[str, ...] = ()) -> list[str]:
    """A part's modules, by their whole names: the package itself, those named `first`, all others."""
    module = f"inference_opt.{part.replace('/', '.')}"
    if (PACKAGE / f"{part}.py").exists():
        return [module]
    order = ("__init__", *first)
    files = sorted(
        (PACKAGE / part).glob("*.py"),
        key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path.stem),
    )
    if missing := set(first) - {path.stem for path in files}:
        raise ValueError(f"<!-- modules: {part} -->: it has no {', '.join(sorted(missing))}")
    if not files:
        raise ValueError(f"<!-- modules: {part} -->: inference_opt has no such part; it has parts like cache and naive")
    return [module + ("" if path.stem == "__init__" else f".{path.stem}") for path in files]


def _reference(match: re.Match[str]) -> str:
    def one(module: str) -> str:
        return f"## `{module}`\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n"

    part, *first = match[1].split()
    return "\n".join(map(one, modules_of(part, tuple(first))))


def foreign(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Whether a member is left out: a built-in's method under a name of ours would show the built-in's docstring."""
    return True if what == "module" and inspect.isbuiltin(obj) else None


def plain(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are prose, not reStructuredText: code in backticks, the indented as it stands, the rest text."""
    told, verbatim = [], False
    for line in lines:
        indented = line.startswith("  ") and not (told and told[-1].lstrip().startswith("- "))
        if line and not indented:
            pieces = re.split(r"(`+[^`]+`+)", line)
            pieces[::2] = [re.sub(r"([*|_\\`])", r"\\\1", piece) for piece in pieces[::2]]
            pieces[1::2] = [f"\\ ``{piece.strip('`')}``\\ " for piece in pieces[1::2]]
            line = "".join(pieces)
        if indented != verbatim and line:
            told += ["", "::", ""] if indented else [""]
            verbatim = indented
        told.append(line)
    lines[:] = [*told, ""]


def _link(match: re.Match[str]) -> str:
    path = match[1].rstrip("/")
    if (PACKAGE / path).is_dir():
        return f"](../docs/api/{path.rpartition('/')[2]}.md)"
    return match[0]


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Write directives where the markers stand."""
    if name.startswith("notebooks/"):
        return
    picture = r"(?:<picture>\n.*?</picture>\n)?"
    text = re.sub(rf"<!-- step: (\S+) -->\n{picture}", r"```{step} \1\n```\n", source[0], flags=re.DOTALL)
    text = re.sub(r"<!-- modules: (\S.*?) -->", _reference, text)
    source[0] = re.sub(r"\]\(\.\./refimpl/inference_opt/([\w/]+/)\)", _link, text)


def finish(app: Sphinx, error: Exception | None) -> None:
    """The player's one copy."""
    if error is None and app.builder.format == "html":
        (Path(app.outdir) / "_static" / "player.js").write_text(player_script(), encoding="utf-8")


def add_player(app: Sphinx, name: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """The player, only where there is something to play; and what the theme leaves out for those who do not see."""
    if 'class="stepped"' in context.get("body", ""):
        app.add_js_file("player.js", loading_method="defer")
    for part in ("body", "furo_navigation_tree"):
        # Without a tab stop the end of a long line of code, or of a wide table, is out of a keyboard's reach.
        whole = context.get(part, "").replace("<pre>", '<pre tabindex="0">')
        whole = whole.replace('<div class="table-wrapper', '<div tabindex="0" class="table-wrapper')
        context[part] = whole.replace('class="caption" role="heading"', 'class="caption" role="heading" aria-level="2"')


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_directive("step", Step)
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", plain)
    app.connect("autodoc-skip-member", foreign)
    app.connect("html-page-context", add_player, priority=900)  # behind the theme
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
