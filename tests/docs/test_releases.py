"""Files of SGLang and vLLM are linked at one release each: the one that chapter 10 names, everywhere in the book."""

import re

import pytest

from tests.docs.test_chapters import CHAPTERS

TEXTS = {path.stem[:2]: path.read_text(encoding="utf-8") for path in CHAPTERS}
ENGINES = {"SGLang": "sgl-project/sglang", "vLLM": "vllm-project/vllm"}
SECTIONS = {
    number: part for number, text in TEXTS.items() for part in text.split("\n## ") if part.startswith("In 2026: ")
}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_link_is_to_the_release_that_chapter_10_names(engine):
    release = re.search(rf"\| {engine} \| ([\d.]+)", TEXTS["10"])[1]
    for number, text in TEXTS.items():
        linked = set(re.findall(rf"{ENGINES[engine]}/(?:blob|tree)/v([\d.]+)/", text))
        said = set(re.findall(rf"{engine} (\d+\.\d+\.\d+)", SECTIONS.get(number, "")))
        assert linked | said <= {release}, number


@pytest.mark.parametrize("number", SECTIONS)
def test_what_is_said_of_2026_has_a_file_to_read_and_a_date(number):
    assert re.search(r"/blob/v[\d.]+/\S+\.py\)", SECTIONS[number])
    assert re.search(r"\b2026-\d\d-\d\d\b", SECTIONS[number])


def test_the_chapters_on_a_technique_have_such_a_section():
    assert {"01", "02", "03", "04", "05", "06", "09"} <= SECTIONS.keys()
