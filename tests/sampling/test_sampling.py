"""Sampling against `transformers`' own filters, against exact inverse-CDF reasoning, and against its own promises."""

import math
import warnings
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers.generation import logits_process as hf

from inference_opt.loading.checkpoint import GGUFFile
from inference_opt.loading.tokenizer import tokenizer_from_gguf
from inference_opt.sampling import CommonNoise, Noise, SamplingParams, StopCheck, cut_at_stop, probabilities, sample
from inference_opt.sampling.distribution import weights
from inference_opt.sampling.noise import LIGHT, exponential, uniforms

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


@given(LOGITS, st.integers(0, 9), st.integers(0, 9))
def test_the_first_to_arrive_is_chosen(logits, seed, start):
    p = probabilities(logits, SamplingParams(temperature=0.7, top_k=3)).numpy()
    token = Noise(seed, start).choose(p, 0)
    assert p[token] > 0
    assert token == Noise(seed, start).choose(7 * p, 0)  # weights need not sum to one
    boosted = p.copy()
    boosted[token] *= 2  # more weight, earlier arrival
    assert token == Noise(seed, start).choose(boosted, 0)


@settings(max_examples=300)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 60, 3000]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.sampled_from([0, 1, 3, 10]),
    st.sampled_from([0, 4, 9, 20, 300]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([1e-300, 0.01, 0.8, 1.0, 2.0, 1e10, 1e300, 1.7e308]) | st.floats(0.1, 3),
    st.sampled_from(
        [{}, {}, {"top_k": 1}, {"top_k": 40}, {"top_k": 5000}, {"top_p": 0.9}, {"top_p": 1e-9}, {"min_p": 0.05},
         {"top_k": 40, "top_p": 0.5, "min_p": 0.1}]
    ),
)  # fmt: skip
@example(1, 60, torch.float32, 1, 20, 0.3, 1e300, {})  # no float32 is as far below the largest as light tokens are
def test_a_draw_is_the_race_of_all_weights(seed, n, dtype, spread, gap, cut, temperature, filters):
    random = np.random.default_rng(seed)
    x = spread * random.standard_normal(n)
    x[random.integers(n)] += gap  # one token above the others; without a spread these are equal
    x[(random.random(n) < cut) & (x < x.max())] = -math.inf
    logits = torch.from_numpy(x).to(dtype)
    before = logits.clone()
    params = SamplingParams(temperature=temperature, seed=seed, **filters)
    w = weights(logits, params).numpy()
    with np.errstate(divide="ignore", over="ignore"):
        times = exponential(uniforms(Noise(seed, 5).words(0, 0, n))) / w
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sample(logits, params, 5) == Noise(seed, 5).choose(w, 0) == int(np.argmin(times))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("arrivals", [[0.0, 0.0, 5.0, 9.0, 0.0], [0.0, 9.0, 0.0, 5.0, 0.0]])
def test_a_token_of_probability_zero_never_runs(monkeypatch, arrivals):
    weights = np.array([0, 0.25, 0, 0.75, 0])

    words = (-np.expm1(-np.array(arrivals)) * 2.0**52).astype(np.uint64) << np.uint64(12)
    monkeypatch.setattr(Noise, "words", lambda *_: words.copy())
    assert Noise(0, 0).choose(weights, 0) == (1 if arrivals[1] == 0 else 3)
    with pytest.raises(ValueError, match="no token"):
        Noise(0, 0).choose(0 * weights, 0)


@settings(max_examples=100)
@given(arrays(np.float64, 6, elements=st.floats(0, 1)), st.integers(0, 9), st.integers(-1060, 900))
@example(np.array([1.0, 1e-320, 5e-324, 0, 1e-308, 1e-300]), 0, 0)
def test_no_weight_is_too_small_to_race(weights, seed, scale):
    weights = np.ldexp(weights, scale)
    runners = np.flatnonzero(weights)
    if len(runners) < 2:
        return
    arrivals = exponential(uniforms(Noise(seed, 3).words(0, 0, 6)))
    # In rational numbers, which do not overflow; 53 bits tell all but the closest of races.
    times = sorted((Fraction(arrivals[x]) / Fraction(weights[x]), x) for x in runners)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token = Noise(seed, 3).choose(weights, 0)
    assert token == times[0][1] or times[1][0] - times[0][0] < times[0][0] / 2**50


