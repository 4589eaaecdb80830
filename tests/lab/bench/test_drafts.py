"""A drafter of known acceptance is accepted as often as it says, and what it gives is plain decoding's text."""

import json
import sys
from collections import Counter
from fractions import Fraction
from itertools import product
from math import prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from transformers import AutoConfig, AutoModelForCausalLM

from inference_opt import Engine, files
from inference_opt.lab.bench import drafts, drafts_peer, shapes
from inference_opt.lab.bench.drafts import CHOSEN, PLAIN, Requests, bench_shape, bench_tasks
from inference_opt.lab.bench.engine import warm
from inference_opt.lab.bench.known import Known, expected_seconds, repeating_model
from inference_opt.model.config import ModelConfig

TINY = ModelConfig(300, 32, 2, 4, 2, 8, 48, 512, tied_embeddings=True)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_target_repeats_and_drafts_are_accepted_as_often_as_they_say(dtype):
    model = repeating_model(TINY, dtype, torch.device("cpu"))
    prompts = [[5, 7, 9], [8, 8], [250]]
    work = Requests(prompts, [100] * 3, 0.0)
    plain = work.run(work.engine(model, None, None))
    assert plain.texts == [[prompt[-1]] * 100 for prompt in prompts]
    for alpha, least, most in ((1.0, 1, 1), (0.0, 0, 0), (0.7, 0.55, 0.85)):
        timed = work.run(work.engine(model, Known(alpha), 1))
        assert timed.texts == plain.texts
        assert least <= timed.accepted / timed.drafted <= most
    with pytest.raises(ValueError, match="alpha is a probability"):
        Known(1.5)


@given(st.fractions(0, 1, max_denominator=5), st.integers(0, 3), st.integers(1, 6), st.integers(1, 3))
def test_how_long_a_batch_takes_is_the_mean_over_all_outcomes(alpha, gamma, tokens, batch):
    """Every outcome of every step of each text, by exact rationals; each number of texts has a price of its own."""

    def steps(left):
        """The probability of each number of steps until no token is left."""
        if left <= 0:
            return {0: Fraction(1)}
        found = Counter()
        for accepted in range(gamma + 1):
            chance = alpha**accepted * (1 - alpha if accepted < gamma else 1)
            for more, each in steps(left - accepted - 1).items() if chance else ():
                found[1 + more] += chance * each
        return found

    price, expected = [0, 3, 5, 11], Fraction(0)
    for drawn in product(steps(tokens).items(), repeat=batch):
        time = sum(price[sum(last > k for last, _ in drawn)] for k in range(tokens))
        expected += time * prod(chance for _, chance in drawn)
    found = expected_seconds(float(alpha), gamma, tokens, batch, lambda texts: np.array(price)[texts])
    assert found == pytest.approx(float(expected), rel=1e-9)


def test_many_texts_end_within_the_longest_that_a_text_can_take():
    """Of 3,000 texts some take a step for each token; more ways to choose them than a float holds."""
    assert expected_seconds(0.5, 1, 3, 3000, np.ones_like) == pytest.approx(3)


@pytest.mark.parametrize(("captures", "runs"), [([1, 0, 1, 0, 0, 1], 5), ([0, 0], 2), ([1] * 99, 20), ([], 0)])
def test_an_engine_is_warm_when_nothing_was_captured_for_some_runs(captures, runs):
    made, runner = [], SimpleNamespace(captures=int(bool(captures)))

    def run():
        runner.captures += captures[len(made)]
        made.append(1)

    engine = Engine(repeating_model(TINY, torch.float32, torch.device("cpu")))
    engine.runner = runner
    warm(engine, run)
    assert len(made) == runs


