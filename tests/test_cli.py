"""The command line as a user meets it: figures, files, errors in one line, interruption."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest


def test_generate_continues_a_prompt_and_writes_its_figures(run, tmp_path, smollm2_path):
    file = tmp_path / "figures.json"
    status, out, _ = run("generate", "Name a colour.", "--max-new-tokens", 8, "--json", file)
    figures = json.loads(file.read_text())
    assert status == 0
    assert figures["text"] == out.rstrip("\n") != ""
    assert figures["new_tokens"] <= 8
    assert not list(tmp_path.glob("*.part"))


def test_generate_reads_standard_input_and_repeats_a_seed(run, monkeypatch, smollm2_path):
    import io

    texts = []
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.StringIO("def add(a, b):"))
        texts.append(run("generate", "--raw", "--max-new-tokens", 12, "--temperature", 0.9, "--seed", 7)[1])
    assert texts[0] == texts[1]


def test_a_stop_string_is_not_printed_not_even_its_beginning(run, smollm2_path):
    whole = run("generate", "Count from one to ten.", "--max-new-tokens", 24)[1].rstrip("\n")
    stop = whole[12:17]
    cut = run("generate", "Count from one to ten.", "--max-new-tokens", 24, "--stop", stop)[1]
    assert cut.rstrip("\n") == whole[: whole.index(stop)]


def test_tour_reports_tables_figures_and_agreement(run, tmp_path, monkeypatch, smollm2_path):
    from inference_opt.explain import tour

    shown, time_left = [], tour.TimeLeft
    monkeypatch.setattr(tour, "NAIVE_TOKENS", 2)
    monkeypatch.setattr(tour, "TimeLeft", lambda work: shown.append(time_left(work)) or shown[-1])
    file, report, figure = tmp_path / "tour.json", tmp_path / "tour.html", tmp_path / "tour.svg"
    status, out, _ = run(
        "tour", "--max-new-tokens", 3, "--json", file, "--report", report, "--figure", figure, "--dtype", "bfloat16"
    )
    figures = json.loads(file.read_text())
    assert status == 0
    assert figures["exact"] is True
    assert [s["stage"] for s in figures["stages"]] == [
        "naive",
        "KV cache",
        "paged",
        "radix",
        "MLA",
        "speculative",
        "continuous batching",
    ]
    # Two numbers of 2 bytes for each of 3 KV heads of 64 in 30 layers, read off the cache's own tensors.
    # Of latent attention, one latent of 96 and one rotated key of 32.
    kept, latent = 2 * 2 * 3 * 64 * 30, 2 * (96 + 32) * 30
    assert [s["kv_bytes_per_token"] for s in figures["stages"]] == [0, kept, kept, kept, latent, kept, kept]
    # The chat template's own words are shared by all prompts: a page, by the second and the third.
    assert [s["prompt_tokens_reused"] for s in figures["stages"]] == [0, 0, 0, 32, 32, 32, 32]
    for run_, prompt in zip(figures["runs"]["KV cache"], figures["prompts"]):
        assert len(run_["tokens"]) == len(run_["seconds"]) == 3
        assert prompt["source"]
        assert prompt["licence"]
    for stage, runs in figures["runs"].items():
        for run_, naive in zip(runs, figures["runs"]["naive"]):
            assert len(run_["tokens"]) == (2 if stage == "naive" else 3)
            assert run_.get("oracle", naive["tokens"]) == run_["tokens"]
            assert stage == "MLA" or run_["tokens"][:2] == naive["tokens"]
    assert re.search(r"summary \(361 tokens\); about \d+ s left", out)
    assert [left.done for left in shown] == [pytest.approx(left.work) for left in shown]
    page = report.read_text()
    assert not re.search(
        r"""(src|href)=["']?(https?:)?//|url\(["']?http|@import|<script|<link""", page
    )  # self-contained
    assert "<svg" in page
    assert figure.read_text().startswith("<?xml")
    assert "tokens/s" in out


def test_tour_fails_loudly_where_a_stage_differs(run, tmp_path, monkeypatch, smollm2_path):
    from inference_opt.explain import tour

    def wrong(model):
        return tour.Decoder(
            lambda prompts, params: ({0: (t + 1) % 100} for t in tour.naive.stream(model, *prompts, params))
        )

    broken = tour.Stage("KV cache", "a broken one", wrong)
    monkeypatch.setattr(tour, "STAGES", (tour.STAGES[0], broken))
    status, out, err = run("tour", "--max-new-tokens", 2, "--report", tmp_path / "tour.html")
    assert status == 2
    assert "DIFFERENT" in out
    assert "did not give" in err


