"""Chapter 00: the naive oracle, and how a token is drawn."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from inference_opt import naive
from inference_opt.cache import generate as cached
from inference_opt.explain.exercises.exercise import (
    Broken,
    Predict,
    Property,
    Question,
    Repair,
    Write,
    expect,
    expect_error,
)
from inference_opt.explain.record import record
from inference_opt.explain.scenarios.decoding import Evaluations
from inference_opt.explain.scenarios.toys import ids, new, spell, toy
from inference_opt.sampling import CommonNoise, Noise, SamplingParams, distribution, sample
from inference_opt.trace import Trace

SEEDS = st.integers(0, 2**32 - 1)
PLACES = st.integers(0, 1000)

# What is there to judge by: the arrival times of a race, in logarithms, from NumPy's own Philox.


def arrivals(weights: list[float], seed: int, start: int, lane: int, i: int) -> list[float]:
    """log(E_x / w_x) of every token x; infinity where the weight is zero."""
    key = np.array([seed, start], dtype=np.uint64)
    counter = np.array([0, 0, i, 2 * lane], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=counter).random_raw(len(weights)) >> np.uint64(12)
    noise = (-math.log1p(-(int(k) + 0.5) / 2**52) for k in bits)
    return [math.log(e) - math.log(w) if w else math.inf for e, w in zip(noise, weights)]


def check_winner(came: Any, weights: list[float], times: list[float]) -> None:
    """The token that came is an int, has a weight, and arrives first (up to rounding)."""
    first = min(range(len(times)), key=times.__getitem__)
    if type(came) is not int or not 0 <= came < len(weights):
        raise Broken(f"a token is an int from 0 to {len(weights) - 1}", came, first)
    if weights[came] == 0:
        raise Broken("a token of weight zero never wins", came, first)
    if times[came] > times[first] + 1e-9:
        raise Broken("the token with the smallest E_x / w_x wins", came, first)


def the_first_wins(weights: list[int], seed: int, start: int, i: int, lane: int) -> None:
    """One draw, and the same draw again."""
    w = np.array(weights, dtype=np.float64)
    came = Noise(seed, start, lane).choose(w, i)
    check_winner(came, w.tolist(), arrivals(w.tolist(), seed, start, lane, i))
    if w.tolist() != weights:
        raise Broken("the weights are the caller's: they stay as they are", w, np.array(weights, dtype=np.float64))
    expect(Noise(seed, start, lane).choose(w, i), came, "the same draw again gives the same token")


def scale_is_nothing(weights: list[int], halvings: int, seed: int) -> None:
    """All weights times 2^−halvings."""
    w = np.array(weights, dtype=np.float64) * 2.0**-halvings
    came = Noise(seed, 0).choose(w, 0)
    check_winner(came, w.tolist(), arrivals(w.tolist(), seed, 0, 0, 0))
    if w.tolist() != [weight * 2.0**-halvings for weight in weights]:
        raise Broken("the weights are the caller's: they stay as they are", w, np.array(weights) * 2.0**-halvings)


def asks_for_its_own_words(weights: list[int], seed: int, start: int, i: int) -> None:
    """`CommonNoise` differs from `Noise` in `words`, and `choose` is the same for both."""
    w = np.array(weights, dtype=np.float64)
    came = CommonNoise(seed, start).choose(w, i)
    check_winner(came, w.tolist(), arrivals(w.tolist(), seed, start + i, 0, 0))


def nothing_to_choose(tokens: int, seed: int) -> None:
    """All weights are zero."""
    expect_error(lambda: Noise(seed, 0).choose(np.zeros(tokens), 0), "where all weights are zero it raises ValueError")


def weights_up_to(largest: int, tokens: int = 6) -> SearchStrategy[list[int]]:
    """Weights, at least one of which is positive."""
    return st.lists(st.integers(0, largest), min_size=1, max_size=tokens).filter(any)


DRAWS = (
    Property(
        "the token drawn is the winner of the race",
        st.fixed_dictionaries({
            "weights": weights_up_to(20), "seed": SEEDS, "start": PLACES, "i": st.integers(0, 3),
            "lane": st.integers(0, 1),
        }),
        the_first_wins,
        (
            {"weights": [2, 1], "seed": 605, "start": 0, "i": 1, "lane": 0},
            {"weights": [2**21, *[1] * 60], "seed": 44498, "start": 0, "i": 0, "lane": 0},  # one of the light is drawn
        ),
    ),
    Property(
        "a draw depends on the ratios of the weights only",
        st.fixed_dictionaries({"weights": weights_up_to(9), "halvings": st.integers(0, 1070), "seed": SEEDS}),
        scale_is_nothing,
        tuple({"weights": [1, 2, 3, 9], "halvings": halvings, "seed": 3} for halvings in (1, 40, 901, 1040, 1070)),
    ),
    Property(
        "the noise is what `self.words` gives, also where a subclass gives other words",
        st.fixed_dictionaries({
            "weights": weights_up_to(20), "seed": SEEDS, "start": PLACES, "i": st.integers(0, 3),
        }),
        asks_for_its_own_words,
    ),
    Property(
        "nothing can be chosen where nothing has a weight",
        st.fixed_dictionaries({"tokens": st.integers(1, 4), "seed": SEEDS}),
        nothing_to_choose,
    ),
)  # fmt: skip


def nucleus(weights: list[float], top_p: float) -> list[int]:
    """The ids that stay, by exact arithmetic."""
    order = sorted(range(len(weights)), key=lambda x: (-weights[x], x))
    whole, before, kept = sum(map(Fraction, weights)), Fraction(0), []
    for x in order:
        if before >= Fraction(top_p) * whole:
            break
        kept.append(x)
        before += Fraction(weights[x])
    return sorted(kept)


def check_nucleus(weights: list[float], top_p: float) -> None:
    """Which tokens stay, and that they keep their weights."""
    w = torch.tensor(weights, dtype=torch.float64)
    distribution._keep_nucleus(w, top_p)
    came, stays = w.tolist(), nucleus(weights, top_p)
    right = [weight if x in stays else 0.0 for x, weight in enumerate(weights)]
    kept = [x for x, weight in enumerate(came) if weight != 0]
    if any(came[x] != weights[x] for x in kept):
        raise Broken("a token that stays keeps its weight; the others get 0", came, right)
    mass = sum((Fraction(weights[x]) for x in kept), Fraction(0))
    if mass < Fraction(top_p) * sum(map(Fraction, weights)):
        raise Broken("the tokens that stay hold at least top_p of the whole mass", came, right)
    if len(kept) > len(stays):
        raise Broken("the fewest tokens stay that hold at least top_p of the mass", came, right)
    if sorted(weights[x] for x in kept) != sorted(weights[x] for x in stays):
        raise Broken("the heaviest tokens stay", came, right)
    expect(came, right, "of equal weights the lowest ids stay")


def keeps_few(weights: list[int], sixteenths: int, scale: float) -> None:
    """Whole numbers times 1 or 1/16, and sixteenths: with them floating point is exact."""
    check_nucleus([weight * scale for weight in weights], sixteenths / 16)


def keeps_few_of_many(tokens: int, top_p: float, halvings: int, seed: int) -> None:
    """exp of random logits, times 2^−halvings; not where rounding decides."""
    weights = (np.exp(np.random.default_rng(seed).normal(0, 3, tokens)) * 2.0**-halvings).tolist()
    cumulative = np.cumsum(sorted(weights, reverse=True)) / sum(weights)
    if np.abs(cumulative - top_p).min() > 1e-9:
        check_nucleus(weights, top_p)


NUCLEUS = (
    Property(
        "the nucleus stays",
        st.fixed_dictionaries(
            {
                "weights": weights_up_to(4, 8),
                "sixteenths": st.integers(1, 15),
                "scale": st.sampled_from([1.0, 1 / 16]),
            }
        ),
        keeps_few,
        (
            {"weights": [1, 1, 1], "sixteenths": 8, "scale": 1.0},
            {"weights": [2, 1, 1], "sixteenths": 8, "scale": 1.0},
            {"weights": [4, 2, 2], "sixteenths": 9, "scale": 1 / 16},
        ),
    ),
    Property(
        "the nucleus of a large vocabulary stays",
        st.fixed_dictionaries(
            {
                "tokens": st.integers(1, 300),
                "top_p": st.floats(0.01, 0.999),
                "halvings": st.integers(0, 30),
                "seed": SEEDS,
            }
        ),
        keeps_few_of_many,
    ),
)


def follows_seed_and_position(logits: list[int], seed: int, position: int, greedy: bool) -> None:
    """One call of `sample`."""
    row = torch.tensor(logits, dtype=torch.float64)
    params = SamplingParams(temperature=0.0 if greedy else 1.0, seed=seed)
    came = sample(row, params, position)
    expect(row.tolist(), [float(x) for x in logits], "the logits are the caller's: they stay as they are")
    if greedy:
        expect(
            came,
            logits.index(max(logits)),
            "at temperature 0 the largest logit's token comes, the lowest id of equal ones",
        )
    else:
        weights = [math.exp(x) for x in logits]
        check_winner(came, weights, arrivals(weights, seed, position, 0, 0))


SAMPLES = Property(
    "the noise of a token is that of its request's seed and its position",
    st.fixed_dictionaries({
        "logits": st.lists(st.integers(0, 3), min_size=2, max_size=6), "seed": SEEDS, "position": PLACES,
        "greedy": st.booleans(),
    }),
    follows_seed_and_position,
    tuple({"logits": [0] * 8, "seed": seed, "position": n, "greedy": False} for seed in (0, 7) for n in (0, 1, 9)),
)  # fmt: skip


def draws_a_seed(tokens: int, position: int) -> None:
    """So many equal logits, and no seed: twenty draws are hardly ever one token."""
    drawn = [sample(torch.zeros(tokens), SamplingParams(temperature=1.0), position) for _ in range(20)]
    if len(set(drawn)) == 1:
        raise Broken("without a seed every call draws its own", drawn, None)


UNSEEDED = Property(
    "a request without a seed cannot be foreseen",
    st.fixed_dictionaries({"tokens": st.integers(1000, 1100), "position": PLACES}),
    draws_a_seed,
)

PROMPT, NEW = "again, and", 6


def count_evaluations() -> tuple[dict[str, Any], Trace]:
    """Both ways of decoding, token by token, on one model that counts what goes in."""
    model = toy(depth=2)
    counts = Evaluations(model)
    per_token: dict[str, list[int]] = {"naive": [], "cached": []}
    with record("00.evaluations", watch=[counts], label=spell, only=("naive.", "cache.")) as trace:
        ways = {
            "naive": naive.stream(model, ids(PROMPT), new(NEW)),
            "cached": cached.stream(model, [ids(PROMPT)], new(NEW)),
        }
        for way, tokens in ways.items():
            before = 0
            while counts.next(way, tokens):
                per_token[way].append(counts.so_far[way] - before)
                before = counts.so_far[way]
    return {
        "naive_second": per_token["naive"][1], "naive": sum(per_token["naive"]), "cached_first": per_token["cached"][0],
        "cached_second": per_token["cached"][1], "cached": sum(per_token["cached"]),
    }, trace  # fmt: skip


EXERCISES: tuple[Any, ...] = (
    Predict(
        "00.evaluations",
        "count the tokens that go through the model",
        """
        A prompt has 10 tokens, and 6 new tokens are generated after it. A *token evaluation* is one token that goes
        once through all layers of the model.

        The naive way feeds the whole text for every new token. With a cache, the keys and values of all tokens that
        were fed before are kept, and only the others are fed. How many token evaluations does each take? The numbers
        are counted while a small model runs both ways.
        """,
        (
            "Write down the length of the text that is fed for the first new token, for the second, and so on.",
            "The first new token comes from the prompt's last logits. With a cache, which tokens have no keys yet when "
            "the second is wanted?",
            "Naive: 10 + 11 + 12 + 13 + 14 + 15. With a cache: the whole prompt once, then one token a step; the last "
            "new token is sampled and never fed.",
        ),
        5,
        {
            "naive_second": Question(
                "naive: evaluations for the second new token alone",
                ((1, "the naive way keeps nothing: the prompt goes through the model again"),
                 (10, "the first new token is part of the text now"),
                 (12, "the second new token is not known yet: it is what comes out")),
            ),
            "naive": Question(
                "naive: evaluations for all 6 new tokens",
                ((60, "the text grows by one token every time"),
                 (16, "that would be each token once, but nothing is kept"),
                 (81, "the first new token needs the prompt only: the sum begins with 10"),
                 (21, "the prompt, too, goes through the model for every new token"),
                 (91, "the sum goes from 10 to 15: the last new token is never fed")),
            ),
            "cached_first": Question(
                "with a cache: evaluations for the first new token",
                ((1, "the cache is empty: the prompt has to be computed once"),
                 (9, "the last token of the prompt is fed as well: its logits are what we want")),
            ),
            "cached_second": Question(
                "with a cache: evaluations for the second new token alone",
                ((11, "the prompt's keys and values are kept"),
                 (0, "the first new token was sampled, but its key and value were not computed"),
                 (2, "only one token of the text is new")),
            ),
            "cached": Question(
                "with a cache: evaluations for all 6 new tokens",
                ((16, "the last new token is sampled and never fed"),
                 (6, "the prompt has to be computed once"),
                 (75, "that is what it takes without a cache")),
            ),
        },
        count_evaluations,
    ),
    Write(
        "00.draw",
        "draw a token by a race",
        """
        Draw one token. `weights` has a number for each token of the vocabulary, none negative; they need not sum to
        one. `i` says which draw of the step this is.

        The noise is given: `self.words(i, ARRIVAL, n)` has 64 random bits for each of n tokens, `uniforms(words)` turns
        them into numbers u in (0, 1), and `exponential(u)` into E = −log(1 − u). The E with index x is that of token x.

        What must hold: The same noise gives the same token every time. The size of all weights together does not
        matter, be it 1 or 10⁻³²⁰. A token of weight zero never wins. The token is an int, and the array of weights
        stays as it is.
        """,
        (
            "E_x / w_x is the time at which token x arrives. Which token is drawn?",
            "Divide the noise by the weights and take the index of the smallest quotient. What does NumPy say of a "
            "division by zero, and what is E / w for w = 10⁻³²⁰?",
            "If the largest weight is 0, raise ValueError. Divide all weights by the largest one first, so that no "
            "quotient of a token that could win overflows. Then int(np.argmin(E / weights)), within "
            "np.errstate(divide='ignore', over='ignore').",
        ),
        15,
        Noise,
        "choose",
        DRAWS,
    ),
    Write(
        "00.nucleus",
        "keep the nucleus of a distribution",
        """
        Top-p sampling draws from a few tokens only: the heaviest ones, as many as are needed to hold `top_p` of the
        whole weight. `w` has the weights of all tokens, on any scale. `top_p` lies between 0 and 1, and is neither of
        them.

        Change `w` itself: set every other token's weight to 0. The tokens that stay keep their weights, and nothing is
        returned. The token that crosses top_p stays. If not all of several equally heavy tokens can stay,
        those with the lowest ids stay.
        """,
        (
            "Sort the weights, the heaviest first, and add them up.",
            "A token stays if the mass of those *before* it is still below top_p times the whole mass. Compare with "
            "the whole mass: w need not sum to one.",
            "w.sort(descending=True, stable=True) gives the order, equal weights by id. "
            "`before = sorted.cumsum(0) − sorted`. The tokens where before >= top_p · w.sum() get w[order[…]] = 0.",
        ),
        10,
        distribution,
        "_keep_nucleus",
        NUCLEUS,
    ),
    Repair(
        "00.seed",
        "a sampler that repeats itself",
        """
        With this `sample` a text could be repeated by its seed, as it should be. But users complained. Where the model
        was unsure, one and the same token came again and again. Rare words never came in most texts, and far too often
        in a few.

        Find an input on which the token is wrong, then fix the function. In the witness `greedy` says whether the
        temperature is 0; it is 1 otherwise.
        """,
        (
            "Draw at several positions from eight equal logits, with one seed. What do you see?",
            "The noise of a draw is a function of two numbers. Which of them does not change here?",
            "Noise takes the seed and the position of the token.",
        ),
        5,
        distribution,
        "sample",
        (SAMPLES, UNSEEDED),
        (("Noise(seed, position)", "Noise(seed, 0)"),),
        {"logits": [0, 0, 0, 0, 0, 0, 0, 0], "seed": 7, "position": 9, "greedy": False},
    ),
)  # fmt: skip
