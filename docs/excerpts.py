"""The text of every section, as a script beside the search: a page opened from disk may fetch no other page.

`search.js` ranks results and `fetch` is answered out of it, so that Sphinx's own search shows an excerpt of each.
"""

import json
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx


def sections(page: nodes.document) -> list[tuple[str, str, str]]:
    """(anchor, heading, text without that of the sections in it) of each section of a page, in order."""
    found = []
    for section in page.findall(nodes.section):
        title, *rest = section.children
        parts = [each.astext() for each in rest if not isinstance(each, nodes.section | nodes.raw | nodes.comment)]
        anchor = next((each for each in section["ids"] if "." not in each), section["ids"][0])  # it becomes a selector
        found.append((anchor, title.astext(), " ".join(" ".join(parts).split())))
    return found


def write(app: Sphinx, error: Exception | None) -> None:
    """All of them, as one script."""
    if error is None and app.builder.format == "html":
        texts = {name: sections(app.env.get_doctree(name)) for name in sorted(app.env.found_docs)}
        script = f"const TEXTS = {json.dumps(texts, ensure_ascii=False)};\n"
        (Path(app.outdir) / "_static" / "texts.js").write_text(script, encoding="utf-8")


def add_script(app: Sphinx, name: str, *_: object) -> None:
    """To the page of the search only."""
    if name == "search":
        app.add_js_file("texts.js")


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("html-page-context", add_script)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
