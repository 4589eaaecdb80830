"""Cases that other engines of this kind test, of what ours promises too: vLLM, SGLang, mini-sglang, nano-vllm."""

import pytest

from inference_opt.engine.engine import Engine
from inference_opt.lab.eviction.learned import Odds
from inference_opt.radix.eviction import LFU, LRU
from inference_opt.radix.tree import RadixTree
from inference_opt.sampling import SamplingParams
from tests.engine.invariants import Echo, assert_sound, dump, expected


def length(tokens):
    return SamplingParams(max_new_tokens=tokens, ignore_eos=True)


def run(engine):
    """To the end; every step is checked, and every text."""
    requests = list(engine.requests.values())
    while engine.requests:
        engine.step()
        assert_sound(engine)
    for request in requests:
        text = expected(request.prompt, request.params, max_context=64)
        assert request.output == text[: len(request.output)]
        assert request.finish_reason == "abort" or len(request.output) == len(text)
    return requests


@pytest.mark.parametrize("page_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("tokens", [7, 8, 9, 15, 16, 17])
def test_a_prompt_that_is_found_computes_no_more_than_its_last_page(page_size, tokens):
    engine = Engine(Echo(max_context=64), page_size=page_size, num_pages=64)
    prompt = [1 + i % 3 for i in range(tokens)]
    for found in (0, (tokens - 1) // page_size * page_size):
        engine.add(prompt, length(3))
        (request,) = run(engine)
        assert (request.metrics.cached_tokens, request.metrics.prefill_tokens) == (found, tokens - found)


def test_pages_of_equal_tokens_at_other_places_are_other_pages():
    engine = Engine(Echo(max_context=64), page_size=2, num_pages=40)
    engine.generate([[1, 2] * 4], length(1))
    assert len(engine.tree) == 3 + 1
    engine.add([3, 3, *[1, 2] * 3], length(1))
    (request,) = run(engine)
    assert request.metrics.cached_tokens == 0


@pytest.mark.parametrize("policy", [LRU, LFU, lambda: Odds(8, 2)])
def test_what_a_request_found_is_not_evicted_for_its_own_rest(policy):
    """The oldest pages of a full pool are those that it needs."""
    engine = Engine(Echo(max_context=64), page_size=2, num_pages=8, policy=policy())
    engine.generate([[1, 2, 3, 4, 5]], length(1))
    for first in (2, 3):
        engine.generate([[first, first, 1, 1, 1]], length(2))
    assert engine.pool.free <= 2
    engine.add([1, 2, 3, 4, *[5, 1] * 4], length(4))
    (request,) = run(engine)
    assert request.metrics.cached_tokens == 4
    assert engine.stats.evicted_pages > 0


def test_a_text_is_forgotten_from_its_end():
    engine = Engine(Echo(max_context=64), page_size=2, num_pages=12)
    prompt = [1, 2, 3, 4, 5, 1, 2, 3, 4]
    engine.generate([prompt], length(1))
    for kept in (3, 2, 1, 0):
        engine.pool.release(engine.tree.evict(1))
        assert engine.tree.cached(prompt) == 2 * kept


def test_salts_share_nothing_with_each_other_nor_with_none():
    engine = Engine(Echo(max_context=64), page_size=2, num_pages=60)
    seen = []
    for salt in (None, "a", "b", "a", None, "", 0, False):  # 0 == False: one name
        engine.add([1, 2, 3, 4, 5], length(2), namespace=salt)
        seen += [request.metrics.cached_tokens for request in run(engine)]
    assert seen == [0, 0, 0, 4, 4, 0, 0, 4]


def test_nothing_is_left_when_all_is_done():
    engine = Engine(Echo(max_context=64), page_size=2, num_pages=14, token_budget=5, max_running=3)
    for i in range(9):
        engine.add([1, 2, 3, 1 + i % 3, 1 + i % 2], length(1 + i), namespace=i % 2)
    for i in (0, 4, 8):
        engine.step()
        name = list(engine.requests)[i // 4]
        engine.abort(name)
        assert_sound(engine)
        before = dump(engine)
        with pytest.raises(ValueError, match="no unfinished request"):
            engine.abort(name)
        assert dump(engine) == before
    run(engine)
    assert (engine.scheduler.running, engine.scheduler.waiting) == ([], {})
    assert engine.tree.evictable == len(engine.tree)
    engine.pool.release(engine.tree.evict(99))
    assert engine.pool.free == 14
    assert engine.tree.roots == {}


@pytest.mark.parametrize("radix", [True, False])
@pytest.mark.parametrize("page_size", [2, 3])
def test_preemption_at_any_place_of_a_page_loses_no_token(radix, page_size):
    """Whoever is preempted just behind, or just before, the end of a page goes on with the next token, once."""
    seen = set()
    for first in range(1, 2 * page_size + 1):
        engine = Engine(Echo(max_context=64), radix=radix, page_size=page_size, num_pages=7, token_budget=9)
        stem = [1, 2, 3, 4, 5, 1, 2, 3][:first]
        requests = [engine.add(prompt, length(4 * page_size)) for prompt in (stem, [*stem, 1], [3] * first)]
        while engine.requests:
            running = {request: len(request.tokens) for request in engine.scheduler.running}
            engine.step()
            assert_sound(engine)
            waiting = set(engine.scheduler.waiting.values())
            seen |= {tokens % page_size for request, tokens in running.items() if request in waiting}
        for request in requests:
            assert request.output == expected(request.prompt, request.params, max_context=64)
    assert seen == set(range(page_size))


def test_partial_prefills_share_a_step_with_decodes_and_one_another():
    engine = Engine(Echo(max_context=64), page_size=4, num_pages=60, token_budget=10, radix=False)
    requests = [engine.add([1 + i] * 14, length(3)) for i in range(3)]
    fed = []
    while engine.requests:
        fed.append([output.count for output in engine.step()])
        assert sum(fed[-1]) <= 10
    assert fed[0] == [10]
    assert fed[1] == [4, 6]
    assert sorted(fed[2]) == [1, 1, 8]
    assert sum(map(sum, fed)) == sum(14 + 3 - 1 for _ in requests)


def test_a_full_house_lets_the_next_in_when_one_leaves():
    engine = Engine(Echo(max_context=64), page_size=2, num_pages=60, max_running=2)
    for i in range(5):
        engine.add([1 + i % 4, 2], length(2 + i), id=i)
    order = []
    while engine.requests:
        order.append(tuple(output.request.id for output in engine.step()))
        assert len(order[-1]) <= 2
    assert order == [(0, 1), (0, 1), (1, 2), *[(2, 3)] * 3, *[(3, 4)] * 2, *[(4,)] * 4]


def test_a_split_in_the_middle_of_what_is_read_moves_no_page():
    engine = Engine(Echo(max_context=64), page_size=2, num_pages=40)
    first = engine.add([1, 2, 3, 4, 5, 1, 2, 3, 4], length(9))
    engine.step()
    table = list(first.table)
    engine.add([1, 2, 3, 4, 4, 4, 4], length(3))
    engine.step()
    assert first.table[: len(table)] == table
    run(engine)


def test_deep_branches_match_as_far_as_they_agree():
    tree = RadixTree(2)
    tree.insert([1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3])
    tree.insert([1, 2, 9, 10], [0, 4])
    for question, pages in (
        ([1, 2, 3, 4, 0, 0], [0, 1]),
        ([1, 2, 3, 4, 5, 6, 0, 0], [0, 1, 2]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3]),
        ([1, 2, 9, 10, 3], [0, 4]),
        ([1, 2, 9], [0]),
        ([1, 3, 9, 10], []),
    ):
        assert tree.match(question).pages == pages
        assert len(tree) == 5
