"""Decoding beside busy processes: figures on a small model, each process in its setting, none left behind."""

import subprocess
import sys

import pytest
import tokenizers
from rich.progress import Progress

import inference_opt
from inference_opt.lab.bench import busy
from tests.loading.test_checkpoint_errors import SHAPES, write_folder


@pytest.fixture
def small(tmp_path):
    """A folder with a model of one layer that reads bytes."""
    alphabet = {c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(alphabet, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    vocabulary = {name: (256, 8) for name in SHAPES if "embed" in name or "head" in name}
    return str(write_folder(tmp_path, {"vocab_size": 256}, SHAPES | vocabulary))


def test_both_settings_are_measured_alone_and_beside_busy_processes(small, monkeypatch):
    begun = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            begun.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with Progress(disable=True) as progress:
        figures = busy.bench_busy(small, ["float32"], 2, 3, 2, progress)
    assert [row["setting"] for row in figures["results"]] == ["inference-opt", "OpenMP's own"]
    for row in figures["results"]:
        for where in ("alone", "busy"):
            least, most = row[where]["spread"]
            assert 0 < least <= row[where]["decode"] <= most
        assert row["kept"] > 0
    assert len(begun) == 2 + 2 * 2  # a process for each setting, and two busy ones at each repeat
    assert all(process.poll() is not None for process in begun)


@pytest.mark.parametrize(("setting", "expected"), [("inference-opt", inference_opt.OPENMP_WAIT), ("OpenMP's own", {})])
def test_each_process_has_its_setting_whatever_the_environment_says(setting, expected, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    look = "import os; print('ready', flush=True); input(); print(float(os.environ.get('GOMP_SPINCOUNT', -1)))"
    with busy._server(f"import {busy.SETTINGS[setting]}, inference_opt; {look}") as found:
        assert found() == float(expected.get("GOMP_SPINCOUNT", -1))


def test_a_process_that_cannot_decode_is_an_error():
    with pytest.raises(RuntimeError, match="ended with status 3"), busy._server("raise SystemExit(3)"):
        pass


def test_a_busy_process_ends_with_its_parent():
    start = "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())])"
    # Standard output is the busy process's, too: `run` returns when both have closed it.
    subprocess.run([sys.executable, "-c", start, busy._BUSY], stdout=subprocess.PIPE, timeout=60, check=True)
