"""Eviction by what was learnt: how soon prefixes come back, how often, and which.

Least recently used is right where everything comes back equally often. In the traffic of a chat service most of a
prompt's pages never do, and those that do come back later than a small cache remembers, so LRU fills with the newest
strangers. Two remedies, both kept in this file:

**Remember more than is kept.** A second radix tree, the *history*, holds the text of `HISTORY` times as many pages as
the cache, without any keys or values. When a prefix returns after its pages were evicted, it is recognised: it counts
as a return, and its pages are worth more than a stranger's. (Ghost lists, as in ARC: Megiddo and Modha, FAST 2003.)

**Let worth fade at the pace at which texts return.** If a page's chance to come back were w at its last use and halves
with every so much time, the pages worth keeping are those of largest w · exp(−(now − last use) / τ). The logarithm of
that has the same order, and without `now`, which is common to all, it does not change while a page rests:

    key = last use + τ · ln w            τ: the mean time between a page's uses, measured while running

    FadingFrequency     w = 1 + how often the page came back
    Odds                w = of all pages of its kind that were used, how many came back for each that did not,
                        where a page's kind is how often it came back (in powers of two) and how much of the request
                        that used it last had been seen before (in quarters: a conversation that goes on, or a stranger)

There is no constant fitted to a trace. What is counted (τ, and the odds of each kind) is halved now and then, so that
it follows the traffic.
"""

from array import array
from collections import defaultdict
from collections.abc import Hashable
from itertools import accumulate, count
from math import log
from typing import NamedTuple

from inference_opt.radix.eviction import Policy
from inference_opt.radix.node import TOKEN_BYTES, Node, upwards
from inference_opt.radix.tree import RadixTree
from inference_opt.trace import unrecorded
from inference_opt.values import integer

HISTORY = 5  # pages remembered for each page of capacity: its own, and four that were evicted
FORGET = 10  # uses of pages for each page of capacity, after which counts are halved


class Past(NamedTuple):
    """What the history notes on a node."""

    returns: int  # how often it came back
    kind: tuple[int, int]
    used: int  # the history's clock at the last use


class FadingFrequency(Policy):
    """How often a page came back, fading at the pace at which pages do. For a tree of `capacity` pages.

    A use that was cut off by an error or an interruption may leave the history half noted: the next begins a new one.
    """

    def __init__(self, capacity: int, page_size: int) -> None:
        capacity = integer("capacity", capacity, 1)
        self.history, self.page_size = RadixTree(page_size), page_size
        self.capacity, self._page = capacity, page_size * TOKEN_BYTES
        self._names = count()  # the history needs page numbers of its own
        self._last: tuple[bytes, Hashable] | None = None  # the text asked about last, and its nodes; None: cut off
        self._path: list[Node] = []
        self._ages = self._returns = self._uses = 0.0
        # Pages used, and pages that came back after being used so, by kind.
        self._used: dict[tuple[int, int], float] = defaultdict(float)
        self._back: dict[tuple[int, int], float] = defaultdict(float)

    def key(self, node: Node) -> float:
        """Last use + τ · ln w, as noted at the last use."""
        return node.policy_state

    def worth(self, past: Past) -> float:
        """w in the equation above."""
        return 1.0 + past.returns

    # [touch]
    def touch(self, path: list[Node], text: bytes, namespace: Hashable, hit: bool) -> None:
        """Recognise what was seen before, remember the rest, and note each node's key."""
        known = iter(self._recall(text, namespace, hit))
        pace = self._ages / self._returns if self._returns else 0.0
        depth = end = 0
        past = Past(0, (0, 0), 0)
        for node in path:  # no node of the path spans two of the history's, see `cuts`
            depth += len(node.pages)
            while end < depth and (each := next(known, None)):
                end, past = end + len(each.pages), each.policy_state
            node.policy_state = past.used + pace * log(self.worth(past))

    def cuts(self, text: bytes, namespace: Hashable) -> list[int]:
        """Where in a text one stretch of history ends and another begins."""
        return list(accumulate(len(node.pages) for node in self._recall(text, namespace, hit=False)))[:-1]

    @unrecorded()
    def _recall(self, text: bytes, namespace: Hashable, hit: bool) -> list[Node]:
        """The history's nodes along a text, all of it, after this use of it."""
        if not hit and self._last == (text, namespace):
            return self._path  # what was just asked for is inserted
        if self._last is None:
            self.history.clear()
        self._last = None
        tokens = array("i")
        tokens.frombytes(text[: len(text) // self._page * self._page])  # whole pages
        seen = self.history.match(tokens, namespace)
        total, now = len(text) // self._page, self.history.clock
        part = 4 * len(seen.pages) // max(total, 1)
        path = list(upwards(seen.node))[-2::-1]  # from the top, without the root
        if hit:  # a request came: of what is known, all came back
            for node in path:
                past, pages = node.policy_state, len(node.pages)
                self._back[past.kind] += pages
                self._ages += pages * (now - past.used)
                self._returns += pages
                self._note(node, past.returns + 1, part, now)
        if new := total - len(seen.pages):
            names = [next(self._names) for _ in range(new)]
            path.append(self.history.insert(tokens, seen.pages + names, namespace).node)
            self._note(path[-1], 0, part, now)
            self.history.evict(max(len(self.history) - HISTORY * self.capacity, 0))
        self._last, self._path = (text, namespace), path
        return path

    def _note(self, node: Node, returns: int, part: int, now: int) -> None:
        node.policy_state = Past(returns, (returns.bit_length(), part), now)
        self._used[node.policy_state.kind] += len(node.pages)
        self._uses += len(node.pages)
        if self._uses > FORGET * self.capacity:
            self._uses, self._ages, self._returns = self._uses / 2, self._ages / 2, self._returns / 2
            for counts in (self._used, self._back):
                for kind in counts:
                    counts[kind] /= 2

    # [/touch]


class Odds(FadingFrequency):
    """The odds that a page of its kind comes back, fading at the pace at which pages do."""

    def worth(self, past: Past) -> float:
        """Pages of this kind that came back, for each that did not; one of each is granted at the start."""
        back = self._back[past.kind]
        return (back + 1) / (max(self._used[past.kind] - back, 0.0) + 1)
