"""The calculator of drafts, against the theorem that it refines and against bytes and operations counted by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.lab.bench.gamma import bench_gamma, step_seconds
from inference_opt.lab.bench.roofline import CARDS
from inference_opt.lab.bench.shapes import SHAPES
from inference_opt.lab.bench.work import Limits, work
from inference_opt.speculative.cost import speedup

SHAPE = st.sampled_from(["SmolLM2-135M", "Llama-3.1-8B"])


@given(SHAPE, st.floats(0, 1), st.floats(0, 1), st.integers(1, 12))
def test_where_rows_are_free_it_is_the_theorem(shape, alpha, cost, most):
    row = bench_gamma(shape, "H100", "bfloat16", [alpha], cost, [1], 8, most)["results"][0]
    for gamma, gain in enumerate(row["speedups"]):
        assert gain == pytest.approx(speedup(alpha, gamma, cost), rel=1e-2)
    assert row["speedups"][0] == 1
    assert row["speedups"][row["best"]] == max(row["speedups"])


@given(SHAPE, st.floats(0, 1), st.floats(0, 1), st.integers(1, 4096), st.integers(1, 500))
def test_rows_cost_something_so_it_is_at_most_the_theorem(shape, alpha, cost, batch, context):
    row = bench_gamma(shape, "H100", "bfloat16", [alpha], cost, [batch], context, 6)["results"][0]
    for gamma, gain in enumerate(row["speedups"]):
        assert gain <= speedup(alpha, gamma, cost) * (1 + 1e-12)


def test_large_batches_want_shorter_drafts():
    rows = bench_gamma("Llama-3.1-8B", "H100", "bfloat16", [0.7], 0.0, [1, 64, 256, 1024], 8, 12)["results"]
    best = [row["best"] for row in rows]
    assert best[0] == 12
    assert best == sorted(best, reverse=True)
    assert best[-1] == 0, "where arithmetic binds, every row that is refused is lost"


@given(st.integers(1, 300), st.integers(0, 12), st.integers(1, 500))
def test_every_row_of_a_step_is_multiplied_and_has_logits(batch, gamma, context):
    config = SHAPES["SmolLM2-135M"]
    step = work(config, 2, batch, gamma + 1, context + gamma, logits=gamma + 1)
    layer = config.dim * (config.heads + 2 * config.kv_heads) * config.head_dim  # queries, keys and values
    layer += config.heads * config.head_dim * config.dim + 3 * config.dim * config.ffn_dim
    norms = config.dim * (2 * config.depth + 1)
    rows = batch * (gamma + 1)
    attended = batch * sum(context + i for i in range(gamma + 1)) * config.heads * config.head_dim * 2 * config.depth
    products = rows * (config.depth * layer + config.vocab_size * config.dim) + attended
    assert step.operations == pytest.approx(2 * (products + rows * norms), rel=1e-9)
    limits = Limits(CARDS["H100"].bandwidth, CARDS["H100"].rates["bfloat16"])
    seconds = step_seconds(config, 2, limits, batch, gamma, context)
    assert seconds == max(step.moved / limits.bandwidth, step.operations / limits.rate)


@pytest.mark.parametrize(
    ("shape", "card", "dtype", "context", "said"),
    [
        ("GPT-2", "H100", "bfloat16", 9, "unknown shape 'GPT-2': expected one of"),
        ("Llama-3.1-8B", "TPU", "bfloat16", 9, "unknown card 'TPU': expected one of"),
        ("Llama-3.1-8B", "H100", "float64", 9, "no rate in float64 is known for H100"),
        ("Llama-3.1-8B", "H100", "bfloat16", 8192, "exceed the context of Llama-3.1-8B, which holds 8,192"),
    ],
)
def test_what_cannot_be_computed_is_refused(shape, card, dtype, context, said):
    with pytest.raises(ValueError, match=said):
        bench_gamma(shape, card, dtype, [0.8], 0.0, [1], context, 4)
