"""Launches recorded once, to be repeated without Python."""

from collections.abc import Callable
from typing import Any

import torch


def capture(run: Callable[[], object], pool: Any = None, warmups: int = 1) -> torch.cuda.CUDAGraph:
    """Capture what `run` launches as a CUDA graph. The capture itself computes nothing.

    `run` is called `warmups` times before, to compile kernels and to let libraries allocate their work spaces. `pool`:
    memory that several graphs share; such graphs must not be replayed at the same time.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmups):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        run()
    return graph
