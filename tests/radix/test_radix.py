"""The radix tree against a dictionary of prefixes that knows when each was used last."""

import os
from array import array

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inference_opt.explain.views import invariants, snapshot
from inference_opt.lab.eviction.learned import Odds
from inference_opt.radix.eviction import LFU, LRU
from inference_opt.radix.tree import RadixTree
from tests.engine.invariants import assert_sound_tree, content, spelled

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
TEXT = st.lists(st.integers(0, 1), min_size=4, max_size=16) | st.lists(st.integers(0, 1), max_size=3)
NAMESPACE = st.sampled_from([None, None, None, "a"])
LOCK = st.sampled_from([False, False, False, True])


def dump(tree):
    """A tree's whole state."""
    nodes = [(id(n), n.edge, tuple(n.pages), id(n.parent), n.locks, n.users, n.used, n.hits) for n in tree.nodes()]
    return sorted(nodes), list(tree.roots), tree.clock, tree.evictable, tree.inserted, tree.evicted, tree.leaves.heap[:]


class TreeMachine(RuleBasedStateMachine):
    """The model keeps a page a prefix: {(namespace, tokens): [page, time of last use]}, and a list of locks."""

    steps = 0

    @initialize(page_size=st.integers(1, 4))
    def start(self, page_size):
        self.tree = RadixTree(page_size)
        self.size, self.names, self.now = page_size, 0, 0
        self.model, self.locks = {}, []  # locks: (node, namespace, prefix)

    def prefixes(self, tokens):
        return [tuple(tokens[:n]) for n in range(self.size, len(tokens) + 1, self.size)]

    def found(self, tokens, namespace):
        found = []
        for prefix in self.prefixes(tokens):
            if (namespace, prefix) not in self.model:
                break
            found.append(prefix)
        return found

    def use(self, prefixes, namespace):
        self.now += 1
        for prefix in prefixes:
            self.model[namespace, prefix][1] = self.now
        return [self.model[namespace, prefix][0] for prefix in prefixes]

    def locked(self, namespace, prefix):
        return any(where == namespace and text[: len(prefix)] == prefix for _, where, text in self.locks)

    def refused(self, message, call, *args):
        before = dump(self.tree)
        with pytest.raises(ValueError, match=message):
            call(*args)
        assert dump(self.tree) == before

    @rule(tokens=TEXT, namespace=NAMESPACE)
    def cached(self, tokens, namespace):
        before = dump(self.tree)
        assert self.tree.cached(tokens, namespace) == len(self.found(tokens, namespace)) * self.size
        assert dump(self.tree) == before

    @rule(tokens=TEXT, namespace=NAMESPACE, lock=LOCK, as_array=st.booleans())
    def match(self, tokens, namespace, lock, as_array):
        found = self.found(tokens, namespace)
        match = self.tree.match(array("i", tokens) if as_array else tokens, namespace)
        assert match.pages == self.use(found, namespace)
        assert spelled(match.node) == list(found[-1] if found else ())
        if lock:
            self.lock(match.node, namespace)

    @rule(tokens=TEXT, namespace=NAMESPACE, lock=LOCK, own=st.booleans())
    def insert(self, tokens, namespace, lock, own):
        tokens = tokens[: len(tokens) // self.size * self.size]
        prefixes, found = self.prefixes(tokens), self.found(tokens, namespace)
        given = [self.fresh() for _ in prefixes]
        if own:  # what was found is given back as it is
            given[: len(found)] = [self.model[namespace, prefix][0] for prefix in found]
        match = self.tree.insert(tokens, given, namespace)
        for prefix, page in zip(prefixes[len(found) :], given[len(found) :]):
            self.model[namespace, prefix] = [page, 0]
        assert match.pages == self.use(prefixes, namespace)
        assert spelled(match.node) == tokens
        if lock:
            self.lock(match.node, namespace)

    def fresh(self):
        self.names += 1
        return self.names

    def lock(self, node, namespace):
        self.tree.lock(node)
        self.locks.append((node, namespace, tuple(spelled(node))))

    @precondition(lambda self: self.locks)
    @rule(data=st.data())
    def lock_again(self, data):
        node, namespace, _ = data.draw(st.sampled_from(self.locks))
        self.lock(node, namespace)

    @precondition(lambda self: self.locks)
    @rule(data=st.data())
    def unlock(self, data):
        node, _, prefix = self.locks.pop(data.draw(st.integers(0, len(self.locks) - 1)))
        assert tuple(spelled(node)) == prefix, "a handle means the same prefix as long as it is locked"
        self.tree.unlock(node)

    @rule(texts=st.lists(TEXT, min_size=3, max_size=6), again=TEXT)
    def serve_several(self, texts, again):
        while self.locks:
            self.tree.unlock(self.locks.pop()[0])
        for text in texts:
            self.insert(text, None, lock=False, own=True)
        for text in (again, texts[0]):  # no longer the oldest
            self.match(text, None, lock=False, as_array=False)
        self.evict(2)

    @rule(count=st.sampled_from([1, 1, 1, 2, 3, 12, 0]))
    def evict(self, count):
        free = [key for key in self.model if not self.locked(*key)]
        expected = []
        while free and len(expected) < count:
            # A page is at the end if none continues it. Of those the one unused for longest; a chain goes to its end.
            ends = [
                (namespace, text)
                for namespace, text in free
                if not any(n == namespace and len(t) > len(text) and t[: len(text)] == text for n, t in self.model)
            ]
            oldest = min(self.model[key][1] for key in ends)
            tied = [key for key in ends if self.model[key][1] == oldest]
            assert len(tied) == 1, "all of one use lie on one path"
            free.remove(tied[0])
            expected.append(self.model.pop(tied[0])[0])
        assert self.tree.evict(count) == expected

    @rule(count=st.integers(-3, -1))
    def evict_less_than_nothing(self, count):
        self.refused("count must be at least 0", self.tree.evict, count)

    @rule(tokens=TEXT, more=st.integers(1, 3), namespace=st.sampled_from([None, "never seen"]))
    def insert_of_another_length(self, tokens, more, namespace):
        pages = [self.names + 1 + i for i in range(len(tokens) // self.size + more)]
        self.refused("hold", self.tree.insert, tokens, pages, namespace)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), namespace=st.sampled_from([None, "a", "never seen"]))
    def insert_of_owned_pages(self, data, namespace):
        page, _ = self.model[data.draw(st.sampled_from(list(self.model)))]
        self.refused("once", self.tree.insert, [7] * self.size, [page], namespace)

    @rule(namespace=st.sampled_from([None, "never seen"]))
    def insert_of_a_page_twice(self, namespace):
        self.refused("once", self.tree.insert, [7] * 2 * self.size, [self.names + 1] * 2, namespace)

    @rule(bad=st.sampled_from([[2**31], [0, -(2**31) - 1]]))
    def tokens_of_more_than_32_bits(self, bad):
        for call in (self.tree.match, self.tree.cached, lambda tokens: self.tree.insert(tokens, [])):
            self.refused("tokens must be", call, bad)

    @precondition(lambda self: any(node.users == 0 for node in self.tree.nodes()))
    @rule(data=st.data())
    def unlock_of_the_unlocked(self, data):
        node = data.draw(st.sampled_from([node for node in self.tree.nodes() if node.users == 0]))
        self.refused("not locked", self.tree.unlock, node)

    @invariant()
    def sound(self):
        if not hasattr(self, "tree"):
            return
        TreeMachine.steps += 1
        assert_sound_tree(self.tree)
        expected = {
            page: (
                namespace,
                self.model[namespace, text[: -self.size]][0] if len(text) > self.size else None,
                text[-self.size :],
            )
            for (namespace, text), (page, _) in self.model.items()
        }
        assert content(self.tree) == expected
        assert self.tree.evictable == sum(not self.locked(*key) for key in self.model)
        used = {page: node.used for node in self.tree.nodes() for page in node.pages}
        assert used == dict(self.model.values())


TreeMachine.TestCase.settings = settings(
    max_examples=1500 if LONG else 120,
    stateful_step_count=100 if LONG else 50,
    suppress_health_check=list(HealthCheck),
)
TestTree = TreeMachine.TestCase


@given(st.integers(1, 3), st.lists(st.lists(st.integers(0, 1), max_size=9), max_size=8), st.data())
def test_splits_change_no_content(page_size, texts, data):
    tree, names = RadixTree(page_size), iter(range(1000))
    for text in texts:
        whole = text[: len(text) // page_size * page_size]
        tree.insert(whole, [next(names) for _ in range(len(whole) // page_size)])
    before = content(tree)
    for text in texts:
        tree.match(text[: data.draw(st.integers(0, len(text)))])
        assert content(tree) == before
    assert_sound_tree(tree)


def test_the_picture_in_the_module():
    tree = RadixTree(2)
    tree.insert([1, 2, 3, 4, 5, 6], [10, 11, 12])
    match = tree.insert([1, 2, 3, 4, 8, 9], [10, 11, 13])
    assert match.pages == [10, 11, 13]
    shape = {tuple(n.tokens): (n.pages, len(n.children)) for n in tree.nodes()}
    assert shape == {(1, 2, 3, 4): ([10, 11], 2), (5, 6): ([12], 0), (8, 9): ([13], 0)}


def test_a_use_saves_from_eviction():
    tree = RadixTree(1)
    tree.insert([1], [0])
    tree.insert([2], [1])
    tree.match([1])
    assert tree.evict(1) == [1]


def test_a_node_that_was_evicted_is_refused():
    tree = RadixTree(1)
    node = tree.insert([1], [0]).node
    assert tree.evict(1) == [0]
    for call in (tree.lock, tree.unlock):
        with pytest.raises(ValueError, match="was evicted"):
            call(node)


def test_a_page_has_tokens():
    with pytest.raises(ValueError, match="page_size"):
        RadixTree(0)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("page_size", [0, -1, True, 2.0, "2", None])
def test_a_page_is_a_whole_number_of_tokens(page_size):
    with pytest.raises(ValueError, match="page_size must be"):
        RadixTree(page_size)


BAD_CALLS = {
    "count must be an integer, got 1.5": lambda tree: tree.evict(1.5),
    "count must be an integer, got True": lambda tree: tree.evict(True),
    "count must be an integer, got '1'": lambda tree: tree.evict("1"),
    "namespace must be hashable, got": lambda tree: tree.match([1, 2], namespace=[]),
    "tokens must be integers": lambda tree: tree.match([1.5]),
    "tokens must be integers that": lambda tree: tree.cached("12"),
    "a page must be at least 0, got -1": lambda tree: tree.insert([7, 8], [-1]),
    "a page must be an integer": lambda tree: tree.insert([7, 8], ["a"]),
    r"a page must be an integer, got \[3\]": lambda tree: tree.insert([7, 8], [[3]]),
    "another tree": lambda tree: tree.lock(RadixTree(2).insert([1, 2], [0]).node),
    "or belongs to another tree": lambda tree: tree.unlock(RadixTree(2).match([1, 2]).node),
    "was evicted, or belongs": lambda tree: tree.lock(None),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_calls_change_nothing(message):
    tree = RadixTree(2)
    tree.insert([1, 2, 3, 4], [0, 1])
    before = dump(tree)
    with pytest.raises(ValueError, match=message):
        BAD_CALLS[message](tree)
    assert dump(tree) == before


def test_bytes_are_tokens_one_by_one():
    tree = RadixTree(2)
    tree.insert(b"abcd", [0, 1])
    assert tree.match([97, 98, 99, 100]).pages == [0, 1]


def test_a_namespace_that_holds_nothing_leaves_nothing():
    tree = RadixTree(2)
    for name in range(50):
        assert tree.match([1, 2], name).pages == []
        assert tree.cached([1, 2], name) == 0
    assert tree.roots == {}
    root = tree.match([1, 2], "a").node
    tree.lock(root)
    assert list(tree.roots) == ["a"]
    tree.insert([1, 2], [0], "a")
    assert tree.roots["a"] is root, "what was locked is the root that grows"
    assert tree.evict(1) == [0]
    assert list(tree.roots) == ["a"], "still locked"
    tree.unlock(root)
    assert tree.roots == {}
    tree.insert([1, 2], [0], "a")
    assert tree.evict(1) == [0]
    assert tree.roots == {}


def test_all_handles_to_nothing_mean_the_same():
    tree = RadixTree(1)
    first, second = tree.match([1], "a").node, tree.match([1], "a").node
    tree.insert([1], [0], "a")
    for node in (first, second):
        tree.lock(node)
    assert tree.roots["a"].users == 2
    assert tree.evict(1) == [0], "a lock on nothing keeps nothing"
    for node in (second, first):
        tree.unlock(node)
        assert_sound_tree(tree)
    with pytest.raises(ValueError, match="not locked"):
        tree.unlock(first)
    assert tree.roots == {}


def test_clear_voids_every_handle():
    tree = RadixTree(1)
    nodes = [tree.match([9]).node, tree.insert([1, 2], [0, 1]).node, tree.insert([1, 3], [0, 2]).node]
    tree.lock(nodes[1])
    tree.clear()
    tree.insert([1, 2], [0, 1])
    before = dump(tree)
    for node in nodes:
        for call in (tree.lock, tree.unlock):
            with pytest.raises(ValueError, match="another tree"):
                call(node)
    assert dump(tree) == before


class Sinking(LRU):
    """What was used last goes first: every use leaves an older entry behind in the heap."""

    def key(self, node):
        return -node.used


@pytest.mark.parametrize("policy", [Sinking, lambda: Odds(20, 1), LFU])
def test_what_waits_for_eviction_stays_in_bounds(policy):
    tree = RadixTree(1, policy())
    for i in range(600):
        text = [i % 3, i % 5]
        found = tree.match(text).pages
        free = iter(set(range(20)) - content(tree).keys())
        tree.insert(text, found + [next(free) for _ in range(2 - len(found))])
        for node in [tree.match(text).node]:
            tree.lock(node)
            tree.unlock(node)
        assert_sound_tree(tree)
        assert len(tree.leaves.heap) <= 2 * sum(not node.children for node in tree.nodes()) + 17
        if i % 100 == 99:
            tree.evict(7)
    tree.evict(20)
    assert (len(tree), tree.leaves.count) == (0, 0)


def test_deep_trees_are_shown():
    tree = RadixTree(1)
    deep = 3000
    for n in range(1, deep + 1, 3):
        tree.insert(range(n), range(n))
    shown = snapshot(tree)["nodes"]
    assert [node["parent"] for node in shown] == [None, *range(len(shown) - 1)]
    assert [token for node in shown for token in node["tokens"]] == list(range(deep - 2))
    assert all(invariants(tree).values())


def test_a_snapshot_lists_parents_first_and_children_as_they_came():
    tree = RadixTree(1)
    tree.insert([1, 2, 3], [0, 1, 2], "a")
    tree.insert([1, 4], [0, 3], "a")
    tree.insert([1, 2, 5], [0, 1, 4], "a")
    tree.insert([6], [5])
    listed = [(node["parent"], node["tokens"]) for node in snapshot(tree)["nodes"]]
    assert listed == [(None, []), (0, [1]), (1, [2]), (2, [3]), (2, [5]), (1, [4]), (None, []), (6, [6])]
    assert [node.get("namespace") for node in snapshot(tree)["nodes"] if node["parent"] is None] == ["a", None]
