"""Mistakes with trees of drafts, one scenario each, which holds here and fails when the mistake is put back."""

import pytest
import torch

from inference_opt.cache.paged import PagedCache
from inference_opt.engine import eager_runner
from inference_opt.engine.eager_runner import EagerRunner
from inference_opt.engine.engine import Engine
from inference_opt.kernels import tree as tree_masks
from inference_opt.model.attention import NoCache
from inference_opt.sampling import SamplingParams
from inference_opt.speculative import rules
from inference_opt.speculative.eagle import Eagle
from inference_opt.speculative.lookup import PromptLookup
from inference_opt.speculative.models import FirstLayers, SmallerModel
from inference_opt.speculative.tree import DraftTree
from tests.engine.invariants import Echo, expected, random_head
from tests.engine.test_speculation_law import assert_lawful
from tests.engine.test_speculation_regressions import CONTEXT, LONG, PROMPTS, Letters, served
from tests.mutation import assert_seen, each_bug, each_scenario
from tests.toys import toy


def trees(drafter, *prompts, **arguments):
    return served(drafter, *prompts, **({"gamma": 6, "rule": rules.tree} | arguments))


def branched(outputs):
    """Whether some step kept a draft that was not the first of its tree."""
    return any(len(o.tokens) > 1 and o.tokens[0] != o.drafted[0] for o in outputs)


def a_kept_path_is_an_ordinary_text():
    """Its keys and values are those of the text alone, in consecutive slots: others find them in the radix tree."""
    for drafter in (SmallerModel(Echo(CONTEXT, slips=2)), Eagle(random_head(Echo(CONTEXT))), PromptLookup(1, 1)):
        for page_size in (1, 3):
            engine, requests, outputs = trees(drafter, *PROMPTS, page_size=page_size, later=PROMPTS, num_pages=500)
            assert branched(outputs)
            assert sum(request.metrics.cached_tokens for request in requests[len(PROMPTS) :]) > 0
            follow = engine.add(requests[0].tokens.tolist()[:-1], SamplingParams(max_new_tokens=2, ignore_eos=True))
            while engine.requests:
                engine.step()
            assert follow.metrics.cached_tokens >= len(requests[0].tokens) - 2 - page_size
            assert follow.output == expected(follow.prompt, follow.params, CONTEXT)


def a_preempted_text_goes_on():
    """Its tree's pages go with it."""
    for drafter in (SmallerModel(Echo(CONTEXT)), FirstLayers(), Eagle(random_head(Echo(CONTEXT)))):
        engine, _, _ = trees(drafter, [1, 2, 3], [4, 4, 4], [1, 2], num_pages=45)
        assert engine.stats.preemptions > 0 < engine.stats.drafted_tokens


def a_stop_string_inside_a_path_ends_the_text():
    inside = 0
    for stop in ("ab", "cd", "e", "fa", "dd"):
        engine = Engine(Echo(CONTEXT, ()), drafter=SmallerModel(Echo(CONTEXT, slips=3)), gamma=9, rule=rules.tree)
        engine.tokenizer = Letters()
        request = engine.add([1, 2], SamplingParams(max_new_tokens=48, stop=(stop,)))
        while engine.requests:
            (final,) = engine.step()
        whole = "".join("abcdef"[x] for x in expected([1, 2], LONG, CONTEXT))
        end = whole.find(stop) + len(stop) if stop in whole else len(whole)
        assert "".join("abcdef"[x] for x in request.output) == whole[:end]
        inside += 1 < len(final.tokens) <= len(final.drafted)
    assert inside


def a_drafter_hears_of_the_path_alone():
    """Hidden states are those of the tokens kept, in the order of the text."""
    heard = 0
    engine = Engine(Echo(CONTEXT), drafter=Eagle(random_head(Echo(CONTEXT))), gamma=6, rule=rules.tree)
    whole = engine.speculation.drafter.observe

    def observe(observations):
        nonlocal heard
        for each in observations:
            for state in each.states:
                assert state[:, 1].long().tolist() == each.tokens[:-1]
            heard += each.kind == "decode" and len(each.tokens) > 2
        whole(observations)

    engine.speculation.drafter.observe = observe
    engine.generate([list(prompt) for prompt in PROMPTS], LONG)
    assert heard > 3


