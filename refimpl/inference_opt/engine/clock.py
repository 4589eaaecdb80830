"""What runs of steps take, and the host between two of them: what a choice of draft lengths is made of."""

from collections.abc import Callable
from time import perf_counter

import torch
import torch.distributed as dist


class Clock:
    """Seconds on a device. `shared`: ranks must choose the same steps, so they believe the first rank's clock."""

    def __init__(self, device: torch.device, shared: bool) -> None:
        self.device, self.shared = device, shared
        self.looked: float | None = None  # when the host had the results of the last run

    def look(self, spent: float) -> float | None:
        """The host has the results of a run, whose steps took so long: seconds since those of the run before, besides.

        None if that does not tell what a look takes.
        """
        before, self.looked = self.looked, perf_counter()
        return None if before is None else max(self.agreed(self.looked - before) - spent, 0.0)

    def forget(self) -> None:
        """What comes before the next run is not the host's usual work."""
        self.looked = None

    def time(self, step: Callable[[], None], times: int) -> Callable[[], float]:
        """Run a step so often. What comes back gives the seconds that each took, when the host has waited for them."""
        if self.device.type != "cuda":
            began = perf_counter()
            for _ in range(times):
                step()
            seconds = (perf_counter() - began) / times
            return lambda: seconds
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(times):
            step()
        last.record()
        return lambda: self.agreed(first.elapsed_time(last) / 1000 / times)

    def agreed(self, seconds: float) -> float:
        """The first rank's seconds, on every rank."""
        if not self.shared:
            return seconds
        first = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        dist.broadcast(first, 0)
        return float(first)
