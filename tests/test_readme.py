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


def test_the_tables_are_those_of_the_committed_figures():
    tour = json.loads((ROOT / "docs/results/tour.json").read_text(encoding="utf-8"))
    for row in tour["stages"]:
        cells = [row["stage"], f"{row['tokens_per_second']:.1f}", f"{row['kv_bytes_per_token']:,}"]
        last = [f"{row['speedup_over_naive']:.1f}×", row["identical_to_naive"]]
        reused = f"{row['prompt_tokens_reused']} of {sum(prompt['tokens'] for prompt in tour['prompts'])}"
        assert f"| {' | '.join([*cells, reused, *last])} |" in TEXTS["README.md"]
        if row["stage"] in ("naive", "KV cache"):
            assert f"| {' | '.join(cells + last)} |" in TEXTS["chapters/01_kv_cache.md"]
    cases = json.loads((ROOT / "docs/results/bench_decode.json").read_text(encoding="utf-8"))["results"]
    for key, form in (("decode", "{:.1f}"), ("ratio", "{:.2f}×"), ("limit", "{:.0f}"), ("of_limit", "{:.0%}")):
        values = [
            c["over_transformers"] if key == "ratio" else c[key] if key in c else c["inference-opt"][key] for c in cases
        ]
        assert f"| {' | '.join(form.format(v) for v in values)} |" in TEXTS["chapters/01_kv_cache.md"]


def test_the_tables_of_radix_attention_are_those_of_the_committed_figures():
    text = TEXTS["chapters/03_radix_attention.md"]
    radix, prefix = (
        json.loads((ROOT / f"docs/results/bench_{name}.json").read_text(encoding="utf-8"))
        for name in ("radix", "prefix")
    )
    for workload, rows in radix["hit_rates"].items():
        for row in rows:
            cells = [row["policy"], *(f"{rate:.3f}" for rate in row["hit_rate"])]
            if workload == "trace":
                assert f"| {' | '.join(cells)} |" in text
            elif row["policy"] in ("LRU", "fading frequency", "odds", "Belady"):
                assert f"| {' | '.join([workload, *cells])} |" in text
    for name in ("inference-opt", "dictionary", "SGLang"):
        case = radix["speed"][name]
        rates = f"{case['match']:,.0f} | {case['insert']:,.0f}"
        assert f"| {name} | {rates} | {case['ours_over_match']:.1f}× | {case['ours_over_insert']:.1f}× |" in text
    first, *_, last = (f"{row['microseconds']:.1f} µs" for row in radix["scaling"])
    assert f"cached sequences take {first}, among 100,000 {last[:-3]}" in text
    trace = radix["workloads"]["trace"]
    assert f"Of {trace['distinct']:,} different blocks {trace['used_once']:,} come once" in text
    for row in prefix["results"]:
        cells = (
            f"{row['seconds']:.2f} | {row['tokens_per_second']:.1f} | {row['prefill_tokens']:,} | {row['ratio']:.1f}×"
        )
        assert f"| {row['name']} | {cells} |" in text
    overhead = prefix["results"][0]["overhead"]
    assert f"take {overhead:.1%} of a step" in TEXTS["chapters/04_continuous_batching.md"]
