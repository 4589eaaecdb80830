"""The site that `make docs` has built; its tests need it, and say so where there is none."""

from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parents[2] / "build" / "site"


def built():
    """Its pages. Skips where there are none; `.ci/run` builds them first."""
    pages = sorted(SITE.rglob("*.html"))
    if not pages:
        pytest.skip("no site in build/site: make docs", allow_module_level=True)
    return pages


def walk():
    """The pages of the book in order, by the links to the next one, from the landing page on."""
    bs4 = pytest.importorskip("bs4", reason="the docs extra is not installed")
    page, seen = SITE / "docs" / "index.html", []
    while page not in seen:
        seen.append(page)
        link = bs4.BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select_one("a.next-page")
        if link is None:
            return seen
        page = (page.parent / link["href"]).resolve()
    raise AssertionError(f"next leads in a circle, back to {page}")
