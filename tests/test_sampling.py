"""Sampling against `transformers`' own filters, against exact inverse-CDF reasoning, and against its own promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers.generation import logits_process as hf

from inference_opt.sampling import SamplingParams, StopCheck, cut_at_stop, draw, probabilities, sample, uniform

LOGITS = arrays(np.float64, st.integers(1, 12), elements=st.floats(-30, 30, width=32)).map(torch.from_numpy)


@given(LOGITS, st.floats(0.05, 5), st.integers(0, 14), st.floats(0.05, 1), st.floats(0, 1))
def test_the_law_is_that_of_transformers_filters_in_our_order(logits, temperature, k, p, min_p):
    ours = probabilities(logits, SamplingParams(temperature=temperature, top_k=k, top_p=p, min_p=min_p))
    scores, ids = logits[None], torch.zeros(1, 1, dtype=torch.long)
    filters = [hf.TemperatureLogitsWarper(temperature)]
    filters += [hf.TopKLogitsWarper(k)] if k else []
    filters += [hf.TopPLogitsWarper(p)] if p < 1 else []
    filters += [hf.MinPLogitsWarper(min_p)] if min_p else []
    for each in filters:
        scores = each(ids, scores)
    theirs = scores.softmax(-1)[0]
    # Where the mass before a token, or its share of the largest, equals the threshold to rounding, both answers are
    # right: such draws are set aside by the distance of every cumulative sum from the threshold.
    tempered = (logits / temperature).softmax(-1)
    kept = tempered.where(tempered >= tempered.topk(min(k or len(logits), len(logits))).values[-1], 0)
    ordered = (kept / kept.sum()).sort(descending=True).values
    tied = bool((ordered.diff() == 0).any())
    near = (ordered.cumsum(0) - p).abs().min() < 1e-9 or bool(((kept / kept.max() - min_p).abs() < 1e-9).any())
    if not (near or (tied and p < 1)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert math.isclose(float(ours.sum()), 1, rel_tol=1e-12)


@given(LOGITS)
def test_top_p_keeps_the_fewest_tokens_that_hold_the_mass(logits):
    full = logits.softmax(-1)
    for top_p in (0.1, 0.5, 0.9):
        kept = probabilities(logits, SamplingParams(temperature=1.0, top_p=top_p)) > 0
        assert full[kept].sum() >= top_p - 1e-12
        assert full[kept].sum() - full[kept].min() < top_p + 1e-12  # without its least token it would not
        assert not (~kept).any() or full[kept].min() >= full[~kept].max()


@given(LOGITS)
def test_greedy_is_the_limit_of_low_temperature(logits):
    greedy = probabilities(logits, SamplingParams())
    assert int(greedy.argmax()) == int(logits.argmax()) == sample(logits, SamplingParams(), 3)
    assert greedy.sum() == greedy.max() == 1
    cold = probabilities(logits, SamplingParams(temperature=1e-300))
    assert torch.equal(cold > 0, logits == logits.max())  # a tie shares the mass, greedy takes its first


@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_cumulative_law(logits, u):
    p = probabilities(logits, SamplingParams(temperature=0.7, top_k=3))
    token = draw(p, u)
    below = float(p[:token].sum())
    assert p[token] > 0
    assert below - 1e-12 <= u <= below + float(p[token]) + 1e-12


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_extreme_draws_never_meet_a_token_of_probability_zero(u):
    p = torch.tensor([0, 0.25, 0, 0.75, 0], dtype=torch.float64)
    assert draw(p, u) == (1 if u == 0 else 3)


def test_draws_are_uniform_independent_and_fixed():
    numbers = np.array([[uniform(seed, position) for position in range(100)] for seed in range(100)])
    assert abs(numbers.mean() - 0.5) < 4 / math.sqrt(12 * numbers.size)  # four standard errors
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    chi2 = float(((counts - 500) ** 2 / 500).sum())
    assert chi2 < 43.8  # 19 degrees of freedom: exceeded once in a thousand; the numbers are fixed, so never flaky
    neighbours = np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.05
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.05
    assert len(np.unique(numbers)) == numbers.size
    assert uniform(7, 11) == uniform(7, 11)
    assert len({uniform(2**64 - n, 3) for n in range(1, 50)}) == 49  # seeds keep all their 64 bits


@given(LOGITS, st.integers(0, 2**64 - 1), st.integers(0, 1000))
def test_rows_do_not_disturb_each_other(logits, seed, position):
    params = SamplingParams(temperature=1.3, top_p=0.9, seed=seed)
    batch = probabilities(torch.stack([logits, logits.flip(0), logits]), params)
    assert torch.equal(batch[0], probabilities(logits, params))
    assert draw(batch[2], uniform(seed, position)) == sample(logits, params, position)


@pytest.mark.parametrize("broken", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_refused(broken, temperature):
    with pytest.raises(ValueError, match="broken"):
        sample(torch.tensor(broken), SamplingParams(temperature=temperature), 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", v) for v in (math.nan, math.inf, -0.1)),
        *(("top_p", v) for v in (0.0, -0.5, 1.01, math.nan)),
        *(("min_p", v) for v in (-0.1, 1.5, math.nan)),
        *(("max_new_tokens", v) for v in (0, -3)),
        *(("top_k", v) for v in (-1,)),
        *(("seed", v) for v in (-1, 2**64)),
        *(("stop", v) for v in (("",), "", ("a", ""))),
    ],
)
def test_values_outside_their_range_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})


class Letters:
    """A stream whose token t is the t-th letter."""

    def __init__(self):
        self.text = ""

    def add(self, token):
        self.text += chr(97 + token)
        return self.text[-1]


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([0, 1, 0, 1, 0, 1, 2]), min_size=1, max_size=12),
    st.lists(st.sampled_from(["b", "ab", "ba", "aab", "bbb"]), max_size=2),
    st.integers(1, 14),
    st.integers(1, 14),
    st.booleans(),
)
@example(tokens=[0, 1, 0], stop=["ab"], max_new=9, room=9, ignore_eos=False)  # a stop string of two tokens
def test_stop_check_against_a_search_of_the_whole_text(tokens, stop, max_new, room, ignore_eos):
    params = SamplingParams(max_new_tokens=max_new, stop=tuple(stop), ignore_eos=ignore_eos)
    check = StopCheck(params, eos_token_ids=[2], room=room, stream=Letters())
    text = ""
    for count, token in enumerate(tokens, 1):
        text += chr(97 + token)
        ended = token == 2 and not ignore_eos
        expected = "eos" if ended else "stop" if any(s in text for s in stop) else None
        expected = expected or ("length" if count >= min(max_new, room) else None)
        assert check.after(token) == expected
        if expected:
            break


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(ValueError, match="tokenizer"):
        StopCheck(SamplingParams(stop="x"), [], 5)


@given(st.text("ab", max_size=9), st.lists(st.text("ab", min_size=1, max_size=2), max_size=3))
def test_text_is_cut_before_the_first_stop_string(text, stop):
    cut = cut_at_stop(text, stop)
    assert text.startswith(cut)
    assert not any(s in cut for s in stop)
    assert cut == text or any(text.startswith(s, len(cut)) for s in stop)
