"""Requests to replay: a published trace of real chats, and generated traffic of other kinds.

A workload is a list of prompts, each an array("i") of *blocks*. A block's number stands for its tokens and for all that
come before them, so equal numbers mean equal prefixes. In a replay with page_size 1, a page is a block.
"""

import json
import random
from array import array
from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate, count
from pathlib import Path

Workload = list[array]

TRACE_URL = "https://github.com/kvcache-ai/Mooncake, FAST25-release/traces/conversation_trace.jsonl"


def read_trace(path: Path) -> Workload:
    """Read a Mooncake trace: one JSON object a line, whose `hash_ids` has a number for each block of 512 tokens."""
    prompts = []
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file: expected a trace as published at {TRACE_URL}")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                prompts.append(array("i", json.loads(line)["hash_ids"]))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                expected = 'a JSON object a line with a list of integers "hash_ids"'
                raise ValueError(f"{path}, line {number}: expected {expected} ({repr(error)[:200]})") from None
    if not any(prompts):
        raise ValueError(f"{path} is empty, it has no blocks: expected a trace as published at {TRACE_URL}")
    return prompts


def agents(seed: int, requests: int = 8000) -> Workload:
    """Agents and few-shot prompts: 400 long prefixes of Zipf popularity, and a tail of its own for each request.

    Every 400 requests the 20 most popular prefixes are replaced by new ones.
    """
    rng = random.Random(seed)
    names = count()
    popularity = list(accumulate(1 / (rank + 1) ** 0.9 for rank in range(400)))
    stems: dict[int, list[int]] = {}
    prompts = []
    for i in range(requests):
        stem = bisect_left(popularity, rng.random() * popularity[-1]) + 20 * (i // 400)
        if stem not in stems:
            stems[stem] = [next(names) for _ in range(rng.randint(8, 60))]
        prompts.append(array("i", stems[stem] + [next(names) for _ in range(rng.randint(1, 20))]))
    return prompts


def sessions(seed: int, users: int = 3000) -> Workload:
    """Conversations: one begins each second; 3 of 5 end after their first turn, the others go on for a random time.

    A turn adds up to 6 blocks, and a last, partial block that no other turn shares. Users take exponentially
    distributed times to answer, each with a mean of their own between half a minute and five minutes.
    """
    rng = random.Random(seed)
    names = count()
    turns = []
    start = 0.0
    for _ in range(users):
        start += rng.expovariate(1.0)
        goes_on = 0.0 if rng.random() < 0.6 else rng.uniform(0.5, 0.9)
        pace = rng.uniform(30, 300)
        text = [next(names) for _ in range(min(200, max(1, int(rng.lognormvariate(2.5, 1)))))]
        time = start
        while True:
            turns.append((time, [*text, next(names)]))
            if rng.random() > goes_on:
                break
            time += rng.expovariate(1 / pace)
            text = text + [next(names) for _ in range(rng.randint(0, 6))]
    return [array("i", text) for _, text in sorted(turns)]


def loop(seed: int, documents: int = 400, rounds: int = 12) -> Workload:
    """Questions about 400 documents of 40 blocks, one document after another, again and again: LRU's worst case."""
    names = count()
    texts = [[next(names) for _ in range(40)] for _ in range(documents)]
    return [array("i", [*text, next(names)]) for _ in range(rounds) for text in texts]


GENERATED: dict[str, Callable[[int], Workload]] = {"agents": agents, "sessions": sessions, "loop": loop}