def log_probabilities_are_those_of_the_path():
    model = toy(3, max_context=64)
    similar = toy(3, max_context=64)
    with torch.no_grad():
        noise = torch.Generator().manual_seed(0)
        similar.head.weight.add_(torch.randn(similar.head.weight.shape, generator=noise), alpha=1.0)
    engine = Engine(model, drafter=SmallerModel(similar), gamma=6, rule=rules.tree)
    params = SamplingParams(max_new_tokens=30, ignore_eos=True, logprobs=True)
    request, outputs = engine.add([1, 2, 3], params), []
    while engine.requests:
        outputs += engine.step()
    text = torch.tensor(request.tokens.tolist()[:-1])
    with torch.inference_mode():
        logits = model(text, torch.arange(len(text)), NoCache([len(text)]))[2:]
    right = torch.log_softmax(logits, -1).gather(1, torch.tensor(request.output)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(request.logprobs, dtype=torch.float64), right, atol=1e-9)
    assert branched(outputs)


def the_law_is_the_model_s():
    with pytest.MonkeyPatch.context() as patch:
        assert_lawful(patch, "smaller, a tree")


def drawn_candidates_are_judged_by_what_they_were_drawn_from():
    with pytest.MonkeyPatch.context() as patch:
        assert_lawful(patch, "drawn without replacement, candidates")


def a_node_behind_broken_numbers_is_kept_without_a_token_behind_it():
    """The fault spoils all rows of a draft but the first, and has passed when the next step reads them again."""
    engine = Engine(Echo(CONTEXT), drafter=SmallerModel(Echo(CONTEXT)), gamma=4, rule=rules.tree)
    request, whole, broken = engine.add([1, 2, 3], LONG), engine.runner._read, 0

    def read(chunks, drafts):
        nonlocal broken
        logits, *rest = whole(chunks, drafts)
        if drafts[0].tokens and broken < 5:
            logits, broken = logits.clone(), broken + 1
            logits[1:] = torch.nan
        return logits, *rest

    engine.runner._read = read
    while engine.requests:
        engine.step()
    assert broken == 5
    assert request.output == expected([1, 2, 3], LONG, CONTEXT)


BUGS = [
    (a_kept_path_is_an_ordinary_text, PagedCache, "keep_paths", "if row != i]", "if row < i]"),
    (a_kept_path_is_an_ordinary_text, PagedCache, "keep_paths", "*(self.values or ())", "*()"),
    (a_kept_path_is_an_ordinary_text, EagerRunner, "_decide", "node + 1 for node", "node for node"),
    (a_kept_path_is_an_ordinary_text, tree_masks, "tree_rows", "bits[parent] << (i - parent)", "CHAIN"),
    (a_kept_path_is_an_ordinary_text, tree_masks, "tree_rows", "positions[parent] + 1", "positions[parent] + i"),
    (a_kept_path_is_an_ordinary_text, eager_runner, "_tree", "range(chunk.start, end)", "range(end, end + 1)"),
    (a_kept_path_is_an_ordinary_text, SmallerModel, "first", "len(text.tokens)", "len(text.tokens) + 1"),
    (a_preempted_text_goes_on, PagedCache, "keep_paths", "start + places", "start + rows"),
    (a_drafter_hears_of_the_path_alone, EagerRunner, "_decide", "[tap[path] for tap in state]", "state"),
    (log_probabilities_are_those_of_the_path, EagerRunner, "_decide", "scored[path]", "scored"),
    (the_law_is_the_model_s, DraftTree, "draft", "one_hot(x, vocab_size)", "one_hot(x, vocab_size) / vocab_size"),
    (
        drawn_candidates_are_judged_by_what_they_were_drawn_from,
        DraftTree,
        "draft",
        "probs[self.nodes[*path, x]]",
        "probs[-1]",
    ),
    (
        a_node_behind_broken_numbers_is_kept_without_a_token_behind_it,
        DraftTree,
        "kept",
        "if path in self.broken",
        "if not path",
    ),
]


@each_scenario([*BUGS, (a_stop_string_inside_a_path_ends_the_text,)])
def test_it_holds_that(scenario):
    scenario()


@each_bug(BUGS)
def test_it_is_seen_that(monkeypatch, bug):
    assert_seen(monkeypatch, *bug)
