"""The built site in a real browser, opened from disk: every page, the search, the way through the book, the players."""

import io
import re

import pytest
from PIL import Image

from inference_opt.explain.scenarios import SCENARIOS
from tests.docs.site import SITE, built, walk
from tests.explain.browser import launched, light, picture
from tests.explain.test_browser import COLOURS, serious

PAGES = [file for file in built() if file != SITE / "index.html"]  # which leads on to INDEX at once
LISTINGS = [file for file in PAGES if "_modules" in file.parts]  # source files, one like the other: the first will do
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


@pytest.mark.parametrize(
    "file", [file for file in PAGES if file not in LISTINGS[1:]], ids=lambda file: file.relative_to(SITE).as_posix()
)
def test_a_page_is_quiet_fits_a_telephone_and_shows_its_mathematics(show, file):
    page = show(file, viewport={"width": 400, "height": 800})
    if formulas := page.locator(".math").count():
        page.wait_for_function("window.MathJax?.startup?.promise !== undefined")
        page.evaluate("MathJax.startup.promise")
        assert page.locator("mjx-container svg").count() >= formulas
        assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    for each in page.locator(".stepped").all():
        each.locator(".player .scene svg").first.wait_for()
    for width in (400, 1100):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"


def test_search_finds_split(show):
    page = show(SITE / "search.html", "?q=split")
    page.locator("#search-results a[href*='03_radix_attention']").first.wait_for()


def test_search_names_the_section_shows_an_excerpt_and_ranks_what_explains_first(show):
    page = show(SITE / "search.html", "?q=block+verification")
    page.get_by_text("Search finished").wait_for()
    found = page.locator("#search-results li")
    chapters = [text[:2] for text in found.locator("a[href*='chapters/']").all_inner_texts()]
    assert {"06", "07"} == set(chapters[:2]), "the chapters that explain it"
    first = found.first
    assert " > " in first.locator("a").inner_text(), "the section that it leads to"
    assert "block verification" in first.locator("p.context").inner_text().lower()
    first.locator("a").click()
    page.wait_for_url("**/chapters/0*.html#*")


def overlaps(page, one, other):
    """Whether what the first selector finds covers what the second finds."""
    return page.evaluate(
        """([one, other]) => {
            const [a, b] = [one, other].map((each) => document.querySelector(each)?.getBoundingClientRect());
            return !!a?.width && a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
        }""",
        [one, other],
    )


def test_code_and_player_have_the_width_of_the_page(show):
    page = show(SITE / "chapters" / "03_radix_attention.html", viewport={"width": 1280, "height": 800})
    cut = page.evaluate(
        """() => [...document.querySelectorAll(".highlight pre")].filter((pre) => pre.scrollWidth > pre.clientWidth
            && pre.textContent.split("\\n").every((line) => line.length <= 120)).length"""
    )
    assert cut == 0, "120 columns of code fit"
    player = page.locator(".stepped").first
    scene, source = (player.locator(part).bounding_box() for part in (".scenes", "aside pre"))
    assert source["x"] >= scene["x"] + scene["width"], "the source stands beside the picture"
    assert source["y"] + source["height"] - player.bounding_box()["y"] <= 800, "and is seen with it"
    for by in (2000, -700):  # which brings up what leads back to the top
        page.evaluate(
            """by => new Promise((done) => {
                scrollBy({top: by, behavior: "instant"});
                requestAnimationFrame(() => requestAnimationFrame(done));  // each is seen as a scroll of its own
            })""",
            by,
        )
    page.wait_for_function("document.documentElement.classList.contains('show-back-to-top')")
    page.evaluate("document.querySelector('.stepped').scrollIntoView({behavior: 'instant'})")
    assert not overlaps(page, ".back-to-top", ".stepped")


