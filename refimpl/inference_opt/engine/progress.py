"""A bar on standard error for a call that takes long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bar(total: int, shown: bool) -> Iterator[Callable[[int], Any]]:
    """A function that is told how many of `total` requests have ended."""
    if not shown:
        yield lambda ended: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("requests", total=total)
        yield lambda ended: progress.update(task, completed=ended)
