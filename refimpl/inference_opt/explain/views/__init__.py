"""How what happens is said and drawn. Importing this registers all views (`registry.py`)."""

from inference_opt.explain.views import attention, decoding, exercises, kernels, laws, rules, schedule, tree  # noqa: F401
from inference_opt.explain.views.registry import (
    PICTURES,
    SENTENCES,
    counters,
    invariants,
    last_line,
    snapshot,
    watching,
)

__all__ = ["PICTURES", "SENTENCES", "counters", "invariants", "last_line", "snapshot", "watching"]
