"""The limits of the machine that figures are compared with: bytes read and operations computed in a second."""

import time
from collections.abc import Callable

import torch

from inference_opt.environment import elapsed
from inference_opt.kernels.graph import capture
from inference_opt.lab.bench.work import Limits


def measured(dtype: torch.dtype, device: torch.device | str = "cpu", repeats: int = 5) -> Limits:
    """Both limits of a device, as they are now."""
    size = {} if torch.device(device).type == "cpu" else {"megabytes": 4096}
    return Limits(read_bandwidth(repeats=repeats, device=device, **size), product_rate(dtype, device, repeats))


def read_bandwidth(megabytes: int = 1024, repeats: int = 5, device: torch.device | str = "cpu") -> float:
    """Bytes a second at which a device reads its memory: the best of several sums over an array that no cache holds."""
    array = torch.ones(megabytes * 2**20 // 4, dtype=torch.float32, device=device)
    return array.numel() * 4 / _fastest(array.sum, repeats)


def product_rate(dtype: torch.dtype, device: torch.device | str = "cpu", repeats: int = 5) -> float:
    """Operations a second (a multiplication and an addition are two) of a large matrix product, the best of several."""
    size = 2048 if torch.device(device).type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b  # warm up
    return 2 * size**3 / _fastest(lambda: a @ b, repeats)


def graph_seconds(run: Callable[[], torch.Tensor], repeats: int) -> list[float]:
    """Seconds of each replay of a captured run, as the card measures them, with caches flushed before each replay."""
    graph = capture(run, warmups=3)
    flush = torch.zeros(64 * 2**20, device="cuda")  # only read: written data would still have to go back to memory
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.sum()
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(max(begin.elapsed_time(end), 1e-3) / 1e3)  # the events resolve half a microsecond
    return times


def _fastest(run: Callable[[], torch.Tensor], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        if run().is_cuda:
            torch.cuda.synchronize()
        best = min(best, elapsed(start))
    return best