def test_bench_prefix_without_the_peer(run, tmp_path, smollm2_path):
    file = tmp_path / "prefix.json"
    options = ("--requests", 3, "--stem", 40, "--new-tokens", 2, "--repeats", 1, "--no-peer", "--dtype", "bfloat16")
    status, out, _ = run("bench", "prefix", *options, "--json", file)
    figures = json.loads(file.read_text())
    assert status == 0
    assert figures["exact"] is True
    reuse, anew = figures["results"]
    assert (reuse["name"], anew["name"]) == ("with reuse", "without reuse")
    assert anew["prefill_tokens"] == figures["prompt_tokens"]
    assert reuse["prefill_tokens"] == figures["prompt_tokens"] - 2 * 32  # two whole pages, by the second and the third
    assert "3 of 3" in out


def test_bench_radix_with_a_trace_and_without(run, tmp_path, monkeypatch):
    from inference_opt.lab.bench import radix, workloads

    monkeypatch.setattr(radix, "GENERATED", {"loop": lambda seed: workloads.loop(seed, documents=3, rounds=2)})
    monkeypatch.setattr(radix, "SIZES", [10, 20])
    trace, file, figure = tmp_path / "trace.jsonl", tmp_path / "radix.json", tmp_path / "radix.svg"
    trace.write_text('{"hash_ids": [0, 1, 2]}\n{"hash_ids": [0, 1, 3]}\n')
    options = ("--capacity", 50, "--capacity", 2, "--repeats", 1)
    status, out, _ = run("bench", "radix", trace, *options, "--json", file, "--figure", figure)
    assert status == 0
    figures = json.loads(file.read_text())
    assert figures["capacities"] == [2, 50]
    assert {row["policy"]: row["hit_rate"] for row in figures["hit_rates"]["trace"]}["LRU"] == [2 / 6, 2 / 6]
    assert figure.read_text().count("<svg") == 1
    status, out, _ = run("bench", "radix", *options)
    assert status == 0
    assert "no trace given" in out


def test_bench_decode_without_the_peer(run, tmp_path, smollm2_path):
    file = tmp_path / "bench.json"
    options = ("--dtype", "bfloat16", "--batch", 1, "--batch", 2, "--repeats", 1, "--new-tokens", 3, "--no-peer")
    status, out, _ = run("bench", "decode", *options, "--json", file)
    figures = json.loads(file.read_text())
    assert status == 0
    assert [(r["dtype"], r["batch"]) for r in figures["results"]] == [("bfloat16", 1), ("bfloat16", 2)]
    for row in figures["results"]:
        least, most = row["inference-opt"]["spread"]
        assert least == row["inference-opt"]["decode"] == most
        assert row["of_limit"] == pytest.approx(row["inference-opt"]["decode"] / row["limit"])  # one repeat, one pair
    assert "inference-opt bench decode" in out
    assert {"processor", "torch", "date"} <= figures["machine"].keys()


def test_bench_decode_beside_a_busy_process(run, tmp_path, smollm2_path):
    file = tmp_path / "busy.json"
    options = ("--busy", 1, "--dtype", "bfloat16", "--repeats", 1, "--new-tokens", 2)
    status, out, _ = run("bench", "decode", *options, "--json", file)
    rows = json.loads(file.read_text())["results"]
    assert status == 0
    assert [(row["dtype"], row["setting"]) for row in rows] == [
        ("bfloat16", "inference-opt"),
        ("bfloat16", "OpenMP's own"),
    ]
    for row in rows:
        assert row["kept"] == pytest.approx(row["busy"]["decode"] / row["alone"]["decode"])  # one repeat, one pair
        assert f"{row['busy']['decode']:.1f}" in out
    assert "beside 1 busy" in out


def test_bench_roofline_of_cards(run, tmp_path):
    file = tmp_path / "roofline.json"
    options = ("--card", "H100", "--card", "L4", "--shape", "Llama-3.1-8B", "--dtype", "bfloat16")
    status, out, _ = run("bench", "roofline", *options, "--json", file)
    rows = json.loads(file.read_text())["results"]
    assert status == 0
    assert {row["card"] for row in rows} == {"H100", "L4"}
    assert all(f"{1e3 * row['predicted']:,.3f}" in out for row in rows)
    assert "data sheet of 2023" in out


def test_bench_load_with_one_variation(run, tmp_path, smollm2_path):
    file, figure = tmp_path / "load.json", tmp_path / "load.svg"
    options = ("--variation", "prompt-lookup", "--requests", 4, "--new-tokens", 2, "--share", 5, "--repeats", 1)
    status, out, _ = run("bench", "load", *options, "--dtype", "bfloat16", "--json", file, "--figure", figure)
    rows = json.loads(file.read_text())["results"]
    assert status == 0
    assert [(row["variation"], row["share"]) for row in rows] == [("plain", 5.0), ("prompt-lookup", 5.0)]
    assert "4 requests a row" in out
    assert figure.read_text().count("<svg") == 1


