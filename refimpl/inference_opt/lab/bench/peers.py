"""The peer that is measured beside our decoders: `transformers` on the same weights."""

import contextlib
import io
import time
from pathlib import Path
from typing import Any

import torch

from inference_opt.loading.download import MODELS, fetch


class Clock:
    """A streamer for `transformers` that records when tokens come, and how many. The prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, tokens: torch.Tensor) -> None:
        """Called with the new tokens."""
        self.times.append(time.perf_counter())
        self.counts.append(tokens.numel())

    def end(self) -> None:
        """Called after the last token."""


def transformers_model(source: str, dtype: torch.dtype) -> Any:
    """The same file as `transformers` reads it. ValueError if `transformers` is not installed."""
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise ValueError("--peer needs transformers: pip install 'inference-opt[test]', or say --no-peer") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = fetch(source) if source in MODELS else Path(source)
    where = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    with contextlib.redirect_stderr(io.StringIO()):  # its own progress bars
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **where).eval()
    # An end-of-sequence token must not end a timed run.
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model
