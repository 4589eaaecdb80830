"""Latencies on timelines made by hand, arrivals by seed, and a queue of which the mean wait is known."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from inference_opt.lab.bench import load
from inference_opt.lab.bench.load import Timeline, arrivals, drive, percentiles, summary
from inference_opt.loading.tokenizer import Tokenizer
from inference_opt.sampling import SamplingParams
from tests.toys import toy


def line(arrived, *deliveries):
    return Timeline(arrived, None, [at for at, _ in deliveries], [count for _, count in deliveries])


def test_latencies_of_a_timeline_made_by_hand():
    one = line(2.0, (3.0, 1), (3.5, 3), (5.0, 1))  # drafts were accepted in the second delivery
    assert (one.ttft, one.tpot, one.e2e) == (1.0, 2.0 / 4, 3.0)
    assert one.gaps == [0.5, 1.5]
    single = line(1.0, (4.0, 1))
    assert (single.ttft, single.tpot, single.e2e, single.gaps) == (3.0, None, 3.0, [])


def test_goodput_is_the_share_that_keeps_both_limits():
    slow_start = line(0.0, (3.0, 1), (3.1, 1))
    slow_tokens = line(0.0, (1.0, 1), (2.0, 1))
    at_the_limits = line(0.0, (2.0, 1), (2.5, 1))
    one_token = line(6.0, (8.0, 1))  # its TPOT counts as 0
    found = summary([[slow_start, slow_tokens, at_the_limits], [one_token]], ttft=2.0, tpot=0.5)
    assert found["goodput_share"] == 2 / 4
    assert found["goodput"] == 2 / (3.1 + 8.0)
    assert found["throughput"] == 4 / (3.1 + 8.0)
    assert found["tpot"]["count"] == 3
    assert found["ttft"]["p50"] == 2.0


def test_percentiles_of_known_values():
    found = percentiles([float(i) for i in range(101)])
    assert (found["p50"], found["p99"], found["count"]) == (50.0, 99.0, 101)
    low, high = found["p99_interval"]
    assert 90 < low <= 99 <= high <= 100
    assert percentiles([3.0]) == {"p50": 3.0, "p99": 3.0, "p99_interval": [3.0, 3.0], "count": 1}
    assert percentiles([1.0, 2.0]) == percentiles([1.0, 2.0])


@given(st.integers(1, 50), st.floats(0.01, 100), st.integers(0, 1000))
def test_arrivals_have_the_rate_asked_for_and_are_those_of_the_seed(count, rate, seed):
    times = arrivals(count, rate, seed)
    assert times == arrivals(count, rate, seed)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] == pytest.approx(count / rate)
    assert np.allclose(arrivals(count, 2 * rate, seed), np.array(times) / 2)  # the same pattern at every rate


def test_arrivals_are_a_poisson_process_and_differ_by_seed():
    gaps = np.diff(arrivals(20_000, 3.0, 1))
    assert gaps.mean() == pytest.approx(1 / 3, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 3, rel=0.05)  # that of an exponential distribution is its mean
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=0.03)
    assert arrivals(5, 1.0, 1) != arrivals(5, 1.0, 2)


ROOT = Path(__file__).resolve().parents[3]
ASKED = [1], SamplingParams()


class Virtual(load.Clock):
    """A clock of which the time passes only as it is told."""

    def __init__(self):
        self.time = 100.0

    def now(self):
        return self.time

    def wait(self, seconds):
        assert seconds >= 0
        self.time = max(self.time + seconds, math.nextafter(self.time, math.inf))  # some passes always


class Server:
    """One request a step, in order of arrival, each for the same time: the D/1 of M/D/1."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.requests, self.added = clock, seconds, {}, []

    def add(self, prompt, params):
        request = SimpleNamespace(prompt=prompt)
        handle = Handle(request)
        self.requests[handle] = handle
        self.added.append(self.clock.now())
        return handle

    def step(self):
        handle = next(iter(self.requests))
        del self.requests[handle]
        self.clock.wait(self.seconds)
        return [SimpleNamespace(request=handle, tokens=[1])]


class Handle:
    def __init__(self, request):
        self.request = request


@pytest.mark.parametrize("load_factor", [0.3, 0.6, 0.8])
def test_the_mean_wait_of_m_d_1_is_that_of_pollaczek_and_khinchine(load_factor):
    """Mean wait = ρ s / (2 (1 − ρ)), for Poisson arrivals and a service of s seconds each."""
    service, waits = 0.25, []
    for seed in range(12):
        clock = Virtual()
        times = arrivals(1_000, load_factor / service, seed)
        lines = drive(Server(clock, service), [ASKED] * len(times), times, clock)
        waits.append(np.mean([each.ttft - service for each in lines]))
    expected = load_factor * service / (2 * (1 - load_factor))
    error = np.std(waits, ddof=1) / np.sqrt(len(waits))
    assert np.mean(waits) == pytest.approx(expected, abs=4 * error)
    assert error < 0.1 * expected  # the test can tell


