"""The README and the chapters say only what is true: commands parse, links lead somewhere, examples run."""

import inspect
import io
import itertools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
import typer

from inference_opt.cli import app, main
from inference_opt.exercises import solution
from inference_opt.lab.bench import machine, radix, workloads
from inference_opt.loading.download import MODELS
from inference_opt.loading.prompts import load_prompts

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "chapters").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(text):
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    inline = re.findall(r"`(inference-opt [^`]+|make [^`]+)`", text)
    return sorted({re.sub(r"^\S*bin/|^[A-Z_]+=\S+ ", "", line.split("  #")[0].strip()) for line in lines + inline})


SHOWN = commands("\n".join(TEXTS.values()))
README = commands(TEXTS["README.md"])

# What a command of the README is given besides, so that a test of it takes seconds.
SMALLER = {
    "generate": "--max-new-tokens 4",
    "ablate prompts.jsonl": "--technique radix_attention --metric throughput --max-new-tokens 2 --repeats 1",
    "ablate": "chat --dtype bfloat16 --technique mla --metric throughput --requests 1 --max-new-tokens 2 --repeats 1 "
    "-o ablation",
    "bench decode": "--batch 1 --dtype float32 --new-tokens 2 --repeats 1 --no-peer",
    "bench prefix": "--requests 2 --stem 40 --new-tokens 2 --repeats 1 --no-peer",
    "bench radix": "--capacity 50 --repeats 1",
    "bench speculative": "--task chat --drafter n-gram --prompts 1 --new-tokens 4 --repeats 1 --no-peer",
    "bench drafts": "--task chat --batch 1 --gamma 2 --new-tokens 4 --repeats 1 --dtype bfloat16",
    "bench roofline": "--prompt 8 --batch 1 --context 8 --repeats 1",
    "bench load": "--variation prompt-lookup --requests 4 --new-tokens 2 --share 5 --repeats 1 --dtype bfloat16",
    "bench mla": "--shape 'SmolLM2 96+32' --context 16 --repeats 1",
    "bench kernels": "--case gqa-1x32768 --repeats 1 --no-peer",
    "bench engine": "--shape SmolLM2-135M --batch 1 --new-tokens 4 --decode-steps 2 --repeats 1 --no-peer",
}


@pytest.mark.parametrize("command", [c for c in SHOWN if c.startswith("inference-opt ")])
def test_every_command_shown_is_one_that_parses(command):
    group, words = typer.main.get_command(app), shlex.split(command)[1:]
    context = group.make_context("inference-opt", list(words), resilient_parsing=True)
    while hasattr(group, "resolve_command"):
        name, group, words = group.resolve_command(context, words)
        context = group.make_context(name, list(words), parent=context, resilient_parsing=hasattr(group, "commands"))


