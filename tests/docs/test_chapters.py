"""Every chapter keeps the house's order: the problem, a figure, the idea, what goes wrong, three questions.

The notation's names are the code's, and the glossary is in order.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.md"))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_keeps_the_order_of_the_house(path):
    text = path.read_text(encoding="utf-8")
    assert re.match(rf"# {path.stem[:2]} · .+\n\n\*[A-Z][a-z-]+ minutes\b", text), "its number, and its time to read"
    first, idea, *_, wrong, questions = re.findall(r"^## (.+)", text, flags=re.MULTILINE)
    assert (first, wrong, questions) == ("The problem", "What goes wrong", "Three questions")
    assert idea.startswith("The idea")
    assert re.search(r"^!\[.+\]\(figures/\d\d_\w+\.svg\)", text.partition("## What")[0], flags=re.MULTILINE)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_it_asks_three_questions_and_hides_the_answers(path):
    asked = path.read_text(encoding="utf-8").partition("\n## Three questions\n")[2]
    assert re.findall(r"^(\d)\. \S", asked, flags=re.MULTILINE) == ["1", "2", "3"]
    answers = re.findall(
        r"^   <details><summary>Answer</summary>\n(.+?)\n   </details>$", asked, re.DOTALL | re.MULTILINE
    )
    assert len(answers) == 3
    assert all(answer.strip() for answer in answers)


def test_names_in_the_notation_are_names_in_the_code():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "refimpl").rglob("*.py"))
    names = re.findall(r"`([\w.]+)`", (ROOT / "docs" / "notation.md").read_text(encoding="utf-8"))
    assert len(names) > 20
    assert [name for name in names if not re.search(rf"\b{re.escape(name)}\b", code)] == []


def test_the_glossary_is_in_order_and_leads_to_where_each_word_is_made():
    entries = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").split("\n- ")[1:]
    words = [re.match(r"\*\*(.+?)\*\*", entry)[1].casefold() for entry in entries]
    assert words == sorted(words)
    assert all(re.search(r"\]\(\S+\.md", entry) or "see *" in entry for entry in entries)
