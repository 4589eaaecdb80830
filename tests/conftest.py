"""Shapes in signatures are checked while testing; hypothesis draws the same examples every time."""

import ctypes
import gc
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import config, install_import_hook

# Not those with kernels: the hook would wrap the functions that Triton reads the source of.
PACKAGE = Path(__file__).parent.parent / "refimpl"
MODULES = [p for p in PACKAGE.rglob("*.py") if not re.search("^@(triton|gluon).jit", p.read_text("utf-8"), re.M)]
install_import_hook([".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in MODULES], "beartype.beartype")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are first imported

settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def smollm2_path():
    from inference_opt.loading.download import fetch

    return fetch("smollm2-135m")


@pytest.fixture(scope="session")
def load_smollm2(smollm2_path):
    """The model and its tokenizer in a precision. Only the last one asked for is kept: a worker needs no 2 GB."""
    from inference_opt import load_model

    kept = {}

    def load(dtype):
        if dtype not in kept:
            kept.clear()
            give_back_memory()
            kept[dtype] = load_model(smollm2_path, dtype=dtype)
        return kept[dtype]

    return load


@pytest.fixture(scope="module")
def smollm2(load_smollm2):
    return load_smollm2("float32")


def give_back_memory():
    """What was freed goes back to the system: glibc would keep it, and a worker would grow with every file."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


@pytest.fixture(scope="module", autouse=True)
def _memory_is_given_back():
    yield
    give_back_memory()


@pytest.fixture
def untyped():
    """Without the check of signatures: as a user calls it, who may give anything."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run inference-opt in this process; return (exit status, standard output, standard error)."""

    from inference_opt import cli

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["inference-opt", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status or 0, out, err

    return call
