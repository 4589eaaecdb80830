"""The radix tree against a dictionary of prefixes that knows when each was used last."""

import os
from array import array

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inference_opt.kv.radix import RadixTree
from tests.engine.invariants import assert_sound_tree, content, replay, spelled

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
TEXT = st.lists(st.integers(0, 1), min_size=4, max_size=16) | st.lists(st.integers(0, 1), max_size=3)
NAMESPACE = st.sampled_from([None, None, None, "a"])
LOCK = st.sampled_from([False, False, False, True])


def dump(tree):
    """A tree's whole state."""
    nodes = [(id(n), n.edge, tuple(n.pages), id(n.parent), n.locks, n.users, n.used, n.hits) for n in tree.nodes()]
    return sorted(nodes), list(tree.roots), tree.clock, tree.evictable, tree.inserted, tree.evicted, tree._heap[:]


class TreeMachine(RuleBasedStateMachine):
    """The model keeps a page a prefix: {(namespace, tokens): [page, time of last use]}, and a list of locks."""

    steps = 0

    @initialize(page_size=st.integers(1, 4))
    def start(self, page_size):
        self.log, self.replayed = [], {}
        self.tree = RadixTree(page_size, log=self.log.append)
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
        self.refused("cannot evict", self.tree.evict, count)

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
        replay(self.log, self.replayed)
        self.log.clear()
        expected = {
            page: (
                namespace,
                self.model[namespace, text[: -self.size]][0] if len(text) > self.size else None,
                text[-self.size :],
            )
            for (namespace, text), (page, _) in self.model.items()
        }
        assert content(self.tree) == self.replayed == expected
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
    log = []
    tree, names = RadixTree(page_size, log=log.append), iter(range(1000))
    for text in texts:
        whole = text[: len(text) // page_size * page_size]
        tree.insert(whole, [next(names) for _ in range(len(whole) // page_size)])
    before, entries = content(tree), len(log)
    for text in texts:
        tree.match(text[: data.draw(st.integers(0, len(text)))])
        assert content(tree) == before
    assert len(log) == entries
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
