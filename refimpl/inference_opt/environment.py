"""Where and when something ran: the command, the machine, the versions, the seconds. It stands beside every figure."""

import datetime
import os
import platform
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from inference_opt import __version__


def command_line() -> str:
    """The command that is running, as one would type it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def describe() -> dict[str, Any]:
    """Processor, cores, versions and date: what stands beside every figure."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "inference_opt": __version__,
        "transformers": _version("transformers"),
        "date": datetime.date.today().isoformat(),
    }


def elapsed(began: float, ended: float | None = None) -> float:
    """Seconds since then: never 0, so that no rate is infinite. What is shorter than the clock's tick takes one."""
    ended = time.perf_counter() if ended is None else ended
    return max(ended - began, time.get_clock_info("perf_counter").resolution)