def test_bench_speculative_without_the_peer(run, tmp_path, smollm2_path):
    file = tmp_path / "speculative.json"
    options = ("--task", "editing", "--drafter", "prompt-lookup", "--prompts", 1, "--new-tokens", 4, "--repeats", 1)
    status, out, _ = run("bench", "speculative", *options, "--no-peer", "--dtype", "bfloat16", "--json", file)
    figures = json.loads(file.read_text())
    assert status == 0
    assert [row["name"] for row in figures["results"]] == ["plain", "prompt-lookup"]
    assert figures["exact"] is True
    assert "same tokens in 1 of 1" in out
    assert "inference-opt bench speculative" in out


def test_ablate_measures_a_file_of_one_s_own(run, tmp_path):
    prompts, figures = tmp_path / "prompts.jsonl", tmp_path / "figures.json"
    prompts.write_text('{"prompt": "one stem, tea"}\n{"prompt": "one stem, coffee"}\n')
    sizes = (
        "--model",
        '{"dim": 16, "depth": 1, "heads": 2}',
        "--max-new-tokens",
        2,
        "--repeats",
        2,
        "--design",
        "one-in",
    )
    status, out, err = run("ablate", prompts, *sizes, "-o", tmp_path / "study", "--json", figures)
    assert status == 0, err
    assert str((tmp_path / "study" / "report.html").resolve()) in out
    rows = json.loads(figures.read_text(encoding="utf-8"))["rows"]
    assert [row["combination"] for row in rows][:2] == ["none", "batching"]
    assert all(row["exact"] and row["repeats"] == 2 for row in rows)
    status, _, err = run("ablate", prompts, "--model", '{"dim": 16')
    assert (status, "sizes must be JSON" in err) == (2, True)


def test_fetch_prints_where_the_weights_are(run, smollm2_path):
    assert run("fetch")[1].strip() == str(smollm2_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "hi", "--temperature", "nan"), "temperature"),
        (("generate", "hi", "--top-p", "0"), "top_p"),
        (("generate", "hi", "--max-new-tokens", "0"), "max-new-tokens"),
        (("generate", "hi", "--max-new-tokens", "-4"), "max-new-tokens"),
        (("generate", "", "--raw"), "empty"),
        (("generate", "hi", "--model", "nonsense"), "nonsense"),
        (("generate", "hi", "--dtype", "float8"), "dtype"),
        (("generate", "x " * 9000, "--raw"), "context"),
        (("generate", "hi", "--stop", ""), "stop"),
        (("tour", "--model", "nonsense"), "nonsense"),
        (("tour", "--json", "/"), "json"),
        (("bench", "decode", "--batch", "0"), "batch"),
        (("bench", "decode", "--busy", "0"), "busy"),
        (("bench", "decode", "--busy", "1000000"), "busy"),
        (("bench", "load", "--share", "0"), "share"),
        (("bench", "load", "--requests", "3"), "requests"),
        (("bench", "load", "--drafter", "nonsense"), "drafter"),
        (("bench", "prefix", "--stem", "0"), "stem"),
        (("bench", "roofline", "--card", "H1000"), "expected one of here, A100"),
        (("bench", "roofline", "--shape", "GPT"), "unknown shape 'GPT'"),
        (("bench", "roofline", "--batch", "0"), "batch"),
        (("bench", "speculative", "--task", "nonsense"), "task"),
        (("bench", "speculative", "--drafter", "nonsense"), "drafter"),
        (("bench", "speculative", "--gamma", "-1"), "gamma"),
        (("bench", "speculative", "--new-tokens", "1"), "new-tokens"),
        (("bench", "speculative", "--temperature", "-1"), "temperature"),
        (("bench", "radix", "nowhere.jsonl"), "nowhere.jsonl"),
        (("bench", "radix", "--sglang", "nowhere.whl"), "nowhere.whl"),
        (("bench", "radix", "--capacity", "0"), "capacity"),
        (("fetch", "nonsense"), "nonsense"),
        (("nonsense",), "nonsense"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(run, arguments, message, smollm2_path):
    status, _, err = run(*arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_every_command_has_help(run):
    for command in (
        (),
        ("tour",),
        ("generate",),
        ("fetch",),
        ("bench",),
        ("bench", "decode"),
        ("bench", "load"),
        ("bench", "prefix"),
        ("bench", "radix"),
        ("bench", "roofline"),
        ("bench", "speculative"),
    ):
        status, out, _ = run(*command, "--help")
        assert status == 0
        assert "Usage" in out


def test_ctrl_c_keeps_what_was_generated_and_leaves_no_traceback(smollm2_path):
    # A real process, interrupted after it has begun to print.
    command = [
        sys.executable,
        "-m",
        "inference_opt.cli",
        "generate",
        "Count to a thousand.",
        "--max-new-tokens",
        "4000",
    ]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        first = process.stdout.read(8)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=600)  # or it hangs
    assert process.returncode == 130
    assert (first + rest).endswith("\n")
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
