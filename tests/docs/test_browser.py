"""The built site in a real browser, opened from disk: every page, the search, the way through the book, the players."""

import pytest

from inference_opt.explain.scenarios import SCENARIOS
from tests.docs.site import SITE, built, walk
from tests.explain.browser import launched
from tests.explain.test_browser import serious

PAGES = [file for file in built() if file != SITE / "index.html"]  # which leads on to INDEX at once
INDEX = SITE / "docs" / "index.html"
CHAPTERS = sorted((SITE / "chapters").glob("*.html"))


@pytest.fixture(scope="module")
def browser():
    with launched() as it:
        yield it


@pytest.fixture
def show(browser):
    """Opens a page of the site; at the end nothing has complained and nothing was asked for but files of the site."""
    contexts, said, asked = [], [], []

    def opened(file, query="", **options):
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri() + query)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((SITE.as_uri(), "data:", "blob:"))] == []


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.relative_to(SITE).as_posix())
def test_a_page_is_quiet_fits_a_telephone_and_shows_its_mathematics(show, file):
    page = show(file, viewport={"width": 400, "height": 800})
    if formulas := page.locator(".math").count():
        page.wait_for_function("window.MathJax?.startup?.promise !== undefined")
        page.evaluate("MathJax.startup.promise")
        assert page.locator("mjx-container svg").count() >= formulas
        assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    for each in page.locator(".stepped").all():
        each.locator(".player .scene svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400, "the page scrolls sideways"


def test_search_finds_split(show):
    page = show(SITE / "search.html", "?q=split")
    page.locator("#search-results a[href*='03_radix_attention']").first.wait_for()


def test_next_and_previous_walk_the_whole_book(show):
    book = walk()
    assert [file for file in book if file in CHAPTERS] == CHAPTERS, "the chapters, in their order"
    assert {file for file in PAGES if file.parent.name == "notebooks"} <= set(book)
    page = show(book[0])
    for file in book[1:]:
        page.locator("a.next-page").click()
        page.wait_for_url(file.as_uri())
    for file in reversed(book[:-1]):
        page.locator("a.prev-page").click()
        page.wait_for_url(file.as_uri())


def test_a_first_split_is_stepped_through_in_three_clicks(show):
    page = show(SITE / "index.html")
    page.wait_for_url(INDEX.as_uri())
    player = page.locator("#step-diverging-insert")
    player.get_by_label("jump to the next step of an event").select_option("radix.split")  # two clicks by hand
    assert player.locator(".event").inner_text() == "radix.split"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_player_within_its_page_steps_forward_and_back_to_the_same_picture(show, name):
    marker = f'id="step-{name}"'
    file = next(file for file in CHAPTERS if marker in file.read_text(encoding="utf-8"))
    page = show(file)
    here = page.locator(f"#step-{name}")
    here.locator(".player").focus()

    def picture():
        return [here.locator(part).inner_html() for part in ("div.told", ".scenes", "aside")]

    last = int(here.locator(".where").inner_text().split("/")[1])
    seen = [picture()]
    for _ in range(min(last - 1, 12)):
        page.keyboard.press("ArrowRight")
        if here.locator(".question button").count():
            page.keyboard.press("Enter")
        seen.append(picture())
    assert len(set(map(tuple, seen))) == len(seen), "a key does something"
    for before in reversed(seen[:-1]):
        page.keyboard.press("ArrowLeft")
        assert picture() == before
    others = [each.inner_text() for each in page.locator(".stepped .where").all()]
    assert all(text.startswith("1 /") for text in others), "keys belong to one player"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("file", [INDEX, *CHAPTERS], ids=lambda file: file.stem)
def test_the_checker_of_accessibility_finds_nothing_serious(show, file, theme):
    page = show(file, color_scheme=theme)
    assert page.locator(".player.dark").count() == (page.locator(".player").count() if theme == "dark" else 0)
    assert serious(page, preload=False) == []  # it would fetch the style sheets, which no page on a disk may


def test_in_print_and_without_scripts_a_player_is_a_table(show):
    page = show(INDEX)
    assert not page.locator("table.told").is_visible()
    page.emulate_media(media="print")
    assert page.locator("table.told").is_visible()
    assert not page.locator(".sidebar-drawer").is_visible()
    assert show(INDEX, java_script_enabled=False).locator("table.told").is_visible()
