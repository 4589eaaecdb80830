"""Programmatic dependent launch (PDL): a kernel may start before the kernel in front of it has ended.

An ordinary launch waits until everything in front of it on the stream is done, and meanwhile the card idles for a
moment. With PDL (CUDA programming guide, "Programmatic Dependent Launch"; compute capability 9.0 and later) the two
kernels arrange it between them:

    gdc_launch_dependents   in the kernel in front: the next kernel may start, as soon as all programs have said so
    gdc_wait                in the next kernel: wait until the kernel in front has ended and its results can be read

The gain is what a kernel does before it waits: start, and read what does not come from the kernel in front, such as
weights or the plan of a step. The danger is the same thing. The kernel in front may have started early itself, so:

    what a kernel reads before `gdc_wait` was written before the last ordinary launch in front of it

Only the caller can know this, so PDL is opt-in: `pdl=True` promises it, and the default is an ordinary launch. A kernel
that waits before it reads anything needs no promise. Every kernel waits before it ends: so whoever waits for a kernel
waits for all kernels in front of that, too.
"""

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def launch_options(pdl: bool) -> dict[str, bool]:
    """Keyword arguments of a launch: the kernel's own constant PDL, and the flag for the driver where it is set."""
    on = pdl and not INTERPRETED and torch.cuda.get_device_capability() >= (9, 0)
    return {"PDL": True, "launch_pdl": True} if on else {"PDL": False}
