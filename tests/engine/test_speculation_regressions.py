"""Mistakes that speculative decoders have shipped, one scenario each: what is emitted, counted and drawn.

Every scenario holds here, and fails when the mistake is put back (`tests/mutation.py`). Those of the drafters' caches
are in `test_speculation_cache.py`.
"""

import numpy as np
import pytest
import torch

from inference_opt.engine import change, eager_runner, observer, speculation
from inference_opt.engine.engine import Engine
from inference_opt.engine.scheduler import Scheduler
from inference_opt.engine.speculation import Speculation
from inference_opt.sampling import Noise, SamplingParams, StopCheck
from inference_opt.speculative import rules
from inference_opt.speculative.lookup import NGram, PromptLookup
from inference_opt.speculative.models import Autoregressive, FirstLayers, SmallerModel
from tests.engine.invariants import (
    Echo,
    _logits,
    _sums,
    assert_pages_hold_their_texts,
    assert_sound,
    expected,
    watch_drafter,
)
from tests.engine.test_speculation_law import assert_lawful
from tests.mutation import assert_seen, each_bug, each_scenario
from tests.toys import tokens_of, toy

CONTEXT = 96
LONG = SamplingParams(max_new_tokens=48, ignore_eos=True)
PROMPTS = [1, 2, 3, 4, 5, 1], [1, 2, 3, 4, 5, 1, 1], [4, 4]


def served(drafter, *prompts, params=LONG, eos=(0,), later=(), **arguments):
    """Serve prompts, those of `later` a few steps on, and check every step and the tokens in the end."""
    engine = Engine(Echo(CONTEXT, eos), drafter=drafter, **({"gamma": 3, "page_size": 2} | arguments))
    watch_drafter(engine)
    requests, outputs = [engine.add(prompt, params) for prompt in prompts], []
    while engine.requests:
        outputs += engine.step()
        assert_sound(engine)
        assert_pages_hold_their_texts(engine)
        if engine.stats.steps == 4:
            requests += [engine.add(prompt, params) for prompt in later]
    for request in requests:
        assert request.output == expected(request.prompt, params, CONTEXT, eos)
    return engine, requests, outputs


def an_end_inside_accepted_tokens_ends_the_text():
    """transformers issue 47912, sglang issue 31599."""
    inside = 0
    for last in range(1, 6):
        _, _, outputs = served(
            SmallerModel(Echo(CONTEXT)), [1, last], params=SamplingParams(max_new_tokens=48), gamma=5
        )
        final = outputs[-1]
        assert final.request.finish_reason == "eos"
        assert final.tokens.count(0) == 1
        inside += len(final.tokens) <= len(final.drafted)
    assert inside


class Letters:
    """Tokens as text: a tokenizer to look for stop strings with."""

    def __init__(self):
        self.text = ""

    def detokenizer(self):
        return Letters()

    def add(self, token):
        self.text += "abcdef"[token]
        return "abcdef"[token]


def a_stop_string_inside_accepted_tokens_ends_the_text():
    """It is looked for after each token that is kept, and in none that is not."""
    inside = 0
    for slips in (0, 2):
        for stop in ("ab", "cd", "e", "fa", "dd"):
            model = Echo(CONTEXT, ())
            engine = Engine(model, drafter=SmallerModel(Echo(CONTEXT, slips=slips)), gamma=5)
            engine.tokenizer = Letters()
            request = engine.add([1, 2], SamplingParams(max_new_tokens=48, stop=(stop,)))
            while engine.requests:
                (final,) = engine.step()
            whole = "".join("abcdef"[x] for x in expected([1, 2], LONG, CONTEXT))
            end = whole.find(stop) + len(stop) if stop in whole else len(whole)
            assert "".join("abcdef"[x] for x in request.output) == whole[:end]
            assert request.finish_reason == ("stop" if stop in whole else "length")
            inside += len(final.tokens) <= len(final.drafted)
    assert inside


