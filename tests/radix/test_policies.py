"""Every policy against a model with a dictionary entry a page; Belady's against exhaustive search."""

import copy
from array import array
from functools import cache
from itertools import combinations, count
from math import log

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inference_opt.lab.eviction import learned
from inference_opt.lab.eviction.learned import FORGET, FadingFrequency, Odds
from inference_opt.radix.eviction import FIFO, LFU, LRU, Belady
from inference_opt.radix.node import upwards
from inference_opt.radix.tree import RadixTree

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=14)
CAPACITY = st.integers(1, 12)


def prefixes(prompt):
    return [tuple(prompt[: i + 1]) for i in range(len(prompt))]


def replayed(prompts, capacity, policy):
    """Pages found for each prompt, and the prefixes cached after it."""
    tree, names = RadixTree(1, policy), count()
    for prompt in prompts:
        pages = tree.match(prompt).pages
        tree.insert(prompt, pages + [next(names) for _ in range(len(prompt) - len(pages))])
        tree.evict(max(len(tree) - capacity, 0))
        cached = set()
        for node in tree.nodes():
            text = [token for above in list(upwards(node))[::-1] for token in above.tokens]
            cached |= set(prefixes(text)[-len(node.pages) :])
        yield len(pages), cached


class Model:
    """A page a dictionary entry; the leaf of least worth goes first."""

    def __init__(self, worth):
        self.worth, self.pages, self.now = worth, {}, 0

    def serve(self, prompt, capacity):
        found = 0
        for hit in (True, False):  # a match is a use, an insertion another
            self.now += 1
            for prefix in prefixes(prompt):
                if hit and prefix not in self.pages:
                    break
                page = self.pages.setdefault(prefix, {"born": self.now, "hits": 0})
                page["used"] = self.now
                page["hits"] += hit
                found += hit
        while len(self.pages) > capacity:
            leaves = [p for p in self.pages if not any(q[:-1] == p for q in self.pages)]
            del self.pages[min(leaves, key=lambda prefix: self.worth(self.pages[prefix]))]
        return found


@pytest.mark.parametrize(
    ("policy", "worth"),
    [
        (LRU, lambda page: page["used"]),
        (LFU, lambda page: (page["hits"], page["used"])),
    ],
)
@given(prompts=PROMPTS, capacity=CAPACITY)
def test_lru_and_lfu_keep_what_the_model_keeps(policy, worth, prompts, capacity):
    model = Model(worth)
    for prompt, (found, cached) in zip(prompts, replayed(prompts, capacity, policy())):
        assert model.serve(prompt, capacity) == found
        assert set(model.pages) == cached


@given(prompts=PROMPTS, capacity=CAPACITY)
def test_fifo_evicts_no_leaf_while_an_older_one_stays(prompts, capacity):
    model = Model(lambda page: page["born"])
    for prompt, (found, cached) in zip(prompts, replayed(prompts, capacity, FIFO())):
        assert model.serve(prompt, capacity) == found
        assert set(model.pages) == cached


@given(prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=3), min_size=1, max_size=6), capacity=CAPACITY)
@example(prompts=[[1], [0, 1], [0], [1]], capacity=2)  # pages of one request that are worth keeping for unequal times
def test_belady_s_hits_are_the_most_that_any_choice_gives(prompts, capacity):
    @cache
    def best(i, cached):
        """Exhaustive: hits from request i on, over every prefix-closed set that may be kept after it."""
        if i == len(prompts):
            return 0
        wanted = prefixes(prompts[i])
        present = cached | set(wanted)
        kept = [
            frozenset(some)
            for size in range(min(capacity, len(present)) + 1)
            for some in combinations(sorted(present), size)
            if all(len(p) == 1 or p[:-1] in some for p in some)
        ]
        return len(cached & set(wanted)) + max(best(i + 1, each) for each in kept)

    policy = Belady([array("i", prompt).tobytes() for prompt in prompts], 1)
    assert sum(found for found, _ in replayed(prompts, capacity, policy)) == best(0, frozenset())


