"""The Gluon kernels against the reference in float64: on a Hopper card only, since no interpreter runs them.

That they compile, and into the shared memory of an H100, is tested everywhere (`test_kernels.py`), and so are plans.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt import kernels
from inference_opt.kernels import batch as planning
from inference_opt.kernels import fused
from inference_opt.kernels.hopper import few_rows, tiles
from inference_opt.kernels.plan import GQA_WIDTHS
from tests.kernels.test_kernels import build, check, oracle, planned, poisoned

__all__ = ["poisoned"]
on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper card"
)


@st.composite
def batches(draw, latent):
    heads, kv_heads = draw(
        st.sampled_from([(1, 1), (16, 1), (24, 1), (128, 1)] if latent else [(9, 3), (32, 8), (65, 1)])
    )
    dim, value_dim = (576, 512) if latent else draw(st.sampled_from(GQA_WIDTHS))
    lengths = draw(st.lists(st.sampled_from([0, 1, 63, 64, 65, 127, 128, 129, 200, 333, 700]), min_size=1, max_size=4))
    counts = [draw(st.sampled_from([1, 2, 40, length])) if length else 1 for length in lengths]
    lengths = [max(length, count) if length else 0 for length, count in zip(lengths, counts)]
    prefix = draw(st.sampled_from([0, 64, 192])) if all(lengths) else 0
    return {
        "page": draw(st.sampled_from([64, 128] if latent else [8, 16, 48, 64, 128, 256])),
        "kv_heads": kv_heads, "heads": heads, "dim": dim,
        "value_dim": value_dim, "latent": latent, "lengths": [n + prefix for n in lengths], "counts": counts,
        "prefix": prefix, "dtype": draw(st.sampled_from([torch.float16, torch.bfloat16])),
        "seed": draw(st.integers(0, 99)), "processors": draw(st.sampled_from([1, 8, 132])),
    }  # fmt: skip


def compare(s):
    """Returns the kernels that were launched."""
    s["prefix"] = s["prefix"] // s["page"] * s["page"]
    q, k, v, table = build(s)
    prefixes = [kernels.SharedPrefix(0, len(s["lengths"]), s["prefix"])] if s["prefix"] else []
    batch = planned(s, k, v, table, prefixes)
    got = kernels.paged_attention(q, k, v, batch, s["dim"] ** -0.5, s["value_dim"])
    check(s, got, oracle(s, q, k, v, table))
    return {launch.tile.hopper for launch in batch.plan.launches}


@on_hopper
@given(s=batches(latent=True))
def test_latent_attention_equals_the_reference(s):
    s["counts"][0] = max(s["counts"][0], 16 // s["heads"] + 1)  # more rows than the other kernel takes
    s["lengths"][0] = max(s["lengths"][0], s["counts"][0] + s["prefix"])
    assert compare(s) == {"mla"}


@on_hopper
@given(s=batches(latent=False))
def test_many_rows_equal_the_reference(s):
    s["counts"][0] = max(s["counts"][0], 70)  # more rows than the other kernel takes
    s["lengths"][0] = max(s["lengths"][0], s["counts"][0] + s["prefix"])
    assert "gqa" in compare(s)


@on_hopper
@given(
    rows=st.integers(2, 64),
    width=st.sampled_from([16, 72, 576, 1536, 2048, 4096, 8192]),
    out=st.sampled_from([1, 8, 40, 960]),
    after=st.sampled_from(["none", "residual", "gated"]),
    normed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_few_rows_times_a_matrix_is_the_product(rows, width, out, after, normed, seed):
    g = torch.Generator("cuda").manual_seed(seed)
    x, residual, weight = (
        torch.randn(shape, generator=g, device="cuda", dtype=torch.bfloat16)
        for shape in ((rows, width), (rows, out), (out * (1 + (after == "gated")), width))
    )
    weight /= width**0.5
    norm = torch.nn.RMSNorm(width, eps=1e-5, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    norm.weight.normal_(generator=g)
    exact = x.double()
    if normed:
        exact = exact / (exact.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double()
    expected = exact @ weight.double().T
    rounded = expected.square().mean().sqrt()  # an error of the product is a part of this
    if after == "gated":
        gate, up = expected.chunk(2, dim=-1)
        expected, rounded = (
            torch.nn.functional.silu(gate) * up,
            rounded * (1.1 * up.abs() + gate.abs()),
        )  # |silu'| < 1.1
    elif after == "residual":
        expected = expected + residual.double()
    x[-1] = float("nan") if seed % 2 else x[-1]  # a broken row harms no other
    added, apart = residual.clone() if after == "residual" else None, torch.empty_like(residual)
    own = few_rows.project(x, weight, norm if normed else None, added, after == "gated",
                           apart if seed % 3 else added, False)  # fmt: skip
    assert added is None or not seed % 3 or added.equal(residual)
    sound = slice(rows - seed % 2)
    assert own[rows - 1 :].isnan().all() == bool(seed % 2)
    # x and norm are rounded once, the result once: 2⁻⁸ each, of terms that add up like their root sum of squares.
    error = (own.double() - expected).abs()
    assert (error <= 2**-7 * expected.abs() + 2**-6 * rounded)[sound].all()


@on_hopper
@pytest.mark.parametrize(
    ("rows", "out", "width", "own"),
    [
        (8, 2**25 // 64, 64, 1),
        (8, 2**25 // 64 + 1, 64, 0),
        (1, 960, 64, 0),
        (2, 49152, 64, 1),
        (8, 49152, 64, 1),
        (9, 49152, 64, 0),
        (16, 3072, 64, 1),
        (64, 960, 64, 1),
        (65, 960, 64, 0),
        (64, 3072, 64, 0),
        (16, 2048, 8192, 1),
        (17, 2048, 2048, 1),
        (17, 2048, 2056, 0),
    ],
)
def test_the_kernel_for_few_rows_takes_those_it_is_faster_for(rows, out, width, own, monkeypatch):
    taken = []
    monkeypatch.setattr(few_rows, "project", lambda *args: taken.append(1) or args[0])
    x = torch.zeros(rows, width, device="cuda", dtype=torch.bfloat16)
    fused.project(x, x[:1].expand(out, width).contiguous())
    assert len(taken) == own


@pytest.mark.parametrize("kernel", ["mla", "gqa"])
@given(
    page=st.sampled_from([64, 128, 192]),
    lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=4),
    queries=st.integers(1, 300),
    prefix=st.integers(0, 300),
    processors=st.sampled_from([1, 8, 132]),
)
def test_plans_are_for_what_the_gluon_kernels_do(kernel, page, lengths, queries, prefix, processors):
    """They have a fixed number of rows, and load a block of keys at once, which must not go on in another page."""
    heads, kv_heads, dim, value_dim = (16, 1, 576, 512) if kernel == "mla" else (8, 2, 64, None)
    rows = {"mla": tiles.ROWS.value, "gqa": 2 * tiles.ROWS.value}[kernel]
    counts = [min(queries, length) for length in lengths]
    lengths = [length + prefix for length in lengths]
    prefixes = [kernels.SharedPrefix(0, len(lengths), prefix)] if prefix else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "hopper_kernel", lambda *_: kernel)
        patch.setattr(planning, "processors_of", lambda device: processors)
        pages = torch.empty(1, page, kv_heads, dim, dtype=torch.bfloat16)
        plan = planning.cut(lengths, counts, prefixes, pages, heads, value_dim)
    for launch in plan.launches:
        if launch.tile.hopper:
            assert launch.tile.rows == rows
            assert (launch.columns.first % math.gcd(page, launch.tile.block) == 0).all()
    if prefix % page == 0 and max(counts) * heads // kv_heads > 64:
        assert plan.launches[-1].tile.hopper == kernel, "they are for many rows"
