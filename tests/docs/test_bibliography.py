"""All that is cited stands in the bibliography, with the places where it is; nothing else does."""

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
BOOK = runpy.run_path(str(DOCS / "bibliography.py"))
TEXT = BOOK["PAGE"].read_text(encoding="utf-8")


def test_the_bibliography_is_what_the_book_cites():
    assert BOOK["written"](TEXT) == TEXT, "run: python docs/bibliography.py"


def test_an_entry_that_is_missing_and_one_that_is_idle_are_named():
    with pytest.raises(ValueError, match=r"cited, but not in docs/bibliography.md: 2309\.06180$"):
        BOOK["written"](re.sub(r"^.*2309\.06180.*\n", "", TEXT, flags=re.MULTILINE))
    with pytest.raises(ValueError, match=r"cited nowhere: 0704\.00011$"):
        BOOK["written"](TEXT + "- Nobody, [Nothing](https://arxiv.org/abs/0704.00011)\n")


def test_a_citation_is_a_number_a_thread_or_a_link():
    text = """([a](https://arxiv.org/abs/2309.06180), 2405.04434), [t](https://github.com/a/b.c/pull/7), "d/e/issues/8";
    [s](https://github.com/a/b/blob/v1/f.py) and <https://example.org/x>. The loss is 2309.5, the rate 1234.56789."""
    assert BOOK["cited"](text) == {"2309.06180", "2405.04434", "a/b.c#7", "d/e#8", "https://example.org/x"}