@settings(max_examples=300)
@given(st.integers(1, 2**52 - 1), st.floats(2.0**-30, 4), st.floats(0.25, 2), st.integers(-1000, 900))
@example(2**52 - 1, 0.99, 0.99, 0)
def test_a_light_token_wins_where_it_arrives_first(k, weight, sooner, scale):
    # Two tokens, the second of about LIGHT of the first's weight, and words that let it arrive at `sooner` of its time.
    weights = np.ldexp([1.0, weight * LIGHT], scale)
    arrival = exponential(np.array([(k + 0.5) / 2**52]))[0]
    other = int(-math.expm1(-arrival * weight * LIGHT * sooner) * 2**52)
    words = np.array([k << 12, other << 12], dtype=np.uint64)
    times = exponential(uniforms(words.copy())) / np.array([1.0, weight * LIGHT])
    with mock.patch.object(Noise, "words", return_value=words):
        assert Noise(0, 0).choose(weights, 0) == int(np.argmin(times))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_are_just_light_are_drawn_as_often_as_in_the_whole_race(dtype):
    logits = torch.full((5000,), math.log(LIGHT) - 0.01).to(dtype)
    logits[7] = 0.0
    w = weights(logits, SamplingParams(temperature=1.0)).numpy()
    times = [exponential(uniforms(Noise(seed, 5).words(0, 0, 5000))) / w for seed in range(40)]
    firsts = [int(np.argmin(each)) for each in times]
    assert [sample(logits, SamplingParams(temperature=1.0, seed=seed), 5) for seed in range(40)] == firsts
    assert [Noise(seed, 5).choose(w, 0) for seed in range(40)] == firsts
    assert 5 < sum(first != 7 for first in firsts) < 35


def test_weights_of_denormal_numbers_have_their_frequencies():
    weights = np.array([1.0, 0, 2, 5, 2])
    tokens = [Noise(seed, 3).choose(np.ldexp(weights, -1070), 0) for seed in range(300)]
    assert tokens == [Noise(seed, 3).choose(weights, 0) for seed in range(300)]
    assert len({*tokens}) == 4


def test_draws_at_low_temperature_do_not_warn():
    logits = 4 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    for temperature in (0.01, 0.02, 0.03, 0.05):
        params = SamplingParams(temperature=temperature, seed=1)
        p = probabilities(logits, params).numpy()
        assert temperature == 0.05 or ((p > 0) & (p < 2.3e-308)).any()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tokens = [Noise(seed, 3).choose(p, 0) for seed in range(20)]
            assert tokens[1] == sample(logits, params, 3)
        assert (p[tokens] > 1e-9).all()


def test_frequencies_are_the_weights():
    weights = np.array([1.0, 0, 2, 5, 2])
    counts = np.bincount([Noise(seed, 3).choose(weights, 0) for seed in range(4000)], minlength=5)
    expected = 4000 * weights / weights.sum()
    chi2 = float(((counts - expected)[weights > 0] ** 2 / expected[weights > 0]).sum())
    assert chi2 < 16.3  # 3 degrees of freedom: exceeded once in a thousand; the numbers are fixed, so never flaky
    assert counts[1] == 0


def test_noise_is_uniform_independent_and_fixed():
    numbers = np.array([[Noise(seed, position).uniform(0) for position in range(100)] for seed in range(100)])
    assert abs(numbers.mean() - 0.5) < 4 / math.sqrt(12 * numbers.size)  # four standard errors
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    chi2 = float(((counts - 500) ** 2 / 500).sum())
    assert chi2 < 43.8  # 19 degrees of freedom: exceeded once in a thousand; the numbers are fixed, so never flaky
    neighbours = np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.05
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.05
    assert len(np.unique(numbers)) == numbers.size
    assert Noise(7, 11).uniform(2) == Noise(7, 11).uniform(2)
    assert len({Noise(2**64 - n, 3).uniform(0) for n in range(1, 50)}) == 49  # seeds keep all their 64 bits


