"""The memory that a device has left, and a ValueError, before any is taken, for what does not fit."""

import os
from pathlib import Path

import torch


def available_bytes(device: torch.device) -> int | None:
    """Bytes of memory that can be allocated now; None if the system does not say, or if the device has none ("meta").

    On Linux this is the memory that is available without swapping, within the limit of the process's control group. A
    system that only reports how much memory it has in all gives that.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    meminfo = Path("/proc/meminfo")
    limit = Path("/sys/fs/cgroup/memory.max")
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines()}["MemAvailable"]
    given = limit.read_text().strip() if limit.is_file() else "max"
    return min(1024 * kilobytes, int(given)) if given.isdecimal() else 1024 * kilobytes


def check_room(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """ValueError if a device has fewer bytes than `what` needs. `remedy`: what the user can do."""
    available = available_bytes(device)
    if available is not None and needed > available:
        raise ValueError(
            f"{what} would take {needed / 2**30:,.2f} GiB, and {device} has {available / 2**30:,.2f} GiB left: {remedy}"
        )
