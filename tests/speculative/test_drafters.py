"""What each drafter says, against the plainest way to say it; and how long a draft should be."""

import sys
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt import naive
from inference_opt.engine.engine import Engine
from inference_opt.model.attention import NoCache
from inference_opt.sampling import Noise, SamplingParams, probabilities
from inference_opt.speculative.acceptance import LENGTHS, replayed
from inference_opt.speculative.drafter import DraftRequest
from inference_opt.speculative.eagle import Eagle
from inference_opt.speculative.lookup import NGram, PromptLookup
from inference_opt.speculative.models import FirstLayers, SmallerModel
from tests.engine.invariants import random_head
from tests.toys import PARAMS, toy


@dataclass
class Page:
    """A text as drafters see it."""

    tokens: array
    computed: int
    table: list[int]
    params: SamplingParams
    drafter_state: Any = None


def request(tokens, gamma, **params):
    return DraftRequest(
        Page(array("i", tokens), len(tokens) - 1, [], SamplingParams(**params)), gamma, Noise(1, len(tokens))
    )


@pytest.mark.parametrize("depth", [1, 3])
def test_a_text_may_grow_while_a_profiler_keeps_the_frames_that_looked_it_up(depth):
    asked, frames = request([1, 2, 3, 1, 2, 4, 1, 2], 3), []
    sys.setprofile(lambda frame, *_: frames.append(frame))
    try:
        drafter = PromptLookup(2, 1)
        drafter._chain(asked) if depth == 1 else drafter._tree(asked, depth)
    finally:
        sys.setprofile(None)
    asked.text.tokens.append(3)


def copied(tokens, most, least, gamma):
    """The longest end, down to `least`, that was there before, at its latest place; and what followed."""
    for n in range(min(most, len(tokens) - 1), least - 1, -1):
        for start in range(len(tokens) - n - 1, -1, -1):
            if tokens[start : start + n] == tokens[-n:]:
                text = list(tokens)
                for i in range(start + n, start + n + gamma):
                    text.append(text[i])
                return text[len(tokens) :]
    return []


ALIKE = st.sampled_from([0, 1, 256, 257, 65536, 65537, 16777216])  # their bytes are alike, shifted
TEXT = st.one_of(st.lists(st.integers(0, 2), min_size=1, max_size=24), st.lists(ALIKE, min_size=1, max_size=12))


@given(TEXT, st.integers(1, 4), st.integers(1, 4), st.integers(1, 8))
def test_prompt_lookup_copies_what_a_search_over_lists_finds(tokens, least, more, gamma):
    most = least + more - 1
    (draft,) = PromptLookup(most, least).propose([request(tokens, gamma)])
    assert draft.tokens == copied(tokens, most, least, gamma)
    assert draft.probs is None


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(2, 5),
    st.integers(1, 5),
    st.integers(1, 30),
    PARAMS,
)
def test_n_grams_are_counted(tokens, n, gamma, first, params):
    drafter = NGram(n)
    drafter.vocab_size = 5
    text = Page(array("i", tokens[:first]), 0, [], params)
    drafter.propose([DraftRequest(text, 1, Noise(3, 0))])  # earlier in the text: its counts are kept
    text.tokens = array("i", tokens)
    (draft,) = drafter.propose([DraftRequest(text, gamma, Noise(2, 0))])
    for i in range(gamma):
        context, q = [*tokens, *draft.tokens[:i]][-n + 1 :], None
        for size in range(len(context), 0, -1):
            end = context[-size:]
            seen = Counter(tokens[at + size] for at in range(len(tokens) - size) if tokens[at : at + size] == end)
            if seen:
                counts = torch.tensor([float(seen[x]) for x in range(5)], dtype=torch.float64)
                q = probabilities(counts.log(), params).numpy()
                break
        if q is None:
            assert len(draft.tokens) == len(draft.probs) == i
            break
        assert np.allclose(draft.probs[i], q, atol=1e-12)
        assert draft.tokens[i] == Noise(2, 0).choose(draft.probs[i], i)
    else:
        assert len(draft.tokens) == gamma