def test_every_draw_of_a_step_has_noise_of_its_own():
    """Token, acceptance and drafts; draw by draw, step by step. But common noise depends on the position alone."""
    keys = [(start, i, stream) for start in range(4) for i in range(4) for stream in (0, 1)]
    numbers = [int(Noise(5, start, stream).words(i, kind, 1)[0]) for start, i, stream in keys for kind in (0, 1)]
    assert len(set(numbers)) == 2 * len(keys)
    weights = np.ones(1000)
    assert (
        CommonNoise(5, 2).choose(weights, 3) == CommonNoise(5, 4).choose(weights, 1) == Noise(5, 5).choose(weights, 0)
    )
    assert Noise(5, 2).choose(weights, 3) != Noise(5, 4).choose(weights, 1)


@given(LOGITS, st.integers(0, 2**64 - 1), st.integers(0, 1000))
def test_rows_do_not_disturb_each_other(logits, seed, position):
    params = SamplingParams(temperature=1.3, top_p=0.9, seed=seed)
    batch = probabilities(torch.stack([logits, logits.flip(0), logits]), params)
    assert torch.equal(batch[0], probabilities(logits, params))
    assert Noise(seed, position).choose(batch[2].numpy(), 0) == sample(logits, params, position)


@pytest.mark.parametrize("broken", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 1}])
def test_broken_logits_are_refused(broken, params):
    with pytest.raises(ValueError, match="broken"):
        sample(torch.tensor(broken), SamplingParams(**params), 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", v) for v in (math.nan, math.inf, -0.1)),
        *(("top_p", v) for v in (0.0, -0.5, 1.01, math.nan)),
        *(("min_p", v) for v in (-0.1, 1.5, math.nan)),
        *(("max_new_tokens", v) for v in (0, -3)),
        *(("top_k", v) for v in (-1,)),
        *(("seed", v) for v in (-1, 2**64)),
        *(("stop", v) for v in (("",), "", ("a", ""), iter(["a", ""]))),
    ],
)
def test_values_outside_their_range_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("stop", [5, None, b"a", ("a", 5)])
def test_stop_strings_of_another_type_are_refused(untyped, stop):
    with pytest.raises(ValueError, match=r"stop must be (a list of|non-empty) strings"):
        SamplingParams(stop=stop)


@pytest.mark.parametrize("stop", ["ab", ["ab"], iter(["ab"]), {"ab": 1}, (s for s in ["ab"])])
def test_stop_strings_come_in_any_collection(stop):
    assert SamplingParams(stop=stop).stop == ("ab",)


