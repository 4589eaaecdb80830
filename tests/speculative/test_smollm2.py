"""Greedy decoding with every drafter on the real model, in float64: naive decoding's tokens, none excepted.

HumanEval's first problems and everyday chat: all twenty of each under the long profile, three otherwise.
"""

import os

import pytest

from inference_opt import Engine, SamplingParams, naive
from inference_opt.lab.agreement import teacher_forced_greedy
from inference_opt.loading.prompts import load_prompts
from inference_opt.speculative import DRAFTERS
from tests.toys import tokens_of

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
COUNT, NEW = (20, 32) if LONG else (3, 12)


@pytest.fixture(scope="module")
def exact(load_smollm2):
    return load_smollm2("float64")


@pytest.mark.parametrize("task", ["humaneval", "chat"])
@pytest.mark.parametrize("drafter", sorted(DRAFTERS))
def test_every_drafter_gives_the_oracle_s_tokens(exact, task, drafter):
    model, tokenizer = exact
    prompts = [p.ids(tokenizer) for p in load_prompts("speculative") if p.name.startswith(task)][:COUNT]
    engine = Engine(model, drafter=DRAFTERS[drafter](), tokenizer=tokenizer)
    for prompt, tokens in zip(prompts, tokens_of(engine.generate(prompts, SamplingParams(max_new_tokens=NEW)))):
        assert teacher_forced_greedy(model, prompt, tokens) == tokens
        assert len(tokens) == NEW or tokens[-1] in model.config.eos_token_ids


def test_following_is_naive_decoding(exact):
    model, tokenizer = exact
    prompt = tokenizer.chat("Say hello.")
    tokens = naive.generate(model, prompt, SamplingParams(max_new_tokens=6))
    assert teacher_forced_greedy(model, prompt, tokens) == tokens
    wrong = [*tokens[:3], tokens[3] + 1, *tokens[4:]]
    assert teacher_forced_greedy(model, prompt, wrong) == tokens[:4]