def logits_alone(drafter, text, draft):
    """What the drafter says behind each beginning of its draft, if it reads everything anew."""
    ids = torch.tensor([*text, *draft])
    positions = torch.arange(len(ids))
    if isinstance(drafter, SmallerModel):
        return drafter.model(ids, positions, NoCache([len(ids)]))[len(text) - 1 : -1]
    if isinstance(drafter, FirstLayers):
        h, _ = drafter.model.hidden_states(ids, positions, NoCache([len(ids)]), depth=drafter.depth)
        return drafter.model.logits(h)[len(text) - 1 : -1]
    known = len(text) - 1
    _, tapped = drafter.target.hidden_states(ids[:known], positions[:known], NoCache([known]), taps=drafter.taps)
    features, rows = drafter.head.fuse(tapped), []
    for slots in range(known, known + len(draft)):
        embeds = drafter.target.embed(ids[1 : slots + 1])
        state = drafter.head(features, embeds, positions[:slots], NoCache([slots]))[-1:]
        rows.append(drafter.head.logits(state)[0])
        features = torch.cat((features, state))
    return torch.stack(rows)


KINDS = {
    "smaller": lambda model: SmallerModel(toy(9, depth=1, max_context=48)),
    "ends early": lambda model: SmallerModel(toy(9, depth=1, max_context=48), confidence=0.5),
    "first layer": lambda model: FirstLayers(),
    "trained, or not": lambda model: Eagle(random_head(model, taps=(0, 1), reduced=9)),
}


def watched(engine):
    """From now on, each q must be what the drafter says of the text alone, and each token drawn from its q."""
    drafter, whole = engine.speculation.drafter, engine.speculation.drafter.propose

    def propose(requests):
        drafts = whole(requests)
        for each, draft in zip(requests, drafts):
            assert 1 <= len(draft.tokens) <= each.gamma
            with torch.inference_mode():
                logits = logits_alone(drafter, each.text.tokens, draft.tokens)
            sure = (logits.softmax(-1).amax(-1) >= drafter.confidence).tolist()
            assert all(sure[:-1])
            assert len(draft.tokens) == each.gamma or not sure[-1]
            for i, (row, q, x) in enumerate(zip(logits, draft.probs, draft.tokens)):
                assert np.allclose(drafter.distribution(row, each.text), q, atol=1e-9)
                assert x == each.rng.choose(q, i)
        return drafts

    drafter.propose = propose
    return engine


