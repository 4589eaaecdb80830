"""The Gluon kernels against plain PyTorch in float64: on a Hopper card only, since no interpreter runs them.

That they compile, and into the shared memory of an H100, is tested everywhere (`test_kernels.py`), and so are plans.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt import kernels
from inference_opt.kernels.batch import hopper_kernel
from inference_opt.kernels.plan import choose_tile
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
    dim, value_dim = (576, 512) if latent else (draw(st.sampled_from([64, 128])),) * 2
    lengths = draw(st.lists(st.sampled_from([0, 1, 63, 64, 65, 127, 128, 129, 200, 333]), min_size=1, max_size=4))
    counts = [draw(st.sampled_from([1, 2, 40, length])) if length else 1 for length in lengths]
    lengths = [max(length, count) if length else 0 for length, count in zip(lengths, counts)]
    stem = draw(st.sampled_from([0, 64, 192])) if all(lengths) else 0
    return {
        "page": draw(st.sampled_from([64, 128])), "kv_heads": kv_heads, "heads": heads, "dim": dim,
        "value_dim": value_dim, "latent": latent, "lengths": [n + stem for n in lengths], "counts": counts,
        "stem": stem, "dtype": draw(st.sampled_from([torch.float16, torch.bfloat16])), "seed": draw(st.integers(0, 99)),
        "processors": draw(st.sampled_from([1, 8, 132])),
    }  # fmt: skip


def compare(s):
    """Returns the kernels that were launched."""
    s["stem"] = s["stem"] // s["page"] * s["page"]
    q, k, v, table = build(s)
    stems = [(0, len(s["lengths"]), s["stem"])] if s["stem"] else []
    batch = planned(s, k, v, table, stems)
    got = kernels.paged_attention(q, k, v, batch, s["dim"] ** -0.5, s["value_dim"])
    check(s, got, oracle(s, q, k, v, table))
    return {launch.tile.hopper for launch in batch.work.launches}


@on_hopper
@given(s=batches(latent=True))
def test_latent_attention_is_the_plain_function_s(s):
    s["counts"][0] = max(s["counts"][0], 16 // s["heads"] + 1)  # more rows than the other kernel takes
    s["lengths"][0] = max(s["lengths"][0], s["counts"][0] + s["stem"])
    assert compare(s) == {"mla"}


@on_hopper
@given(s=batches(latent=False))
def test_many_rows_are_the_plain_function_s(s):
    s["counts"][0] = max(s["counts"][0], 70)  # more rows than the other kernel takes
    s["lengths"][0] = max(s["lengths"][0], s["counts"][0] + s["stem"])
    assert "gqa" in compare(s)


def test_they_are_chosen_where_they_fit_only():
    pages = torch.empty(2, 64, 1, 576, dtype=torch.bfloat16)
    assert hopper_kernel(pages, 512) == ""  # not on a processor
    assert choose_tile(17, 1152, 1152, "mla").hopper == "mla"
    assert choose_tile(16, 1152, 1152, "mla").hopper == ""  # so few are read as fast by the other kernel
    assert choose_tile(65, 512, 256, "gqa").hopper == "gqa"
    assert choose_tile(64, 512, 256, "gqa").hopper == ""
    assert choose_tile(65, 512, 256).hopper == ""
