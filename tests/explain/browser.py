"""A real browser for tests: Debian's chromium, driven by playwright; every request and complaint is noted."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def launched():
    """A browser. Skips where playwright or chromium is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
    if CHROMIUM is None:
        pytest.skip("no chromium on the path: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser, file, hash="", **options):
    """A page on an HTML file, which may not complain and may ask for nothing but itself."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: asked.append(request.url))
    address = Path(file).as_uri()
    page.goto(address + hash)
    try:
        yield page
        assert said == [], said
        assert {url.split("#")[0] for url in asked} == {address}
    finally:
        context.close()


def where(page):
    """Which step is shown, from 1."""
    return int(page.locator(".where").inner_text().split("/")[0])


def picture(shown):
    """All that a step shows on a page, or in one player of it."""
    parts = shown.locator("div.told, .scenes, aside").evaluate_all("parts => parts.map((part) => part.innerHTML)")
    assert len(parts) == 3
    return parts


def light(page):
    """A page that was loaded in the dark, in the light."""
    page.emulate_media(color_scheme="light")
    page.evaluate("Promise.all(document.getAnimations().map((each) => each.finished))")  # between two colours
