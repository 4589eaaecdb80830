"""The choice of a draft length on a simulated machine: its prices are known, and so is every draft's fate.

Time is counted in plain steps. What is compared with plain decoding is a stream of texts, one batch after another.
"""

import random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_opt.speculative import choice as module
from inference_opt.speculative.acceptance import LENGTHS, Acceptance, steps_at
from inference_opt.speculative.choice import Choice
from inference_opt.speculative.cost import expected_tokens

LOOKS, STEPS = (0.3, 6.0), 64  # the host's time for a look; steps until it must look
PRICES = {  # of a step, by drafts
    "memory-bound": lambda gamma: 1 + (0.2 + 0.01 * gamma) * (gamma > 0),
    "by row": lambda gamma: 1 + 0.1 * gamma,
    "expensive": lambda gamma: 1 + (1.3 + 0.08 * gamma) * (gamma > 0),
    "hopeless": lambda gamma: 1 + 2 * gamma,
    "free": lambda gamma: 1 + 0.005 * gamma,
}
FATES = {  # the probability that a draft is right, by its place in a text of so many tokens
    **{str(alpha): lambda place, tokens, alpha=alpha: alpha for alpha in (0.0, 0.1, 0.3, 0.6, 0.8, 0.95)},
    "first half": lambda place, tokens: 0.9 * (place < tokens / 2),
    "second half": lambda place, tokens: 0.9 * (place >= tokens / 2),
    "by turns": lambda place, tokens: 0.9 * (place // 40 % 2),
}
CASES = st.tuples(st.sampled_from([*PRICES]), st.sampled_from([*FATES]), st.integers(0, 99))


def text(fate, tokens, rng):
    """For each place: how many drafts from there on are right."""
    right = [0]
    for place in reversed(range(tokens)):
        right.append(right[-1] + 1 if rng.random() < FATES[fate](place, tokens) else 0)
    return right[::-1]


def steps_over(right, begin, end, length):
    """Steps that lead over these tokens; one that goes further counts in part."""
    steps = 0.0
    while begin < end:
        whole = min(right[begin], length) < end - begin
        steps += 1 if whole else (end - begin) / (length + 1)
        begin += min(right[begin], length) + 1
    return steps


def fixed(texts, tokens, price, length, look):
    """Time of one text after another with one length."""
    return sum(steps * price(length) + look * -(-steps // STEPS) for steps in (
        steps_over(each, 0, tokens, length) // 1 + 1 for each in texts
    ))  # fmt: skip


def decode(choice, texts, tokens, price, noise, look):
    """Time of one batch."""
    known, at, time = [Acceptance() for _ in texts], [0] * len(texts), 0.0
    while live := [i for i, place in enumerate(at) if place < tokens]:
        wanted = [min(LENGTHS[-1], tokens - at[i] - 1) for i in live]
        gamma, most = choice.best([known[i] for i in live], wanted, STEPS)
        while not choice.costs.known(len(live), gamma):  # as the runner does when a step is first captured
            choice.costs.calibrate(len(live), gamma, price(gamma) * noise.uniform(0.97, 1.03))
            gamma, most = choice.best([known[i] for i in live], wanted, STEPS)
        assert 0 <= gamma <= max(wanted)
        assert 1 <= most <= STEPS
        before, steps, judged = list(at), 0, {i: [0, 0] for i in live}
        ends = {i: min(tokens, at[i] + most * (gamma + 1)) for i in live}
        while steps < most and any(at[i] < ends[i] for i in live):
            steps += 1
            for i in live:
                if at[i] < ends[i]:
                    drafts = min(gamma, ends[i] - at[i] - 1)
                    kept = min(texts[i][at[i]], drafts)
                    judged[i] = [judged[i][0] + kept, judged[i][1] + (kept < drafts)]
                    at[i] += kept + 1
        time += steps * price(gamma) + look
        for i in live:
            made, drafts = float(at[i] - before[i]), sum(judged[i])
            if choice.seen:
                taken = [steps_over(texts[i], before[i], at[i], length) for length in LENGTHS]
            elif drafts:
                taken = steps_at(judged[i][0] / drafts, made)
            else:
                continue
            known[i].learn(made, taken)
            choice.lately.learn(made, taken)
        gained = mean(float(at[i] - before[i]) for i in live)
        seconds, short = price(gamma) * noise.uniform(0.97, 1.03), steps == most < STEPS
        choice.learn(len(live), gamma, steps, gained, seconds, short, look * noise.uniform(0.8, 1.2))
    return time


def over_plain(choice, fate, prices, batch, tokens, count, seed, look):
    """How many times faster than plain decoding a stream of batches is; and the best fixed length, for one text."""
    rng, price = random.Random(seed), PRICES[prices]
    streams = [[text(fate, tokens, rng) for _ in range(batch)] for _ in range(count)]
    plain = count * (tokens + look * -(-tokens // STEPS))
    time = sum(decode(choice, texts, tokens, price, rng, look) for texts in streams)
    best = min(fixed([each for texts in streams for each in texts], tokens, price, length, look) for length in LENGTHS)
    return plain / time, plain * batch / best


@settings(max_examples=25)
@given(CASES, st.booleans(), st.sampled_from([1, 1, 8]), st.sampled_from([128, 300, 1000]), st.sampled_from(LOOKS))
def test_it_never_loses(case, seen, batch, tokens, look):
    """In a stream of a few thousand tokens a text, whatever the prices, and also where acceptance changes."""
    prices, fate, seed = case
    speed, _ = over_plain(Choice(seen), fate, prices, batch, tokens, max(2000 // tokens, 2), seed, look)
    assert speed > 0.97


@settings(max_examples=15)
@given(CASES, st.sampled_from([128, 300]), st.sampled_from(LOOKS))
def test_it_comes_close_to_the_best_length_where_acceptance_is_seen(case, tokens, look):
    prices, fate, seed = case
    speed, best = over_plain(Choice(seen=True), fate, prices, 1, tokens, 12, seed, look)
    assert speed > (0.85 if fate[0] == "0" else 0.7) * best  # where acceptance changes, it must notice first


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("batch", [1, 8])
def test_it_wins_where_it_can(seen, batch):
    speed, best = over_plain(Choice(seen), "0.8", "memory-bound", batch, 300, 10, 0, LOOKS[0])
    assert speed > 2.5
    assert best > 3


def test_a_drafter_that_must_be_tried_is_tried_where_drafts_are_dear(monkeypatch):
    """The length that would gain the most, if drafts were accepted, costs more than the credit pays for at first."""
    monkeypatch.setitem(PRICES, "network", lambda gamma: 1 + (0.15 + 0.19 * gamma) * (gamma > 0))
    speed, _ = over_plain(Choice(seen=False), "0.8", "network", 8, 128, 2, 0, LOOKS[0])
    assert speed > 1.3


def test_where_the_credit_does_not_pay_for_the_best_length_a_cheaper_one_is_taken():
    """Twelve drafts give ten tokens at six steps, four give three at 1.9: if half of them came, nothing were lost."""
    choice, good = Choice(seen=True), Acceptance()
    for length, seconds in zip(LENGTHS, (1.0, 1.5, 1.7, 1.9, 5.0, 6.0)):
        choice.costs.learn(1, length, seconds)
    good.learn(900.0, [900.0, 600.0, 400.0, 300.0, 225.0, 90.0])
    choice.lately.learn(900.0, good.steps)
    for credit, right in ((12.0, 12), (0.0, 4), (-0.1, 0)):
        choice.credit = credit
        assert choice.best([good], [12], STEPS)[0] == right


def test_what_every_first_text_loses_is_bounded():
    """Before anything is known: drafters that are seen lose nothing but looks, others what trials may cost."""
    for seen in (True, False):
        for prices in PRICES:
            speed, _ = over_plain(Choice(seen), "0.0", prices, 1, 300, 1, 0, LOOKS[0])
            lost = 1 - (seen and LOOKS[0]) / 300 - (0 if seen else module.BEGIN / 300 + module.SPARE)
            assert speed > lost - 0.005, (seen, prices)


def test_a_text_s_own_acceptance_counts_more_than_that_of_others():
    choice = Choice(seen=True)
    choice.costs.learn(1, 0, 1.0)
    for length in LENGTHS[1:]:
        choice.costs.learn(1, length, 1.3)
    choice.lately.learn(2000.0, steps_at(0.0, 2000.0))
    good, bad = Acceptance(), Acceptance()
    good.learn(64.0, steps_at(0.9, 64.0))
    bad.learn(64.0, steps_at(0.0, 64.0))
    assert choice.best([good], [12], STEPS)[0] == 12
    assert "12 drafts give" in choice.why
    assert choice.best([good], [4], STEPS)[0] == 4, "a text that wants few drafts"
    assert choice.best([bad], [12], STEPS) == (0, STEPS)
    assert choice.why.endswith("plain decoding")
    choice.lately = Acceptance()
    choice.lately.learn(2000.0, steps_at(0.9, 2000.0))
    assert choice.best([bad], [12], STEPS)[0] == 0


def test_texts_that_want_few_drafts_are_counted_with_few():
    choice = Choice(seen=True)
    choice.costs.learn(8, 0, 1.0)
    for length in LENGTHS[1:]:
        choice.costs.learn(8, length, 1.0 + 0.15 * length)
    good = Acceptance()
    good.learn(900.0, steps_at(0.95, 900.0))
    assert choice.best([good] * 8, [12] * 8, STEPS)[0] >= 7
    assert choice.best([good] * 8, [12] + [1] * 7, STEPS)[0] == 1


def test_recent_tokens_count_more():
    own, none = Acceptance(), [1.0] * len(LENGTHS)
    own.learn(300.0, steps_at(0.9, 300.0))
    before = own.rates(none, 1.0)
    own.learn(200.0, steps_at(0.0, 200.0))
    after = own.rates(none, 1.0)
    assert before[-1] > 5
    assert after[-1] < 1.2


def test_what_was_lost_is_made_up_for_before_drafts_are_tried_again():
    choice = Choice(seen=False)
    choice.costs.learn(1, 0, 1.0)
    for length in LENGTHS[1:]:
        choice.costs.learn(1, length, 1.5)
    tries, lost = [], 0.0
    for step in range(2000):
        gamma, steps = choice.best([Acceptance()], [12], 8)
        choice.learn(
            1, gamma, steps, float(steps), 1.5 if gamma else 1.0
        )  # no draft is ever accepted, and nobody says so
        tries += [step] if gamma else []
        lost += 0.5 * steps * (gamma > 0)
    assert tries[0] == 0
    assert len(tries) > 3, "it tries again"
    assert lost <= module.BEGIN + module.SPARE * 8 * 2000


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1, 64)), max_size=9), st.floats(0, 1), st.floats(1, 99))
def test_rates_lie_between_what_was_seen_and_what_is_assumed(past, before, weight):
    own = Acceptance()
    for alpha, tokens in past:
        own.learn(tokens, steps_at(alpha, tokens))
    alphas = [before, *(alpha for alpha, _ in past)]
    for length, rate in zip(LENGTHS, own.rates([expected_tokens(before, each) for each in LENGTHS], weight)):
        assert expected_tokens(min(alphas), length) * 0.999 <= rate <= expected_tokens(max(alphas), length) * 1.001


@pytest.mark.parametrize("seen", [True, False])
def test_a_slow_look_of_the_host_ends_no_speculation(seen):
    """One look may meet a busy machine."""
    choice, good = Choice(seen), Acceptance()
    good.learn(300.0, steps_at(0.9, 300.0))
    choice.lately.learn(300.0, steps_at(0.9, 300.0))
    choice.learn(1, 0, 64, 64.0, 1.0, look=2.0)
    for look in (2.0, 5000.0, *[2.0] * 18):
        gamma, steps = choice.best([good], [12], STEPS)
        assert gamma, choice.why
        choice.learn(1, gamma, steps, 4.0 * steps, 1.2, steps < STEPS, look)


def test_what_is_held_against_it_is_bounded():
    choice = Choice(seen=True)
    choice.learn(1, 0, 64, 64.0, 1.0, look=9000.0)
    choice.learn(1, 3, 8, 8.0, 2.0, short=True, look=9000.0)
    assert choice.credit == -module.CAP
    for _ in range(int(module.CAP / module.SPARE / 64) + 1):
        choice.learn(1, 0, 64, 64.0, 1.0, look=1.0)
    assert choice.credit > -1