def the_last_token_may_be_an_end():
    """Where length and end-of-sequence meet, the end is the reason; an end beyond the length is never reached."""
    text = expected([1, 2], SamplingParams(max_new_tokens=80), CONTEXT)
    assert text[-1] == 0
    for short in (0, 1, 2):
        params = SamplingParams(max_new_tokens=len(text) - short)
        _, (request,), _ = served(SmallerModel(Echo(CONTEXT)), [1, 2], params=params, gamma=8)
        assert request.finish_reason == ("length" if short else "eos")


def no_draft_goes_beyond_the_longest_text():
    """Neither beyond max_new_tokens nor beyond the context (feifeibear/LLMSpeculativeSampling overshoots)."""
    for params in (SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (1, 2, 9, 200)):
        engine, (request,), outputs = served(SmallerModel(Echo(CONTEXT)), [1, 2, 3], params=params, gamma=8)
        assert all(o.start + o.count + len(o.drafted) <= request.max_computed <= CONTEXT for o in outputs)
        assert len(request.output) == min(params.max_new_tokens, CONTEXT - 3 + 1)
        assert engine.pool.free + len(engine.tree) == engine.pool.num_pages


def what_is_observed_counts_no_rejected_draft():
    """vllm issue 33251: rejected drafts must not count, in metrics, in totals, or wherever tokens are looked at."""
    params = SamplingParams(max_new_tokens=40, ignore_eos=True, logprobs=True)
    engine, (request,), outputs = served(SmallerModel(Echo(CONTEXT, slips=2)), [1, 2, 3], params=params)
    metrics, after = request.metrics, [o for o in outputs if o.drafted]
    kept = sum(int(np.cumprod([a == b for a, b in zip(o.tokens, o.drafted)]).sum()) for o in after)
    assert 0 < kept < metrics.drafted_tokens == sum(len(o.drafted) for o in after)
    assert metrics.accepted_tokens == engine.stats.accepted_tokens == kept
    assert engine.stats.decode_tokens == 39 == metrics.decode_steps + kept
    assert request.check.left == 0
    rows = [_logits(torch.tensor([_sums((1, 2, 3, *request.output[:i]))[1] % 65521]))[0] for i in range(40)]
    right = [float(torch.log_softmax(row, -1)[x]) for row, x in zip(rows, request.output)]
    assert request.logprobs == pytest.approx(right, abs=1e-12)  # the target's own (vllm issue 34497)


def an_end_counts_the_drafts_before_it():
    """A text that ends inside its draft has accepted what it emitted, and no more."""
    _, (request,), outputs = served(
        SmallerModel(Echo(CONTEXT)), [1, 2], params=SamplingParams(max_new_tokens=48), gamma=8
    )
    assert request.metrics.accepted_tokens == sum(min(len(o.drafted), len(o.tokens)) for o in outputs)
    assert request.metrics.accepted_tokens < request.metrics.drafted_tokens


def no_two_draws_of_a_text_are_one():
    """Each from noise of its own (feifeibear seeds anew before each uniform); and a request from its own seed alone."""
    asked, whole = [], Noise.words
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Noise,
            "words",
            lambda self, i, kind, n: (
                asked.append((self.seed, self.start, self.lane, i, kind)) or whole(self, i, kind, n)
            ),
        )
        for rule in (rules.token_wise, rules.block):
            asked.clear()
            engine = Engine(toy(3), drafter=SmallerModel(toy(5, depth=1)), gamma=4, rule=rule)
            tokens_of(
                engine.generate(
                    [[1, 2]] * 2, [SamplingParams(20, 2.0, seed=seed, ignore_eos=True) for seed in (5, 2**63)]
                )
            )
            assert len(asked) == len(set(asked)) > 100
            assert {stream for _, _, stream, _, _ in asked} == {0, 1}


def token_0_is_a_token():
    """feifeibear raises for it."""
    _, (request,), outputs = served(SmallerModel(Echo(CONTEXT)), [0, 0], eos=())
    assert 0 in request.output
    assert any(0 in o.drafted[: len(o.tokens) - 1] for o in outputs)


