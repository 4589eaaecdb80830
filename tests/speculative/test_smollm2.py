"""Greedy decoding with every drafter on the real model, in float64: naive decoding's tokens, none excepted.

HumanEval's first problems and everyday chat: all twenty of each under the long profile, three otherwise.
"""

import os
from functools import cache

import pytest

from inference_opt import Engine, SamplingParams, load_model, naive
from inference_opt.lab.agreement import teacher_forced_greedy
from inference_opt.loading.prompts import load_prompts
from inference_opt.speculative import DRAFTERS, rules
from tests.toys import tokens_of

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
COUNT, NEW = (20, 32) if LONG else (3, 12)


@cache
def exact(path):
    return load_model(path, dtype="float64")


@pytest.mark.parametrize("task", ["humaneval", "chat"])
@pytest.mark.parametrize("drafter", sorted(DRAFTERS))
def test_every_drafter_gives_the_oracle_s_tokens(apart, smollm2_path, task, drafter):
    apart(gives_the_oracle_s_tokens, smollm2_path, task, drafter)


@pytest.mark.parametrize("task", ["humaneval", "chat"])
@pytest.mark.parametrize("drafter", sorted(name for name, each in DRAFTERS.items() if each.trees))
def test_so_do_trees(apart, smollm2_path, task, drafter):
    apart(gives_the_oracle_s_tokens, smollm2_path, task, drafter, rules.tree, 8)


@cache
def naive_tokens(path, prompt, tokens):
    """Looked at once: all drafters should give the same tokens."""
    return teacher_forced_greedy(exact(path)[0], prompt, tokens)


def gives_the_oracle_s_tokens(path, task, drafter, rule=rules.token_wise, gamma=None):
    model, tokenizer = exact(path)
    prompts = [p.ids(tokenizer) for p in load_prompts("speculative") if p.name.startswith(task)][:COUNT]
    engine = Engine(model, drafter=DRAFTERS[drafter](), tokenizer=tokenizer, rule=rule, gamma=gamma)
    for prompt, tokens in zip(prompts, tokens_of(engine.generate(prompts, SamplingParams(max_new_tokens=NEW)))):
        assert naive_tokens(path, tuple(prompt), tuple(tokens)) == tokens
        assert len(tokens) == NEW or tokens[-1] in model.config.eos_token_ids


def test_following_is_naive_decoding(apart, smollm2_path):
    apart(following_is_naive_decoding, smollm2_path)


def following_is_naive_decoding(path):
    model, tokenizer = exact(path)
    prompt = tokenizer.chat("Say hello.")
    tokens = naive.generate(model, prompt, SamplingParams(max_new_tokens=6))
    assert teacher_forced_greedy(model, prompt, tokens) == tokens
    wrong = [*tokens[:3], tokens[3] + 1, *tokens[4:]]
    assert teacher_forced_greedy(model, prompt, wrong) == tokens[:4]
