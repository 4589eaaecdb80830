"""The drawn figures are what today's code draws: `make figures` changes nothing."""

import io
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

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
    drawn = io.StringIO()
    draw().savefig(drawn, format="svg", metadata={"Date": None})
    committed = drawing(path.read_text(encoding="utf-8"))
    assert any("path" in each for each in committed)
    assert drawing(drawn.getvalue()) == committed, "say `make figures`"


def test_a_moved_point_and_another_word_are_seen():
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><!-- speed --><path id="a" d="M 1.004 2.5"/></svg>'
    same = svg.replace("1.004", "1.003").replace('id="a"', 'id="b"')
    assert drawing(svg) == drawing(same)
    assert drawing(svg) != drawing(svg.replace("2.5", "2.6"))
    assert drawing(svg) != drawing(svg.replace("speed", "memory"))
