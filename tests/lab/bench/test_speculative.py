"""The benchmark's arithmetic on figures made up, its figures on the real model, and what it refuses."""

import json
from collections import Counter
from pathlib import Path

import pytest
from rich.progress import Progress

from inference_opt.lab.bench import speculative
from inference_opt.lab.bench.commands import Task
from inference_opt.lab.bench.speculative import PLAIN, TASKS, Timed, bench_speculative, estimate_alpha, expected_speedup
from inference_opt.loading.load import load_model
from inference_opt.loading.prompts import load_prompts
from inference_opt.speculative import DRAFTERS, PromptLookup


def run(names=None, **changes):
    arguments = {
        "source": "smollm2-135m",
        "dtype": "float32",
        "tasks": ["editing"],
        "names": names,
        "gamma": None,
        "prompts": 1,
        "new": 12,
        "repeats": 2,
        "peer": False,
        "temperature": 0.0,
        "seed": 0,
    }
    with Progress(disable=True) as progress:
        return bench_speculative(**arguments | changes, progress=progress)


def test_trees_are_measured_beside_chains_of_as_many_rows(smollm2_path):
    figures = run(["prompt-lookup", "n-gram"], source=str(smollm2_path), gamma=4, tree=True)
    rows = {row["name"]: row for row in figures["results"]}
    assert list(rows) == [PLAIN, "prompt-lookup", "n-gram", "prompt-lookup, tree"]
    assert figures["exact"]
    assert rows["prompt-lookup, tree"]["tokens"] == rows[PLAIN]["tokens"]
    assert "expected" not in rows["prompt-lookup, tree"]
    drafters, _ = speculative.our_drafters(load_model(str(smollm2_path), dtype="bfloat16")[0], ["trained"], whole=True)
    assert drafters["trained"].confidence == 0


def test_prompts_say_what_they_ask_for_and_whose_they_are():
    prompts = load_prompts("speculative")
    assert Counter(p.name.split(": ")[0] for p in prompts) == dict(zip(TASKS, (5, 5, 20, 20)))
    assert len({p.name for p in prompts}) == len(prompts)
    assert all(p.text and p.source and p.licence for p in prompts)
    assert tuple(Task) == TASKS


def test_alpha_is_of_the_drafts_that_were_judged():
    # Of 4 drafts 2 kept, the third rejected, the fourth never looked at; then 3 of 3; then a step without a draft.
    assert estimate_alpha([4, 3, 0], [2, 3, 0]) == 5 / 6
    assert estimate_alpha([], []) == estimate_alpha([2], [0]) == 0


def test_speedup_is_that_of_theorem_3_8_where_all_drafts_are_as_long():
    alpha, gamma, c = 0.8, 5, 0.1
    assert expected_speedup(alpha, [gamma] * 7, c) == pytest.approx((1 - alpha**6) / ((1 - alpha) * (gamma * c + 1)))
    assert expected_speedup(alpha, [0, 0], c) == 1
    assert expected_speedup(1.0, [4], 0.0) == pytest.approx(5)


def test_a_row_is_the_median_of_ratios_taken_repeat_by_repeat():
    def plain(seconds):
        return [Timed([1] * 9, 8, seconds, [0] * 8, [0] * 8, 0.0, seconds)]

    def fast(seconds):  # 2 steps of 3 drafts: all kept, then 3 kept again; half of the time goes into drafting
        return [Timed([1] * 9, 8, seconds, [3, 3], [3, 3], seconds / 2, seconds / 2)]

    runs = {PLAIN: [plain(8.0), plain(16.0), plain(8.0)], "x": [fast(4.0), fast(4.0), fast(16.0)]}
    row = speculative.summarise("editing", "x", runs)
    assert row["over_plain"] == 2  # of 2, 4 and 1/2: what a busy moment does to one repeat does not count
    assert row["over_plain_spread"] == [0.5, 4]
    assert (row["tokens_per_step"], row["acceptance"], row["alpha"], row["gamma"]) == (4, 1, 1, 3)
    assert row["draft_share"] == 0.5
    assert row["c"] == pytest.approx(2 / 6)  # 2 s for 6 drafts, where a plain step takes 1 s
    assert row["step_cost"] == pytest.approx(1)
    assert row["expected"] == pytest.approx(2)  # 8 tokens in the time of 2 + 6 c = 4 steps
    assert row["reason"] == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drafted": 0}, "nothing was drafted"),
        ({"alpha": 0.2, "c": 0.4}, "Corollary 3.9"),
        ({"alpha": 0.2, "c": 0.1, "r": 0.3}, "price of its row"),
        ({"alpha": 0.5, "c": 0.1, "r": 0.1}, "gives 1.50 tokens"),
        ({"over_plain": 1.1}, ""),
    ],
)
def test_where_it_is_slower_it_says_why(changes, words):
    row = {"over_plain": 0.9, "drafted": 9, "alpha": 0.5, "c": 0.1, "r": 0.1, "step_cost": 1.5, "gamma": 3.0}
    assert words in speculative.why_slower(row | {"tokens_per_step": 1.5} | changes)


def test_figures_of_the_real_model_agree_with_each_other(smollm2_path):
    figures = run()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["exact"] is True
    assert {"command", "machine", "model", "dtype", "repeats", "gamma", "temperature", "seed"} <= figures.keys()
    assert figures["workloads"]["editing"]["prompts"][0]["licence"] == "MIT"
    rows = {row["name"]: row for row in figures["results"]}
    assert rows.keys() == {PLAIN, *DRAFTERS} - figures["left_out"].keys()
    assert rows[PLAIN]["over_plain"] == rows[PLAIN]["tokens_per_step"] == 1
    tokens = sum(figures["workloads"]["editing"]["new_tokens"]) - 1  # the first is the prefill's
    for name, row in rows.items():
        assert row["tokens"] == tokens, name
        assert row["identical"] == 1 or "tie" in row["agreement"]
        assert row["spread"][0] <= row["tokens_per_second"] <= row["spread"][1]
        if name == PLAIN:
            continue
        assert row["accepted"] == tokens - row["steps"]
        assert 0 <= row["acceptance"] <= row["alpha"] <= 1
        assert row["expected_with_rows"] <= row["expected"] or row["r"] < 0
        assert (row["reason"] == "") == (row["over_plain"] >= 1)


def test_with_a_temperature_there_are_no_tokens_to_compare_and_gamma_is_what_was_asked(smollm2_path):
    figures = run(["n-gram"], temperature=0.9, gamma=2, repeats=1)
    assert "exact" not in figures
    assert all("agreement" not in row for row in figures["results"])
    assert figures["results"][1]["gamma"] <= 2


def test_a_drafter_that_does_not_fit_is_left_out_and_said_or_refused_where_it_was_named(smollm2_path, monkeypatch):
    def refuse(self, target, cache):
        raise ValueError("made for another target")

    monkeypatch.setattr(PromptLookup, "bind", refuse)
    model, _ = load_model(str(smollm2_path), dtype="bfloat16")
    drafters, left_out = speculative.our_drafters(model, None)
    assert left_out["prompt-lookup"] == "made for another target"
    assert drafters.keys() == DRAFTERS.keys() - left_out.keys()
    with pytest.raises(ValueError, match="another target"):
        speculative.our_drafters(model, ["prompt-lookup"])


def test_the_chapter_shows_the_command_of_the_committed_figures():
    root = Path(__file__).resolve().parents[3]
    figures = json.loads((root / "docs/results/bench_speculative.json").read_text(encoding="utf-8"))
    assert f"`{figures['command']}`" in (root / "chapters/06_speculative_decoding.md").read_text(encoding="utf-8")