# `make tour`, a step of .ci/run, runs the tour as it stands, and test_cli.py its options; it takes longest of all.
@pytest.mark.parametrize("command", [c for c in README if re.match("inference-opt (?!tour)", c)])
def test_the_readme_s_commands_run(command, apart, tmp_path, smollm2_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why is the sky blue?"}\n')
    (tmp_path / "conversation_trace.jsonl").write_text('{"hash_ids": [0, 1, 2]}\n{"hash_ids": [0, 1, 3]}\n')
    words = shlex.split(command)[1:]
    if words[:2] == ["exercise", "check"]:  # of what a reader has written by then
        (tmp_path / "03_split.py").write_text(solution(words[2], tmp_path))
    smaller = next((more for name, more in SMALLER.items() if words[: len(name.split())] == name.split()), "")
    status, out, error = apart(run_command, [*words, *shlex.split(smaller)], tmp_path)
    if "on CUDA" in next(line for line in TEXTS["README.md"].splitlines() if command in line) and (
        not torch.cuda.is_available()
    ):
        assert status == 2
        assert "CUDA" in error
        return
    assert status == 0, error
    assert out
    for option, value in itertools.pairwise(words):
        if option in ("--json", "--report", "-o"):
            assert (tmp_path / value).stat().st_size > 0


def run_command(words, folder):
    """(Exit status, standard output, standard error) of inference-opt in a folder."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.chdir(folder)
        patch.setattr(radix, "GENERATED", {"loop": lambda seed: workloads.loop(seed, documents=3, rounds=2)})
        patch.setattr(radix, "SIZES", [10, 20])
        patch.setattr(inspect.unwrap(machine.read_bandwidth), "__defaults__", (64, 5, "cpu"))  # as in conftest.py
        patch.setattr(sys, "argv", ["inference-opt", *words])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
    return status, out.getvalue(), error.getvalue()


@pytest.mark.parametrize("command", [c for c in SHOWN if c.startswith("make ")])
def test_every_make_target_shown_exists(command):
    done = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_s_other_commands_install_what_there_is():
    others = [c for c in README if not c.startswith(("inference-opt ", "make "))]
    assert len(others) == 3
    assert {"pytest", "python3 -m venv .venv"} < set(others)
    (install,) = (shlex.split(c) for c in others if c.startswith("pip install "))
    assert (ROOT / install[install.index("-c") + 1]).is_file()
    extras = re.fullmatch(r"\.\[(.*)\]", install[install.index("-e") + 1])[1].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"].keys() >= set(extras)


@pytest.mark.parametrize("page", TEXTS)
def test_links_exist(page):
    folder, text = (ROOT / page).parent, TEXTS[page]
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("https://") or (folder / target).exists(), target
        assert page == "README.md" or (folder / target).resolve() != ROOT / "README.md", "it is no page of the site"


@pytest.mark.parametrize("example", blocks(TEXTS["README.md"], "python"))
def test_the_examples_run(example, apart, smollm2_path):
    apart(run_example, example)


def run_example(example):
    exec(compile(example, "README.md", "exec"), {})


def test_figures_quoted_in_the_text_are_those_of_the_committed_runs():
    radix, prefix = (
        json.loads((ROOT / f"docs/results/bench_{name}.json").read_text(encoding="utf-8"))
        for name in ("radix", "prefix")
    )
    said = {page: " ".join(text.split()) for page, text in TEXTS.items()}  # wherever lines end
    text = said["chapters/03_radix_attention.md"]
    first, *_, last = (f"{row['microseconds']:.1f} µs" for row in radix["scaling"])
    assert f"takes {first} among 1,000 cached sequences, and {last} among 100,000" in text
    trace = radix["workloads"]["trace"]
    assert f"Of {trace['distinct']:,} different blocks {trace['used_once']:,} come once" in text
    kernels, latent = (
        json.loads((ROOT / f"docs/results/bench_{name}.json").read_text(encoding="utf-8"))
        for name in ("kernels", "mla_h100")
    )
    ridges = [run["ceilings"]["product_flops"] / run["ceilings"]["read_bandwidth"] for run in (kernels, latent)]
    assert f"about {ridges[0]:.0f} operations a byte" in said["chapters/08_kernels.md"]
    assert f"The card does {ridges[1]:.0f}, by the rates" in said["chapters/05_latent_attention.md"]
    (stem,) = (each["times"] for each in kernels["results"] if each["case"]["stem"])
    ours, peer = (stem[n]["seconds"] for n in ("inference-opt", "FlashInfer"))
    assert f"[factor of {peer / ours:.1f}]" in said["chapters/10_to_production.md"]
    overhead = prefix["results"][0]["overhead"]
    assert f"take {overhead:.1%} of a step" in said["chapters/04_continuous_batching.md"]


def test_nobody_takes_the_model_for_the_original():
    """The weights come from a file of 4 bits: the README, the first chapter and the glossary name its format."""
    kind = MODELS["smollm2-135m"].member.removesuffix(".gguf").rpartition(".")[2]
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for text in (TEXTS["README.md"], TEXTS["chapters/00_naive_oracle.md"], glossary):
        assert f"({kind})" in text
        assert "4 bits a weight" in text


def test_the_tour_calls_identical_what_is_the_naive_text_and_nothing_else():
    tour = json.loads((ROOT / "docs/results/tour.json").read_text(encoding="utf-8"))
    naive = tour["runs"].pop("naive")
    for row, (stage, runs) in zip(tour["stages"][1:], tour["runs"].items(), strict=True):
        assert row["stage"] == stage
        same = all(run["tokens"] == run["oracle"] for run in runs)
        assert row["identical_to_naive"].startswith("identical") == same
        if not row["identical_to_naive"].endswith("its own oracle"):
            assert all(run["oracle"][: len(text["tokens"])] == text["tokens"] for run, text in zip(runs, naive))


def test_the_licence_names_what_the_prompts_are_of():
    prompts = {prompt.text: prompt for name in ("prompts", "speculative") for prompt in load_prompts(name)}.values()
    assert sum("HumanEval" in prompt.source for prompt in prompts) == 20
    authors = {prompt.source.split(",")[0].split()[-1] for prompt in prompts if prompt.licence == "public domain"}
    assert authors == {"Faraday", "Lincoln", "Carroll", "Darwin", "Doyle"}
    licence = TEXTS["README.md"].partition("## Licence")[2]
    assert "Twenty of the built-in prompts" in licence
    assert all(author in licence for author in authors)
