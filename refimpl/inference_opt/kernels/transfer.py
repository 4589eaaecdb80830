"""Copies between the host and the device that nobody waits for.

The driver copies by itself only what lies in pinned memory, which the operating system does not move. An ordinary copy
to the device waits until all that was launched before has run.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers of the host on the device, for what is launched next. (Pinned memory is reused when it has been read.)"""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


def read_back(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Copy what is on the device now; what comes back waits for the copies, and gives them."""
    copies = [each.to("cpu", non_blocking=True, copy=True) for each in tensors]
    if not tensors[0].is_cuda:
        return lambda: copies
    done = torch.cuda.Event()
    done.record()

    def wait() -> list[Tensor]:
        done.synchronize()
        return copies

    return wait
