"""Every chapter keeps the house's order: the problem, a figure, the idea, what goes wrong, six questions,
exercises.

The notation's names are the code's, and the glossary is in order.
"""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.md"))


def headings(tokens, tag):
    return [after.content for each, after in pairwise(tokens) if (each.type, each.tag) == ("heading_open", tag)]


def section(tokens, title):
    """The tokens between a heading and the next."""
    starts = [i for i, each in enumerate(tokens) if each.type == "heading_open"]
    begin = next(i for i in starts if tokens[i + 1].content == title)
    return tokens[begin + 3 : next((i for i in starts if i > begin), None)]


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request):
    """A chapter's number, and its text as markdown reads it."""
    return request.param.stem[:2], MarkdownIt("commonmark").parse(request.param.read_text(encoding="utf-8"))


def test_a_chapter_keeps_the_order_of_the_house(chapter):
    number, tokens = chapter
    (title,) = headings(tokens, "h1")
    assert title.startswith(f"{number} · ")
    assert "minutes" in next(each.content for each in tokens[3:] if each.type == "inline"), "its time to read"
    first, idea, *_, wrong, questions, exercises = [*headings(tokens, "h2"), *["Exercises"] * (number == "10")]
    expected = ("The problem", "What goes wrong", "Six questions", "Exercises")  # the last chapter has none
    assert (first, wrong, questions, exercises) == expected
    assert idea.startswith("The idea")
    before = tokens[: next(i for i, each in enumerate(tokens) if each.content == "What goes wrong")]
    images = [child for each in before for child in each.children or () if child.type == "image"]
    assert any(image.attrs["src"].endswith(".svg") and image.content for image in images), "a figure, and its words"


def captions(tokens):
    """Of each drawing, the paragraph after it, or None if that is not all in italics."""
    for i, each in enumerate(tokens):
        if any(child.type == "image" and child.attrs["src"].endswith(".svg") for child in each.children or ()):
            after = next((other for other in tokens[i + 1 :] if other.type in ("inline", "fence", "html_block")), each)
            whole = after.content
            yield whole if after.type == "inline" and re.fullmatch(r"\*[^*]+(\*[^*]+\*[^*]+)*\*", whole) else None


def test_every_drawing_has_a_caption(chapter):
    _, tokens = chapter
    assert list(captions(tokens))
    assert all(captions(tokens)), "the paragraph after a drawing says, in *italics*, what is drawn"


def test_it_asks_six_questions_and_hides_the_answers(chapter):
    _, tokens = chapter
    asked = section(tokens, "Six questions")
    starts = [i for i, each in enumerate(asked) if each.type == "list_item_open" and each.level == 1]
    assert len(starts) == 6
    for begin, end in zip(starts, [*starts[1:], None]):
        question, *_ = [each.content for each in asked[begin:end] if each.type == "inline"]
        hidden = "".join(each.content for each in asked[begin:end] if each.type in ("html_block", "inline"))
        _, _, answer = hidden.removeprefix(question).partition("<summary>Answer</summary>")
        assert question.strip()
        assert re.sub("<[^>]+>", "", answer).strip()
        assert "</details>" in answer
        assert len(re.sub("<[^>]+>", "", answer).split()) >= 12, f"an answer without a reason: {question}"
    assert sum(each.content.startswith("*Compute.*") for each in asked if each.type == "inline") >= 2


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
