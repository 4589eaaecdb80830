"""What stands beside every figure."""

from importlib import metadata

from rich.progress import Progress

import inference_opt
from inference_opt import environment
from inference_opt.lab.bench import cuda, decode, engine_peers, prefix
from tests.toys import toy


def test_a_checkout_that_is_not_installed_is_described_too(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.metadata, "version", missing)
    described = environment.describe()
    assert described["inference_opt"] == inference_opt.__version__
    assert described["transformers"] == "not installed"


def test_no_time_is_nothing_and_no_rate_infinite_or_negative():
    assert 0 < environment.elapsed(2.0, 2.0) < 1e-3  # a tick not over
    assert 0 < environment.elapsed(2.0, 1.0) < 1e-3  # a clock that was set back
    assert environment.elapsed(2.0, 2.5) == 0.5


def test_a_difference_of_two_runs_below_the_noise_is_no_rate():
    seconds = {1: 2.0, 4: 1.9}  # one token took longer than four: another process was at work
    assert engine_peers._decoder(lambda prompts, new: seconds[new])([[1]], 4) == (2.0, None)
    assert cuda._rate(None) == "below the noise"
    seconds[4] = 5.0
    assert engine_peers._decoder(lambda prompts, new: seconds[new])([[1]], 4) == (2.0, 1.0)


def test_decoding_is_timed_within_one_run_whatever_the_machine_does_meanwhile(monkeypatch):
    ticks = iter([0.0, 7.0, *([8.0] * 50)])  # a slow prefill, then a clock that stands still
    with monkeypatch.context() as patch:
        patch.setattr(decode.time, "perf_counter", ticks.__next__)
        first, rest, texts = decode.our_decoder(toy())([[1, 2], [3]], 3)
    assert (first, rest) == (7.0, 1.0)
    assert [len(text) for text in texts] == [3, 3]


def test_rates_count_the_tokens_that_there_are_where_the_context_cuts_texts(monkeypatch):
    model = toy(max_context=8)
    prompts = [[1, 2], [1, 2, 3]]  # 8 − 2 + 1 and 8 − 3 + 1 tokens are possible
    for module in (decode, prefix):
        monkeypatch.setattr(module, "load_model", lambda source, dtype: (model, object()))
    monkeypatch.setattr(decode, "prompt_ids", lambda tokenizer, batch: prompts)
    monkeypatch.setattr(prefix, "stem_prompts", lambda tokenizer, requests, stem: prompts)
    monkeypatch.setattr(decode, "elapsed", lambda *times: 2.0)
    monkeypatch.setattr(prefix, "elapsed", lambda *times: 2.0)
    (row,) = decode.bench_decode("toy", ["float64"], [2], 100, 1, False, Progress(disable=True))["results"]
    assert row["inference-opt"]["decode"] == (6 + 5) / 2
    figures = prefix.bench_prefix("toy", "float64", 2, 2, 100, 1, False, Progress(disable=True))
    assert [each["tokens_per_second"] for each in figures["results"]] == [(7 + 6) / 2] * 2
