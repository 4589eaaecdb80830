"""The text of the book, read by proselint and for words that docs/vocabulary.toml replaces.

Code, formulas and tables are not read.
"""

import re
import tomllib
from itertools import count
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from inference_opt.explain.exercises import EXERCISES
from inference_opt.explain.scenarios import SCENARIOS, play

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"bibliography.md", "exercises.md"}
PAGES = [
    path
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs/api").glob("*.md")),
        *sorted((ROOT / "chapters").glob("*.md")),
        *sorted((ROOT / "notebooks").glob("*.ipynb")),
    )
    if path.name not in GENERATED
]
VOCABULARY = tomllib.loads((ROOT / "docs/vocabulary.toml").read_text(encoding="utf-8"))
WORDS = {word: say for words in VOCABULARY.values() for word, say in words.items()}
MATH = re.compile(r"\$\$.*?\$\$|\$[^$\n]+?\$", flags=re.DOTALL)
# Checks of proselint that do not fit: straight quotes and "x" are the house's, "very" and a comparison are no mistakes.
OFF = ("typography.symbols", "weasel_words.very", "uncomparables")


def read(path):
    """The Markdown of a page, or of a notebook's cells but for its exercises, which come from the code."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, 4).cells
    return "\n\n".join(
        cell.source
        for cell in cells
        if cell.cell_type == "markdown" and "exercise" not in cell.metadata.get("tags", [])
    )


def prose(markdown):
    """(line, text) of each paragraph, heading and hidden answer, without code, formulas and tables."""
    plain = MATH.sub(lambda match: "X" + "\n" * match[0].count("\n"), markdown)
    in_table, names = False, count()  # a name for each piece of code, so that none seems to be repeated
    for token in MarkdownIt("commonmark").enable("table").parse(plain):
        in_table = token.type == "table_open" or (in_table and token.type != "table_close")
        text = ""
        if token.type == "html_block" and "<details>" in token.content:
            text = re.sub(r"<code>.*?</code>", "X", token.content, flags=re.DOTALL)
            text = re.sub(r"<[^>]+>", "", text)
        elif token.type == "inline" and not in_table:
            text = "".join(
                "\n" if "break" in each.type else f"X{next(names)}" if each.type == "code_inline" else each.content
                for each in token.children
                if each.type in ("text", "softbreak", "hardbreak", "code_inline")
            )
        if text.strip():
            yield token.map[0] + 1, text


def findings(text):
    """(offset, what) of each word that the house does not use."""
    for word, say in WORDS.items():
        for match in re.finditer(rf"\b(?:{word})(?:\b|(?<=\s))", text, flags=re.IGNORECASE):
            yield match.start(), f"{match[0]!r}: say {say}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_word_is_used_that_the_vocabulary_replaces(page):
    found = [
        f"line {line + text[:at].count(chr(10))}: {what}"
        for line, text in prose(read(page))
        for at, what in findings(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_player_says_no_word_that_the_vocabulary_replaces(name):
    trace = play(name)
    said = [trace.title, trace.about]
    for step in trace.steps:
        asked = step.get("question", {})
        reasons = [each for pair in (*asked.get("choices", ()), *asked.get("beliefs", ())) for each in pair]
        said += [step["text"], asked.get("ask", ""), asked.get("why", ""), *reasons]
        said += [*step["invariants"], *step["counters"]]
    assert not [(text, what) for text in map(str, said) for _, what in findings(text)]


@pytest.mark.parametrize("id", EXERCISES)
def test_exercises_say_no_word_that_the_vocabulary_replaces(id):
    exercise = EXERCISES[id]
    text = "\n".join((exercise.title, exercise.task, *exercise.hints))
    assert not [what for _, what in findings(re.sub(r"`[^`]+`", "X", text))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_proselint_has_nothing_to_say(page):
    tools = pytest.importorskip("proselint.tools", reason="proselint is not installed")
    registry = pytest.importorskip("proselint.registry")
    checks = pytest.importorskip("proselint.checks")
    if not registry.CheckRegistry().checks:
        registry.CheckRegistry().register_many(checks.__register__)
    found = [
        f"line {line + text[: each.check_result.span[0]].count(chr(10))}: {each.check_result.message}"
        for line, text in prose(read(page))
        for each in tools.LintFile("text", text).lint()
        if not each.check_result.check_path.startswith(OFF)
    ]
    assert not found, "\n".join(found)


def test_the_vocabulary_finds_its_words_and_no_part_of_a_word():
    assert [what for _, what in findings("The Law behind it")] == [
        "'Law': say distribution",
        "'behind': say after, given",
    ]
    assert [what for _, what in findings("some 250 pages")] == ["'some ': say about"]
    assert not list(findings("Lawful besides, some pages of a door in a flawless dearth"))
    for word in WORDS:
        re.compile(word)


def test_code_formulas_and_tables_are_not_read():
    text = "The law `behind` is $law$.\n\n```\nlaw\n```\n\n| law |\n|---|\n| behind |\n\n$$\nlaw\n$$\n\n- a law\n"
    assert [what for _, part in prose(text) for _, what in findings(part)] == ["'law': say distribution"] * 2
