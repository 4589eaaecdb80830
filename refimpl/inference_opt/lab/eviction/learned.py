"""Learnt eviction: how soon prefixes come back, how often, and which.

Evicting the least recently used pages is right if all pages come back equally often. In the traffic of a chat service
most pages of a prompt never come back, and those that do come back later than a small cache remembers, so LRU fills the
cache with new pages of no use. This file has two remedies:

**Remember more than is cached.** A second radix tree, the *history*, holds the text of `HISTORY` times as many pages as
the cache, but no keys and values. A prefix that returns after its pages were evicted is recognised: this counts as a
return, and its pages are worth more than new ones. (Ghost lists, as in ARC: Megiddo and Modha, FAST 2003.)

**Let worth fade at the pace at which texts return.** If a page's probability to come back is w at its last use, and
decays exponentially, the pages to keep are those of the largest w · exp(−(now − last use) / τ). The logarithm has the
same order. Without the term in `now`, which is common to all pages, it does not change until the page's next use:

    key = last use + τ · ln w            τ: the mean time between a page's uses, measured while running

    FadingFrequency     w = 1 + the number of times that the page came back
    Odds                w = of all used pages of the same kind, the number that came back for each that did not.
                        A page's kind is how often it came back (in powers of two), and how much of the request that
                        used it last had been seen before (in quarters: a conversation that goes on, or a new one)

No constant is fitted to a trace. The counts (τ, and the odds of each kind) are halved now and then, so that they follow
the traffic.
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

HISTORY = 5  # pages in the history for each page of capacity: the cached one, and four that were evicted
FORGET = 10  # counts are halved after this many uses of pages for each page of capacity


class Past(NamedTuple):
    """What the history stores with a node."""

    returns: int  # the number of times that it came back
    kind: tuple[int, int]
    used: int  # the history's clock at the last use


class FadingFrequency(Policy):
    """Worth is how often a page came back, and fades at the pace at which pages return. For a tree of `capacity` pages.

    An error or an interruption during a use may leave the history incomplete. The next use then begins a new history.
    """

    def __init__(self, capacity: int, page_size: int) -> None:
        capacity = integer("capacity", capacity, 1)
        self.history = RadixTree(page_size)
        self.page_size = page_size
        self.capacity = capacity
        self._page = page_size * TOKEN_BYTES
        self._names = count()  # the history needs page numbers of its own
        self._last: tuple[bytes, Hashable] | None = None  # the last text; None during a use, or after one that failed
        self._path: list[Node] = []  # the last text's nodes
        self._ages = self._returns = self._uses = 0.0
        # By kind: pages used, and pages that came back after such a use.
        self._used: dict[tuple[int, int], float] = defaultdict(float)
        self._back: dict[tuple[int, int], float] = defaultdict(float)

    def key(self, node: Node) -> float:
        """Last use + τ · ln w, as computed at the last use."""
        return node.policy_state

    def worth(self, past: Past) -> float:
        """w in the equation above, from what the history stores with a node."""
        return 1.0 + past.returns

    def touch(self, path: list[Node], text: bytes, namespace: Hashable, hit: bool) -> None:
        """Recognise what was seen before, remember the rest, and compute each node's key."""
        known = iter(self._recall(text, namespace, hit))
        pace = self._ages / self._returns if self._returns else 0.0
        depth = end = 0
        past = Past(0, (0, 0), 0)
        for node in path:  # `cuts` ensures that no node of the path spans two nodes of the history
            depth += len(node.pages)
            while end < depth and (each := next(known, None)):
                end, past = end + len(each.pages), each.policy_state
            node.policy_state = past.used + pace * log(self.worth(past))

    def cuts(self, text: bytes, namespace: Hashable) -> list[int]:
        """Where in a text one stretch of history ends and another begins."""
        return list(accumulate(len(node.pages) for node in self._recall(text, namespace, hit=False)))[:-1]

    @unrecorded()
    def _recall(self, text: bytes, namespace: Hashable, hit: bool) -> list[Node]:
        """Enter a use of a text (`hit`: by a new request) into the history; its nodes along the whole text."""
        if not hit and self._last == (text, namespace):
            return self._path  # the insertion of the text that was just matched
        if self._last is None:
            self.history.clear()
        self._last = None
        tokens = array("i")
        tokens.frombytes(text[: len(text) // self._page * self._page])  # whole pages
        seen = self.history.match(tokens, namespace)
        total = len(text) // self._page
        now = self.history.clock
        part = 4 * len(seen.pages) // max(total, 1)
        path = list(upwards(seen.node))[-2::-1]  # from the top, without the root
        if hit:  # a new request: all pages that the history knows came back
            for node in path:
                past = node.policy_state
                pages = len(node.pages)
                self._back[past.kind] += pages
                self._ages += pages * (now - past.used)
                self._returns += pages
                self._note(node, past.returns + 1, part, now)
        if new := total - len(seen.pages):
            names = [next(self._names) for _ in range(new)]
            path.append(self.history.insert(tokens, seen.pages + names, namespace).node)
            self._note(path[-1], 0, part, now)
            self.history.evict(max(len(self.history) - HISTORY * self.capacity, 0))
        self._last = (text, namespace)
        self._path = path
        return path

    def _note(self, node: Node, returns: int, part: int, now: int) -> None:
        node.policy_state = Past(returns, (returns.bit_length(), part), now)
        self._used[node.policy_state.kind] += len(node.pages)
        self._uses += len(node.pages)
        if self._uses > FORGET * self.capacity:
            self._uses /= 2
            self._ages /= 2
            self._returns /= 2
            for counts in (self._used, self._back):
                for kind in counts:
                    counts[kind] /= 2


class Odds(FadingFrequency):
    """Worth is the odds that a page of its kind comes back, and fades at the pace at which pages return."""

    def worth(self, past: Past) -> float:
        """Pages of this kind that came back, for each that did not. Both counts start at one."""
        back = self._back[past.kind]
        return (back + 1) / (max(self._used[past.kind] - back, 0.0) + 1)
