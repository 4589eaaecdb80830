"""Launches recorded once, to be repeated without Python."""

from collections.abc import Callable
from typing import Any

import torch


def capture(run: Callable[[], object], pool: Any = None, warmups: int = 1) -> torch.cuda.CUDAGraph:
    """What `run` launches, as a CUDA graph; it is run `warmups` times before, and not when it is captured.

    Those runs compile kernels, and let libraries make their work spaces. `pool`: memory that several graphs share,
    which then must not be replayed side by side.
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