@pytest.mark.parametrize("kind", [FadingFrequency, Odds])
@given(prompts=PROMPTS, capacity=st.integers(3, 12))
def test_what_is_learnt_equals_counting_page_by_page(kind, prompts, capacity):
    policy = kind(capacity, 1)
    policy.capacity = 10**6  # nothing is forgotten: the model remembers all
    tree, names = RadixTree(1, policy), count()
    past, used, back, ages, returns, now = {}, {}, {}, 0, 0, 0
    for prompt in prompts:
        pages = tree.match(prompt).pages
        seen = 0
        while seen < len(prompt) and tuple(prompt[: seen + 1]) in past:
            seen += 1
        now += 1  # the history's clock: a match, and an insertion where there is something new
        for i, prefix in enumerate(prefixes(prompt)):
            returned = 0
            if i < seen:
                returned, sort, last = past[prefix]
                returned, back[sort] = returned + 1, back.get(sort, 0) + 1
                ages, returns = ages + now - last, returns + 1
            sort = (returned.bit_length(), 4 * seen // len(prompt))
            used[sort] = used.get(sort, 0) + 1
            past[prefix] = (returned, sort, now)
        now += seen < len(prompt)
        tree.insert(prompt, pages + [next(names) for _ in range(len(prompt) - len(pages))])
        pace = ages / returns if returns else 0
        for node in tree.nodes():
            text = [token for above in list(upwards(node))[::-1] for token in above.tokens]
            if text == prompt[: len(text)]:  # of this request's path: noted just now
                returned, sort, last = past[tuple(text)]
                worth = 1 + returned
                if kind is Odds:
                    came = back.get(sort, 0)
                    worth = (came + 1) / (used[sort] - came + 1)
                assert node.policy_state == pytest.approx(last + pace * log(worth))
                assert {past[p] for p in prefixes(text)[-len(node.pages) :]} == {past[tuple(text)]}
        tree.evict(max(len(tree) - capacity, 0))


def test_the_history_is_bounded_and_counts_fade():
    policy, names = Odds(4, 2), count()
    tree = RadixTree(2, policy)
    for i in range(200):
        prompt = [i, i, 7, i % 3, 5]  # the last token fills no page
        pages = tree.match(prompt).pages
        tree.insert(prompt[:4], pages + [next(names) for _ in range(2 - len(pages))])
        tree.evict(max(len(tree) - 4, 0))
        assert len(policy.history) <= learned.HISTORY * policy.capacity
        assert policy._uses <= FORGET * policy.capacity
        assert sum(policy._used.values()) <= FORGET * policy.capacity


def test_a_key_that_falls_is_noticed():
    """Belady's keys fall at a use: the next one is later. The heap's older entry must not decide."""
    prompts = [[1], [2], [1], [2], [2], [2], [1]]
    found = [n for n, _ in replayed(prompts, 1, Belady([array("i", p).tobytes() for p in prompts], 1))]
    assert sum(found) == 3  # 1 until its second use, then 2; or 2 all the way


@pytest.mark.parametrize("made", [lambda: Odds(4, 1), lambda: FadingFrequency(4, 1), lambda: Belady([b"1234"], 1)])
def test_a_policy_for_pages_of_another_size_is_refused(made):
    with pytest.raises(ValueError, match="made for pages of 1 tokens, the tree has pages of 2"):
        RadixTree(2, made())


@pytest.mark.parametrize("made", [LRU, lambda: Odds(4, 1)])
def test_a_policy_serves_one_tree_at_a_time(made):
    policy = made()
    tree = RadixTree(1, policy)
    with pytest.raises(ValueError, match="serves another tree already: make one for each"):
        RadixTree(1, policy)
    tree.insert([1], [0])
    twin = copy.deepcopy(tree)
    assert twin.evict(1) == [0]
    assert tree.match([1]).pages == [0]
    with pytest.raises(ValueError, match="page_size"):
        RadixTree(0, made())
    del tree
    RadixTree(1, policy)  # it is free again


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("policy", [LRU, "lru", 3])
def test_what_is_no_policy_is_refused(policy):
    with pytest.raises(ValueError, match="expected a policy"):
        RadixTree(1, policy)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("capacity", [0, -3, 2.5, True, "4", None])
@pytest.mark.parametrize("kind", [Odds, FadingFrequency])
def test_a_capacity_is_a_whole_number_of_pages(kind, capacity):
    with pytest.raises(ValueError, match="capacity must be"):
        kind(capacity, 1)
    with pytest.raises(ValueError, match="page_size must be"):
        kind(4, capacity)


def test_belady_says_where_its_future_ends():
    tree = RadixTree(1, Belady([array("i", [1]).tobytes()], 1))
    with pytest.raises(ValueError, match="1 texts were foreseen"):
        tree.insert([1], [0])
    tree.match([1])
    tree.insert([1], [0])
    with pytest.raises(ValueError, match="1 texts were foreseen"):
        tree.match([2])
    assert tree.evict(1) == [0]


def test_cuts_out_of_place_cut_nothing():
    class Odd(LRU):
        def cuts(self, text, namespace):
            return [5, 2, 0, 2, -1, 3, 9]

    tree = RadixTree(1, Odd())
    tree.insert([1], [0])
    tree.insert([1, 2, 3, 4], [0, 1, 2, 3])
    assert sorted(tuple(node.tokens) for node in tree.nodes()) == [(1,), (2,), (3,), (4,)]


def test_namespaces_leave_a_policy_s_history_with_their_pages():
    policy = Odds(4, 1)
    tree = RadixTree(1, policy)
    for name in range(200):
        tree.match([1, 2, 3], name)
        tree.insert([1, 2, 3], [0, 1, 2], name)
        tree.evict(3)
    assert len(policy.history.roots) <= 20
    assert tree.roots == {}
