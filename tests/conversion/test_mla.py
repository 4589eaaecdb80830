"""Healing, its measure, its files, the controlled experiment's layouts, and the factors that come with the package."""

import json
import subprocess
import sys
from math import log
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from safetensors.torch import save_file

from inference_opt import load_model
from inference_opt.conversion.convert import assemble, factorise
from inference_opt.conversion.pretrained import latent_model, load_factors, sampled_texts, save_factors
from inference_opt.lab.quality import quality
from inference_opt.lab.training import compare_layouts
from inference_opt.lab.training.distill_mla import divergence, heal
from tests.conversion.test_convert import TEXTS
from tests.toys import toy

ROOT = Path(__file__).resolve().parents[2]


def test_quality_is_what_its_words_say():
    model, other = toy(seed=1), toy(seed=2)
    text = [1, 2, 3]
    result = quality(model, other, [text, [5]])  # a text of one token says nothing
    with torch.inference_mode():
        from inference_opt.model.attention import NoCache

        p, q = (m(torch.tensor(text), torch.arange(3), NoCache([3])).float().softmax(-1)[:2] for m in (model, other))
    assert result.tokens == 2
    assert log(result.perplexity) == pytest.approx(-float(p[0, 2].log() + p[1, 3].log()) / 2, rel=1e-5)
    assert result.divergence == pytest.approx(float((q * (q / p).log()).sum() / 2), rel=1e-4)
    assert result.agreement == float((p.argmax(-1) == q.argmax(-1)).float().mean())
    same = quality(model, model, [text])
    assert (same.divergence, same.agreement) == (0.0, 1.0)
    with pytest.raises(ValueError, match="two or more tokens"):
        quality(model, other, [[1]])


def test_divergence_is_nought_only_between_equal_laws():
    logits = torch.randn(5, 7)
    assert float(divergence(logits, logits + 3)) == pytest.approx(0, abs=1e-6)
    assert float(divergence(logits, logits.flip(1))) > 0


def test_healing_brings_the_distribution_nearer_on_other_texts_and_leaves_what_it_was_given(capsys):
    model = toy(seed=1, kv_heads=4, dtype=torch.float32, max_context=24)
    factors = factorise(model, 4, 4, TEXTS)
    before = [x.clone() for x in (*factors.kv_down, *factors.kv_up)]
    torch.manual_seed(0)
    rows, held_out = torch.randint(13, (2, 64, 13))
    healed, record = heal(model, factors, rows, torch.full((64,), 13), minutes=0.0, steps=60, batch=8, lr=1e-2)
    assert (record["steps"], record["tokens_seen"]) == (60, 60 * 8 * 13)
    assert [each["step"] for each in record["curve"]] == [20, 40, 60]
    assert all(torch.equal(a, b) for a, b in zip(before, (*factors.kv_down, *factors.kv_up)))
    worse, better = (quality(assemble(model, f), model, held_out.tolist()) for f in (factors, healed))
    assert better.divergence < 0.8 * worse.divergence
    assert "KL" in capsys.readouterr().out


def test_factors_survive_their_file_in_bfloat16(tmp_path):
    model = toy(seed=1)
    factors = factorise(model, 4, 4, TEXTS)
    save_factors(factors, tmp_path / "f.safetensors", model="toy")
    again = load_factors(tmp_path / "f.safetensors")
    assert again.rotated == factors.rotated
    for kept, read in zip((*factors.kv_down, *factors.kv_up), (*again.kv_down, *again.kv_up)):
        assert torch.equal(read, kept.bfloat16())
    assert all(torch.allclose(a, b.to(a.dtype), atol=1e-5) for a, b in zip(factors.mixing, again.mixing))
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not a file", None])
def test_a_file_that_holds_no_factors_is_refused(tmp_path, content):
    path = tmp_path / "f.safetensors"
    if content is None:
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"f\.safetensors does not hold"):
        load_factors(path)


def test_the_packaged_factors_keep_a_third_of_the_cache_and_most_of_the_distribution(apart, smollm2_path):
    apart(keep_a_third_of_the_cache, smollm2_path)


def keep_a_third_of_the_cache(path):
    model, tokenizer = load_model(path, dtype="bfloat16")  # as the factors are kept
    healed = latent_model(model, tokenizer, "smollm2-135m")
    assert 3 * healed.config.kv_elements_per_token == model.config.kv_elements_per_token
    result = quality(healed, model, sampled_texts("held")[:3])
    base = quality(model, model, sampled_texts("held")[:3])
    assert result.agreement > 0.8
    assert result.perplexity < 1.3 * base.perplexity


def test_sampled_texts_are_two_parts_of_one_file():
    held, observed = sampled_texts("held"), sampled_texts("observe")
    assert (len(held), len(observed)) == (128, 64)
    assert not {tuple(t) for t in held} & {tuple(t) for t in observed}
    assert all(t[0] == 1 and max(t) < 49_152 for t in held)
    with pytest.raises(ValueError, match="'train'"):
        sampled_texts("train")


def test_the_experiment_s_layouts_have_equal_parameters_and_the_caches_they_are_named_for():
    sizes = {name: compare_layouts.layout(name, 64) for name in ("MHA", "GQA-2", "MQA", "MLA-256-32", "MLA-96-32")}
    counts = [compare_layouts.parameters(config) for config in sizes.values()]
    assert max(counts) < 1.001 * min(counts)
    a_layer = {name: config.kv_elements_per_token // compare_layouts.DEPTH for name, config in sizes.items()}
    assert a_layer == {"MHA": 768, "GQA-2": 256, "MQA": 128, "MLA-256-32": 288, "MLA-96-32": 128}


def test_the_experiment_runs_and_records(tmp_path):
    """As its docstring says, on a small corpus: every layout learns, the record has means, spreads and sizes."""
    torch.manual_seed(0)
    rows = torch.arange(32).repeat(24, 1)[:, :16] + torch.randint(0, 9, (24, 1))  # counting up: soon learnt
    save_file({"tokens": rows.int(), "ended": torch.full((24,), 16)}, tmp_path / "c.safetensors")
    command = [sys.executable, "-m", "inference_opt.lab.training.compare_layouts", tmp_path / "c.safetensors", "--json"]
    command += [tmp_path / "c.json", "--layouts", "MQA", "MLA-96-32", "--seeds", "2", "--epochs", "3", "--batch", "4"]
    subprocess.run(
        [*map(str, command), "--held-out", "4", "--parallel", "2"], check=True, capture_output=True, cwd=ROOT
    )
    layouts = json.loads((tmp_path / "c.json").read_text())["layouts"]
    assert [row["layout"] for row in layouts] == ["MQA", "MLA-96-32"]
    for row in layouts:
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        losses = [run["loss"] for run in row["runs"]]
        assert row["loss"] == pytest.approx(mean(losses))
        assert row["spread"] == pytest.approx(stdev(losses))
        assert max(losses) < log(24)  # of held-out rows: better than to know only which 24 tokens there are
