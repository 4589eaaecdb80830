"""`inference-opt bench decode --busy N`: plain decoding on the machine alone, and beside N busy processes.

OpenMP reads its environment once, when torch loads it. So each setting has a process of its own, which loads the model
and then decodes when it is told to. One has the package's setting (`inference_opt.OPENMP_WAIT`); the other imports
torch before the package, and so has OpenMP's own. They decode in turn, first alone, then beside N processes of one
thread that never pause.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from rich.progress import Progress

import inference_opt
from inference_opt.environment import command_line, describe
from inference_opt.lab.bench.decode import our_decoder, prompt_ids
from inference_opt.loading.load import load_model
from inference_opt.loading.tokenizer import needed

# What a process imports first, by setting.
SETTINGS = {"inference-opt": "inference_opt", "OpenMP's own": "torch"}
_SERVE = "import {first}; from inference_opt.lab.bench.busy import serve; serve({source!r}, {dtype!r}, {new})"
_BUSY = "import os, sys; parent = int(sys.argv[1])\nwhile os.getppid() == parent: pass"  # it ends when its parent does


def serve(source: str, dtype: str, new: int) -> None:
    """Decode one request for each line of standard input, and print its tokens a second, without the prefill."""
    model, tokenizer = load_model(source, dtype=dtype)
    decode, prompts = our_decoder(model), prompt_ids(needed(tokenizer), 1)
    decode(prompts, 4)  # warm up
    print("ready", flush=True)
    for _ in sys.stdin:
        _, seconds, (text,) = decode(prompts, new + 1)
        print((len(text) - 1) / seconds, flush=True)


@contextlib.contextmanager
def _server(code: str) -> Iterator[Callable[[], float]]:
    """A process that serves, as a function that makes it decode once and returns its tokens a second."""
    environment = {
        name: value for name, value in os.environ.items() if name not in {"OMP_WAIT_POLICY", *inference_opt.OPENMP_WAIT}
    }
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told, answers = process.stdin, process.stdout

        def rate() -> float:
            print(file=told, flush=True)
            return float(answers.readline())

        try:
            if answers.readline() != "ready\n":
                raise RuntimeError(f"a process that should decode ended with status {process.wait()}")
            yield rate
        finally:
            process.kill()


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes that never pause."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY, str(os.getpid())]) for _ in range(count)]
    try:
        time.sleep(0.5)  # until they have started
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def bench_busy(source: str, dtypes: list[str], busy: int, new: int, repeats: int, progress: Progress) -> dict[str, Any]:
    """Tokens a second in decode by dtype and setting: alone, and beside `busy` processes."""
    task = progress.add_task("bench decode", total=len(dtypes) * repeats * 2 * len(SETTINGS))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # what else ran in the minute before
    results = []
    for dtype in dtypes:
        load_model(source, dtype=dtype)  # what is wrong with the model is said here
        rates: dict[str, dict[str, list[float]]] = {name: {"alone": [], "busy": []} for name in SETTINGS}
        with contextlib.ExitStack() as running:
            servers = {
                name: running.enter_context(_server(_SERVE.format(first=first, source=source, dtype=dtype, new=new)))
                for name, first in SETTINGS.items()
            }
            for _ in range(repeats):
                for where, count in (("alone", 0), ("busy", busy)):
                    with _busy(count):
                        for name, rate in servers.items():
                            rates[name][where].append(rate())
                            progress.advance(task)
        for name, measured in rates.items():
            row: dict[str, Any] = {"dtype": dtype, "setting": name}
            for where, found in measured.items():
                row[where] = {"decode": median(found), "spread": [min(found), max(found)]}
            # Repeat by repeat, as a shared machine drifts.
            row["kept"] = median(b / a for a, b in zip(measured["alone"], measured["busy"]))
            results.append(row)
    head = {"command": command_line(), "machine": describe(), "model": source, "new_tokens": new, "repeats": repeats}
    return head | {"busy": busy, "load_before": load, "openmp_wait": inference_opt.OPENMP_WAIT, "results": results}
