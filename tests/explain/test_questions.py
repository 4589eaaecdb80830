"""What the player asks is fair, and what it calls right is what the recording shows, whatever its parameters."""

from collections import Counter
from fractions import Fraction

import pytest

from inference_opt.explain.scenarios import SCENARIOS, play


def state(trace, at, kind):
    return trace.steps[at]["state"][kind]


def nearest(trace, event, at):
    """The step of an event at, or next behind, another."""
    return trace.steps[next(i for i in trace.where(event) if i >= at)]


def taken(trace, at):
    """Pages that are free before a step, and not behind it."""
    before, after = (state(trace, i, "pool")["free"] for i in (at - 1, at))
    return [page for page in before if page not in after]


def found(trace, at):
    return len(nearest(trace, "radix.match", at)["facts"]["pages"]) * state(trace, at, "tree")["page_size"]


def new_to_the_cache(trace, at):
    before = [i for i in trace.where("cache.token") if i < at][-1]
    return len(state(trace, at, "decode")["read"]) - len(state(trace, before, "decode")["read"])


def of_the_step(trace, at, name):
    """What the engine's step did for a request."""
    return next(out for out in nearest(trace, "engine.step", at)["facts"]["outputs"] if out["id"] == name)


def tokens_or_pages(trace, at):
    """Tokens that a step gives; or, where it gives pages back, those that it took and its known tokens do not need."""
    if trace.steps[at]["event"] != "pool.release":
        return len(of_the_step(trace, at, "A")["tokens"])
    held = [page for i in trace.where("pool.allocate") if i < at for page in trace.steps[i]["facts"]["pages"]]
    known = sum(len(trace.steps[i]["facts"]["tokens"]) for i in trace.where("engine.commit") if i < at)
    known += trace.steps[0]["facts"]["tokens"]
    return len(held) - -(-known // 2)


def given(trace, at):
    """Tokens that a run of the target gives."""
    return state(trace, at, "speculation")["fates"].count("kept") + 1


def pieces_of(trace, at):
    seen = state(trace, at, "pieces")
    return sum(0 <= seen["token"] - p["token0"] < p["queries"] for p in seen["pieces"])


# By the scenario: the number that is right, by another way than that of the question.
NUMBERS = {
    "naive-decoding": lambda t, at: len(state(t, at, "decode")["read"]),
    "kv-cache": new_to_the_cache,
    "page-pool": lambda t, at: taken(t, at)[0] if t.where("pool.allocate")[0] < at else len(taken(t, at)),
    "paged-attention": lambda t, at: -(-state(t, at, "attention")["end"] // state(t, at, "attention")["page_size"]),
    "diverging-insert": found,
    "sglang-tree": found,
    "continuous-batching": lambda t, at: of_the_step(t, at, nearest(t, "schedule.prefill", at)["facts"]["id"])["count"],
    "equal-prompts": lambda t, at: nearest(t, "schedule.admit", at)["state"]["schedule"]["running"][-1]["computed"],
    "speculative-step": tokens_or_pages,
    "tree-step": tokens_or_pages,
    "full-acceptance": given,
    "several-candidates": given,
    "draft-tree": given,
    "exact-law": lambda t, at: 1 / (1 - Fraction(state(t, at - 1, "law")["total"])),
    "pieces-of-attention": pieces_of,
}


def goes_from_the_end_of_the_oldest_leaf(trace, at):
    nodes, facts = state(trace, at - 1, "tree")["nodes"], trace.steps[at]["facts"]
    inner = {node["parent"] for node in nodes}
    leaves = [node for i, node in enumerate(nodes) if i not in inner]
    oldest = min((leaf for leaf in leaves if not leaf["locks"]), key=lambda leaf: leaf["used"])
    last = max(leaves, key=lambda leaf: leaf["used"])
    return oldest != last and oldest["pages"][facts["kept"] :] == facts["removed"] and facts["kept"] > 0


def last_of_all_gives_up(trace, at):
    running = state(trace, at - 1, "schedule")["running"]
    left = [each["id"] for each in nearest(trace, "schedule.preempt", at)["state"]["schedule"]["running"]]
    (victim,) = [each for each in running if each["id"] not in left]
    most = max(each["tokens"] for each in running)
    return victim["arrival"] == max(each["arrival"] for each in running) and victim["tokens"] < most


def absorbing_is_cheaper(trace, at):
    counters = trace.steps[at]["counters"]
    mine = counters["multiplications in this form"]
    return trace.steps[at]["state"]["mla"]["form"] == "absorbed" and mine < counters["multiplications in the other"]


def more_comes_of_what_is_drafted_often(trace, at):
    whole = next(state(trace, i, "law") for i in trace.where("law.path") if state(trace, i, "law")["total"] == "1")
    over = [Fraction(came) > Fraction(right) for came, right in zip(whole["first"], whole["truth"])]
    return over == [Fraction(1, 2) > Fraction(right) for right in whole["truth"]]  # the draft says either half the time


def drawn_without_the_first(trace, at):
    seen = state(trace, at, "speculation")
    return seen["x"] != seen["drafts"][0] and seen["q"][seen["vocab"].index(seen["drafts"][0])] == 0


def drawn_from_the_excess(trace, at):
    seen = state(trace, at - 1, "speculation")
    excess = [max(p - q, 0) for p, q in zip(seen["p"], seen["q"])]
    return state(trace, at, "speculation")["rest"] == pytest.approx([each / sum(excess) for each in excess])


# By the scenario: whether the choice that is called right is what the trace shows.
CHOICES = {
    "diverging-insert": goes_from_the_end_of_the_oldest_leaf,
    "preemption": last_of_all_gives_up,
    "latent-attention": absorbing_is_cheaper,
    "rejection": drawn_from_the_excess,
    "block-verification": lambda t, at: state(t, at - 1, "speculation")["kept"] is False,
    "several-candidates": drawn_without_the_first,
    "draft-tree": lambda t, at: (
        state(t, at, "speculation")["law"] == "p, target" and state(t, at - 1, "speculation")["kept"]
    ),
    "biased-rule": more_comes_of_what_is_drafted_often,
    "pieces-of-attention": lambda t, at: (
        sum(share for *_, share in state(t, at, "pieces")["joined"]) == pytest.approx(1)
    ),
}

CHANGES = [
    *(("naive-decoding", {"prompt": prompt}) for prompt in ("a", "ab", "abc")),
    *(("kv-cache", {"prompt": prompt, "new_tokens": n}) for prompt in ("a", "ab") for n in (1, 2, 4)),
    *(("page-pool", {"page_size": size, "num_pages": 40 // size}) for size in (1, 2, 5, 10)),
    ("page-pool", {"prompts": "a: 1\nb: 1"}),
    *(("paged-attention", {"page_size": size, "num_pages": 64 // size}) for size in (1, 2, 3, 5, 16)),
    *(("diverging-insert", {"page_size": size, "evict": n}) for size in (1, 2, 3, 4, 7) for n in (0, 1, 2, 9)),
    ("diverging-insert", {"first": "no", "second": "never", "third": "nothing"}),
    ("sglang-tree", {"num_pages": 80}),
    ("sglang-tree", {"texts": "1 | a b c d\n2 | a b x y\n3 | q"}),
    *(("continuous-batching", {"token_budget": n, "max_running": m}) for n in (3, 5, 8, 13, 64) for m in (1, 2, 4)),
    *(("equal-prompts", {"page_size": size, "num_pages": 40 // size}) for size in (1, 2, 3, 5, 13, 20)),
    ("equal-prompts", {"prompts": "one text: 3\nanother: 3"}),
    ("equal-prompts", {"prompts": "alone: 3"}),
    *(("preemption", {"num_pages": n}) for n in (11, 12, 14, 16, 18, 40)),
    ("preemption", {"prompts": "a: 12\nsecond one: 12\nthird, the longest: 8", "num_pages": 16}),
    *(("latent-attention", {"heads": heads, "latent_dim": n}) for heads in (1, 2, 8) for n in (2, 8, 64)),
    ("latent-attention", {"prompt": "a", "new_tokens": 1}),
    *(
        ("speculative-step", {"rule": rule, "gamma": gamma, "seed": seed})
        for rule in ("token_wise", "block", "coupled")
        for gamma in (1, 4)
        for seed in (0, 1)
    ),
    *(("tree-step", {"gamma": gamma, "seed": seed}) for gamma in (0, 1, 5) for seed in (0, 1)),
    *(("full-acceptance", {"gamma": gamma}) for gamma in (0, 1, 2)),
    *((name, {"seed": seed}) for name in ("rejection", "several-candidates") for seed in range(8)),
    *(("block-verification", {"gamma": gamma, "seed": seed}) for gamma in (0, 1, 2, 4) for seed in range(4)),
    *(("several-candidates", {"candidates": n}) for n in (0, 1, 2)),
    *(("draft-tree", {"depth": depth, "width": 2, "seed": seed}) for depth in (0, 1, 3) for seed in range(4)),
    *(
        (name, {"gamma": gamma, "length": n})
        for name in ("exact-law", "biased-rule")
        for gamma in (0, 1, 3)
        for n in (1, 3)
    ),
    ("pieces-of-attention", {"lengths": "1"}),
    ("pieces-of-attention", {"lengths": "700 130", "sharing": 0}),
    ("pieces-of-attention", {"lengths": "700 900 400", "prefix": 512}),
]


@pytest.fixture(scope="module")
def asked():
    """All that is asked: [(scenario, question)]."""
    return [(name, step["question"]) for name in SCENARIOS for step in play(name).steps if "question" in step]


@pytest.fixture(scope="module")
def choices(asked):
    return [question for _, question in asked if "choices" in question]


def test_every_scenario_asks_and_many_ask_for_a_number(asked, choices):
    assert {name for name, _ in asked} == set(SCENARIOS)
    assert len(asked) - len(choices) >= 6


def test_neither_place_nor_length_tells_the_right_choice(choices):
    places = Counter(question["right"] for question in choices)
    assert {0, 1, 2} <= set(places)
    assert max(places.values()) <= len(choices) / 2
    longest = shortest = 0
    for question in choices:
        lengths = [len(words) for words, _ in question["choices"]]
        right = lengths.pop(question["right"])
        assert max(right, *lengths) <= 1.5 * min(right, *lengths), question["ask"]
        longest += right > max(lengths)
        shortest += right < min(lengths)
    assert 1 <= longest <= len(choices) / 3
    assert shortest <= len(choices) / 2


def test_there_are_no_yes_and_no_and_every_answer_has_its_own_reason(asked):
    for name, question in asked:
        if "choices" in question:
            words, whys = zip(*question["choices"])
            assert len(words) >= 3
            assert not any(each.lower().startswith(("yes", "no:", "no,", "no ")) for each in words), name
            assert len(set(whys)) == len(whys), name
        else:
            assert question["beliefs"], name
            whys = [question["why"], *(why for _, why in question["beliefs"])]
        assert question["ask"].endswith("?")
        assert all(why.endswith(".") and len(why) < 130 for why in whys), name


@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in SCENARIOS), *CHANGES], ids=str)
def test_what_is_called_right_is_what_the_recording_shows(name, changes):
    trace = play(name, **changes)
    for at, step in enumerate(trace.steps):
        question = step.get("question", {})
        if "number" in question:
            assert question["number"] == NUMBERS[name](trace, at), question["ask"]
            assert question["number"] not in [wrong for wrong, _ in question["beliefs"]]
        elif question:
            assert CHOICES[name](trace, at), question["ask"]
