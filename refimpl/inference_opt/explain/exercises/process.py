"""The judge's process: one that has all imports done, and forks a child for every solution.

    parent   ──  folder with request.pickle  →  server  ──  fork  →  child  ──  verdict.json  →  folder
                                                   └─ kills the child when its time is over

A learner's code may loop, eat memory, end its process or change any module: it does so in a child of its own, which
may have `MEMORY` bytes and `SECONDS` seconds, and is never used again. (It is no prison: it can write where you can.)
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from inference_opt.explain.exercises.verdict import Verdict

SECONDS = 60.0  # for a verdict, on a busy machine; most take two
MEMORY = 2 << 30  # bytes beyond what the imports took


class Server:
    """The process that forks, started with the first check."""

    def __init__(self) -> None:
        quiet = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")} | {"TRITON_INTERPRET": "1"}
        quiet["HYPOTHESIS_STORAGE_DIRECTORY"] = str(user_cache_path("inference-opt") / "hypothesis")
        self.process = subprocess.Popen(
            # -P: a learner's token.py is not imported in the library's place.
            [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | quiet,
            start_new_session=True,  # Ctrl-C is the parent's to hear
        )

    def ask(self, folder: Path) -> str:
        """Judge the request in a folder; how the child ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(SECONDS, folder, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """Stop it, and what it runs."""
        self.process.terminate()
        self.process.wait()


_server: list[Server] = []
_one = threading.Lock()  # a server judges one solution at a time


def run(id: str, solution: Any, seed: int) -> Verdict:
    """Have a solution judged by a child process."""
    import cloudpickle

    with _one, tempfile.TemporaryDirectory(prefix="exercise-") as name:
        folder = Path(name)
        try:
            (folder / "request.pickle").write_bytes(cloudpickle.dumps((id, solution, seed)))
        except Exception as error:
            raise ValueError(f"the function cannot be handed to the judge: {error}") from None
        if not _server or _server[0].process.poll() is not None:
            _server[:] = [Server()]
        start = time.monotonic()
        try:
            ended = _server[0].ask(folder)
        except BaseException:  # Ctrl-C: the child may be in an endless loop
            _server.pop().end()
            raise
        if (folder / "verdict.json").exists():
            return Verdict.from_json(json.loads((folder / "verdict.json").read_text(encoding="utf-8")))
        tried = (folder / "tried.txt").read_text(encoding="utf-8") if (folder / "tried.txt").exists() else "loading it"
        said = f"{ended or 'the judge’s process ended'}; it was trying: {tried}"
        return Verdict(id, False, said, seconds=round(time.monotonic() - start, 2), seed=seed)


# In the server


def serve() -> None:
    """Fork a child for every folder that is named on standard input, until that is closed."""
    from inference_opt.explain.exercises.table import EXERCISES  # noqa: F401 (imports all: children begin with it done)

    signal.signal(signal.SIGTERM, _ended)
    for line in sys.stdin:
        seconds, folder = line.rstrip("\n").split(" ", 1)
        child = os.fork()
        if child == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _child(Path(folder))
            os._exit(0)
        _children[:] = [child]
        print(_waited(child, float(seconds)), flush=True)
        _children.clear()


_children: list[int] = []  # the one that runs


def _ended(*_: Any) -> None:
    """The server is asked to end: so does its child."""
    for child in _children:
        _kill(child)
    os._exit(1)


def _waited(child: int, seconds: float) -> str:
    """Wait for a child, so long at most; say how it ended."""
    end, parent = time.monotonic() + seconds, os.getppid()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _kill(child)  # what it has started and left behind
            code = os.waitstatus_to_exitcode(status)
            return f"your code ended the process ({f'signal {-code}' if code < 0 else code})"
        if os.getppid() != parent:  # nobody waits for the verdict any more
            _ended()
        if time.monotonic() > end:
            _kill(child)
            os.waitpid(child, 0)
            return f"no verdict within {seconds:.0f} seconds: your code is too slow, or does not end"
        time.sleep(0.005)


def _kill(child: int) -> None:
    for kill in (os.killpg, os.kill):  # its group, if it has one already
        with contextlib.suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)


def _child(folder: Path) -> None:
    import cloudpickle

    from inference_opt.explain.exercises.judge import judge
    from inference_opt.explain.exercises.table import EXERCISES

    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    _limit_memory()
    tried = os.open(folder / "tried.txt", os.O_WRONLY | os.O_CREAT)

    def note(what: str) -> None:
        text = what.encode()[:2000]
        os.pwrite(tried, text, 0)
        os.ftruncate(tried, len(text))

    id, solution, seed = cloudpickle.loads((folder / "request.pickle").read_bytes())
    try:
        text = json.dumps(judge(EXERCISES[id], solution, seed, note).as_json())
    except BaseException as error:  # of an object that cannot be shown, say
        said = f"the judge cannot judge it: {type(error).__name__}. What the function returns must be plain values."
        text = json.dumps(Verdict(id, False, said, seed=seed).as_json())
    whole = folder / "whole.json"
    whole.write_text(text, encoding="utf-8")
    whole.rename(folder / "verdict.json")


def _limit_memory() -> None:
    """The child may have `MEMORY` bytes more than it has. Linux alone can be asked for it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
