"""The study: every trial once, whoever runs it and whatever is killed; effects that are what they claim to be."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.experiment import Results, run_ablation_study, study, trials
from inference_opt.experiment.results import SHORT
from inference_opt.experiment.study import TECHNIQUES, combinations
from tests.toys import latent_toy

TOY = {"dim": 16, "depth": 1, "heads": 2}
SMALL = {"repeats": 1, "max_new_tokens": 3, "dtype": "float64", "page_size": 4}


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    stem = "one stem for all of them, "
    rows = [{"prompt": f"{stem}{word}", "reference": word} for word in ("tea", "coffee", "water")]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_every_combination_is_measured_and_exact(texts):
    results = run_ablation_study(texts, TOY, **SMALL)
    frame = results.to_pandas()
    assert len(frame) == len(combinations(TECHNIQUES, "full")) == 12
    assert frame["exact"].all()
    assert (frame["identical"] == 3).all()
    assert frame["tokens_per_second"].gt(0).all()
    assert frame["kv_bytes_in_use"].le(frame["kv_bytes_allocated"]).all()
    assert (frame["reused"].gt(0) == frame["radix_attention"]).all()
    assert frame.loc[frame["combination"] == "none", "over_baseline"].item() == 1
    kinds = [trial["kind"] for trial in results.trials]
    assert kinds.count("run") == 12
    assert kinds.count("quality") == 2
    assert kinds.count("naive") == 1
    same = frame.loc[~frame["mla"]]
    assert (same["favourites"] == 1).all()
    assert same["perplexity"].nunique() == 1
    # All 3 requests at once share a page more often than each alone: what is in use shows it.
    in_use = frame.set_index("combination")["kv_bytes_in_use"]
    assert in_use["none"] < in_use["batching + radix"] < in_use["batching"]


def test_metrics_that_are_not_asked_for_are_not_there(texts, tmp_path):
    results = run_ablation_study(texts, TOY, ["mla"], ["memory_usage"], **SMALL)
    assert {trial["kind"] for trial in results.trials} == {"run"}
    assert "tokens_per_second" not in results.rows()[0]
    assert results.rows()[0]["kv_bytes_in_use"] > 0
    assert "tokens/s" not in results.write(tmp_path).read_text(encoding="utf-8")


def test_the_page_stands_alone_and_holds_every_row(texts, tmp_path):
    results = run_ablation_study(texts, TOY, **SMALL)
    page = results.write(tmp_path / "out").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert not re.search(r"(src|href)=.?(http|//)", page)
    assert all(f"<td>{row['combination']}</td>" in page for row in results.rows())
    assert results.command.split()[0] in page
    saved = json.loads((tmp_path / "out" / "study.json").read_text(encoding="utf-8"))
    assert saved["rows"] == results.rows()
    assert saved["effects"] == results.effects()
    assert Results.read(tmp_path / "out" / "study.json") == results
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no study: KeyError"):
        Results.read(tmp_path / "none.json")


@pytest.mark.parametrize("design", ["full", "one-in", "one-out"])
@given(techniques=st.sets(st.sampled_from(TECHNIQUES), min_size=1))
def test_designs(design, techniques):
    techniques = tuple(name for name in TECHNIQUES if name in techniques)
    found = combinations(techniques, design)
    assert found[0] == ()
    assert found[-1] == techniques
    assert len(set(found)) == len(found)
    batching = "continuous_batching" in techniques
    allowed = [c for c in found if not batching or "radix_attention" not in c or "continuous_batching" in c]
    assert found == allowed
    if design == "full":
        both = batching and "radix_attention" in techniques
        assert len(found) == 2 ** len(techniques) * (3 if both else 4) // 4
    for name in techniques:  # each has a pair of combinations that differ in it alone, so that its effect can be told
        pairs = [c for c in map(set, found) if name not in c and c | {name} in map(set, found)]
        alone = design == "one-out" and name == "continuous_batching" and "radix_attention" in techniques
        assert pairs or alone


@given(
    factors=st.fixed_dictionaries({name: st.floats(0.1, 10) for name in TECHNIQUES}),
    together=st.floats(0.1, 10),
    design=st.just("full"),
)
def test_effects_are_the_factors_that_made_the_rates(factors, together, design):
    """Rates made of one factor a technique, and one more where MLA and speculation meet."""
    trials = []
    for combo in combinations(TECHNIQUES, design):
        rate = 7.0
        for name in combo:
            rate *= factors[name]
        if {"mla", "speculative_decoding"} <= set(combo):
            rate *= together
        trials.append({"workload": "w", "kind": "run", "techniques": combo, "figures": {"tokens_per_second": rate}})
    results = Results("", list(TECHNIQUES), ["throughput"], trials)
    assert repr(results).startswith(f"<Results of {len(trials)} trials of {', '.join(TECHNIQUES)} on 1 workloads")
    effects = results.effects()["w"]
    for name in ("continuous_batching", "radix_attention"):
        assert effects[SHORT[name]] == pytest.approx(factors[name])
    for name in ("mla", "speculative_decoding"):  # half of their pairs have the other one beside them
        assert effects[SHORT[name]] == pytest.approx(factors[name] * together**0.5)
    assert effects["MLA × speculation"] == pytest.approx(together)
    assert effects["batching × MLA"] == pytest.approx(1)
    assert effects["radix × speculation"] == pytest.approx(1)
    assert "batching × radix" not in effects  # the tree is not tried without batching


def a_study(texts, folder, more, ready):
    """In a process of its own: a study that notes every trial that it has run. Its exit status is their number."""
    torch.set_num_threads(1)
    real = trials.run_trial

    def noted(trial, *rest):
        found = real(trial, *rest)
        with open(f"{folder}.log", "a", encoding="utf-8") as log:  # noqa: PTH123
            print(trial["kind"], trial["techniques"], trial["repeat"], file=log)
        return found

    study.run_trial = noted
    ready.set()
    sys.exit(len(run_ablation_study(texts, TOY, folder=folder, **more).trials))


def test_a_study_that_is_killed_goes_on_where_it_stopped(texts, tmp_path, forkserver):
    """Ten times, at random moments. At most the trial that was running is run again, and every figure is there once."""
    rng, folder = random.Random(0), tmp_path / "trials"
    small = SMALL | {"repeats": 3, "max_new_tokens": 40}

    def started():
        ready = forkserver.Event()
        process = forkserver.Process(target=a_study, args=(texts, folder, small, ready))
        process.start()
        assert ready.wait(timeout=120)
        return process

    seen: dict[str, str] = {}
    kills = 0
    while kills < 10:
        process = started()
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        now = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
        assert all(json.loads(text) for text in now.values())  # whole, each of them
        assert {name: now[name] for name in seen} == seen  # and not measured again
        seen = now
    planned = 3 * 12 + 3
    process = started()
    process.join()
    assert process.exitcode == planned
    assert len(list(folder.glob("*.json"))) == planned
    log = Path(f"{folder}.log").read_text(encoding="utf-8").splitlines()
    assert len(set(log)) == planned
    assert len(log) <= planned + 10
    again = run_ablation_study(texts, TOY, folder=folder, **small)
    assert len(again.trials) == planned
    assert all(trial["figures"] for trial in again.trials)


def without_times(results):
    """What does not depend on who ran it, and when."""
    kept = ("new_tokens", "exact", "identical", "perplexity", "favourites", "kv_bytes_in_use", "reused")
    return [{name: t["figures"].get(name) for name in kept} | {"of": t["techniques"]} for t in results.trials]


def test_dask_gives_the_same_results_in_the_same_order_when_a_worker_is_killed(texts, tmp_path):
    """A scheduler and three workers, each a process of its own; one is killed while it works and never comes back."""
    distributed = pytest.importorskip("distributed")
    small = SMALL | {"repeats": 3, "max_new_tokens": 8}
    alone = run_ablation_study(texts, TOY, **small)
    killed = []

    def kill(pids):
        while len(list((tmp_path / "trials").glob("*.json"))) < 5:
            time.sleep(0.01)
        os.kill(pids[0], signal.SIGKILL)
        killed.append(pids[0])

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    address = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny", "--nthreads", "1", "--no-dashboard"]
    commands = [command, worker, worker, worker]
    processes = [
        subprocess.Popen([*c, "--scheduler-file", str(address)], env=environment, stderr=subprocess.DEVNULL)
        for c in commands
    ]
    try:
        with distributed.Client(scheduler_file=str(address), timeout=60) as client:
            client.wait_for_workers(3, timeout=60)
            threading.Thread(target=kill, args=([p.pid for p in processes[1:]],), daemon=True).start()
            executor = client.get_executor()
            results = run_ablation_study(texts, TOY, folder=tmp_path / "trials", executor=executor, **small)
            assert killed
            assert len(client.scheduler_info()["workers"]) == 2
            command = ["ablate", str(texts), "--model", json.dumps(TOY), "--design", "one-in", "--repeats", "1"]
            command += ["--max-new-tokens", "3", "-o", str(tmp_path / "by command")]
            command += ["--scheduler", client.scheduler_info()["address"]]
            subprocess.run([sys.executable, "-m", "inference_opt.cli", *command], check=True, env=environment)
            saved = json.loads((tmp_path / "by command" / "study.json").read_text(encoding="utf-8"))
            assert len(saved["rows"]) == len(combinations(TECHNIQUES, "one-in"))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert without_times(results) == without_times(alone)


def test_a_trial_that_keeps_failing_is_given_up_and_the_rest_is_kept(texts, tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    real = study.run_trial

    def lost(trial, *rest):
        if trial["techniques"] == ["mla"]:
            raise ConnectionError("worker lost")
        return real(trial, *rest)

    monkeypatch.setattr(study, "run_trial", lost)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match=r"failed 3 times .*worker lost.* goes on from"):
        run_ablation_study(texts, TOY, folder=tmp_path / "trials", executor=pool, **SMALL)
    assert list((tmp_path / "trials").glob("*.json"))


def test_processes_that_die_end_the_study_with_a_word(texts, tmp_path):
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1) as pool:
        process = pool.submit(os.getpid).result()
        threading.Timer(0.5, os.kill, (process, signal.SIGKILL)).start()
        with pytest.raises(ValueError, match=r"failed 1 times \(BrokenProcessPool"):
            run_ablation_study(texts, TOY, executor=pool, **SMALL | {"repeats": 50})


def test_the_call_of_the_readme(texts):
    results = run_ablation_study(
        input_dataset=texts,
        model_config={"dim": 512, "depth": 6, "heads": 8},
        techniques_to_test=["radix_attention", "mla", "speculative_decoding"],
        metrics=["throughput", "memory_usage", "quality"],
        repeats=1,
        max_new_tokens=2,
    )
    frame = results.to_pandas()
    assert len(frame) == 8
    assert frame["exact"].all()
    assert set(results.effects()["prompts"]) >= {"radix", "MLA", "speculation", "radix × MLA"}


def test_a_trial_is_known_by_all_that_it_reads(texts, tmp_path):
    """Other answers: the texts are read again, and nothing is timed again."""
    run_ablation_study(texts, TOY, folder=tmp_path / "trials", **SMALL)
    before = set((tmp_path / "trials").iterdir())
    texts.write_text(texts.read_text(encoding="utf-8").replace('"reference": "tea"', '"reference": "the tea"'))
    run_ablation_study(texts, TOY, folder=tmp_path / "trials", **SMALL)
    new = [json.loads(path.read_text(encoding="utf-8")) for path in set((tmp_path / "trials").iterdir()) - before]
    assert ["perplexity" in figures for figures in new] == [True, True]


def test_pages_are_in_use_even_if_a_request_is_done_in_a_step(texts):
    rows = run_ablation_study(texts, TOY, ["mla"], ["memory_usage"], **SMALL | {"max_new_tokens": 1}).rows()
    assert all(row["kv_bytes_in_use"] > 0 for row in rows)


def test_a_figure_s_file_that_is_none_is_named(texts, tmp_path):
    run_ablation_study(texts, TOY, ["mla"], folder=tmp_path / "trials", **SMALL)
    spoilt = min((tmp_path / "trials").iterdir())
    for content in ("{", "{}", "[]", "3", '{"machine": {}}', "[" * 100_000):
        spoilt.write_text(content)
        with pytest.raises(ValueError, match=rf"{spoilt.name} holds no trial's figures .* delete it"):
            run_ablation_study(texts, TOY, ["mla"], folder=tmp_path / "trials", **SMALL)


def test_a_study_keeps_no_model(texts):
    run_ablation_study(texts, TOY, ["mla"], ["memory_usage"], **SMALL)
    assert trials._build.cache_info().currsize == 0
    with pytest.raises(ValueError, match="another target"):  # found out when the models are built
        run_ablation_study(texts, TOY, drafter="trained", **SMALL)
    assert trials._build.cache_info().currsize == 0


def test_mla_is_refused_for_a_model_that_has_it(texts, monkeypatch):
    monkeypatch.setattr(study, "build", lambda *args: (latent_toy(max_context=64, vocab_size=256), object()))
    with pytest.raises(ValueError, match="has latent attention of its own: leave mla out"):
        run_ablation_study(texts, "deepseek", **SMALL)


BAD = {
    "technique": (
        {"techniques_to_test": ["radix_atention"]},
        r"unknown technique 'radix_atention': did you mean 'radix_",
    ),
    "metric": ({"metrics": ["memory"]}, "unknown metric 'memory': did you mean 'memory_usage'"),
    "design": ({"design": "all"}, "unknown design 'all'"),
    "drafter": ({"drafter": "lookup"}, "did you mean 'prompt-lookup'"),
    "no technique": ({"techniques_to_test": []}, "expected at least one technique"),
    "repeats": ({"repeats": 0}, r"repeats must be a whole number of at least 1 and below 2\^31, got 0"),
    "sizes": ({"model_config": {"dim": 15, "depth": 1, "heads": 2}}, "multiple of heads"),
    "field": ({"model_config": {"dims": 16}}, "unknown field of model_config 'dims': did you mean 'dim'"),
    "context": ({"model_config": TOY | {"max_context": 8}}, r"dataset prompts, request 1 \(29 tokens\)"),
    "memory": ({"page_size": 2**30}, r"the study needs [\d,.]+ GiB"),
    "weights": (
        {"model_config": {"dim": 2**20, "depth": 100, "heads": 8}},
        r"the study needs [\d,.]+ GiB \(0.0 of keys",
    ),
    "target": ({"drafter": "trained"}, "was made for another target"),
    "dtype": ({"dtype": "float12"}, "float12"),
    "dataset": ({"input_dataset": "no/such/file"}, "does not exist: expected a file, a folder, or one of few-shot"),
    "twice": ({"input_dataset": ["chat", "chat"]}, "different names"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_studied_is_refused_before_any_work(name, texts, tmp_path):
    changes, says = BAD[name]
    arguments = {"input_dataset": texts, "model_config": TOY, "folder": tmp_path / "trials"} | SMALL | changes
    with pytest.raises(ValueError, match=says):
        run_ablation_study(**arguments)
    assert not (tmp_path / "trials").exists()