def test_prediction_and_measurement_stand_side_by_side(tiny, monkeypatch):
    """With time that a step makes go by as it says, the prediction is what is measured."""
    clock = [0.0]
    monkeypatch.setattr(drafts.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(drafts, "elapsed", lambda began: clock[0] - began)
    step = Engine.step

    def timed(engine):
        outputs = step(engine)
        clock[0] += 1 + 0.1 * sum(out.fed for out in outputs)
        return outputs

    run, given = Requests.run, []
    monkeypatch.setattr(Requests, "run", lambda self, engine: given.append(self) or run(self, engine))
    monkeypatch.setattr(Engine, "step", timed)
    with Progress(disable=True) as progress:
        figures = bench_shape("tiny", "float32", "cpu", [1.0], [1, 2], [1, 3], 25, 2, progress)
    # What is priced is together as long as what is predicted from it. Every repeat has prompts of its own.
    priced = [(len(each.prompts), len(each.prompts[0]), each.lengths[0]) for each in given[: 4 * 6 : 4]]
    assert priced == [(1, 128, 25), (2, 128, 25), (2, 64, 12), (4, 64, 12), (4, 32, 6), (8, 32, 6)]
    last = [each.prompts for each in given[-8:]]
    assert last[:4] == [last[0]] * 4
    assert last[4:] == [last[4]] * 4 != last[:4]
    assert [each["rows"] for each in figures["plain_steps"]] == [1, 2, 2, 4, 4, 8]
    for case in figures["results"]:
        plain, chosen, *fixed = case["rows"]
        assert (plain["name"], chosen["name"]) == (PLAIN, CHOSEN)
        assert plain["over_plain"] == 1
        assert (plain["why"], plain["steps_by_drafts"]) == ("", {})
        assert chosen["why"]
        assert sum(chosen["steps_by_drafts"].values()) > 0
        for row in fixed:
            assert row["acceptance"] == 1
            assert row["same_texts"] == case["batch"]
            assert row["over_plain"] == pytest.approx(row["predicted"], rel=1e-6)
    with pytest.raises(ValueError, match="unknown device 'foo'"), Progress(disable=True) as progress:
        bench_shape("tiny", "float32", "foo", [1.0], [1], [1], 4, 1, progress)
    with pytest.raises(ValueError, match="unknown shape"), Progress(disable=True) as progress:
        bench_shape("small", "float32", "cpu", [1.0], [1], [1], 4, 1, progress)
    with pytest.raises(ValueError, match="tasks are editing"), Progress(disable=True) as progress:
        bench_tasks("any", "float32", "cpu", ["poems"], "trained", [1], [0.0], [1], 4, 1, progress)


MADE, CLOCK = [], [0.0]


class StandIn:
    """What of vLLM is used: its texts count up from the prompt's last token, and each token takes a second."""

    SamplingParams = SimpleNamespace

    class LLM:
        def __init__(self, folder, **options):
            MADE.append(options | {"config": json.loads((Path(folder) / "config.json").read_text())})
            self.speed = 2 if "speculative_config" in options else 1

        def generate(self, prompts, params, use_tqdm):
            assert all(each.min_tokens == each.max_tokens for each in params)
            CLOCK[0] += 0.5 + sum(each.max_tokens - 1 for each in params) / self.speed
            texts = [
                [each["prompt_token_ids"][-1] + i for i in range(own.max_tokens)] for each, own in zip(prompts, params)
            ]
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(text))]) for text in texts]


def test_an_interrupted_run_leaves_the_cases_that_are_done(tiny, tmp_path, monkeypatch):
    """A signal ends it after the first of two batches. The figures of an earlier run stay as they were."""
    path, inner = tmp_path / "figures.json", drafts.measure
    path.write_text("earlier")
    monkeypatch.setattr(drafts, "SETTLED", 0.0)

    def interrupted(model, works, *args):
        if len(works[0].prompts) == 2:
            raise KeyboardInterrupt
        return inner(model, works, *args)

    monkeypatch.setattr(drafts, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt), files.growing(path) as keep, Progress(disable=True) as progress:
        bench_shape("tiny", "float32", "cpu", [0.5], [1, 2], [1], 6, 1, progress, keep)
    assert path.read_text() == "earlier"
    (case,) = json.loads((tmp_path / "figures.json.partial").read_text())["results"]
    assert case["batch"] == 1
    monkeypatch.setattr(drafts, "measure", inner)
    with files.growing(path) as keep, Progress(disable=True) as progress:
        bench_shape("tiny", "float32", "cpu", [0.5], [1, 2], [1], 6, 1, progress, keep)
    assert not (tmp_path / "figures.json.partial").exists()


def test_vllm_stands_beside_with_its_own_plain_decoding(monkeypatch):
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    source = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=8, **tiny))
    # As `transformers` leaves a model that it has read from GGUF, and refuses to save.
    source.hf_quantizer, source.config.quantization_config = SimpleNamespace(), {"quant_method": "gguf"}
    monkeypatch.setattr(drafts_peer, "transformers_model", lambda name, dtype: source)
    monkeypatch.setitem(sys.modules, "vllm", StandIn)
    monkeypatch.setattr(drafts_peer.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(drafts_peer.time, "perf_counter", lambda: CLOCK[0])
    monkeypatch.setattr(drafts_peer, "elapsed", lambda began: CLOCK[0] - began)
    peers = drafts_peer.vllm_decoders("any", [3], 2)
    plain, drafting = MADE
    assert all(each["kv_cache_memory_bytes"] == drafts_peer.KEPT for each in MADE)
    assert plain["config"]["hidden_size"] == 16
    assert "quantization_config" not in plain["config"], "its weights are dense"
    assert plain["max_num_seqs"] == drafting["max_num_seqs"] == 2
    assert "speculative_config" not in plain
    assert drafting["speculative_config"]["num_speculative_tokens"] == 3
    texts, seconds = peers["vLLM"]([[5], [7]], [3, 2], 0.0)
    assert texts == [[5, 6, 7], [7, 8]]
    assert seconds == 3, "the first token of each text is not counted"

    monkeypatch.undo()
    monkeypatch.setattr(drafts_peer, "elapsed", lambda began: 1.0)
    monkeypatch.setattr(drafts, "SETTLED", 0.0)
    model, work = repeating_model(TINY, torch.float32, torch.device("cpu")), Requests([[5], [7]], [9, 9], 0.0)
    with Progress(disable=True) as progress:
        rows = drafts.measure(model, [work], Known(1.0), [3], 1, progress, progress.add_task("", total=1), peers)
    assert [row["name"] for row in rows] == [PLAIN, CHOSEN, "γ = 3", "vLLM", "vLLM, γ = 3"]
    assert rows[3]["over_plain"] == 1
    assert rows[4]["same_texts"] == 0
    assert "why" not in rows[4]


def test_vllm_that_is_not_there():
    with pytest.raises(ValueError, match="needs vLLM"):
        drafts_peer.vllm_decoders("any", [3], 2)
