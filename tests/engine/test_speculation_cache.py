"""Mistakes that speculative decoders have shipped with caches and batches, as in `test_speculation_regressions.py`."""

from inference_opt.engine import change
from inference_opt.engine.engine import Engine
from inference_opt.engine.scheduler import Scheduler
from inference_opt.sampling import SamplingParams
from inference_opt.speculative import models
from inference_opt.speculative.drafter import Draft, Drafter
from inference_opt.speculative.eagle import Eagle
from inference_opt.speculative.models import Autoregressive, FirstLayers, SmallerModel
from tests.engine.invariants import Echo, random_head
from tests.engine.test_speculation_regressions import CONTEXT, PROMPTS, served
from tests.mutation import assert_seen, each_bug, each_scenario
from tests.toys import toy


def a_drafter_that_is_the_target_is_always_right():
    """If its cache is whole, after full acceptance too (vllm issue 9730, mlx-lm issue 1109)."""
    cases = {
        "alone": ({}, 0),
        "in chunks": ({"token_budget": 4, "radix": False}, 0),
        "preempted": ({"num_pages": 60}, 1),
        "after hits": ({"num_pages": 400, "max_running": 1}, 0),
        "in large pages": ({"page_size": 16}, 0),
    }
    for changes, preemptions in cases.values():
        engine, _, _ = served(SmallerModel(Echo(CONTEXT)), *PROMPTS, *PROMPTS, **changes)
        assert engine.stats.acceptance == 1 < engine.stats.drafted_tokens
        assert engine.stats.preemptions >= preemptions
        assert engine.stats.cached_tokens or not engine.scheduler.cache.radix


def a_rejected_draft_is_forgotten():
    """Also where the text goes on without drafts for a while: what lies behind its end is not its own any more."""
    served(SmallerModel(Echo(CONTEXT, slips=2)), [1, 2, 3], later=PROMPTS * 2, draft_rows=4)


def a_text_without_drafts_keeps_no_pages_for_them():
    """Room was made, and the drafter had nothing to say."""
    for drafter in (SmallerModel(Echo(CONTEXT, slips=2), confidence=1.0), Silent()):
        served(drafter, [1, 2, 3], page_size=1)


class Silent(Drafter):
    def propose(self, requests):
        return [Draft() for _ in requests]


def texts_of_a_batch_do_not_see_each_other():
    """Ragged lengths, ragged drafts, no padding to attend to (2510.22876): each drafts and is verified as if alone."""
    params = [SamplingParams(max_new_tokens=20, ignore_eos=True, gamma=gamma) for gamma in (1, 4, 2, 0)]
    model = toy(4, max_context=40)
    for drafter in (SmallerModel(toy(6, depth=1, max_context=40)), FirstLayers(), Eagle(random_head(model))):
        drafts = []
        for batch in ([0, 1, 2, 3], [0], [1], [2], [3]):
            engine = Engine(model, drafter=drafter, page_size=2, num_pages=200)
            requests = [engine.add([1, 2, 3, 4, 5, 6, 7][: 1 + 2 * i], params[i]) for i in batch]
            shown = {request: [] for request in requests}
            while engine.requests:
                for output in engine.step():
                    shown[output.request].append((output.drafted, output.tokens))
            drafts += shown.values()
        assert drafts[:4] == drafts[4:]


def no_rejected_draft_reaches_the_tree():
    """Who finds a page finds the text's own keys: whatever was guessed there, and by whom, was overwritten."""
    for drafter in (SmallerModel(Echo(CONTEXT, slips=2)), FirstLayers()):
        for gamma in (2, 5):
            _, requests, _ = served(drafter, *PROMPTS, gamma=gamma, page_size=1, num_pages=300)
            again = [[*request.prompt, *request.output[:-3]] for request in requests]
            served(drafter, *PROMPTS, later=again, gamma=gamma, page_size=1, num_pages=400)


FIRST = (SmallerModel, "first")
BUGS = [
    (
        a_drafter_that_is_the_target_is_always_right,
        *FIRST,
        "text.drafter_state, text.tokens[text.drafter_state :]",
        "text.computed, text.tokens[text.computed :]",
    ),
    (a_drafter_that_is_the_target_is_always_right, SmallerModel, "observe", "each.start if", "each.end if"),
    (a_drafter_that_is_the_target_is_always_right, SmallerModel, "observe", "start < text.drafter_state", "False"),
    (
        a_rejected_draft_is_forgotten,
        SmallerModel,
        "observe",
        "min(text.drafter_state, end)",
        "text.drafter_state",
    ),
    (
        a_text_without_drafts_keeps_no_pages_for_them,
        Engine,
        "_conclude",
        "elif not chunk.ahead:",
        "elif change.draft.tokens:",
    ),
    (
        texts_of_a_batch_do_not_see_each_other,
        models,
        "read_all",
        "(tables, starts,",
        "(tables, [max(starts)] * len(starts),",
    ),
    (texts_of_a_batch_do_not_see_each_other, models, "read", "np.cumsum(counts) - 1", "range(len(counts))"),
    (texts_of_a_batch_do_not_see_each_other, Autoregressive, "propose", "states[on]", "states[: len(on)]"),
    (texts_of_a_batch_do_not_see_each_other, Eagle, "_digest", "np.cumsum(counts) - 1", "range(len(counts))"),
    (
        no_rejected_draft_reaches_the_tree,
        change,
        "work_out",
        "known + len(tokens) - 1 if tokens else",
        "chunk.start + chunk.count + len(draft.tokens) if tokens else",
    ),
    (no_rejected_draft_reaches_the_tree, Scheduler, "remove", "request.computed)", "len(request.tokens))"),
]


@each_scenario(BUGS)
def test_it_holds_that(scenario):
    scenario()


@each_bug(BUGS)
def test_it_is_seen_that(monkeypatch, bug):
    assert_seen(monkeypatch, *bug)
