"""How much memory a process of the tests took, and may take. Processes of their own use it, too."""

import contextlib
import ctypes
import gc
import re
from pathlib import Path

MOST_MEMORY = 2 * 10**9  # a worker comes to hold 1.0, and a test of a real model takes 0.8 more

if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
    # Blocks from a megabyte on go back when they are freed. glibc would come to keep those below 32 MB, between others.
    set_option(-3, 2**20)  # M_MMAP_THRESHOLD


def memory(field):
    """Bytes, out of what Linux says of this process; 0 elsewhere."""
    file = Path("/proc/self/status")
    return int(re.search(rf"{field}:\s+(\d+) kB", file.read_text())[1]) * 1024 if file.is_file() else 0


def check(peak):
    """AssertionError for a process that took more than the most."""
    assert peak < MOST_MEMORY, f"a process took {peak / 1e9:.2f} GB, {MOST_MEMORY / 1e9:.0f} GB are the most"


def give_back_memory():
    """What was freed goes back to the system: glibc would keep it, and a process would grow with every file."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def forget_peak():
    """The next peak is the next test's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def within(function, *given):
    """What the function gives, in a process of its own, which is held to the limit as the tests' are."""
    give_back_memory()
    forget_peak()
    result = function(*given)
    check(memory("VmHWM"))
    return result
