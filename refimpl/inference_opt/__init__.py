"""inference-opt: how fast language-model inference works, exactly.

model, tokenizer = load_model("smollm2-135m")
naive.generate(model, tokenizer.chat("Why is the sky blue?"), SamplingParams(max_new_tokens=32))
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference_opt.api import TransformerWithOptimizations
    from inference_opt.engine.engine import Engine
    from inference_opt.loading.load import load_model
    from inference_opt.sampling import SamplingParams

__all__ = ["Engine", "SamplingParams", "TransformerWithOptimizations", "load_model"]
__version__ = "0.1.0"

_MODULES = {
    "Engine": "engine.engine",
    "SamplingParams": "sampling",
    "TransformerWithOptimizations": "api",
    "load_model": "loading.load",
}

# GNU's OpenMP lets a thread loop for milliseconds before it sleeps. Beside other busy programs, the loop holds the core
# that the awaited thread needs (chapter 01). OpenMP reads this once, when torch is imported.
OPENMP_WAIT = {"GOMP_SPINCOUNT": "30000"}
if "torch" not in sys.modules and not os.environ.keys() & {"OMP_WAIT_POLICY", *OPENMP_WAIT}:
    os.environ.update(OPENMP_WAIT)


def __getattr__(name: str) -> Any:
    """Import a name, or a part of the package, when it is first asked for: the command line's help needs no torch."""
    module = f"{__name__}.{_MODULES.get(name, name)}"
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = getattr(found, name) if name in _MODULES else found
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
