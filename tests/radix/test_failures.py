"""A tree that was interrupted anywhere is sound after `clear`; one whose policy failed is sound at once."""

import os
import random
import sys
from functools import partial

import pytest

from inference_opt.cache.pool import PagePool
from inference_opt.lab.eviction import learned
from inference_opt.lab.eviction.learned import FadingFrequency, Odds
from inference_opt.radix import eviction, leaves, node
from inference_opt.radix import tree as radix_tree
from inference_opt.radix.eviction import FIFO, LFU, LRU
from inference_opt.radix.tree import RadixTree
from tests.engine.invariants import assert_sound_tree, content, spelled

SOURCES = {module.__file__ for module in (learned, leaves, node, eviction, radix_tree)}
STRIDE = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 13  # lines; each has a scene of its own
POLICIES = [LRU, LFU, FIFO, partial(FadingFrequency, 4, 2), partial(Odds, 4, 2)]


class Interrupt:
    """Ctrl-C at the nth line of the tree's and the policies' own source."""

    def __init__(self, at):
        self.left = at

    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename not in SOURCES:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


class Scene:
    """Random calls to a tree, checked against {(namespace, prefix): page}; no page number comes twice."""

    def __init__(self, policy):
        self.tree = RadixTree(2, policy)
        self.pages, self.names, self.locked, self.seen = {}, 0, [], []

    def found(self, text, space):
        found = []
        while (page := self.pages.get((space, tuple(text[: 2 * len(found) + 2])))) is not None:
            if 2 * len(found) + 2 > len(text):
                break
            found.append(page)
        return found

    def call(self, rng):
        tree, text = self.tree, [rng.randint(0, 1) for _ in range(2 * rng.randint(0, 4))]
        what, space = (
            rng.choice(["match", "insert", "insert", "insert", "lock", "unlock", "evict", "evict"]),
            rng.choice("ab"),
        )
        if what in ("match", "lock"):
            match = tree.match(text, space)
            assert match.pages == self.found(text, space)
            self.seen.append(match.node)
            if what == "lock":
                tree.lock(match.node)
                self.locked.append((match.node, spelled(match.node)))
        elif what == "insert":
            tree.match(text, space)
            found = self.found(text, space)
            given = found + [self.names + i for i in range(len(text) // 2 - len(found))]
            self.names += len(text) // 2
            match = tree.insert(text, given, space)
            assert match.pages == given
            self.seen.append(match.node)
            self.pages |= {(space, tuple(text[: 2 * i + 2])): page for i, page in enumerate(given)}
        elif what == "unlock" and self.locked:
            node, prefix = self.locked.pop(rng.randrange(len(self.locked)))
            assert spelled(node) == prefix
            tree.unlock(node)
        elif what == "evict":
            count, evictable = rng.randint(0, 4), tree.evictable
            gone = tree.evict(count)
            assert len(gone) == min(count, evictable)
            self.pages = {key: page for key, page in self.pages.items() if page not in gone}

    def check(self):
        assert_sound_tree(self.tree)
        assert set(self.pages.values()) == set(content(self.tree))

    def look_again(self):
        """After an error: what was inserted or removed before it, nobody said."""
        before, self.pages, prefixes = self.pages, {}, {None: ()}
        for page, (space, above, tokens) in content(self.tree).items():
            prefixes[page] = prefixes[above] + tokens
            self.pages[space, prefixes[page]] = page
        assert all(before.get(key, page) == page for key, page in self.pages.items())

    def forget(self):
        """What the caller knows after `clear`."""
        self.pages, self.locked = {}, []


@pytest.mark.parametrize("policy", POLICIES)
def test_whatever_was_interrupted_clear_restores(policy):
    at, ended = 1, False
    while not ended:
        scene, rng, interrupt = Scene(policy()), random.Random(at), Interrupt(at)
        sys.settrace(interrupt)
        try:
            for _ in range(14):
                scene.call(rng)
            ended = interrupt.left > 0
        except KeyboardInterrupt:
            sys.settrace(None)
            old = scene.tree._life
            sys.settrace(Interrupt(rng.randint(1, 12)))
            try:
                scene.tree.clear()  # may be cut short as well
            except KeyboardInterrupt:
                sys.settrace(None)
                scene.tree.clear()
            sys.settrace(None)
            scene.forget()
            assert len(scene.tree) == scene.tree.evictable == 0
            assert scene.tree._life is not old
            scene.check()
            for stale in scene.seen:
                with pytest.raises(ValueError, match="another tree"):
                    scene.tree.lock(stale)
            for _ in range(12):
                scene.call(rng)
                scene.check()
        finally:
            sys.settrace(None)
        at += STRIDE


class Failing:
    """Raises at its nth call, having done its work or not."""

    def __init__(self, whole, at, done):
        self.whole, self.left, self.done, self.armed = whole, at, done, False

    def __call__(self, *args):
        self.left -= self.armed
        if self.armed and self.left == 0:
            if self.done:
                self.whole(*args)
            raise RuntimeError("callback")
        return self.whole(*args)


@pytest.mark.parametrize("name", ["cuts", "touch", "key", "worth"])
@pytest.mark.parametrize("policy", POLICIES)
def test_whatever_callback_fails_the_tree_is_sound_and_goes_on(policy, name):
    if name == "worth" and not hasattr(policy(), name):
        pytest.skip("not one of its methods")
    failures = 0
    for at in range(1, 24, 2):
        scene, rng = Scene(policy()), random.Random(at)
        failing = Failing(getattr(scene.tree.policy, name), at, done=at % 2)
        setattr(scene.tree.policy, name, failing)
        for _ in range(25):
            failing.armed = True
            try:
                scene.call(rng)
            except RuntimeError:
                failures += 1
                scene.look_again()
            failing.armed = False
            scene.check()
    assert failures >= 2


def test_a_failed_insertion_inserts_nothing():
    class Refusing(LRU):
        def touch(self, path, text, namespace, hit):
            raise RuntimeError("no")

    tree = RadixTree(1, Refusing())
    with pytest.raises(RuntimeError, match="no"):
        tree.insert([1, 2], [0, 1])
    assert (len(tree), tree.inserted, tree.roots, tree.leaves.heap[:]) == (0, 0, {}, [])
    assert_sound_tree(tree)


def test_the_pool_is_whole_after_clear_wherever_it_was_interrupted():
    code = {PagePool.allocate.__code__, PagePool.release.__code__, PagePool.clear.__code__}
    for at in range(1, 60):
        left = [at]

        def trace(frame, event, arg, left=left):
            if frame.f_code in code and event == "line":
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
            return trace if frame.f_code in code else None

        pool = PagePool(5, 1)
        sys.settrace(trace)
        try:
            pages = pool.allocate(3)
            pool.release(pages[:2])
            pool.clear()
            pool.allocate(4)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        pool.clear()
        assert sorted(pool.free_pages) == [page for page in range(5) if pool.is_free(page)]
        assert sorted(pool.allocate(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", [FadingFrequency, Odds])
def test_a_policy_that_was_cut_off_learns_on(kind, monkeypatch):
    """The history is in its own tree: half noted, it is begun anew, and what was counted stays."""
    policy = kind(4, 1)
    tree = RadixTree(1, policy)
    tree.match([1, 2])
    tree.insert([1, 2], [0, 1])
    with monkeypatch.context() as patch:
        patch.setattr(policy, "_note", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tree.match([3, 4, 5])  # in the history now, without a note
    assert tree.match([3, 4, 5]).pages == []
    tree.insert([3, 4, 5], [2, 3, 4])
    assert tree.match([3, 4, 5]).pages == [2, 3, 4]
    assert tree.match([1, 2]).pages == [0, 1]
    assert sorted(tree.evict(5)) == [0, 1, 2, 3, 4]
    assert_sound_tree(policy.history)


def test_a_handle_of_another_life_or_tree_discards_nothing():
    tree, other = RadixTree(2), RadixTree(2)
    old = tree.insert([1, 2, 3, 4], [5, 6]).node
    other.insert([1, 2], [5])
    with pytest.raises(ValueError, match="another tree"):
        other.discard(old)
    tree.clear()
    with pytest.raises(ValueError, match="was evicted"):
        tree.discard(old)
    assert (len(tree), tree.evictable, len(other), other.evictable) == (0, 0, 1, 1)
    assert_sound_tree(tree)
    assert_sound_tree(other)
