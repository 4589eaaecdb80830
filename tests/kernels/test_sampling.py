"""Noise and draws on the card are those of `sampling/`: bit for bit, and token for token.

Under Triton's interpreter or, where there is one, on a card.
"""

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from inference_opt.kernels import philox
from inference_opt.kernels.letter import Letter
from inference_opt.kernels.steps import Steps, draw_rows, kind_of
from inference_opt.lab.exactness.gtest import g_statistic, p_value, power
from inference_opt.sampling import Noise, SamplingParams, probabilities, sample
from inference_opt.sampling.noise import exponential, uniforms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Random123's kat_vectors, "philox4x64 10": counter, key, words.
KNOWN = [
    (
        [0] * 4,
        [0] * 2,
        [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B],
    ),
    (
        [2**64 - 1] * 4,
        [2**64 - 1] * 2,
        [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0],
    ),
    (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        [0x452821E638D01377, 0xBE5466CF34E90C6C],
        [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
    ),
]


@triton.jit
def words_of(counter, key, out):
    c0, c1, c2, c3 = tl.load(counter), tl.load(counter + 1), tl.load(counter + 2), tl.load(counter + 3)
    w0, w1, w2, w3 = tl.philox_impl(
        c0.to(tl.uint64, bitcast=True), c1.to(tl.uint64, bitcast=True), c2.to(tl.uint64, bitcast=True),
        c3.to(tl.uint64, bitcast=True), tl.load(key).to(tl.uint64, bitcast=True),
        tl.load(key + 1).to(tl.uint64, bitcast=True),
    )  # fmt: skip
    tl.store(out, w0.to(tl.int64, bitcast=True))
    tl.store(out + 1, w1.to(tl.int64, bitcast=True))
    tl.store(out + 2, w2.to(tl.int64, bitcast=True))
    tl.store(out + 3, w3.to(tl.int64, bitcast=True))


@triton.jit
def noise_of(seed, start, first, noise, arrivals, SIZE: tl.constexpr):
    """The uniform noise of SIZE tokens, and its exponential."""
    n = tl.arange(0, SIZE)
    u = philox.uniform_of(philox.words(tl.load(seed), tl.load(start), tl.load(first), SIZE))
    tl.store(noise + n, u)
    tl.store(arrivals + n, philox.exponential(u))


def bits(*numbers):
    return torch.from_numpy(np.array(numbers, dtype=np.uint64).view(np.int64)).to(DEVICE)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_generator_gives_the_known_answers(counter, key, words):
    number = (sum(c << 64 * i for i, c in enumerate(counter)) - 1) % 2**256  # NumPy counts on first
    before = np.array([(number >> 64 * i) % 2**64 for i in range(4)], dtype=np.uint64)
    generator = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=before)
    assert generator.random_raw(4).tolist() == words
    out = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    words_of[(1,)](bits(*counter), bits(*key), out)
    assert out.cpu().numpy().view(np.uint64).tolist() == words


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 50_000))
@example(2**64 - 1, 0, 0)
def test_the_card_s_noise_is_numpy_s_to_the_bit(seed, start, four):
    size, first = 64, 4 * four
    noise, arrivals = torch.zeros(2, size, dtype=torch.float64, device=DEVICE)
    noise_of[(1,)](bits(seed), bits(start), bits(first), noise, arrivals, size, **philox.EXACT)
    u = uniforms(Noise(seed, start).words(0, 0, first + size))[first:]
    assert np.array_equal(noise.cpu().numpy(), u)
    assert np.array_equal(arrivals.cpu().numpy(), exponential(u))


@given(st.lists(st.integers(0, 2**52 - 1) | st.integers(0, 9) | st.integers(2**52 - 9, 2**52 - 1), min_size=1))
def test_the_exponential_is_the_logarithm_to_rounding(ks):
    u = uniforms(np.array(ks, dtype=np.uint64) << np.uint64(12))
    assert u.tolist() == [(k + 0.5) * 2.0**-52 for k in ks]
    arrivals = exponential(u)
    np.testing.assert_allclose(arrivals, -np.log1p(-u), rtol=4e-16)
    assert (arrivals >= u).all()
    assert (u > 0).all()
    assert (u < 1).all()


