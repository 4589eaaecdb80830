"""Python's garbage collector waits while a step is made.

A step of many texts makes thousands of objects that live until it ends. The collector would take them for objects that
stay. After a few such steps it walks through all that the process holds, which takes as long as dozens of steps on a
card. But nothing in a step refers to itself in a circle, so all of it is freed when the step ends, without a collector.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed() -> Iterator[None]:
    """No collections until the block ends, if there were any before."""
    collects = gc.isenabled()
    try:
        try:
            gc.disable()
            yield
        finally:
            if collects:
                gc.enable()
    finally:  # an interrupt may have come in the lines above
        if collects:
            gc.enable()
