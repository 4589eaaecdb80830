"""The tour's arithmetic: what naive decoding says after a text, speeds over the same tokens, the time left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_opt import naive
from inference_opt.explain import tour
from inference_opt.explain.tour import Run, TimeLeft, Tour, naive_tokens
from inference_opt.sampling import SamplingParams
from tests.toys import toy

MODELS = {eos: toy(eos=eos) for eos in ((), (3,), (3, 7))}


@st.composite
def naive_runs(draw):
    """A model, a prompt, how many new tokens are asked for, the naive text, and how much of it was decoded."""
    model = MODELS[draw(st.sampled_from(list(MODELS)))]
    prompt = draw(st.lists(st.integers(0, 12), min_size=1, max_size=20))
    new = draw(st.integers(1, 30))  # more than the context of 24 holds, sometimes
    text = naive.generate(model, prompt, SamplingParams(max_new_tokens=new))
    decoded = text[: draw(st.integers(0, len(text)))]
    return model, prompt, decoded, text, new


@given(naive_runs())
def test_the_oracle_of_the_naive_text_is_that_text(run):
    model, prompt, decoded, text, new = run
    assert naive_tokens(model, prompt, decoded, text, new) == text


@given(naive_runs(), st.data())
def test_the_oracle_of_another_text_is_the_naive_text_up_to_the_difference(run, data):
    model, prompt, decoded, text, new = run
    at = data.draw(st.integers(0, len(text) - 1), "position")
    other = [*text[:at], (text[at] + data.draw(st.integers(1, 12), "by")) % 13, *text[at + 1 :]]
    oracle = naive_tokens(model, prompt, decoded, other, new)
    assert oracle == text[: len(oracle)]
    assert len(oracle) > at


@given(naive_runs(), st.data())
def test_a_text_that_stops_early_or_goes_on_is_not_the_oracle_s(run, data):
    model, prompt, decoded, text, new = run
    shorter = text[: data.draw(st.integers(0, len(text) - 1), "kept")]
    longer = text + data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=3), "added")
    for other in (shorter, longer):
        oracle = naive_tokens(model, prompt, decoded, other, new)
        assert oracle == text[: len(oracle)]
        assert oracle != other
        assert len(oracle) > len(other) or oracle == text


def test_speeds_are_compared_over_the_tokens_that_the_naive_stage_decoded(monkeypatch):
    monkeypatch.setattr(tour, "NAIVE_TOKENS", 2)
    runs = {
        "naive": [Run([1, 2], [1.0, 3.0]), Run([5], [4.0])],
        "KV cache": [Run([1, 2, 9, 9], [1.0, 0.5, 0.1, 0.1]), Run([5], [0.5])],
        "continuous batching": [Run([1, 2, 9, 9], [1.0, 0.5, 0.1, 0.1]), Run([5], [1.25])],
    }
    made = Tour("m", "float64", 4, [], [], dict.fromkeys(runs, 0), runs, dict.fromkeys(runs, 0))
    made.together.add("continuous batching")
    found = [(row["tokens_per_second"], row["speedup_over_naive"]) for row in made.rows()]
    assert found == [
        (pytest.approx(3 / 8), 1),
        (pytest.approx(5 / 2.2), pytest.approx(8 / 2)),  # 3 tokens of either, in 8 seconds and in 2
        (pytest.approx(5 / 1.7), pytest.approx(8 / 1.5)),  # the last of all prompts comes after 1.5 seconds
    ]


def test_the_time_left_is_that_of_the_work_left(monkeypatch):
    left = TimeLeft(work=100.0, began=0.0)
    monkeypatch.setattr(tour, "elapsed", lambda began: 10.0)
    assert str(left) == "the time left is measured"
    left.done = 20.0
    assert str(left) == "about 40 s left"
    left.done = 98.0
    assert str(left) == "about 5 s left"
