"""Programmatic dependent launch (PDL): a kernel may start before the previous kernel on the stream has ended.

An ordinary launch waits until everything before it on the stream is done, and meanwhile the card idles for a moment.
With PDL (CUDA programming guide, "Programmatic Dependent Launch"; compute capability 9.0 and later) two kernels agree:

    gdc_launch_dependents   in the previous kernel: the next one may start, as soon as all programs have executed this
    gdc_wait                in the next kernel: wait until the previous one has ended and its results can be read

The gain is what a kernel does before it waits: it starts, and reads what the previous kernel does not write, such as
weights or the plan of a step. There is a danger. The previous kernel may have started early itself, so the one before
it may still be running. Hence the rule:

    what a kernel reads before `gdc_wait` must have been written before the last ordinary launch that precedes it

Only the caller can know this, so PDL is opt-in: `pdl=True` promises it, and the default is an ordinary launch. A kernel
that waits before it reads anything needs no promise. Every kernel waits before it ends. So if a kernel has ended, all
kernels before it have ended, too.
"""

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def launch_options(pdl: bool) -> dict[str, bool]:
    """Keyword arguments of a launch: the kernel's own constant PDL, and the flag for the driver where it is set."""
    on = pdl and not INTERPRETED and torch.cuda.get_device_capability() >= (9, 0)
    return {"PDL": True, "launch_pdl": True} if on else {"PDL": False}