def test_the_waits_that_chapter_04_predicts():
    text = " ".join((ROOT / "chapters/04_continuous_batching.md").read_text(encoding="utf-8").split())
    half, most, nearly = (rho / (2 * (1 - rho)) for rho in (0.5, 0.8, 0.9))
    assert (half, most) == (0.5, pytest.approx(2))
    assert f"It is half of $s$ at $\\rho = 0.5$, twice $s$ at 0.8, and {nearly:g} times $s$ at 0.9." in text


def test_arrivals_do_not_wait_for_the_engine():
    clock = Virtual()
    server = Server(clock, 10.0)
    lines = drive(server, [ASKED] * 4, [1.0, 2.0, 3.0, 25.0], clock)
    # Added between steps, as soon as there is one; a wait counts from the arrival. Three are there before one is done.
    assert [at - 100 for at in server.added] == [1.0, 11.0, 11.0, 31.0]
    assert [each.ttft for each in lines] == [10.0, 19.0, 28.0, 16.0]


def test_an_idle_engine_waits_until_the_next_arrival():
    clock = Virtual()
    lines = drive(Server(clock, 1.0), [ASKED] * 2, [5.0, 50.0], clock)
    assert [each.times for each in lines] == [[6.0], [51.0]]
    assert clock.now() == 151.0


class Words(Tokenizer):
    """It reads bytes."""

    def __init__(self):
        pass

    def encode(self, text):
        return [byte % 13 for byte in text.encode()]


@pytest.fixture
def bench(monkeypatch):
    model = toy(max_context=1_024)
    monkeypatch.setattr(load, "load_model", lambda source, dtype, device: (model, Words()))

    def run(shares=(0.5, 5.0), only=None, requests=6, repeats=2, new=3, limits=(1.0, 0.1), **changes):
        named = {"budgets": [16], "drafter": "prompt-lookup", "seed": 0} | changes
        with Progress(disable=True) as progress:
            return load.bench_load(
                "toy", "float64", "cpu", shares, only, named["budgets"], named["drafter"], requests, new, limits,
                repeats, named["seed"], progress,
            )  # fmt: skip

    return run


def test_every_variation_runs_at_every_rate_and_the_figure_shows_them(bench):
    figures = bench(repeats=1)
    names = ["plain", "budget 16", "in order of arrival", "small pool", "prompt-lookup"]
    assert [(row["variation"], row["share"]) for row in figures["results"]] == [
        (name, share) for share in (0.5, 5.0) for name in names
    ]
    assert not figures["interrupted"]
    for row in figures["results"]:
        assert row["rate"] == pytest.approx(row["share"] * figures["capacity"])
        assert row["ttft"]["count"] == 6
        assert row["ttft"]["p50"] <= row["ttft"]["p99"]
        assert row["e2e"]["p50"] >= row["ttft"]["p50"]
        assert 0 <= row["goodput_share"] <= 1
    longest = max(len(prompt) + params.max_new_tokens for prompt, params in load.workload(Words(), 6, 3, 0))
    assert figures["variations"]["small pool"] == {"num_pages": -(-longest // load.PAGE)}
    json.dumps(figures)
    drawn = load.load_figure(figures, ["plain", "small pool"])
    assert [axes.get_title() for axes in drawn.axes] == ["TTFT, seconds", "TPOT, seconds"]
    assert len(drawn.axes[0].lines) == 2 * 2 + 1
    (steps,) = {row["steps"] for row in figures["results"] if row["variation"] == "budget 16" and row["share"] == 5.0}
    assert steps > next(row["steps"] for row in figures["results"] if row["variation"] == "plain" and row["share"] == 5)


def test_a_workload_is_that_of_its_seed():
    one, same, other = (load.workload(Words(), 16, 8, seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    lengths = [len(prompt) for prompt, _ in one]
    assert sum(length >= 512 for length in lengths) == 2
    assert all(4 <= params.max_new_tokens <= 12 for _, params in one)


def test_an_interrupt_keeps_the_runs_that_are_whole(bench, monkeypatch):
    whole, calls = load.run_once, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 5:  # warm-up, capacity, two runs
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(load, "run_once", interrupted)
    figures = bench()
    assert figures["interrupted"]
    assert [row["variation"] for row in figures["results"]] == ["plain", "budget 16"]
    calls[:] = [None] * 3  # now the capacity is interrupted
    with pytest.raises(KeyboardInterrupt):
        bench()


def test_some_variations_and_an_unknown_one(bench):
    figures = bench(only=["small pool"], repeats=1)
    assert list(figures["variations"]) == ["plain", "small pool"]
    with pytest.raises(ValueError, match="unknown variation 'nonsense': expected some of plain, budget 16"):
        bench(only=["nonsense"])


def test_numbers_that_are_not_finite_are_refused(bench):
    for wrong in ({"shares": [math.nan]}, {"limits": (1.0, math.inf)}):
        with pytest.raises(ValueError, match="must be finite"):
            bench(**wrong)
