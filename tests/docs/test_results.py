"""The committed figures agree with themselves: a share of a limit is a rate over that limit, and so on."""

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("shape", ["1b", "smollm2"])
def test_shares_of_the_limit_are_rates_over_limits(shape):
    for row in read(f"bench_engine_{shape}")["results"]:
        assert row["of_limit"] == pytest.approx(row["inference-opt"]["decode"] / row["limit"])


def test_layouts_are_compared_at_equal_parameters():
    sizes = [row["parameters"] for row in read("mla_control")["layouts"]]
    assert max(sizes) - min(sizes) < 1e-3 * min(sizes)
