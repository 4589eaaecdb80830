"""The benchmark's arithmetic by hand, its figures on a small case, and what it refuses."""

import pytest
from rich.progress import Progress

from inference_opt.lab.bench.mla import bench_mla, bench_prompts, cost, crossing, predicted, shapes
from inference_opt.lab.bench.work import Limits
from inference_opt.model.mla import LatentAttention


def test_costs_at_deepseek_v2_s_shape_are_those_of_the_chapter():
    v2 = shapes()["DeepSeek-V2"]
    made = 256 * 512
    assert cost(v2, "explicit", 3, 1000, 2)[0] == 2 * (1000 * 128 * made + 3 * 1000 * 128 * 320)
    assert cost(v2, "absorbed", 3, 1000, 2)[0] == 2 * (3 * 128 * made + 3 * 1000 * 128 * 1088)
    assert cost(v2, "absorbed", 1, 1000, 2)[1] == 2 * (1000 * 576 + 128 * made)
    assert predicted(v2, "absorbed", 1, 1000, 2, Limits(1e9, 1e12)) == cost(v2, "absorbed", 1, 1000, 2)[1] / 1e9


@pytest.mark.parametrize("name", shapes())
def test_the_layer_chooses_by_the_same_count(name):
    layer = LatentAttention(shapes()[name])
    for n in (1, 10, 1000):
        for m in (1, 17, 100, 300):
            cheaper = cost(shapes()[name], "absorbed", m, n, 1)[0] <= cost(shapes()[name], "explicit", m, n, 1)[0]
            assert layer.absorbs(m, n) == cheaper


def test_the_crossing_lies_between_the_two_that_were_tried():
    times = {"explicit": [4.0, 4.0, 4.0], "absorbed": [1.0, 2.0, 8.0]}
    assert crossing(times, [1, 2, 4]) == pytest.approx(2 * 2**0.5)
    assert crossing(times, [1, 2, 4]) > 2
    assert crossing({"explicit": [1.0], "absorbed": [2.0]}, [1]) == 1.0
    assert crossing({"explicit": [2.0], "absorbed": [1.0]}, [1]) is None


def test_both_forms_are_measured_and_agree():
    with Progress(disable=True) as progress:
        figures = bench_mla(["SmolLM2 96+32"], "cpu", "float32", [5, 64], 1, progress)
    for row, n in zip(figures["results"], (5, 64)):
        assert row["context"] == n
        assert row["new_tokens"][0] == 1
        assert max(row["new_tokens"]) <= n
        assert row["difference"] < 1e-4
        assert all(t > 0 for form in ("explicit", "absorbed") for t in row[form]["seconds"] + row[form]["limit"])
    assert figures["ceilings"]["product_flops"] > 1e9


def test_prompts_are_measured_in_both_forms_by_our_kernels():
    with Progress(disable=True) as progress:
        figures = bench_prompts(["SmolLM2 96+32"], "cpu", "float32", [0, 70], [1, 65], 1, progress)
    assert [(row["prefix"], row["new_tokens"]) for row in figures["results"]] == [(0, 1), (0, 65), (70, 1), (70, 65)]
    for row in figures["results"]:
        assert row["difference"] < 1e-4
        assert min(row["explicit"], row["absorbed"]) > 0
        assert row["chosen"] == "absorbed"  # too few to pay for more launches


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="unknown shape 'GPT'"), Progress(disable=True) as progress:
        bench_mla(["GPT"], "cpu", "float32", [4], 1, progress)
