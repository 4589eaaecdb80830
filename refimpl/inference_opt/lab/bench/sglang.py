"""SGLang's own `RadixCache`, unmodified, from its wheel, to run beside ours. (None of its code is in this project.)

Its module imports others that need packages which the tree itself does not use. These modules are replaced by stubs. A
stub that is called raises, so nothing that is measured is a stub. This works with sglang 0.5.23.
"""

import importlib
import sys
import types
from array import array
from pathlib import Path
from typing import Any

import torch

_STUBS = (
    "sglang.srt.disaggregation.kv_events",
    "sglang.kernels.ops.kvcache.mla_buffer",
    "sglang.srt.mem_cache.allocator",
    "sglang.srt.mem_cache.memory_pool",
    "sglang.srt.observability.metrics_collector",
    "sglang.srt.runtime_context",
    "sglang.srt.utils.common",
)


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError(f"{self.__name__}.{name} is a stub")

        return type(name, (), {"__new__": refuse})


class SGLangTree:
    """SGLang's match and insert, with keys and values in the types that they expect."""

    def __init__(self, wheel: Path, page_size: int) -> None:
        if not wheel.is_file():
            raise ValueError(f"{wheel} is not a file: download the wheel with pip download sglang==0.5.23 --no-deps")
        if "sglang" not in sys.modules:
            package = types.ModuleType("sglang")  # without running its __init__
            package.__path__ = [f"{wheel}/sglang"]
            sys.modules["sglang"] = package
            sys.modules.update({name: _Stub(name) for name in _STUBS})
        try:
            tree = importlib.import_module("sglang.srt.mem_cache.radix_cache")
            base = importlib.import_module("sglang.srt.mem_cache.base_prefix_cache")
        except ImportError as error:
            raise ValueError(f"{wheel} could not be imported ({error}); sglang 0.5.23 is known to work") from None
        self._cache = tree.RadixCache(tree.CacheInitParams(False, None, None, page_size, eviction_policy="lru"))
        self._key = tree.RadixKey
        self._match = base.MatchPrefixParams
        self._insert = base.InsertParams

    def prepare(self, tokens: array) -> Any:
        """A key from tokens. SGLang's scheduler holds them as an array of 64-bit integers."""
        return self._key(array("q", tokens))

    def match(self, key: Any) -> torch.Tensor:
        """The slots of the longest cached prefix."""
        found = self._cache.match_prefix(self._match(key))
        return self._cache.path_device_indices(found.last_device_node)

    def insert(self, key: Any, slots: torch.Tensor) -> None:
        """Store `slots` (64-bit, one for each token) for the key."""
        self._cache.insert(self._insert(key, slots))