def the_law_is_the_model_s():
    """A draft is drawn from the law that it is judged by: not its argmax (jaymody/speculative-sampling issue 3), nor
    from a rounded copy (DeepSpec issue 31)."""
    with pytest.MonkeyPatch.context() as patch:
        assert_lawful(patch, "smaller, filtered")


def coupled_texts_do_not_depend_on_the_drafter():
    """Or on how a batch's room cuts the steps."""
    params = [SamplingParams(24, 1.2, seed=seed, ignore_eos=True) for seed in (1, 2, 3)]
    texts = []
    for drafter in (None, PromptLookup(2, 1), NGram(3), SmallerModel(Echo(CONTEXT, slips=2)), FirstLayers()):
        for rows in (4, 64):
            engine = Engine(Echo(CONTEXT), drafter=drafter, gamma=3, rule=rules.coupled, draft_rows=rows)
            texts.append(tokens_of(engine.generate(PROMPTS, params)))
    assert all(text == texts[0] for text in texts)


COMMIT = (change, "work_out")
BUGS = [
    (
        an_end_inside_accepted_tokens_ends_the_text,
        StopCheck,
        "within",
        "tokens[: i + 1], reason",
        "tokens, reason",
    ),
    (
        a_stop_string_inside_accepted_tokens_ends_the_text,
        StopCheck,
        "within",
        "not self.stop and",
        "len(tokens) > 1 and",
    ),
    (
        the_last_token_may_be_an_end,
        StopCheck,
        "after",
        "self.left -= 1",
        "self.left -= 1; self.eos = self.eos if self.left else ()",
    ),
    (no_draft_goes_beyond_the_longest_text, Scheduler, "_add_drafts", "request.check.left - 1", "request.check.left"),
    (
        what_is_observed_counts_no_rejected_draft,
        observer,
        "_count",
        "+= len(tokens)",
        "+= len(change.draft.tokens) + 1",
    ),
    (
        what_is_observed_counts_no_rejected_draft,
        *COMMIT,
        "_until(result.judged, len(tokens))",
        "[each._replace(accepted=each.drafted) for each in result.judged]",
    ),
    (what_is_observed_counts_no_rejected_draft, *COMMIT, "within(emitted or [])", "within(draft.tokens or emitted)"),
    (what_is_observed_counts_no_rejected_draft, eager_runner, "logprobs", "[: len(tokens)]", "[-len(tokens) :]"),
    (an_end_counts_the_drafts_before_it, *COMMIT, "_until(result.judged, len(tokens))", "result.judged"),
    (no_two_draws_of_a_text_are_one, Noise, "uniform", "(i, UNIFORM", "(0, UNIFORM"),
    (no_two_draws_of_a_text_are_one, Noise, "uniform", "(i, UNIFORM", "(i, ARRIVAL"),
    (no_two_draws_of_a_text_are_one, Speculation, "_noise", "lane=int(drafting)", "lane=0"),
    (no_two_draws_of_a_text_are_one, Speculation, "_noise", "len(request.tokens)", "len(request.prompt)"),
    (token_0_is_a_token, speculation, "check_draft", "0 <= x <", "0 < x <"),
    (
        the_law_is_the_model_s,
        Autoregressive,
        "propose",
        "request.rng.choose(q, len(draft.tokens))",
        "int(q.argmax())",
    ),
    (the_law_is_the_model_s, Autoregressive, "propose", "choose(q,", "choose(q.astype(np.float16),"),
    (
        coupled_texts_do_not_depend_on_the_drafter,
        Speculation,
        "accept",
        "is None and self.rule is not rules.coupled",
        "is None",
    ),
    (
        coupled_texts_do_not_depend_on_the_drafter,
        Speculation,
        "_noise",
        "CommonNoise(seed, start)",
        "Noise(seed, start)",
    ),
]


@each_scenario(BUGS)
def test_it_holds_that(scenario):
    scenario()


@each_bug(BUGS)
def test_it_is_seen_that(monkeypatch, bug):
    assert_seen(monkeypatch, *bug)
