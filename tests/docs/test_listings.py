"""The excerpts in the chapters are those of the source, and short; the changes that the chapters show are real."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from inference_opt.experiment.results import Results
from inference_opt.sampling import Noise
from inference_opt.speculative.rules import token_wise

sys.path.append(str(Path(__file__).resolve().parents[2] / "docs"))
import listings

ROOT = listings.ROOT
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in listings.PAGES}
CHAPTERS = ROOT / "chapters"
SHOWN = "<!-- listing: {} -->\n{}<!-- /listing -->\n"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "a.py").write_text(
        'class A:\n    @wraps\n    def f(self, n):\n        """First.\n\n        Second.\n        """\n'
        '        n = integer("n", n)\n        # Why.\n        if n < 0:\n            raise ValueError(n)\n'
        '        for each in n:\n            if each:\n                raise ValueError\n        emit("f", self)\n'
        "        # [part]\n        n += 1\n        # [/part]\n        n *= 2\n        # [part]\n        return n\n"
        "        # [/part]\n\n\ndef g():\n    try:\n        return 1\n    except OSError as error:\n"
        "        if error:\n            raise ValueError from error\n"
    )
    (tmp_path / "b.py").write_text("def g():\n    try:\n        return 2\n    finally:\n        pass\n")
    (tmp_path / "c.v").write_text("(* [law] *)\nTheorem law : True.\n(* [/law] *)\n")
    (tmp_path / "long.py").write_text("# [long]\n" + "a = 1\n" * 26 + "# [/long]\n")
    return tmp_path


@pytest.mark.parametrize("page", TEXTS)
def test_the_listings_are_those_of_the_source(page):
    assert listings.fill(TEXTS[page], CHAPTERS) == TEXTS[page], "say `make listings`"


def test_no_page_shows_a_directive():
    """GitHub would show it, and no code."""
    pages = {page for page, text in TEXTS.items() if "{literalinclude}" in text}
    assert not pages


def test_every_player_has_a_still_for_where_nothing_plays():
    screens = pytest.importorskip("screens", reason="playwright is not installed")
    for page, text in (TEXTS | {"index.md": (ROOT / "docs/index.md").read_text(encoding="utf-8")}).items():
        for name in re.findall(r"<!-- step: (\S+) -->\n(?!<picture>)", text):
            raise AssertionError(f"{page} has no still of {name}")
        for name, still in re.findall(r"<!-- step: (\S+) -->\n<picture>.*?figures/(\w+)_dark\.png", text, re.DOTALL):
            assert screens.SHOTS[still][0] == name
            assert f"`inference-opt step {name} " in text or f"`{name}`" in text, "how to step through it"


def test_a_listing_is_the_essence(source):
    assert listings.excerpt(source / "a.py", "A.f").splitlines() == [
        "@wraps",
        "def f(self, n):",
        '    """First."""',
        "    n += 1",
        "    n *= 2",
        "    return n",
    ]
    assert listings.excerpt(source / "a.py", "part") == "n += 1\n# …\nreturn n"
    assert "raise ValueError from error" in listings.excerpt(source / "a.py", "g"), "this is no check of arguments"
    assert listings.listing("c.v law", source) == "```coq\nTheorem law : True.\n```\n\nWhole file: [`c.v`](c.v)"


def test_a_change_is_the_second_excerpt_where_the_first_is_undone(source):
    shown = listings.listing("a.py g to b.py g", source)
    lines = re.search(r"```diff\n(.*?)\n```", shown, re.DOTALL)[1].splitlines()
    for sign, file in (("-", "a.py"), ("+", "b.py")):
        side = [line[1:] for line in lines if line[:1] in (sign, " ")]
        assert side == listings.excerpt(source / file, "g").splitlines()
    assert shown.endswith("Whole file: [`a.py`](a.py), [`b.py`](b.py)")


def test_whatever_stood_there_is_written_over(source):
    text = "Before.\n\n" + SHOWN.format("c.v law", "stale\n") + "\nAfter.\n"
    filled = listings.fill(text, source)
    assert "stale" not in filled
    assert filled.startswith("Before.\n\n<!-- listing: c.v law -->\n```coq\n")
    assert filled.endswith("\n<!-- /listing -->\n\nAfter.\n")
    assert listings.fill(filled, source) == filled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SHOWN.format("long.py long", ""), r"long\.py long: 26 lines, of 25 at most"),
        (SHOWN.format("a.py A.h", ""), r"a\.py has no A\.h"),
        ("<!-- listing: c.v law -->\n", "opened and not closed"),
        ("<!-- /listing -->\n", "closed and not opened"),
        ("<!-- listing: c.v law -->\n" + SHOWN.format("c.v law", ""), "opened and not closed"),
    ],
)
def test_what_cannot_be_written_is_refused(source, text, message):
    with pytest.raises(ValueError, match=message):
        listings.fill(text, source)


# The changes that are written in a chapter itself, as a block `diff`: both sides run.


def sides(chapter):
    """The code before and after of the one change in a chapter that is not a listing."""
    (page,) = (name for name in TEXTS if name.startswith(chapter))
    text = re.sub(r"<!-- listing: .*?<!-- /listing -->", "", TEXTS[page], flags=re.DOTALL)
    (change,) = re.findall(r"^```diff\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    both = []
    for sign in "-+":
        code = "\n".join(line[1:] for line in change.splitlines() if line[:1] in (sign, " "))
        scope = {"np": np, "math": math, "token_wise": token_wise}
        exec(compile(code, page, "exec"), scope)
        both.append(
            next(value for name, value in scope.items() if name in ("draw", "next_to_admit", "generate", "effect"))
        )
    return both, " ".join(text.split())


def test_chapter_00_a_race_draws_the_same_token_from_similar_distributions():
    draws, text = sides("00")
    p = np.full(10, 0.1)
    q = np.array([0.05, *p[:8], 0.15])
    n, found = 20_000, []
    uneven = np.array([0.5, 0.3, 0.2])
    for draw in draws:
        counts = np.bincount([draw(uneven, np.random.default_rng(seed)) for seed in range(n)])
        assert counts / n == pytest.approx(uneven, abs=0.015)
        seen = [(draw(p, np.random.default_rng(seed)), draw(q, np.random.default_rng(seed))) for seed in range(n)]
        for side, distribution in zip(zip(*seen), (p, q)):
            assert np.bincount(side, minlength=10) / n == pytest.approx(distribution, abs=0.015)
        found.append(np.mean([a == b for a, b in seen]))
    # Inverting: where the intervals of a token overlap. A race: x wins both against every y.
    ends = np.cumsum(p), np.cumsum(q)
    overlap = np.minimum(*ends) - np.maximum(ends[0] - p, ends[1] - q)
    race = sum(1 / np.maximum(p / p[x], q / q[x]).sum() for x in range(10))
    assert found == pytest.approx([overlap.sum(), race], abs=0.015)
    best = np.minimum(p, q).sum()
    assert f"inverting gives the same token in {overlap.sum():.0%} of all draws" in text
    assert f"The race gives the same token in {race:.0%}. No method can exceed {best:.0%}." in text


def test_chapter_04_the_longest_prefix_first_finds_more():
    choices, text = sides("04")
    found = []
    for choose in choices:
        waiting = [type("Request", (), {"arrival": i, "document": "ABC"[i % 3]}) for i in range(12)]
        last, hits = None, 0
        while waiting:
            request = choose(waiting, lambda each, last=last: 100 * (each.document == last))
            waiting.remove(request)
            hits, last = hits + (request.document == last), request.document
        found.append(hits)
    assert found == [0, 9]
    assert "no request finds its document. With the longest prefix first, nine of the twelve do." in text


def test_chapter_06_drafts_change_the_number_of_readings_and_not_the_text():
    (plain, drafted), _ = sides("06")

    def model(text):  # greedy: all of the distribution is on one token
        return np.eye(5)[sum(text[-3:]) * 7 % 5]

    def target(text, count):
        readings.append(count)
        return [model(text[: len(text) - i]) for i in reversed(range(count))]

    def drafter(text, gamma):  # right, but for each seventh token
        for _ in range(gamma):
            text = [*text, (int(model(text).argmax()) + (len(text) % 7 == 0)) % 5]
        return text[-gamma:], [np.eye(5)[x] for x in text[-gamma:]]

    texts, steps = [], []
    for generate in (plain, drafted):
        readings = []
        texts.append(generate(target, drafter, [1, 2, 4], 60, lambda position: Noise(3, position), 4))
        steps.append(len(readings))
    assert texts[0] == texts[1]
    assert steps[0] == 57
    assert steps[1] <= 57 / 3


def test_chapter_09_an_effect_is_a_mean_over_all_other_combinations():
    both, text = sides("09")
    study = Results.read(ROOT / "docs/results/ablation.json")
    rows = [row for row in study.rows() if row["workload"] == "editing"]
    rate = {frozenset(name for name in study.techniques if row[name]): row["tokens_per_second"] for row in rows}
    one, mean = (effect("speculative_decoding", rate) for effect in both)
    assert mean == pytest.approx(study.effects()["editing"]["speculation"])
    assert f"plain decoding {one:.2f} times as fast on the workload *editing*" in text
    assert f"its effect over all pairs is {mean:.2f}" in text
