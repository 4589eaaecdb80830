"""The tables in the README and the chapters are those of docs/results, every one: `make tables` changes nothing."""

import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "docs"))
import sizes
import tables

TEXTS = {page.name: page.read_text(encoding="utf-8") for page in tables.PAGES}


@pytest.mark.parametrize("page", TEXTS)
def test_the_tables_are_those_of_the_committed_figures(page):
    assert tables.fill(TEXTS[page]) == TEXTS[page], "say `make tables`"


def test_every_table_stands_somewhere_once():
    names = re.findall(r"<!-- ([A-Z0-9_]+) -->", "".join(TEXTS.values()))
    assert sorted(names) == sorted(tables.WRITERS)


@pytest.mark.parametrize("page", TEXTS)
def test_a_marker_has_a_line_of_its_own(page):
    """Markdown would take the rest of the line for HTML."""
    assert re.findall(r"^.*<!-- /?[A-Z0-9_]+ -->.+$|^.+<!-- /?[A-Z0-9_]+ -->.*$", TEXTS[page], flags=re.MULTILINE) == []


@pytest.mark.parametrize("name", tables.WRITERS)
def test_whatever_stood_there_is_written_over(name):
    text = f"Before.\n\n<!-- {name} -->\n| stale text |\n|---|\n| 0 |\n<!-- /{name} -->\n\nAfter.\n"
    filled = tables.fill(text)
    assert filled.startswith(f"Before.\n\n<!-- {name} -->\n")
    assert filled.endswith(f"\n<!-- /{name} -->\n\nAfter.\n")
    assert "stale text" not in filled
    assert tables.fill(filled) == filled


def test_markers_that_nobody_writes_or_that_stay_open_are_refused():
    with pytest.raises(ValueError, match=r"no function of .* writes NOBODY"):
        tables.fill("<!-- NOBODY -->\n<!-- /NOBODY -->\n")
    for text in ("<!-- TOUR -->\n| a |\n", "| a |\n<!-- /TOUR -->\n"):
        with pytest.raises(ValueError, match="TOUR"):
            tables.fill(text)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(AssertionError, match="longer or shorter"):
        tables.grid(["a", "b"], [["1"]])


def test_lines_of_code_are_those_that_do_something():
    said = '"""What it is.\n\nAnd more."""\n\nfrom a import (\n    b,\n)\n\n# A remark.\n'
    done = 'x = (\n    b(),  # called\n)\ny = """\n\n"""\n'
    assert sizes.code_lines(said) == 0
    assert sizes.code_lines(said + done) == 6
