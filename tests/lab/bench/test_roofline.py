"""Bytes and operations of a step against counts by hand and by the model's own products, and what is refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from inference_opt.cache.contiguous import ContiguousCache
from inference_opt.lab.bench import machine, mla, roofline
from inference_opt.lab.bench.shapes import SHAPES
from inference_opt.lab.bench.work import Limits, Work, free_rows, work
from inference_opt.model.config import ExpertsShape
from inference_opt.model.transformer import Transformer
from tests.toys import latent_toy, toy

ROOT = Path(__file__).resolve().parents[3]
SMOLLM2 = SHAPES["SmolLM2-135M"]
H100 = Limits(3.35e12, 989e12)


def bench(cards, shapes=("tiny",), dtype="float32", prompt=8, batches=(1, 2), context=6, repeats=2):
    with Progress(disable=True) as progress:
        return roofline.bench_roofline(
            list(shapes), list(cards), dtype, prompt, list(batches), context, "cpu", repeats, progress
        )


@pytest.mark.parametrize("name", ["SmolLM2-135M", "Llama-3.2-1B", "Llama-3.1-8B"])
def test_a_step_reads_what_the_model_says_and_every_key_and_value(name):
    config = SHAPES[name]
    with torch.device("meta"):
        weights = Transformer(config).to(torch.bfloat16).weight_bytes()
    assert work(config, 2, 1, 1, 0).moved == weights
    assert work(config, 2, 8, 1, 100).moved == weights + 8 * 100 * 2 * config.kv_elements_per_token


@given(st.integers(1, 5), st.integers(0, 6), st.integers(1, 3), st.booleans())
def test_operations_are_those_of_the_products_that_the_model_runs(rows, past, sequences, tied):
    model = toy(tied_embeddings=tied)
    sizes = {"capacity": [16] * sequences, "dtype": model.dtype, "device": model.device}
    cache = ContiguousCache(**model.config.kv_shape, **sizes)
    if past:
        feed(model, cache, sequences, past)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it counts plain products
        feed(model, cache, sequences, rows)
    c, keys = model.config, past + rows
    # That attention multiplies each row with all keys, and masks later ones: count those pairs, too.
    masked = c.depth * sequences * rows * (rows - 1) // 2 * c.heads * 2 * c.head_dim
    norms = (2 * c.depth + 1) * c.dim  # weights that are no product
    expected = work(c, 8, sequences, rows, keys).operations + 2 * masked - 2 * norms * rows * sequences
    assert counter.get_total_flops() == expected


def feed(model, cache, sequences, count):
    batch = cache.batch([count] * sequences)
    with torch.inference_mode():
        h, _ = model.hidden_states(torch.ones(count * sequences, dtype=torch.long), batch.positions, batch)
        return model.logits(h[::count])


def test_latents_take_the_cheaper_form():
    config = latent_toy().config
    s = config.latent
    made = config.kv_heads * (s.qk_nope_head_dim + s.v_head_dim) * s.kv_lora_rank
    for n in (1, 7):
        forms = [mla.multiplications(config, form, 1, n) for form in mla.FORMS]
        one = work(config, 8, 1, 1, n).operations - work(config, 8, 1, 1, 0).operations
        assert one == 2 * config.depth * (min(forms) - min(mla.multiplications(config, f, 1, 0) for f in mla.FORMS))
    # A prefill from nothing makes every head's keys once, and a row attends to those up to it.
    pair = config.heads * (config.head_dim + s.v_head_dim)
    more = work(config, 8, 1, 6, 6).operations - 6 * (work(config, 8, 1, 1, 0).operations - 2 * head(config))
    assert more - 2 * head(config) <= 2 * config.depth * (6 * made + 21 * pair)


def head(config):
    return config.vocab_size * config.dim


def test_experts_are_read_as_rows_choose_them_and_computed_as_many_as_a_row_takes():
    experts = ExpertsShape(8, 2, 5, 1)
    config = toy(experts=experts).config
    one = 3 * config.dim * experts.moe_intermediate_size * config.depth
    few, many = work(config, 4, 1, 1, 0), work(config, 4, 10_000, 1, 0)
    assert many.moved - few.moved == pytest.approx(4 * 6 * one)  # one row reads two of eight, many read all
    assert few.operations == pytest.approx(many.operations / 10_000)


def test_the_worked_example_of_chapter_01():
    """SmolLM2 in float32 on a machine of 50 GB/s and 500 GFLOP/s: every number is computed again."""
    text = " ".join((ROOT / "chapters/01_kv_cache.md").read_text(encoding="utf-8").split())
    limits = Limits(50e9, 500e9)
    weights = work(SMOLLM2, 4, 1, 1, 0).moved
    a_cache = 4 * 256 * SMOLLM2.kv_elements_per_token
    one, eight, prompt = (work(SMOLLM2, 4, *each) for each in ((1, 1, 256), (8, 1, 256), (1, 512, 512)))
    assert [each.bound(limits) for each in (one, eight, prompt)] == ["memory", "memory", "arithmetic"]
    for said in (
        f"Its ridge is {limits.ridge:.0f} operations a byte.",
        f"has {weights / 1e6:.0f} MB of weights, and 256 tokens have a cache of {a_cache / 1e6:.0f} MB",
        f"reads {one.moved / 1e6:.0f} MB and computes {one.operations / 1e9:.2f} G operations: {one.intensity:.1f} ",
        f"TPOT is at least {1e3 * one.seconds(limits):.1f} ms. Arithmetic alone would take "
        f"{1e3 * one.operations / limits.rate:.1f} ms.",
        f"reads {prompt.moved / 1e6:.0f} MB, hardly more, but computes {prompt.operations / 1e9:.0f} G operations: "
        f"{prompt.intensity:.0f} operations a byte",
        f"TTFT is at least {1e3 * prompt.seconds(limits):.0f} ms. Reading alone would take "
        f"{1e3 * prompt.moved / limits.bandwidth:.1f} ms.",
        f"reads {eight.moved / 1e6:.0f} MB. TPOT is at least {1e3 * eight.seconds(limits):.1f} ms: eight times the "
        f"tokens in {eight.seconds(limits) / one.seconds(limits):.2f} times the time",
        f"which is {limits.ridge * 4 / 2:.0f} rows in the example",
        f"this takes {-(-weights // a_cache)} requests of 256 tokens",
    ):
        assert said in text
    # The exact count has a key for each row, too: one row more.
    assert free_rows(SMOLLM2, 4, 256, limits) == {"arithmetic": 21, "caches": -(-weights // a_cache)}


def test_rows_are_free_until_one_limit_or_the_other():
    for name in ("SmolLM2-135M", "Llama-3.1-8B"):
        config = SHAPES[name]
        found = free_rows(config, 2, 2_048, H100)
        at = found["arithmetic"]
        assert work(config, 2, at, 1, 1).bound(H100) == "arithmetic"
        assert work(config, 2, at - 1, 1, 1).bound(H100) == "memory"
        alone = work(config, 2, 1, 1, 0).moved
        a_cache = 2 * 2_048 * config.kv_elements_per_token
        assert found["caches"] == -(-alone // a_cache)


def test_what_chapter_01_says_of_cards_and_long_texts():
    config = SHAPES["Llama-3.1-8B"]
    for card in roofline.CARDS.values():
        limits = Limits(card.bandwidth, card.rates["bfloat16"])
        found = free_rows(config, 2, 2_048, limits)
        assert found["arithmetic"] > 2 * found["caches"]
        assert work(config, 2, 2**30, 1, 2_048).bound(limits) == "memory"


def test_the_slower_limit_binds():
    limits = Limits(bandwidth=10.0, rate=100.0)
    assert Work(20, 100).seconds(limits) == 2.0
    assert Work(20, 100).bound(limits) == "memory"
    assert Work(20, 300).seconds(limits) == 3.0
    assert Work(20, 300).bound(limits) == "arithmetic"
    assert Limits(10.0).seconds(20, 1e9) == 2.0


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(roofline.SHAPES, "tiny", toy(max_context=64).config)
    monkeypatch.setattr(machine, "product_rate", lambda *given, **named: 1e9)
    monkeypatch.setattr(machine, "read_bandwidth", lambda *given, **named: 1e9)


def test_what_is_here_is_predicted_and_measured_and_a_card_is_predicted(tiny):
    figures = bench(["here", "H100"])
    rows = figures["results"]
    assert [(row["card"], row["phase"], row["batch"]) for row in rows] == [
        (card, *phase) for card in ("here", "H100") for phase in (("prefill", 1), ("decode", 1), ("decode", 2))
    ]
    for row in rows:
        limits = Limits(1e9, 1e9) if row["card"] == "here" else Limits(3.35e12, 67e12)
        assert row["predicted"] == pytest.approx(max(row["bytes"] / limits.bandwidth, row["operations"] / limits.rate))
        assert row["ridge"] == pytest.approx(limits.ridge)
        assert (row["bound"] == "memory") == (row["intensity"] < row["ridge"])
        assert ("measured" in row) == (row["card"] == "here")
        if "measured" in row:
            least, most = row["spread"]
            assert 0 < least <= row["measured"] <= most
            assert row["ratio"] == pytest.approx(row["measured"] / row["predicted"])  # the limits stood still
    assert "H100" in figures["data_sheets"]["H100"]["source"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cards": ["H1000"]}, "unknown card 'H1000': expected one of here, A100"),
        ({"cards": ["H100"], "shapes": ["GPT"]}, "unknown shape 'GPT'"),
        ({"cards": ["H100"], "dtype": "float64"}, "no rate in float64 is known for H100: take bfloat16 or float32"),
        ({"cards": ["H100"], "prompt": 65}, "65 tokens exceed the context of tiny, which holds 64"),
        ({"cards": ["H100"], "context": 60}, "76 tokens exceed"),
    ],
)
def test_what_cannot_be_predicted_is_refused(tiny, wrong, message):
    with pytest.raises(ValueError, match=message):
        bench(**wrong)
