"""The replay against a model, the published figures on the published trace, and what the trace's reader refuses."""

import os
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from inference_opt.lab.bench import radix
from inference_opt.lab.bench.radix import POLICIES, replay
from inference_opt.lab.bench.workloads import GENERATED, read_trace, sessions


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=12), st.integers(1, 10))
def test_no_policy_finds_more_than_belady_s_and_none_less_than_nothing(prompts, capacity):
    prompts = [array("i", prompt) for prompt in prompts]
    rates = {name: replay(prompts, capacity, make(prompts, capacity))[0] for name, make in POLICIES.items()}
    assert all(0 <= rate <= rates["Belady"] for rate in rates.values())


def test_unbounded_every_policy_finds_every_prefix_seen_before():
    prompts = sessions(seed=5, users=40)
    seen, found = set(), 0
    for prompt in prompts:
        texts = [tuple(prompt[: i + 1]) for i in range(len(prompt))]
        found += sum(text in seen for text in texts)
        seen |= set(texts)
    expected = found / sum(map(len, prompts))
    for make in POLICIES.values():
        assert replay(prompts, 10**6, make(prompts, 10**6))[0] == expected


@pytest.mark.parametrize("name", GENERATED)
def test_generated_traffic_is_a_function_of_its_seed(name):
    once, again, other = (GENERATED[name](seed) for seed in (1, 1, 2))
    assert once == again
    assert name == "loop" or once != other
    assert all(len(prompt) > 0 for prompt in once)


@pytest.mark.skipif("MOONCAKE_TRACE" not in os.environ, reason="set MOONCAKE_TRACE to conversation_trace.jsonl")
def test_the_published_trace_gives_the_published_hit_rates():
    prompts = read_trace(Path(os.environ["MOONCAKE_TRACE"]))
    expected = {
        "LRU": {1_000: 0.045, 5_000: 0.112, 10_000: 0.212, 30_000: 0.326, 100_000: 0.364},
        "Belady": {1_000: 0.191, 5_000: 0.341, 10_000: 0.366, 30_000: 0.366},
    }
    for name, rates in expected.items():
        for capacity, rate in rates.items():
            assert replay(prompts, capacity, POLICIES[name](prompts, capacity))[0] == pytest.approx(rate, abs=0.001)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("nonsense\n", "line 1"),
        ('{"hash_ids": [1]}\n{"hash": [2]}\n', "line 2"),
        ('{"hash_ids": ["a"]}\n', "line 1"),
        ('{"hash_ids": [4294967296]}\n', "line 1"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_the_line(tmp_path, text, message):
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_trace(path)


def test_trees_that_find_different_prefixes_are_not_timed(monkeypatch):
    monkeypatch.setattr(radix.RadixTree, "_split", lambda self, node, within: node)  # finds too much
    with pytest.raises(ValueError, match="do not find the same"):
        radix.speed([array("i", t) for t in ([1, 2, 3], [1, 2], [1, 9], [1, 9, 9])], None, 1, Progress())
