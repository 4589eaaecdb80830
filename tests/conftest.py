"""Shapes in signatures are checked while testing; hypothesis draws the same examples every time."""

import contextlib
import gc
import inspect
import multiprocessing
import os
import re
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import config

from tests.memory import check, forget_peak, give_back_memory, memory, within
from tests.signatures import check_signatures


def patch_once():
    """Triton's interpreter changes its language before every launch and back after it. Here it stays changed.

    Making the changes took a third of the time of a launch, and most of it if the kernel is small.
    """
    from triton.runtime import interpreter

    patch_language, patched = interpreter._patch_lang, set()

    def patch(kernel):
        if kernel.__module__ not in patched:
            patched.add(kernel.__module__)
            patch_language(kernel)
        return types.SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch


# Not those with kernels: the hook would wrap the functions that Triton reads the source of.
PACKAGE = Path(__file__).parent.parent / "refimpl"
MODULES = [p for p in PACKAGE.rglob("*.py") if not re.search("^@(triton|gluon).jit", p.read_text("utf-8"), re.M)]
check_signatures([".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in MODULES])
# What is prepared for a product of one shape takes a quarter of a megabyte. Both torch and oneDNN keep the last 1,024,
# half a gigabyte in the end, since every number of rows is a shape of its own. A step of a model uses five.
for kept in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ[kept] = "32"  # read at the first product
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are first imported
    with contextlib.suppress(ImportError):
        patch_once()

from inference_opt.lab.bench import machine  # noqa: E402

# As much as no cache holds is a gibibyte, for a true figure; nobody reads those of the tests.
inspect.unwrap(machine.read_bandwidth).__defaults__ = (64, 5, "cpu")

seen = {"after a test": 0, "in a child": 0}  # bytes

settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def smollm2_path():
    from inference_opt.loading.download import fetch

    return fetch("smollm2-135m")


@pytest.fixture(scope="module")
def load_smollm2(smollm2_path):
    """The model and its tokenizer in a precision. The last one asked for is kept, for the tests of one file."""
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


def pytest_collection_finish():
    """What the imports made stays, so the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Free what a test leaves in cycles, and what its file's fixtures held, before the next one loads a model."""
    result = yield  # only now has pytest let go of what the fixtures gave
    if nextitem is None or nextitem.path != item.path or memory("VmRSS") > seen["after a test"] + 100 * 10**6:
        give_back_memory()
        seen["after a test"] = memory("VmRSS")
    forget_peak()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    """No process of a test takes more than `MOST_MEMORY`; those of `apart` see to it themselves."""
    result = yield
    peak, children = memory("VmHWM"), most_of_a_child()
    if children > seen["in a child"]:
        peak, seen["in a child"] = max(peak, children), children
    check(peak)
    return result


def most_of_a_child():
    """Bytes that the largest of the processes took that have ended; 0 where it cannot be told."""
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


@pytest.fixture(scope="session")
def forkserver():
    """Makes processes that need not import torch and the package anew, which takes seconds. They check no types."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["inference_opt.experiment", "tests.memory", "tests.toys"])
    return context


@pytest.fixture(scope="module")
def apart(forkserver):
    """Runs functions in one process of their own, for a file's tests: beside all that a worker has imported and kept
    it has no room for the real model in float64, nor for a second one.
    """
    with ProcessPoolExecutor(1, mp_context=forkserver) as pool:
        yield lambda function, *given: pool.submit(within, function, *given).result()


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