class Letters:
    """A detokenizer whose token t is the t-th letter."""

    def __init__(self):
        self.text = ""

    def add(self, token):
        self.text += chr(97 + token)
        return self.text[-1]


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([0, 1, 0, 1, 0, 1, 2]), min_size=1, max_size=12),
    st.lists(st.sampled_from(["b", "ab", "ba", "aab", "bbb", "bab" * 5]), max_size=3),
    st.integers(1, 14),
    st.integers(1, 14),
    st.booleans(),
)
@example(tokens=[0, 1, 0], stop=["ab"], max_new=9, room=9, ignore_eos=False)  # a stop string of two tokens
def test_stop_check_against_a_search_of_the_whole_text(tokens, stop, max_new, room, ignore_eos):
    params = SamplingParams(max_new_tokens=max_new, stop=tuple(stop), ignore_eos=ignore_eos)
    check = StopCheck(params, eos_token_ids=[2], room=room, detokenizer=Letters())
    text = ""
    for count, token in enumerate(tokens, 1):
        text += chr(97 + token)
        ended = token == 2 and not ignore_eos
        expected = "eos" if ended else "stop" if any(s in text for s in stop) else None
        expected = expected or ("length" if count >= min(max_new, room) else None)
        assert check.after(token) == expected
        if expected:
            break


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=4),
    st.sampled_from([(), ("ab",), ("b",)]),
    st.integers(1, 14),
    st.booleans(),
)
@example(steps=[[0, 2, 0]], stop=(), most=9, ignore_eos=False)
@example(steps=[[0, 0, 0]], stop=(), most=2, ignore_eos=False)
def test_several_tokens_end_a_text_where_one_after_another_does(steps, stop, most, ignore_eos):
    params = SamplingParams(max_new_tokens=most, stop=stop, ignore_eos=ignore_eos)
    together, apart = (StopCheck(params, eos_token_ids=[2], room=14, detokenizer=Letters()) for _ in range(2))
    for tokens in steps:
        reason, taken = None, 0
        while taken < len(tokens) and reason is None:
            reason, taken = apart.after(tokens[taken]), taken + 1
        assert together.within(tokens) == (tokens[:taken], reason)
        assert together.left == apart.left
        if reason:
            break


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(ValueError, match="tokenizer"):
        StopCheck(SamplingParams(stop="x"), [], 5)


@pytest.fixture(scope="module")
def tokenizer(smollm2_path):
    return tokenizer_from_gguf(GGUFFile(smollm2_path).fields)


STOPS = st.sampled_from(
    [" ", "a ", "é", "é日", "🙂", "\n\n", "\ufffd", "\ufffd\ufffd", "a\ufffd", "<|im_start|>", "ab" * 9]
)


@given(st.data(), st.lists(STOPS, min_size=1, max_size=3), st.integers(1, 30))
def test_stop_check_against_a_search_of_all_that_is_certain(tokenizer, data, stop, most):
    """Special tokens, halves of characters and bytes that are none, among text."""
    halves = [i for i in range(17, 2000) if "\ufffd" in tokenizer.decode([i])]
    texts = st.sampled_from(["a ", " b", "é日", "🙂a", "\n\n", "ab", "<|im_start|>", "<|im_end|>"]).map(
        tokenizer.encode
    )
    pieces = st.lists(texts | st.sampled_from(halves).map(lambda i: [i]), max_size=12)
    check = StopCheck(SamplingParams(max_new_tokens=most, stop=stop), [], 99, tokenizer.detokenizer())
    ids = []
    for token in [i for piece in data.draw(pieces) for i in piece]:
        ids.append(token)
        certain = tokenizer.decode(ids).removesuffix("\ufffd")  # the last may be a character's beginning
        found = any(s in certain for s in stop) or ("<|im_start|>" in stop and token == 1)
        reason = check.after(token)
        assert reason == ("stop" if found else "length" if len(ids) == most else None)
        if reason:
            break


def test_a_stop_string_before_half_a_character_is_found_at_once(tokenizer):
    half = next(i for i in range(49152) if tokenizer.decode([i]) == " \ufffd")
    check = StopCheck(SamplingParams(stop="a ", max_new_tokens=2), [], 50, tokenizer.detokenizer())
    assert [check.after(t) for t in (*tokenizer.encode("a"), half)] == [None, "stop"]


def test_a_stop_string_that_holds_a_special_token_and_more_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"'<\|im_end\|>' in it is a special token.*as one of its own"):
        StopCheck(SamplingParams(stop=["a", "\n<|im_end|>"]), [], 50, tokenizer.detokenizer())


@given(st.text("ab", max_size=9), st.lists(st.text("ab", min_size=1, max_size=2), max_size=3))
def test_text_is_cut_before_the_first_stop_string(text, stop):
    cut = cut_at_stop(text, stop)
    assert text.startswith(cut)
    assert not any(s in cut for s in stop)
    assert cut == text or any(text.startswith(s, len(cut)) for s in stop)
    assert all(cut_at_stop(text, s) == cut_at_stop(text, [s]) for s in stop)
