"""The bench of a cut model, as one runs it: two processes under torch's launcher."""

import json
import subprocess
import sys

MODULE = "inference_opt.lab.bench.parallel"


def launch(ranks, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", MODULE, "--device", "cpu", "--shape", "tiny", "--dtype", "float64", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_two_ranks_say_the_same_and_each_holds_half_the_cache(tmp_path):
    file = tmp_path / "figures.json"
    sizes = ["--prompts", "2", "--prompt-tokens", "5", "--new-tokens", "6", "--repeats", "1"]
    done = launch(2, *sizes, "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["ranks_agree"]
    assert figures["greedy"] == {"all, step by step": ["identical"] * 2}
    assert figures["seeded_identical"] == {"all, step by step": 2}
    assert figures["kv_bytes_per_token"]["ranks"] == [figures["kv_bytes_per_token"]["one"] // 2] * 2
    assert max(figures["weight_bytes"]["ranks"]) < figures["weight_bytes"]["one"]
    assert MODULE in figures["command"]


def test_what_cannot_be_cut_is_refused_without_a_figure(tmp_path):
    file = tmp_path / "figures.json"
    done = launch(3, "--json", str(file))
    assert done.returncode != 0
    assert "error: heads = 8" in done.stderr
    assert not file.exists()


def test_without_a_launcher_it_says_how_to_launch():
    done = subprocess.run([sys.executable, "-m", MODULE], capture_output=True, text=True)
    assert done.returncode == 2
    assert "torch.distributed.run" in done.stderr
