"""The built site, read as files: no link leads nowhere, no picture is without words, nothing comes from elsewhere."""

import sys
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

import inference_opt
from inference_opt.explain.scenarios import SCENARIOS
from tests.docs.site import SITE, built

sys.path.append(str(Path(__file__).resolve().parents[2] / "docs"))
import markers

bs4 = pytest.importorskip("bs4", reason="the docs extra is not installed")
PAGES = built()
PARTS = {"script": "src", "img": "src", "iframe": "src", "source": "srcset", "video": "src", "object": "data"}


@cache
def soup(page):
    return bs4.BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(page):
    return {tag["id"] for tag in soup(page).find_all(id=True)}


@pytest.fixture(scope="module", autouse=True)
def _pages_are_forgotten():
    yield
    for each in (soup, anchors):
        each.cache_clear()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(SITE).as_posix())
def test_links_lead_somewhere_and_pictures_have_words(page):
    for link in soup(page).find_all("a", href=True):
        address, _, anchor = link["href"].partition("#")
        if address.startswith(("https://", "http://", "mailto:")):
            continue
        target = (page.parent / unquote(address.partition("?")[0])).resolve() if address else page
        assert target.is_file(), f"{link['href']} leads nowhere"
        if anchor and target.suffix == ".html":
            assert unquote(anchor) in anchors(target), f"{link['href']}: no such place on that page"
    for image in soup(page).find_all("img"):
        assert image.get("alt", "").strip(), f"a picture without words: {image.get('src', '')[:80]}"
    for picture in soup(page).find_all("svg", role="img"):
        assert picture.get("aria-label") or picture.find("title"), "a drawing without words"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(SITE).as_posix())
def test_nothing_comes_from_elsewhere(page):
    needed = [(tag, tag.get(PARTS[tag.name])) for tag in soup(page).find_all(list(PARTS))]
    needed += [(tag, tag["href"]) for tag in soup(page).find_all("link", href=True) if tag["href"] != "#"]
    for tag, address in needed:
        if address and not address.startswith("data:"):
            assert "//" not in address, f"from elsewhere: {tag}"
            assert (page.parent / unquote(address.split("?")[0].split("#")[0])).resolve().is_file(), f"missing: {tag}"


def test_no_style_sheet_asks_for_another():
    for sheet in SITE.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert "url(http" not in text, sheet
        assert "url(//" not in text, sheet
        assert "@import" not in text, sheet


def test_every_scenario_is_played_somewhere_and_every_page_has_one_player():
    played = set()
    for page in PAGES:
        here = {tag["id"].removeprefix("step-") for tag in soup(page).select(".stepped")}
        played |= here
        scripts = [tag for tag in soup(page).find_all("script", src=True) if "player.js" in tag["src"]]
        assert len(scripts) == bool(here), page
    assert played == set(SCENARIOS)


def test_every_module_is_in_the_reference():
    root = Path(__file__).resolve().parents[2] / "refimpl" / "inference_opt"
    known = {
        anchor.removeprefix("module-") for page in (SITE / "docs" / "api").glob("*.html") for anchor in anchors(page)
    }
    for path in root.rglob("*.py"):
        parts = [part for part in path.relative_to(root.parent).with_suffix("").parts if part != "__init__"]
        if ".".join(parts) not in {"inference_opt", "inference_opt.cli"}:
            assert ".".join(parts) in known, f"docs/api/ leaves out {'.'.join(parts)}"


def documented(page):
    """The names that a page of the reference documents, in order."""
    return [tag["id"] for tag in soup(SITE / "docs" / "api" / page).select("dt.sig[id]")]


def test_the_reference_opens_with_what_is_imported():
    first = soup(SITE / "docs" / "api" / "index.html").select_one(".toctree-wrapper a")
    assert first["href"] == "import.html"
    names = [name.removeprefix("inference_opt.") for name in documented("import.html")]
    assert {name for name in names if "." not in name} == set(inference_opt.__all__)


def test_the_engine_comes_before_what_it_is_made_of():
    assert documented("engine.html")[0] == "inference_opt.engine.engine.Engine"
    assert documented("radix.html")[0].startswith("inference_opt.radix.tree.")


def test_a_built_ins_docstring_is_not_shown():
    assert markers.foreign(None, "module", "get", ContextVar("depth").get, False, None), "it would be"
    assert markers.foreign(None, "module", "built", built, False, None) is None
    for page in (SITE / "docs" / "api").glob("*.html"):
        assert "for the current context" not in soup(page).text, page.name
