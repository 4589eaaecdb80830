"""All together: whatever switches are on, the naive baseline's tokens, greedy and seeded, one request and many."""

import gc
import itertools
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_opt import TransformerWithOptimizations, load_model, naive
from inference_opt import api as front
from inference_opt.lab.agreement import compare
from inference_opt.sampling import SamplingParams
from inference_opt.speculative.lookup import NGram, PromptLookup
from inference_opt.speculative.rules import coupled
from tests.toys import latent_toy

SWITCHES = ("use_radix_attention", "use_mla", "use_speculative_decoding")
COMBINATIONS = [dict(zip(SWITCHES, on)) for on in itertools.product((False, True), repeat=3)]
SAMPLING = {"greedy": st.just({}), "seeded": st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.6, 1.3]), "top_k": st.sampled_from([0, 5]), "top_p": st.sampled_from([1.0, 0.8]),
     "seed": st.integers(0, 99)})}  # fmt: skip


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("switches", COMBINATIONS, ids=lambda on: "+".join(n[4:] for n in SWITCHES if on[n]) or "plain")
@settings(max_examples=settings().max_examples // 4)  # of each of 32 cases
@given(data=st.data())
def test_every_combination_gives_the_naive_baseline_s_tokens(switches, many, sampling, data):
    options = {}
    if switches["use_speculative_decoding"]:
        drafters = {"lookup": PromptLookup, "n-gram": NGram, "first layers": lambda: None}
        options = {"speculative_model": drafters[data.draw(st.sampled_from(sorted(drafters)))](), "rule": coupled}
    kv_heads, seed = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.integers(0, 3))
    sizes = {"dim": 16, "depth": 2, "heads": 4, "kv_heads": kv_heads, "vocab_size": 11, "max_context": 32, "seed": seed}
    if switches["use_radix_attention"] or switches["use_speculative_decoding"]:
        options["page_size"] = data.draw(st.integers(1, 5))
    model = TransformerWithOptimizations(**sizes, **switches, **options, dtype="float64")
    with torch.no_grad():  # sharper laws than an untrained model's, so that a wrong token shows
        model.model.head.weight.mul_(60)
    stem = data.draw(st.lists(st.integers(0, 10), min_size=1, max_size=9))
    tails = st.lists(st.integers(0, 10), min_size=3, max_size=3)
    rows = [stem + data.draw(tails) for _ in range(data.draw(st.integers(2, 4)) if many else 1)]
    how = data.draw(SAMPLING[sampling])
    new = data.draw(st.integers(1, 14))
    each = SamplingParams(max_new_tokens=new, **how).split(len(rows))  # a seed for each row
    expected = [row + naive.generate(model.model, row, own) for row, own in zip(rows, each)]
    for _ in range(2):  # the second call finds what the first one left
        assert model.generate(torch.tensor(rows), len(rows[0]) + new, **how).tolist() == expected


@pytest.mark.parametrize("switches", COMBINATIONS, ids=lambda on: "+".join(n[4:] for n in SWITCHES if on[n]) or "plain")
def test_every_combination_on_smollm2(switches, apart, smollm2_path):
    """One and many, greedy and seeded. With MLA the oracle reads the converted model."""
    apart(on_smollm2, switches, smollm2_path)


smollm2 = cache(load_model)
oracles = {}  # (whether attention is latent, whether it samples): the texts, which no other switch may change


def on_smollm2(switches, path):
    front.load_model = lambda *args, **kwargs: smollm2(path)  # in a process of its own
    options = {"speculative_model": PromptLookup(), "rule": coupled} if switches["use_speculative_decoding"] else {}
    model = TransformerWithOptimizations.from_pretrained("smollm2-135m", **switches, **options)
    stem = "Question: Where is it?\nAnswer: here.\nQuestion: "
    rows = [model.tokenizer.encode(f"{stem}{end}")[:18] for end in ("Who are you?", "What is it?")]
    for sampling in ({}, {"temperature": 0.8, "top_p": 0.9, "seed": 5}):
        each = SamplingParams(max_new_tokens=8, ignore_eos=True, **sampling).split(len(rows))
        key = switches["use_mla"], bool(sampling)
        if key not in oracles:
            oracles[key] = [naive.generate(model.model, row, own) for row, own in zip(rows, each)]
        for many in (rows[:1], rows):
            found = model.generate(torch.tensor(many), 18 + 8, ignore_eos=True, **sampling)[:, 18:].tolist()
            for row, oracle, tokens in zip(many, oracles[key], found):
                assert tokens == oracle if sampling else compare(model.model, row, oracle, tokens).exact
    del model
    gc.collect()  # a converted model is half a gigabyte


def test_a_rank_is_refused_where_attention_is_latent_already(monkeypatch):
    monkeypatch.setattr(front, "load_model", lambda *args, **kwargs: (latent_toy(kv_lora_rank=6), None))
    with pytest.raises(ValueError, match=r"cannot be converted to mla_latent_dim = 4: it has .* rank 6 already"):
        TransformerWithOptimizations.from_pretrained("deepseek", use_mla=True, mla_latent_dim=4)
    assert TransformerWithOptimizations.from_pretrained("deepseek", use_mla=True).model.config.latent.kv_lora_rank == 6


def test_a_rule_without_speculation_is_refused():
    with pytest.raises(ValueError, match="rule has no effect"):
        TransformerWithOptimizations(dim=8, depth=1, heads=2, rule=coupled)
