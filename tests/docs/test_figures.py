"""The drawn figures are what today's code draws: `make figures` changes nothing."""

import io
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "docs"))
import figures

DRAWN = [(figures.OUT / name, draw) for name, draw in figures.FIGURES.items()]
DRAWN += [(figures.OWN / name, draw) for name, draw in figures.DRAWINGS.items()]


@pytest.mark.parametrize(("path", "draw"), DRAWN, ids=lambda each: getattr(each, "name", ""))
def test_a_committed_figure_is_the_one_drawn(path, draw):
    drawn = io.StringIO()
    draw().savefig(drawn, format="svg", metadata={"Date": None})
    assert drawn.getvalue() == path.read_text(encoding="utf-8"), "say `make figures`"