def test_arrivals_are_exponential():
    arrivals = exponential(uniforms(Noise(1, 2).words(0, 0, 100_000)))
    counts = np.histogram(np.exp(-arrivals), bins=50, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < chi2.isf(1e-3, 49)  # the numbers are fixed, so never flaky
    assert abs(np.corrcoef(arrivals[:-1], arrivals[1:])[0, 1]) < 4 / math.sqrt(len(arrivals))


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5, 1e-300, 1e12]),
    top_k=st.sampled_from([0, 0, 1, 2, 5, 999]),
    top_p=st.sampled_from([1.0, 1.0, 0.01, 0.5, 0.9, 0.999999999]),
    min_p=st.sampled_from([0.0, 0.0, 1e-9, 0.2, 1.0]),
    seed=st.integers(0, 2**64 - 1),
    logprobs=st.booleans(),
)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # NumPy, in the interpreter: at temperature 1e-300
@settings(max_examples=40)
@given(
    st.lists(PARAMS, min_size=1, max_size=4),
    st.sampled_from([1, 3, 13, 40, 5000]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from(["apart", "tied", "flat", "masked"]),
    st.integers(0, 2**30),
)
def test_a_row_is_drawn_as_sample_draws_it(params, vocab, dtype, kind, start):
    g = torch.Generator().manual_seed(start)
    logits = 3 * torch.randn(len(params), vocab, generator=g)
    if kind == "tied":
        logits = logits.round() * (torch.rand(logits.shape, generator=g) - 0.5).sign()  # zeros of both signs
    elif kind == "flat":
        logits = logits[:, :1].expand_as(logits)
    elif kind == "masked":
        logits[:, 1:][torch.rand(len(params), vocab - 1, generator=g) < 0.7] = -torch.inf
    logits = logits.to(dtype).contiguous()
    positions = [start + i for i in range(len(params))]
    drawn = draw_rows(logits.to(DEVICE), params, positions)
    for row, token, own, position in zip(logits, drawn, params, positions):
        wanted = sample(row, own, position)
        assert token == wanted, (probabilities(row, own)[[token, wanted]], own)


@pytest.mark.parametrize("vocab", [7, 5000])
def test_a_step_notes_broken_rows_and_log_probabilities(vocab):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, vocab, generator=g)
    params = [
        SamplingParams(temperature=t, seed=1, top_p=p, logprobs=True)
        for t, p in [(0.0, 1.0), (1.0, 1.0), (1.0, 0.5)] * 2
    ]
    logits[3, vocab // 2], logits[4, 0], logits[5, -1] = torch.nan, torch.inf, torch.nan
    steps = Steps(1, 8, torch.device(DEVICE))
    with Letter(steps.step.device) as letter:
        steps.begin(letter, np.zeros(6, dtype=np.int64), np.zeros((1, 2, 6), dtype=np.int64), params)
    steps.end(logits.to(DEVICE), kind_of(params, vocab))
    assert steps.tops[0, :6].isfinite().tolist() == [True] * 3 + [False] * 3
    tokens = steps.chosen[0, :3].cpu()
    assert tokens.tolist() == [sample(row, each, 1) for row, each in zip(logits[:3], params)]
    exact = logits[:3].double().log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(steps.scores[0, :3].double().cpu(), exact, rtol=1e-6, atol=2e-6)
    assert ((steps.chosen >= 0) & (steps.chosen < vocab)).all(), "a broken row's token is a token"


def frequencies(draw, draws, exact, hotter, alarm=1e-6):
    """Whether the draws come from `exact`, by a G-test that would find them out had they come from `hotter`."""
    order = exact.argsort()[::-1]
    p, other = exact[order], hotter[order]
    own = int((p * draws >= 20).sum())  # tokens with a cell of their own; the others share one
    cells = [np.append(each[:own], each[own:].sum()) for each in (p, other)]
    assert power(*cells, draws, alarm) > 0.999
    counts = np.bincount(draw(draws), minlength=len(exact))[order]
    assert counts[p == 0].sum() == 0
    counts = np.append(counts[:own], counts[own:].sum())
    assert p_value(g_statistic(counts, cells[0]), len(cells[0])) > alarm


def test_tokens_have_their_probabilities():
    """20,000 draws tell a temperature of 1 from one of 1.1 with a power above 0.999, at 1e-6 false alarms."""
    logits = 2 * torch.randn(60, generator=torch.Generator().manual_seed(5))
    params = SamplingParams(temperature=1.0, top_p=0.9)
    p = probabilities(logits, params).numpy()
    hotter = probabilities(logits, SamplingParams(temperature=1.1, top_p=0.9)).numpy()
    frequencies(lambda n: [Noise(seed, 9).choose(p, 0) for seed in range(n)], 20_000, p, hotter)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a million draws, on a card")
@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_tokens_have_their_probabilities_on_the_card(top_p):
    """A million draws from SmolLM2's vocabulary tell a temperature of 1 from 1.02 in the same way."""
    logits = 2.5 * torch.randn(49_152, generator=torch.Generator().manual_seed(5))
    exact, hotter = (probabilities(logits, SamplingParams(temperature=t, top_p=top_p)).numpy() for t in (1.0, 1.02))
    together = 1000

    def draw(n):
        rows = logits.to(DEVICE).expand(together, -1).contiguous()
        tokens = []
        for first in range(0, n, together):
            params = [SamplingParams(temperature=1.0, top_p=top_p, seed=first + i) for i in range(together)]
            tokens += draw_rows(rows, params, [7] * together)
        return tokens

    frequencies(draw, 1_000_000, exact, hotter)
