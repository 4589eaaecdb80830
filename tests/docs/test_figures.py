"""The drawn figures are what today's code draws, and all their words can be read, on light and on dark pages."""

import io
import itertools
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.colors as colours
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from inference_opt.options import DARK, svg
from tests.explain.browser import launched

sys.path.append(str(Path(__file__).resolve().parents[2] / "docs"))
import figures

DRAWN = [(figures.OUT / name, draw) for name, draw in figures.FIGURES.items()]
DRAWN += [(figures.OWN / name, draw) for name, draw in figures.DRAWINGS.items()]
SEEN = ("d", "style", "transform", "x", "y", "width", "height", "points", "viewBox")


def drawing(svg):
    """All that is drawn, in order: shapes to a hundredth of a point, and words. Not names, glyphs and versions."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))

    def walk(element):
        if element.tag is ElementTree.Comment:
            yield element.text  # matplotlib writes a text's words before the glyphs
            return
        tag = element.tag.rpartition("}")[2]
        if tag in ("metadata", "defs", "use"):
            return
        yield (
            tag,
            *(re.sub(r"-?\d+\.\d+", rounded, element.get(name, "")) for name in SEEN),
            (element.text or "").strip(),
        )
        for child in element:
            yield from walk(child)

    return list(walk(ElementTree.fromstring(svg, parser)))


def rounded(number):
    return f"{float(number[0]):.2f}"


@pytest.mark.parametrize(("path", "draw"), DRAWN, ids=lambda each: getattr(each, "name", ""))
def test_a_committed_figure_is_the_one_drawn(path, draw):
    committed = drawing(path.read_text(encoding="utf-8"))
    assert any("path" in each for each in committed)
    assert drawing(svg(draw())) == committed, "say `make figures`"


def test_every_committed_figure_is_drawn_here():
    assert {path for folder in (figures.OUT, figures.OWN) for path in folder.glob("*.svg")} == {
        path for path, _ in DRAWN
    }


def test_a_moved_point_and_another_word_are_seen():
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><!-- speed --><path id="a" d="M 1.004 2.5"/></svg>'
    same = svg.replace("1.004", "1.003").replace('id="a"', 'id="b"')
    assert drawing(svg) == drawing(same)
    assert drawing(svg) != drawing(svg.replace("2.5", "2.6"))
    assert drawing(svg) != drawing(svg.replace("speed", "memory"))


def turned(rgb):
    """A colour as `DARK` shows it: CSS's invert(.92), then its hue-rotate(180deg) (Filter Effects 1, 8.5 and 8.7)."""
    assert "invert(.92) hue-rotate(180deg)" in DARK
    grey = np.array([0.213, 0.715, 0.072])
    return np.clip((2 * np.ones((3, 1)) * grey - np.eye(3)) @ (0.92 + (1 - 2 * 0.92) * rgb), 0, 1)


def contrast(one, other):
    """Of two colours (WCAG 2.2, 1.4.3)."""

    def luminance(rgb):
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def over(below, above):
    """A colour with an alpha, laid over another."""
    *rgb, alpha = colours.to_rgba(above)
    return alpha * np.array(rgb) + (1 - alpha) * below


def behind(text, figure):
    """The colour behind the middle of a text: white, the patches that lie there, and the cell of an image."""
    middle = np.mean(text.get_window_extent().get_points(), axis=0)
    colour = np.ones(3)
    patches = [patch for axes in figure.axes for patch in axes.patches]
    for patch in sorted(patches, key=lambda patch: patch.get_zorder()):
        if patch.get_visible() and patch.get_fill() and patch.get_window_extent().contains(*middle):
            colour = over(colour, patch.get_facecolor())
    for axes in figure.axes:
        for image in axes.images:
            if image.get_window_extent().contains(*middle):
                column, row = np.rint(axes.transData.inverted().transform(middle)).astype(int)
                colour = over(colour, image.to_rgba(image.get_array())[row, column])
    return colour


@pytest.mark.parametrize(("path", "draw"), DRAWN, ids=lambda each: getattr(each, "name", ""))
def test_every_word_stands_out_on_light_and_on_dark_pages(path, draw):
    figure = draw()
    FigureCanvasAgg(figure).draw()
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            ink, paper = np.array(colours.to_rgb(text.get_color())), behind(text, figure)
            assert contrast(ink, paper) >= 4.5, text
            assert contrast(turned(ink), turned(paper)) >= 4.5, text


@pytest.mark.parametrize("path", [path for path, _ in DRAWN], ids=lambda path: path.name)
def test_a_figure_is_dark_on_a_dark_page(path):
    assert DARK in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [path for path, _ in DRAWN if path.name != "map.svg"], ids=lambda path: path.name)
def test_every_word_is_large_enough_on_a_telephone(path):
    """A figure is made as narrow as the screen on GitHub, and moved on the site, as the map is wherever it is shown."""
    drawn = path.read_text(encoding="utf-8")
    width = float(re.search(r'<svg [^>]*?width="([\d.]+)pt"', drawn)[1])
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: [^;\"]*?([\d.]+)px", drawn)]  # in points
    assert min(sizes) * min(4 / 3, 400 / width) >= 7


@pytest.mark.parametrize(("path", "draw"), DRAWN, ids=lambda each: getattr(each, "name", ""))
def test_no_word_is_cut_off_or_lies_on_another(path, draw, monkeypatch):
    words, plain = [], Text.draw

    def noted(text, renderer):
        if text.get_visible() and text.get_text().strip():
            words.append(text)
        plain(text, renderer)

    figure = draw()
    monkeypatch.setattr(Text, "draw", noted)
    FigureCanvasAgg(figure).draw()
    boxes = [(text.get_text(), text.get_window_extent(), text.get_rotation() % 90) for text in words]
    sheet = figure.bbox.padded(1)
    assert [word for word, box, _ in boxes if not (sheet.contains(*box.min) and sheet.contains(*box.max))] == []
    pairs = itertools.combinations(boxes, 2)  # the boxes of two that are slanted overlap where they do not
    assert [(a[0], b[0]) for a, b in pairs if a[1].overlaps(b[1]) and not (a[2] and b[2])] == []


def test_a_figure_follows_the_scheme_of_its_page(tmp_path):
    page = '<body style="margin: 0"><img src="{}" style="color-scheme: {}">'
    seen = {}
    with launched() as browser:
        for system in ("light", "dark"):
            for scheme in ("light", "dark", "light dark"):
                shown = browser.new_page(color_scheme=system)
                (tmp_path / "page.html").write_text(page.format((figures.OUT / "01_cache.svg").as_uri(), scheme))
                shown.goto((tmp_path / "page.html").as_uri())
                corner = {"x": 0, "y": 0, "width": 1, "height": 1}
                pixel = Image.open(io.BytesIO(shown.screenshot(clip=corner))).convert("RGB").getpixel((0, 0))
                seen[system, scheme] = {(255, 255, 255): "light", (20, 20, 20): "dark"}[pixel]
    assert seen == {(system, scheme): scheme if " " not in scheme else system for system, scheme in seen}