@pytest.mark.parametrize("kind", KINDS)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 12), min_size=2, max_size=8), PARAMS), min_size=1, max_size=4),
    st.sampled_from([1, 3, 16]),
    st.sampled_from([3, 64]),
    st.sampled_from([0, 2, 60]),
    st.sampled_from([2, 5]),
)
def test_each_distribution_is_what_the_drafter_says_of_the_text_alone(kind, texts, page_size, budget, slack, gamma):
    """Whatever it has cached, shared, lost in a preemption or rejected."""
    model = toy(2)
    most = max(min(len(prompt) + params.max_new_tokens - 1, 24) for prompt, params in texts)
    pages = -(-most // page_size) + slack
    # A slot of the trained drafter's holds the token behind it, too, which is another where texts part.
    radix = kind != "trained, or not"
    engine = watched(
        Engine(
            model,
            radix=radix,
            drafter=KINDS[kind](model),
            page_size=page_size,
            num_pages=pages,
            token_budget=budget,
            gamma=gamma,
        )
    )
    engine.generate([prompt for prompt, _ in texts], [params for _, params in texts])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("page_size", [1, 3])
def test_who_continues_a_text_finds_it_read_by_the_drafter(kind, page_size):
    """The prompt and what was generated, at its end or where it was aborted, or in the middle of its own prefill."""
    model = toy(2, max_context=48)
    for leaves in (None, 1, 2, 3, 5):
        engine = watched(
            Engine(model, drafter=KINDS[kind](model), page_size=page_size, num_pages=150, token_budget=7, gamma=3)
        )
        text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
        for _ in range(3):
            request = engine.add(text, SamplingParams(8, ignore_eos=True))
            twin = engine.add(text, SamplingParams(4, ignore_eos=True))
            steps = 0
            while engine.requests:
                engine.step()
                steps += 1
                if steps == leaves and not request.finished:
                    engine.abort(request.id)
            assert twin.finished
            text = [*text, *request.output]
        assert engine.stats.cached_tokens > 0


@pytest.mark.parametrize("kind", KINDS)
def test_who_finds_more_of_its_prompt_midway_drafts_as_if_alone(kind):
    """A neighbour ends and leaves pages for what a later prompt was still computing."""
    model, start = toy(2, max_context=48), [1, 2, 3]
    engine = watched(Engine(model, drafter=KINDS[kind](model), page_size=1, num_pages=150, token_budget=2, gamma=3))
    first = engine.add(start, SamplingParams(8, ignore_eos=True))
    while len(first.output) < 4:
        engine.step()
    text = [*start, *naive.generate(model, start, first.params)]
    later = engine.add([*text, 4, 5], SamplingParams(8, ignore_eos=True))
    engine.step()
    found = later.metrics.cached_tokens
    while engine.requests:
        engine.step()
    assert later.metrics.cached_tokens > found
    assert later.metrics.drafted_tokens > 0


def test_a_drafter_of_some_tokens_gives_the_others_nothing():
    model = toy(2)
    engine = Engine(model, drafter=Eagle(random_head(model, reduced=3)), gamma=3)
    drafter = engine.speculation.drafter
    q = drafter.distribution(
        torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), Page(array("i"), 0, [], SamplingParams(8, 1.0))
    )
    assert np.flatnonzero(q).tolist() == [10, 11, 12]
    assert q.argmax() == 10  # the last one scored is token 10
    assert q.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptLookup(max_ngram=1, min_ngram=2), "min_ngram 2, max_ngram 1"),
        (lambda: PromptLookup(min_ngram=0), "min_ngram 0"),
        (lambda: PromptLookup(max_ngram=3, min_ngram=True), "min_ngram must be an integer"),
        (lambda: NGram(1), "at least 2 .* got 1"),
        (lambda: NGram(True), "n must be an integer"),
        (lambda: FirstLayers(confidence=1.5), "must be a probability, got 1.5"),
        (lambda: SmallerModel(toy(), confidence=-0.1), "must be a probability, got -0.1"),
    ],
)
def test_drafters_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(st.integers(1, 12), st.data(), st.booleans())
def test_what_a_step_tells_of_other_lengths(asked, data, leaf):
    drafted = data.draw(st.integers(0, asked))
    kept = sorted(data.draw(st.sets(st.integers(0, drafted - 1)))) if drafted else []  # of a chain, the first ones
    tokens, steps = replayed(asked, drafted, kept, leaf)
    assert tokens == len(kept) + 1
    assert steps[0] == tokens, "without drafts, a step is a token"
    assert steps == sorted(steps, reverse=True), "more drafts take no more steps"
    for length, taken in zip(LENGTHS, steps):
        assert tokens <= taken * (length + 1) * (1 + 1e-9), "a step gives one token more than its drafts at most"
        if length <= asked:
            assert taken == tokens / (sum(i < length for i in kept) + 1), "a shorter draft is the first ones"
        else:
            # Longer drafts would have given no more, except where only the length has ended this one.
            assert (taken < 1) == (leaf and drafted == asked)
    if leaf and len(kept) == asked:
        assert steps[-1] == pytest.approx(tokens / (LENGTHS[-1] + 1)), "a chain that was kept goes on"
