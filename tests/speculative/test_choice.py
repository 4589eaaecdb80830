"""The choice of a draft length on a simulated machine: its prices are known, and so is every draft's fate.

Time is counted in plain steps. What is compared with plain decoding is a stream of texts, one batch after another.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from statistics import mean

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference_opt.speculative import choice as module
from inference_opt.speculative.acceptance import LENGTHS, Acceptance, rates, steps_at
from inference_opt.speculative.choice import Choice
from inference_opt.speculative.cost import expected_tokens
from inference_opt.speculative.step_costs import SURE

AHEAD = -6.0
LOOKS, STEPS = (0.3, 6.0, AHEAD), 64  # the host's time for a look; steps until it must look
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


@dataclass
class Machine:
    """What it takes: steps of so many texts with so many drafts, looks without and with drafts, captures."""

    price: Callable[[int, int], float]
    look: Callable[[int, bool], float]
    guesses: bool = False  # how many steps a run needs, by what steps gave lately; else a run ends when it may
    capture: float = 0.0

    @classmethod
    def of(cls, prices, look):
        """Neither depends on how many texts there are. `AHEAD`: plain steps run ahead of the host."""
        return cls(lambda texts, gamma: PRICES[prices](gamma), lambda texts, drafted: abs(look) * (drafted or look > 0))


def fixed(texts, tokens, price, length, look):
    """Time of one text after another with one length."""
    look = abs(look) * (length > 0 or look > 0)
    return sum(steps * price(length) + look * -(-steps // STEPS) for steps in (
        steps_over(each, 0, tokens, length) // 1 + 1 for each in texts
    ))  # fmt: skip


def plainly(tokens, machine, steps=STEPS):
    """Time of one batch without drafts: of each text, how many tokens it will have."""
    time, done = 0.0, 0
    while live := [each for each in tokens if each > done]:
        run = min(max(live) - done, steps)
        time, done = time + run * machine.price(len(live), 0) + machine.look(len(live), False), done + run
    return time


def decode(choice, texts, machine, noise, most_steps=STEPS):
    """Time of one batch. Texts end where their fates do."""
    known, at, time, usual = [Acceptance() for _ in texts], [0] * len(texts), 0.0, {}
    tokens = [len(each) - 1 for each in texts]
    while live := [i for i, place in enumerate(at) if place < tokens[i]]:
        n, lefts = len(live), [tokens[i] - at[i] for i in live]
        wanted = [min(LENGTHS[-1], left - 1) for left in lefts]
        gamma, most = choice.best([known[i] for i in live], wanted, lefts, most_steps)
        while not choice.costs.known(n, gamma):  # as the runner does when a step is first captured
            choice.captured(n, gamma, machine.price(n, gamma) * noise.uniform(0.97, 1.03), machine.capture)
            time += machine.capture * (gamma > 0)  # others are captured without a drafter, too
            gamma, most = choice.best([known[i] for i in live], wanted, lefts, most_steps)
        assert 0 <= gamma <= max(wanted)
        assert 1 <= most <= most_steps
        before, judged = list(at), {i: [0, 0] for i in live}
        ends = {i: min(tokens[i], at[i] + most * (gamma + 1)) for i in live}
        made, spent, steps = [0] * len(texts), [0] * len(texts), 0
        needed = ceil(max(ends[i] - at[i] for i in live) / usual.get(gamma, gamma + 1.0)) if machine.guesses else most
        while steps < min(needed, most) and any(at[i] < ends[i] for i in live):
            steps += 1
            for i in live:
                if at[i] < ends[i]:
                    drafts = min(gamma, ends[i] - at[i] - 1)
                    kept = min(texts[i][at[i]], drafts)
                    judged[i] = [judged[i][0] + kept, judged[i][1] + (kept < drafts)]
                    at[i] += kept + 1
                    made[i], spent[i] = made[i] + kept + 1, spent[i] + 1
        now = mean(made[i] / spent[i] for i in live)
        usual[gamma] = max((usual.get(gamma, now) + now) / 2, 1.0)
        time += steps * machine.price(n, gamma) + machine.look(n, gamma > 0)
        for i in live:
            drafts = sum(judged[i])
            if choice.seen:
                taken = [steps_over(texts[i], before[i], at[i], length) for length in LENGTHS]
            elif drafts:
                taken = steps_at(judged[i][0] / drafts, float(made[i]))
            else:
                continue
            known[i].learn(float(made[i]), taken)
            choice.lately.learn(float(made[i]), taken)
        seconds, look = machine.price(n, gamma) * noise.uniform(0.97, 1.03), machine.look(n, gamma > 0)
        took = look * noise.uniform(0.8, 1.2)
        if choice.costs.ahead and not gamma:  # the first run of a batch does not run ahead
            took = machine.look(n, True) if max(at) <= most_steps else None
        choice.learn([made[i] for i in live], lefts, gamma, steps, most_steps, seconds, took)
        choice.ended.extend(known[i] for i in live if at[i] == tokens[i])
    return time


def over_plain(choice, fate, prices, batch, tokens, count, seed, look):
    """How many times faster than plain decoding a stream of batches is; and the best fixed length, for one text."""
    rng, machine = random.Random(seed), Machine.of(prices, look)
    streams = [[text(fate, tokens, rng) for _ in range(batch)] for _ in range(count)]
    plain = count * plainly([tokens] * batch, machine)
    time = sum(decode(choice, texts, machine, rng) for texts in streams)
    price = PRICES[prices]
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


def test_a_trial_is_long_enough_to_show_what_drafts_give():
    """One of a few steps costs a look, cannot make up for it, and is soon forgotten: then drafts would never pay."""
    speed, best = over_plain(Choice(seen=False, ahead=True), "0.3", "by row", 1, 128, 60, 0, -4.0)
    assert speed > 1.04
    assert best < 1.09


@pytest.mark.parametrize("seen", [True, False])
def test_a_step_is_captured_when_it_would_have_gained_what_that_takes(seen):
    """At 0.8, drafts save two thirds of the steps. A capture takes more than two texts of 100 tokens would gain."""
    machine, rng = Machine.of("free", LOOKS[0]), random.Random(0)
    machine.capture = 150.0
    choice = Choice(seen, capture=150.0)
    streams = [[text("0.8", 100, rng)] for _ in range(60)]
    times = [decode(choice, texts, machine, rng) for texts in streams]
    plain = plainly([100], machine)
    assert max(times[:2]) < plain / 0.97
    assert sum(each > plain + 100 for each in times) <= 3, "and few lengths are captured"
    assert sum(times[30:]) < 30 * plain / 2
    rare = [decode(choice, [text("0.8", 100, rng)] * 8, machine, rng) for _ in range(2)]
    assert max(rare) < plain / 0.97, "other batches have steps of their own"
    one = Choice(seen)
    assert decode(one, streams[0], Machine.of("free", LOOKS[0]), rng) < plain, "where nothing is captured, at once"


def test_after_the_first_few_captures_take_a_share_of_the_time():
    """What drafts would gain is an estimate, and every size of batch has steps of its own."""
    choice, good = Choice(seen=True, capture=10.0), Acceptance()
    good.learn(900.0, steps_at(0.9, 900.0))

    def captured(texts):
        choice.costs.learn(texts, 0, 1.0)
        choice.missed[texts] = 99.0
        gamma, _ = choice.best([good] * texts, [12] * texts, [999] * texts, STEPS)
        if gamma:
            choice.captured(texts, gamma, 1.0, 10.0)
        return gamma > 0

    assert [captured(2**i) for i in range(9)] == [True] * module.AT_ONCE + [False] * (9 - module.AT_ONCE)
    choice.learn([1], [999], 0, int(5 / module.SPARE), STEPS, 1.0)
    choice.captured(64, 0, 1.0, 1.0)  # without drafts: as without a drafter
    assert (choice.missed[64], choice.capture, choice.captures) == (99.0, 10.0, module.AT_ONCE)
    assert [captured(2**i) for i in range(6, 9)] == [True, False, False]


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
        assert choice.best([good], [12], [999], STEPS)[0] == right


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
    assert choice.best([good], [12], [999], STEPS)[0] == 12
    assert "12 drafts give" in choice.why
    assert choice.best([good], [4], [999], STEPS)[0] == 4, "a text that wants few drafts"
    assert choice.best([bad], [12], [999], STEPS) == (0, STEPS)
    assert choice.why.endswith("plain decoding")
    choice.lately = Acceptance()
    choice.lately.learn(2000.0, steps_at(0.9, 2000.0))
    assert choice.best([bad], [12], [999], STEPS)[0] == 0


def test_texts_that_want_few_drafts_are_counted_with_few():
    choice = Choice(seen=True)
    choice.costs.learn(8, 0, 1.0)
    for length in LENGTHS[1:]:
        choice.costs.learn(8, length, 1.0 + 0.15 * length)
    good = Acceptance()
    good.learn(900.0, steps_at(0.95, 900.0))
    assert choice.best([good] * 8, [12] * 8, [999] * 8, STEPS)[0] >= 7
    assert choice.best([good] * 8, [12] + [1] * 7, None, STEPS)[0] == 1


def test_recent_tokens_count_more():
    own, none = Acceptance(), np.ones((len(LENGTHS), 1))
    own.learn(300.0, steps_at(0.9, 300.0))
    before = rates([own], none, 1.0)
    own.learn(200.0, steps_at(0.0, 200.0))
    after = rates([own], none, 1.0)
    assert before[-1] > 5
    assert after[-1] < 1.2


def test_what_was_lost_is_made_up_for_before_drafts_are_tried_again():
    choice = Choice(seen=False)
    choice.costs.learn(1, 0, 1.0)
    for length in LENGTHS[1:]:
        choice.costs.learn(1, length, 1.5)
    tries, lost = [], 0.0
    for step in range(2000):
        gamma, steps = choice.best([Acceptance()], [12], [9999], 8)
        # No draft is ever accepted, and nobody says so.
        choice.learn([steps], [9999], gamma, steps, 8, 1.5 if gamma else 1.0)
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
    assumed = np.array([[expected_tokens(before, length)] for length in LENGTHS])
    for length, rate in zip(LENGTHS, rates([own], assumed, weight)[:, 0].tolist()):
        assert expected_tokens(min(alphas), length) * 0.999 <= rate <= expected_tokens(max(alphas), length) * 1.001


@pytest.mark.parametrize("seen", [True, False])
def test_a_slow_look_of_the_host_ends_no_speculation(seen):
    """One look may meet a busy machine."""
    choice, good = Choice(seen), Acceptance()
    good.learn(300.0, steps_at(0.9, 300.0))
    choice.lately.learn(300.0, steps_at(0.9, 300.0))
    choice.learn([64], [9999], 0, 64, STEPS, 1.0, look=2.0)
    for look in (2.0, 5000.0, *[2.0] * 18):
        gamma, steps = choice.best([good], [12], [999], STEPS)
        assert gamma, choice.why
        choice.learn([4 * steps], [9999], gamma, steps, STEPS, 1.2, look)


def test_what_is_held_against_it_is_bounded():
    choice = Choice(seen=True)
    choice.learn([64], [9999], 0, 64, STEPS, 1.0, look=9000.0)
    choice.learn([8], [9999], 3, 8, STEPS, 4.0, look=9000.0)
    assert choice.credit == -module.CAP
    for _ in range(int(module.CAP / module.SPARE / 64) + 1):
        choice.learn([64], [9999], 0, 64, STEPS, 1.0, look=1.0)
    assert choice.credit > -1


@pytest.mark.parametrize("seen", [True, False])
def test_a_pause_of_plain_steps_costs_a_look(seen):
    choice = Choice(seen)
    choice.learn([64], [9999], 0, 64, STEPS, 2.0, look=6.0)
    before = choice.credit
    choice.paused(1)
    assert choice.credit == pytest.approx(before - 3)
    for _ in range(9):
        choice.paused(1)
    assert choice.credit == -module.CAP
    choice.learn([1], [9999], 0, 1, STEPS, 2.0)
    assert choice.credit == pytest.approx(module.SPARE - module.CAP), "plain steps make up for it, bit by bit"


PRICE = st.floats(0.9, 4)


@given(st.booleans(), st.sampled_from([1, 8, 64]), st.floats(-12, 12), st.floats(0, 9), PRICE, PRICE)
@example(False, 1, 2.6, 4.4, 1.68, 1.72)
def test_who_may_risk_more_may_risk_less(seen, texts, credit, look, one, other):
    """A run whose steps cost less may have as many steps. (One that lost nothing but its look was once refused.)"""
    choice = Choice(seen)
    choice.credit = credit
    cheap, dear = (
        choice._steps(texts, module.Expected(7, 35, 2.5, 2.4, price, 1.5), 1.7, STEPS, look)
        for price in sorted((one, other))
    )
    assert cheap >= dear


def test_steps_behind_steps_that_are_under_way_take_no_look():
    """Drafts that would not pay for a look still pay where they go on."""
    for going, wanted in ((0, 0), (7, 7)):
        choice, text = Choice(seen=True, ahead=True), Acceptance()
        for each in (choice.lately, text):
            each.learn(300.0, steps_at(0.6, 300.0))
        choice.learn([64], [9999], 0, 64, STEPS, 1.0)
        for length in LENGTHS[1:]:
            choice.costs.learn(1, length, 1.6)
        for _ in range(9):
            choice.costs.learn_look(1, True, 5.0)
        assert choice.best([text], [7], [10], STEPS, going)[0] == wanted
        before = choice.credit
        choice.learn([20], [99], 7, 10, STEPS, 1.6, ran_ahead=going > 0)
        assert choice.credit - before == pytest.approx(20 - 10 * 1.6 - (0 if going else 5.0), abs=0.2)


def test_plain_decoding_is_measured_again_though_steps_with_drafts_go_on():
    choice, text = Choice(seen=True, ahead=True), Acceptance()
    for each in (choice.lately, text):
        each.learn(300.0, steps_at(0.9, 300.0))
    choice.learn([64], [9999], 0, 64, STEPS, 1.0)
    chosen = [choice.best([text], [7], [9999], STEPS, 7)[0] for _ in range(module.AGAIN + 3)]
    assert chosen == [7] * (module.AGAIN - 1) + [0] * 4, "until they have run"
    choice.learn([8], [9999], 0, 8, STEPS, 1.0)
    assert choice.best([text], [7], [9999], STEPS)[0] == 7


def test_what_a_drafter_lost_it_may_win_back():
    """One that only shows in its steps what it gives would else not be tried again for a long time."""
    for seen in (True, False):
        choice, text = Choice(seen), Acceptance()
        for each in (choice.lately, text):
            each.learn(300.0, steps_at(0.8, 300.0))
        choice.learn([64], [9999], 0, 64, STEPS, 1.0, look=4.0)
        choice.learn([4], [9999], 7, 4, STEPS, 9.0, look=4.0)  # a very slow run
        for _ in range(3):
            choice.costs.learn(1, 7, 1.5)
        assert choice.credit == -(module.CAP if seen else module.BEGIN)
        drafts, steps = choice.best([text], [12], [9999], STEPS)
        assert (drafts >= 7 and steps >= module.LEAST) != seen, choice.why


# In closed batches nobody takes the place of a text that ends. Time is counted in plain steps of one text.
CARD = {  # steps grow dearer with the batch; those of a network are dear
    "found": lambda texts, gamma: (1 + texts / 64) * (1 + (gamma > 0) * (0.02 + (0.04 + 0.018 * gamma) * texts / 64)),
    "network": lambda texts, gamma: (1 + texts / 64) * (1 + (gamma > 0) * (0.24 + 0.1 * gamma)),
}
FATED = {  # what texts are like: fates, by turns
    "alike": ["0.3"],
    "good": ["0.8"],
    "hopeless": ["0.0"],
    "a third hopeless": ["0.0", "0.6", "0.6"],
    "one of eight hopeless": ["0.0", *["0.6"] * 7],
    "different": ["0.1", "0.3", "0.6", "0.8", "0.95"],
}


def closed(kind, fated, lengths, batch, count, seed):
    """Times of closed batches, one after another, without and with the choice."""
    # A look at 64 texts takes ten steps more with drafts than without.
    machine = Machine(CARD[kind], lambda texts, drafted: 0.5 + texts * (0.04 + 0.15 * drafted), guesses=True)
    rng, choice, times, fates = random.Random(seed), Choice(kind == "found"), [], FATED[fated]
    for number in range(count):
        tokens = [lengths[i % len(lengths)] for i in range(batch)]
        kinds = [fates[(number * batch + i) % len(fates)] for i in range(batch)]
        texts = [text(fate, own, rng) for fate, own in zip(kinds, tokens)]
        times.append((plainly(tokens, machine, 32), decode(choice, texts, machine, rng, 32)))
    return times


def gained(times):
    """How many times faster than plain decoding."""
    return sum(plain for plain, _ in times) / sum(time for _, time in times)


@settings(max_examples=12)
@given(
    st.sampled_from([*CARD]),
    st.sampled_from([*FATED]),
    st.sampled_from([[128], [40, 80, 160, 128], [300, 60]]),
    st.sampled_from([(1, 24), (8, 10), (64, 8)]),
    st.integers(0, 99),
)
def test_it_never_loses_in_closed_batches(kind, fated, lengths, size, seed):
    assert gained(closed(kind, fated, lengths, *size, seed)) > 0.97


@pytest.mark.parametrize("kind", [*CARD])
def test_a_batch_is_as_slow_as_its_slowest_text(kind):
    """Drafts give two texts of three more than two tokens a step. But the third needs all its steps: none is drafted,
    as soon as the first batch has shown it."""
    (plain, time), *later = closed(kind, "a third hopeless", [128], 64, 5, 0)
    assert plain / time > 0.9
    assert gained(later) > 0.99
    assert gained(closed("found", "one of eight hopeless", [40, *[128] * 7], 64, 5, 0)) > 1.3, "if it is short"


@pytest.mark.parametrize(("kind", "batch", "least"), [("found", 1, 3.8), ("found", 64, 1.8), ("network", 1, 1.9)])
def test_it_wins_in_closed_batches_where_it_can(kind, batch, least):
    assert gained(closed(kind, "good", [128], batch, 8, 0)) > least


def tried(choice, texts, lefts):
    """Whether texts of these rates have drafts: those of two tokens a step with one draft, and those of one."""
    known = [Acceptance() for _ in texts]
    for each, alpha in zip(known, texts):
        each.learn(900.0, steps_at(alpha, 900.0))
    return choice.best(known, [1] * len(texts), lefts, STEPS)[0] > 0


def test_what_is_left_decides_whose_tokens_count():
    choice = Choice(seen=True)
    choice.lately.learn(900.0, steps_at(0.5, 900.0))
    choice.costs.learn(2, 0, 1.0)
    for length in LENGTHS[1:]:
        choice.costs.learn(2, length, 1.2)
    assert not tried(choice, [1.0, 0.0], [500, 500]), "the slow one ends last"
    assert tried(choice, [1.0, 0.0], [500, 200])
    assert tried(choice, [1.0, 0.0], None), "others wait: a place of half the time serves more of them"
    choice.costs.learn(1, 0, 0.3)
    assert tried(choice, [1.0, 0.0], [500, 500]), "when one has ended, steps are cheap"


def test_new_texts_are_taken_to_be_as_different_as_those_that_ended():
    choice, new = Choice(seen=True), [Acceptance() for _ in range(8)]
    choice.costs.learn(8, 0, 1.0)
    for length in LENGTHS[1:]:
        choice.costs.learn(8, length, 1.2)
    for alpha in (0.0, 1.0):
        choice.ended.append(Acceptance())
        for each in (choice.lately, choice.ended[-1]):
            each.learn(300.0, steps_at(alpha, 300.0))
    assert choice.best(new, [1] * 8, None, STEPS)[0] == 1
    assert choice.best(new, [1] * 8, [500] * 8, STEPS)[0] == 0, choice.why
    choice.ended.clear()
    assert choice.best(new, [1] * 8, [500] * 8, STEPS)[0] == 1, "all are alike"
    choice.ended.append(choice.lately)
    assert choice.best(new, [1] * 8, [500] * 8, STEPS)[0] == 1, "one tells nothing of differences"


def test_credit_is_the_time_that_was_saved():
    """Texts may have 20 and 10 tokens more. A step of two takes 1.0 seconds, of one 0.5, a look at drafts 1.0."""
    choice = Choice(seen=True)
    choice.costs.learn(2, 0, 1.0)
    choice.costs.learn(1, 0, 0.5)
    for _ in range(SURE):
        choice.costs.learn_look(2, False, 0.0)
        choice.costs.learn_look(2, True, 1.0)
    for tokens, lefts, saved in (
        ([8, 8], [20, 10], 8.0),  # both go on
        ([4, 8], [20, 10], 6.0),  # 16 and 2 are left: these take 2 steps of two, and 14 of one
        ([16, 8], [20, 10], 12.0),  # 4 and 2
        ([30, 10], [20, 10], 15.0),  # none
        ([4, 8], None, 6.0),  # others wait
    ):
        choice.credit = 0.0
        choice.learn(tokens, lefts, 4, 3, STEPS, 1.5)
        assert choice.credit == pytest.approx(saved - 3 * 1.5 - 1.0), (tokens, lefts)


def test_a_look_that_takes_longer_with_drafts_counts():
    """Drafts give a quarter more tokens for the same price; looks at them take twenty steps, or three, like others.

    A first look that is slow, as the first of anything is, tells little.
    """
    good = Acceptance()
    good.learn(900.0, [900 / (1 + 0.25 * (length > 0)) for length in LENGTHS])
    for look, times, right in ((3.0, SURE, True), (20.0, SURE, False), (900.0, SURE, False), (900.0, 1, True)):
        choice = Choice(seen=True)
        choice.lately.learn(900.0, good.steps)
        for _ in range(times):
            choice.learn([64], [9999], 0, 64, STEPS, 1.0, look=look if times < SURE else 3.0)
            choice.learn([80], [9999], 1, 64, STEPS, 1.0, look=look)
        choice.credit = 12.0
        assert (choice.best([good], [1], [9999], STEPS)[0] > 0) == right, choice.why


def test_a_small_tree_does_not_speak_against_larger_ones_that_have_run():
    """Seven drafts gave 2.2 tokens a step, of which the first two would have given 1.6. Then steps have two."""
    choice = Choice(False, trees=True)
    seven = [220.0, 170.0, 137.5, 120.0, 100.0, 100.0]
    assert choice.shown(seven, 7) == seven
    assert choice.shown(seven, 2) == seven, "the ratio is not known yet"
    choice.lately.learn(220.0, seven)
    two = choice.shown([150.0, 110.0, 100.0, 100.0, 100.0, 60.0], 2)
    assert two[:3] == [150, 110, 100], "these are shown"
    assert two[3:5] == pytest.approx([100 * 120 / 137.5, 100 * 100 / 137.5])
    assert two[5] == 60, "where all were kept, more drafts are hoped for"
    assert Choice(False).shown(seven[:3] + [150.0] * 3, 2) == seven[:3] + [150] * 3, "chains have no siblings"


@pytest.mark.parametrize("slow", [1, 3])
def test_slow_first_looks_do_not_stop_it(slow):
    """Kernels are compiled in the first runs with drafts, which then pay. A step with drafts costs a half more."""
    choice, text, runs = Choice(False), Acceptance(), []
    for _ in range(60):
        gamma, steps = choice.best([text], [12], [9999], 32)
        runs.append(gamma)
        look = 900.0 if 0 < sum(each > 0 for each in runs) <= slow and gamma else 2.0
        tokens = steps * expected_tokens(0.7, gamma)
        choice.learn([round(tokens)], [9999], gamma, steps, 32, 1 + 0.5 * (gamma > 0), look=look)
        if gamma:
            for each in (text, choice.lately):
                each.learn(tokens, steps_at(0.7, tokens))
    assert sum(each > 0 for each in runs[30:]) > 25
