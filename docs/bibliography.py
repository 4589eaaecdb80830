"""Writes where each entry of docs/bibliography.md is cited: python docs/bibliography.py. A test asks whether it is due.

An entry is a line `- WHAT · WHERE`; its first link names it. Papers are cited by arXiv number, in chapters,
notebooks, docstrings and two pages of docs/; threads and other addresses by a link. Links to the sources of the engines
that chapter 10 looks things up in are no citations.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "bibliography.md"
PAPER = re.compile(r"\b(\d\d(?:0[1-9]|1[0-2])\.\d{5})\b")
LINK = re.compile(r"https?://[^\s<>)\"\\`]+")
THREAD = re.compile(r"([\w-]+/[\w.-]+)/(?:issues|pull)/(\d+)")
ENTRY = re.compile(r"^- .*?\]\(([^)\s]+)\).*$", re.MULTILINE)


def key(link: str) -> str:
    """One name for what has several addresses: a thread is an issue and a pull request."""
    if thread := THREAD.search(link):
        return f"{thread[1]}#{thread[2]}"
    return link.removeprefix("https://arxiv.org/abs/").rstrip(".,;:")


def cited(text: str) -> set[str]:
    """What a text cites."""
    links = {link for link in LINK.findall(text) if "/blob/" not in link and not link.endswith((".com/", "/abs/"))}
    links -= {link for link in links if "git-lfs" in link or "{" in link}  # what files begin with, or code fills in
    threads = {f"{repository}#{number}" for repository, number in THREAD.findall(text)}
    return {key(link) for link in links} | threads | set(PAPER.findall(text))


def places() -> dict[str, list[str]]:
    """{what is cited: links to where, in the book's order}."""
    found: dict[str, list[str]] = {}

    def look(path: Path, text: str, name: str) -> None:
        for each in cited(text):
            found.setdefault(each, []).append(f"[{name}](../{path.relative_to(ROOT).as_posix()})")

    for path in sorted((ROOT / "chapters").glob("*.md")):
        look(path, path.read_text(encoding="utf-8"), path.stem[:2])
    for name in ("grammars", "samplers"):
        path = ROOT / "docs" / f"{name}.md"
        look(path, path.read_text(encoding="utf-8"), name)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        look(path, "\n".join("".join(cell["source"]) for cell in cells), f"notebook {path.stem[:2]}")
    package = ROOT / "refimpl" / "inference_opt"
    for path in sorted(package.rglob("*.py")):
        look(path, path.read_text(encoding="utf-8"), f"`{path.relative_to(package).as_posix()}`")
    return found


def written(text: str) -> str:
    """The page with every entry's places. ValueError for what is cited and has no entry, and the reverse."""
    where = places()
    entries = {key(entry[1]) for entry in ENTRY.finditer(text)}
    if missing := sorted(where.keys() - entries):
        raise ValueError(f"cited, but not in docs/bibliography.md: {', '.join(missing)}")
    if idle := sorted(entries - where.keys()):
        raise ValueError(f"in docs/bibliography.md, but cited nowhere: {', '.join(idle)}")

    def line(entry: re.Match[str]) -> str:
        said, _, _ = entry[0].partition(" · ")
        return f"{said} · {', '.join(where[key(entry[1])])}"

    return ENTRY.sub(line, text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
