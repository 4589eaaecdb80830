"""What all training runs share: the schedule of the learning rate, and the head of a run's record."""

import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch


def set_rate(optimizers: Sequence[torch.optim.Optimizer], peak: float, warm: float, share: float) -> float:
    """Set the learning rate: up to its peak as `warm` goes to 1, then by a cosine to 2% of it as `share` goes to 1."""
    rate = peak * min(1, warm) * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = rate
    return rate


def ran_on(device: str) -> dict[str, str]:
    """The head of a run's record: its command, device, version of torch and date."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
