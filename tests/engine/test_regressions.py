"""Mistakes that engines of this kind have shipped, one scenario each.

Every scenario holds here, and fails when the mistake is put back (`tests/mutation.py`).
"""

from inference_opt.engine.cache_manager import CacheManager
from inference_opt.engine.engine import Engine
from inference_opt.engine.request import Request
from inference_opt.engine.scheduler import Scheduler
from inference_opt.radix import tree as radix_tree
from inference_opt.radix.tree import RadixTree
from inference_opt.sampling import SamplingParams
from tests.engine.invariants import Echo, assert_sound, assert_sound_tree, expected
from tests.mutation import assert_seen, each_bug, each_scenario

GREEDY = SamplingParams(max_new_tokens=4, ignore_eos=True)


def served(engine, *prompts, params=GREEDY):
    """Serve prompts that arrive together, check every step, and the tokens in the end."""
    requests = [engine.add(prompt, params) for prompt in prompts]
    while engine.requests:
        assert engine.step()
        assert_sound(engine)
    for request, prompt in zip(requests, prompts):
        assert request.output == expected(prompt, params)
    return requests


def split_child_is_found_again():
    """A diverging insert must not lose what was there: the rest of a split edge has a key of its own."""
    tree = RadixTree(1)
    tree.insert([1, 2, 3], [0, 1, 2])
    tree.insert([1, 2, 4], [0, 1, 3])
    assert tree.match([1, 2, 3]).pages == [0, 1, 2]
    assert_sound_tree(tree)


def equal_prompts_in_one_batch_share_pages():
    """Both computed the prompt; the second's pages are freed, so its table must name the first's."""
    engine = Engine(Echo(), page_size=2, num_pages=8)
    cache, scheduler = engine.scheduler.cache, engine.scheduler
    for request in [engine.add([1, 2, 3, 4, 5], GREEDY) for _ in range(2)]:
        cache.attach(request)
        assert request.table == []
        cache.reserve(request, 5)
        scheduler.running.append(request)
    for request in scheduler.running:
        cache.publish(request, 4)
    scheduler.waiting.clear()
    assert_sound(engine)


def equal_prompts_in_one_batch_share_one_prefill():
    """The second finds the first's pages in the tree, to be filled in this very step: before it reads them."""
    engine = Engine(Echo(), page_size=2, num_pages=16)
    requests = served(engine, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert [r.metrics.cached_tokens for r in requests] == [0, 4]
    assert engine.stats.prefill_tokens == 6


def a_prompt_found_whole_is_still_asked_something():
    """At least one token is fed, or there is no row of logits to sample from (nano-vllm issue 144)."""
    engine = Engine(Echo(), page_size=2, num_pages=16)
    served(engine, [1, 2, 3, 4, 5])
    assert engine.tree.cached([1, 2, 3, 4]) == 4
    (again,) = served(engine, [1, 2, 3, 4])
    assert again.metrics.cached_tokens == 2


def chunks_begin_where_the_hit_ends_after_a_preemption():
    """What was computed before a preemption is not computed after it, but for what is found (nano-vllm issue 212)."""
    engine = Engine(Echo(), page_size=2, num_pages=9, token_budget=3)
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    requests = served(engine, [1, 2, 3, 4, 5], [1, 2, 3, 4, 1, 2], [1, 2, 2, 2, 2], params=params)
    assert any(r.metrics.preemptions and r.metrics.cached_tokens for r in requests)


def a_matched_node_is_locked_with_its_path():
    """A hit's own node, not just those above, stays while it is read (mini-sglang pull request 52)."""
    tree = RadixTree(1)
    tree.insert([1, 2], [0, 1])
    node = tree.match([1, 2]).node
    tree.lock(node)
    assert tree.evict(2) == []
    assert tree.match([1, 2]).pages == [0, 1]


def evictable_pages_are_counted_once():
    """Or the scheduler promises pages that are not there (sglang issue 35270)."""
    tree = RadixTree(1)
    node = tree.insert([1, 2], [0, 1]).node
    for _ in range(2):
        tree.lock(node)
        tree.lock(tree.match([1]).node)
        tree.unlock(node)
        tree.unlock(tree.match([1]).node)
    assert tree.evictable == 2 == len(tree.evict(3))


def texts_of_one_hash_share_nothing():
    """Equal hashes are no equal texts (vLLM pull request 12621): hash(-1) == hash(-2) in Python."""
    tree = RadixTree(2)
    tree.insert([-1, 5, 6, 7], [0, 1])
    assert tree.cached([-2, 5, 6, 7]) == 0
    assert tree.cached([-1, 5, 6, 8]) == 2  # the first page is equal, the second is not


def a_cached_turn_is_continued_as_if_it_were_new():
    """A text's last token was sampled, never fed: its page is not full (greedy output changed: vLLM issue 40896)."""
    for length in range(3, 9):
        engine = Engine(Echo(), page_size=2, num_pages=16)
        prompt = [1, 2, 3, 1, 2, 3, 1, 2][:length]
        (first,) = served(engine, prompt)
        served(engine, [*prompt, *first.output, 1], params=SamplingParams(max_new_tokens=2))


BUGS = [
    (
        split_child_is_found_again,
        RadixTree,
        "_split",
        "head.children[node.edge[:size]]",
        "head.children[head.edge[-size:]]",
    ),
    (equal_prompts_in_one_batch_share_pages, CacheManager, "publish", "pages.table[:full], ", "[][:full], "),
    (equal_prompts_in_one_batch_share_one_prefill, Scheduler, "_chunk", "self.cache.publish", "(lambda *_: None)"),
    (a_prompt_found_whole_is_still_asked_something, CacheManager, "attach", "request.tokens[:-1]", "request.tokens"),
    (
        chunks_begin_where_the_hit_ends_after_a_preemption,
        CacheManager,
        "attach",
        "match.node), found",
        "match.node), max(found, request.computed)",
    ),
    (a_matched_node_is_locked_with_its_path, RadixTree, "lock", "upwards(node)", "upwards(node.parent)"),
    (evictable_pages_are_counted_once, RadixTree, "unlock", "if above.locks == 0", "if above.locks <= 1"),
    (texts_of_one_hash_share_nothing, radix_tree, "as_bytes", 'array("i", tokens)', 'array("i", map(hash, tokens))'),
    (
        texts_of_one_hash_share_nothing,
        RadixTree,
        "_walk",
        "text.startswith(edge, depth)",
        "len(edge) <= len(text) - depth",
    ),
    (
        a_cached_turn_is_continued_as_if_it_were_new,
        Scheduler,
        "remove",
        "request, request.computed",
        "request, len(request.tokens)",
    ),
]


@each_scenario(BUGS)
def test_it_holds_that(scenario):
    scenario()


@each_bug(BUGS)
def test_it_is_seen_that(monkeypatch, bug):
    _, _, name, _, wrong = bug
    if name == "attach" and "computed" in wrong:  # the second half of that mistake
        monkeypatch.setattr(Request, "forget", lambda request: None)
    assert_seen(monkeypatch, *bug)