def test_the_map_can_be_read_on_a_telephone_and_in_the_dark(show):
    page = show(INDEX, viewport={"width": 400, "height": 800}, color_scheme="dark")
    picture = page.locator("img[src$='map.svg']")
    scale = picture.evaluate("image => image.clientWidth / image.naturalWidth")
    svg = (SITE / "_images" / "map.svg").read_text(encoding="utf-8")
    sizes = [float(size) * 4 / 3 for size in re.findall(r"font-size: ([\d.]+)px", svg)]  # in points, whatever it says
    assert scale * min(sizes) >= 11
    for theme, is_dark in (("auto", True), ("light", False), ("dark", True)):  # the reader's system is dark
        page.evaluate("theme => document.body.dataset.theme = theme", theme)
        shown = Image.open(io.BytesIO(picture.screenshot())).convert("L")
        assert (shown.getpixel((shown.width // 2, 9)) < 60) == is_dark, theme
    scrolls = picture.evaluate("image => image.parentElement.scrollWidth > image.parentElement.clientWidth")
    assert scrolls, "what does not fit is moved, not made small"


def test_arrows_belong_to_the_player_under_the_pointer(show):
    page = show(INDEX)
    player = page.locator(".stepped").first
    page.keyboard.press("ArrowRight")
    assert player.locator(".where").inner_text().startswith("1 /"), "nothing was pointed at"
    player.locator(".sentence").hover()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")  # scrolls: only the arrows are taken from the page
    assert player.locator(".where").inner_text().startswith("2 /")
    page.locator("input[name=q]").first.focus()
    page.keyboard.press("ArrowRight")
    assert player.locator(".where").inner_text().startswith("2 /"), "who types keeps the arrows"


def test_next_and_previous_walk_the_whole_book(show):
    book = walk()
    assert [file for file in book if file in CHAPTERS] == CHAPTERS, "the chapters, in their order"
    assert {file for file in PAGES if file.parent.name == "notebooks"} <= set(book)
    page = show(book[0])
    for file in book[1:]:
        page.locator("a.next-page").click()
        page.wait_for_url(file.as_uri(), wait_until="commit")  # its pictures are looked at elsewhere
    page = show(book[-1], java_script_enabled=False)
    for file in reversed(book[:-1]):
        page.locator("a.prev-page").click()
        page.wait_for_url(file.as_uri(), wait_until="commit")


def test_a_first_split_is_stepped_through_in_three_clicks(show):
    page = show(SITE / "index.html")
    page.wait_for_url(INDEX.as_uri())
    player = page.locator("#step-diverging-insert")
    player.get_by_label("jump to").select_option("radix.split")  # two clicks by hand
    assert player.locator(".event").inner_text() == "radix.split"


PLAYERS = {file: [name for name in SCENARIOS if f'id="step-{name}"' in file.read_text("utf-8")] for file in CHAPTERS}


def test_every_scenario_is_in_a_chapter():
    assert {name for names in PLAYERS.values() for name in names} >= set(SCENARIOS)


@pytest.mark.parametrize("file", [file for file in CHAPTERS if PLAYERS[file]], ids=lambda file: file.stem)
def test_the_players_within_a_page_step_forward_and_back_to_the_same_pictures(show, file):
    page = show(file)
    for name in PLAYERS[file]:
        here = page.locator(f"#step-{name}")
        here.locator(".player").focus()
        last = int(here.locator(".where").inner_text().split("/")[1])
        seen = [picture(here)]
        for _ in range(min(last - 1, 12)):
            page.keyboard.press("ArrowRight")
            if here.locator(".question button").count():
                page.keyboard.press("Enter")
            seen.append(picture(here))
        assert len(set(map(tuple, seen))) == len(seen), "a key does something"
        others = [each for each in page.locator(".stepped .where").all_inner_texts() if not each.startswith("1 /")]
        assert len(others) == 1, "keys belong to one player"
        for before in reversed(seen[:-1]):
            page.keyboard.press("ArrowLeft")
            assert picture(here) == before
    assert all(text.startswith("1 /") for text in page.locator(".stepped .where").all_inner_texts())


@pytest.mark.parametrize("file", [INDEX, *CHAPTERS], ids=lambda file: file.stem)
def test_the_checker_of_accessibility_finds_nothing_serious_in_the_dark_and_in_the_light(show, file):
    page = show(file, color_scheme="dark")
    assert page.locator(".player.dark").count() == page.locator(".player").count()
    # It would fetch the style sheets, which no page on a disk may.
    assert serious(page, preload=False, **COLOURS) == []
    light(page)
    page.locator(".player.dark").first.wait_for(state="detached")  # players hear of it a moment later
    assert serious(page, preload=False) == []


def test_in_print_and_without_scripts_a_player_is_a_table(show):
    page = show(INDEX)
    assert not page.locator("table.told").is_visible()
    page.emulate_media(media="print")
    assert page.locator("table.told").is_visible()
    assert not page.locator(".sidebar-drawer").is_visible()
    assert show(INDEX, java_script_enabled=False).locator("table.told").is_visible()
