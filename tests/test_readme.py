"""The README and the chapters say only what is true: commands parse, links and code markers exist, examples run."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from inference_opt.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "chapters").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands():
    lines = [line for text in TEXTS.values() for block in blocks(text, "sh") for line in block.splitlines()]
    inline = [code for text in TEXTS.values() for code in re.findall(r"`(inference-opt [^`]+|make [^`]+)`", text)]
    return sorted({re.sub(r"^\S*bin/|^[A-Z_]+=\S+ ", "", line.split("  #")[0].strip()) for line in lines + inline})


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("inference-opt ")])
def test_every_command_shown_is_one_that_parses(command):
    group, words = typer.main.get_command(app), shlex.split(command)[1:]
    context = group.make_context("inference-opt", list(words), resilient_parsing=True)
    while hasattr(group, "resolve_command"):
        name, group, words = group.resolve_command(context, words)
        context = group.make_context(name, list(words), parent=context, resilient_parsing=hasattr(group, "commands"))


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_every_make_target_shown_exists(command):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_code_markers_exist(page):
    folder, text = (ROOT / page).parent, TEXTS[page]
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("https://") or (folder / target).exists(), target
    for target, options in re.findall(r"```\{literalinclude\} (\S+)\n(.*?)```", text, flags=re.DOTALL):
        source = (folder / target).read_text(encoding="utf-8")
        markers = re.findall(r'"((?:# |\(\* )\[.*?\](?: \*\))?)"', options)
        assert len(markers) == options.count(":start-after:") + options.count(":end-before:")
        for marker in markers:
            assert source.count(f"{marker}\n") == 1, f"{target} has no single {marker}"


def test_the_examples_run(smollm2_path):
    for example in blocks(TEXTS["README.md"], "python"):
        exec(compile(example, "README.md", "exec"), {})


def test_figures_quoted_in_the_text_are_those_of_the_committed_runs():
    radix, prefix = (
        json.loads((ROOT / f"docs/results/bench_{name}.json").read_text(encoding="utf-8"))
        for name in ("radix", "prefix")
    )
    text = TEXTS["chapters/03_radix_attention.md"]
    first, *_, last = (f"{row['microseconds']:.1f} µs" for row in radix["scaling"])
    assert f"cached sequences take {first}, among 100,000 {last[:-3]}" in text
    trace = radix["workloads"]["trace"]
    assert f"Of {trace['distinct']:,} different blocks {trace['used_once']:,} come once" in text
    overhead = prefix["results"][0]["overhead"]
    assert f"take {overhead:.1%} of a step" in TEXTS["chapters/04_continuous_batching.md"]
