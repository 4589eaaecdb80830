"""Scenarios of the radix tree alone: a pool, a tree, and texts that are served one after the other."""

from typing import Any

from inference_opt.cache.pool import PagePool
from inference_opt.explain.record import record
from inference_opt.explain.views import SENTENCES
from inference_opt.radix.node import Node
from inference_opt.radix.tree import RadixTree
from inference_opt.trace import Trace, emit


def panel(**data: Any) -> str:
    """What a panel of the figure is about."""
    return "panel {panel}: {tokens:text} comes" if data else "panel 1: the tree is empty"


SENTENCES["figure.panel"] = panel


class Words:
    """Numbers for words, in the order of their appearance."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def ids(self, text: str) -> list[int]:
        """A text's tokens."""
        self.known += [word for word in dict.fromkeys(text.split()) if word not in self.known]
        return [self.known.index(word) for word in text.split()]


def serve(tree: RadixTree, pool: PagePool, tokens: list[int]) -> Node:
    """What the engine does of a request's life, in one go: find, lock, make room, compute, hand over, unlock."""
    whole = tokens[: len(tokens) // pool.page_size * pool.page_size]
    found = tree.match(whole)
    tree.lock(found.node)
    need = pool.pages_for(len(whole)) - len(found.pages)
    if need > pool.free:
        pool.release(tree.evict(need - pool.free))
    stored = tree.insert(whole, found.pages + pool.allocate(need))
    tree.unlock(found.node)
    return stored.node


def diverging_insert(
    first: str = "You are a cat. Purr!", second: str = "You are a dog. Bark!", third: str = "You are a dog. Fetch!",
    page_size: int = 2, evict: int = 3,
) -> Trace:  # fmt: skip
    """Two texts begin with the same tokens: the edge is split where they differ, and their prefix is stored once.

    Then a request locks what it found of a third text. Pages are evicted, but none of the locked ones.
    """
    pool, tree = PagePool(32, page_size), RadixTree(page_size)
    with record(watch=[tree, pool], label=chr) as trace:
        for text in (first, second):
            serve(tree, pool, [ord(letter) for letter in text])
        tokens = [ord(letter) for letter in third]
        node = tree.match(tokens[: len(tokens) // page_size * page_size]).node
        tree.lock(node)
        pool.release(tree.evict(evict))
        tree.unlock(node)
    return trace


SYSTEM = "You are a helpful assistant."
FEW = "Question 1 … Answer 1 …"
FIGURE = f"""2 | {SYSTEM} User: Hello! Assistant: Hi!
3 | {SYSTEM} User: Hello! Assistant: Hi! User: Solve this. Assistant: Sure!
4 | {SYSTEM} User: What is art? Assistant: Beauty.
5 | {SYSTEM} User: What is art? Assistant: Beauty. User: Why? Assistant: Look!
6 | {FEW} Question 2: What … Answer 2: This
7 | {FEW} Question 3: How … Answer 3: So
7 | {FEW} Question 4: When … Answer 4: Now
8 | {SYSTEM} User: Hello! Assistant: Hi! User: Write a story. Assistant: Once upon a time
9 | {FEW} Question 2: What … Answer 2: That
9 | {FEW} Question 2: What … Answer 2: Those"""


def sglang_tree(texts: str = FIGURE, num_pages: int = 30) -> Trace:
    """The tree of SGLang's paper: two chats, few-shot questions, and several answers to one of them, in a small pool.

    The texts of figure 3 of 2312.07104, panel by panel (jump to figure.panel); a word is a token and a page. The code
    decides which pages are evicted: those at the end of the leaf used least recently, and no more than are needed.
    """
    words = Words()
    pool, tree = PagePool(num_pages, 1), RadixTree(1)
    with record(watch=[tree, pool], label=lambda token: words.known[token]) as trace:
        emit("figure.panel", tree)
        for line in filter(str.strip, texts.split("\n")):
            panel, _, text = line.rpartition("|")
            tokens = words.ids(text)
            emit("figure.panel", tree, panel=panel.strip() or "?", tokens=tokens)
            serve(tree, pool, tokens)
    return trace
