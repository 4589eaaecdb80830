"""Eight ways to serve the same requests give the same tokens, and compute and keep what each technique says."""

import json
import re
from itertools import product

import pytest
import torch
from typer.testing import CliRunner

from inference_opt.cli import app
from inference_opt.engine.engine import Engine
from inference_opt.lab.bench import shapes, together
from inference_opt.lab.bench.known import Known, repeating_model
from inference_opt.model.config import ExpertsShape, LatentShape, ModelConfig
from inference_opt.speculative.drafter import Drafter

EXPERTS = ExpertsShape(8, 2, 16, 1, first_k_dense_replace=1)
LATENT = ModelConfig(211, 32, 2, 4, 4, 12, 48, 64, latent=LatentShape(16, 4, 8, 8), experts=EXPERTS)
GROUPED = ModelConfig(211, 32, 2, 4, 2, 8, 48, 64, experts=EXPERTS)
STEM, NEW = 64, 16


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.setitem(shapes.SHAPES, "tiny", LATENT)
    monkeypatch.setitem(shapes.SHAPES, "tiny grouped-query", GROUPED)
    options = ["--shape=tiny", f"--stem={STEM}", "--requests=3", f"--new-tokens={NEW}"]
    options += ["--dtype=float32", "--device=cpu", "--repeats=1"]

    def run(*more):
        file = tmp_path / "together.json"
        result = CliRunner().invoke(app, ["bench", "together", *options, "--json", str(file), *more])
        return result, json.loads(file.read_text()) if file.is_file() else None

    return run


def test_eight_ways_give_the_same_tokens(bench):
    result, figures = bench()
    assert result.exit_code == 0, result.output
    assert figures["exact"]
    rows = figures["results"]
    assert {(row["radix"], row["mla"], row["speculation"]) for row in rows} == set(product((False, True), repeat=3))
    whole, page = STEM + together.TAIL, together.PAGE
    for row in rows:
        assert row["same_texts"] == 3
        assert row["prefill_tokens"] == (STEM + 3 * together.TAIL if row["radix"] else 3 * whole)
        width = 2 * (16 + 4) if row["mla"] else 2 * 2 * 2 * 8  # layers, and what each keeps
        assert row["bytes_per_token"] == 4 * width
        assert row["bytes"] == row["pages"] * page * row["bytes_per_token"]
        assert (row["acceptance"] is None) == (not row["speculation"])
        if row["speculation"]:
            assert 0.2 < row["acceptance"] <= 1
    pages = {row["radix"]: row["pages"] for row in rows}
    assert pages[False] == 3 * -(-(whole + NEW - 1) // page)
    assert pages[True] == pages[False] - 2 * (STEM // page)
    assert rows[0]["over_plain"] == 1
    assert len(re.findall("3 of 3", result.output)) == 8


def test_a_way_that_gives_other_tokens_is_reported(bench, monkeypatch):
    step = Engine.step

    def spoiled(engine):
        outputs = step(engine)
        if engine.speculation.drafter is not None:
            for output in outputs:
                output.request.tokens[-1] = 5
        return outputs

    monkeypatch.setattr(Engine, "step", spoiled)
    result, figures = bench()
    assert result.exit_code == 2
    assert not figures["exact"]
    assert [row["same_texts"] == 3 for row in figures["results"]] == [True, False] * 4


def test_a_shape_without_a_pair_is_refused(bench):
    result, _ = bench("--shape", "SmolLM2-135M")
    assert result.exit_code == 2
    assert "expected one of DeepSeek-V2-Lite, tiny" in result.output


@pytest.mark.parametrize("stride", [0, 1, 7])
def test_the_drafter_knows_how_the_target_goes_on(stride):
    model = repeating_model(LATENT, torch.float32, torch.device("cpu"), stride)
    prompts, new = [[5, 7, 9], [208, 209]], 20
    for drafter in (None, Known(1.0, stride=stride), Known(0.5, stride=stride)):
        engine = Engine(model, drafter=drafter, gamma=3 if drafter else None)
        texts = [each.tokens for each in engine.generate(prompts, max_new_tokens=new, ignore_eos=True)]
        assert texts == [[(prompt[-1] + stride * (1 + i)) % 211 for i in range(new)] for prompt in prompts]
        assert isinstance(drafter, Drafter | None)
        if drafter is not None:
            assert (engine.stats.acceptance == 1) == (drafter.alpha == 1)
