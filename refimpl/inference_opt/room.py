"""How much memory a device has left, and a plain refusal of what does not fit, before it is reserved."""

import os
from pathlib import Path

import torch


def available_bytes(device: torch.device) -> int | None:
    """Memory that could be had now; None where the system does not say, and on devices that store nothing ("meta").

    On Linux what can be had without swapping, within the limit of the process's control group. Where a system tells
    only how much memory it has, that.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    total, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not total.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in total.read_text().splitlines()}["MemAvailable"]
    given = limit.read_text().strip() if limit.is_file() else "max"
    return min(1024 * kilobytes, int(given)) if given.isdecimal() else 1024 * kilobytes


def check_room(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """ValueError where a device has fewer bytes than are needed for `what`."""
    there = available_bytes(device)
    if there is not None and needed > there:
        raise ValueError(
            f"{what} would take {needed / 2**30:,.2f} GiB, and {device} has {there / 2**30:,.2f} GiB left: {remedy}"
        )
