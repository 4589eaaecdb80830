"""Text in, text out: the work of `inference-opt generate`, which streams to standard output."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from inference_opt.engine.engine import Engine
from inference_opt.environment import command_line, elapsed
from inference_opt.files import printable
from inference_opt.loading.load import load_model
from inference_opt.loading.tokenizer import needed
from inference_opt.sampling import SamplingParams, cut_at_stop, seeded
from inference_opt.speculative import DRAFTERS


def generate_text(
    model_name: str, dtype: str, prompt: str, chat: bool, params: SamplingParams, drafter: str | None = None
) -> dict[str, Any]:
    """Print the continuation as it grows; return it with its figures. Text that was printed before Ctrl-C stays.

    Text that may be the beginning of a stop string is held back until it is certain that it is not. `drafter`: a name
    in `speculative.DRAFTERS`; None for plain decoding.
    """
    params = seeded(params)
    model, tokenizer = load_model(model_name, dtype=dtype)
    tokenizer = needed(tokenizer)
    ids = tokenizer.chat(prompt) if chat else tokenizer.encode(prompt)
    engine = Engine(model, drafter=DRAFTERS[drafter]() if drafter else None, tokenizer=tokenizer)
    detokenizer = tokenizer.detokenizer()
    tokens = []
    printed = 0  # characters
    first = 0.0
    start = time.perf_counter()
    try:
        for emitted in engine.stream([ids], params):
            first = first or elapsed(start)
            tokens.append(emitted[0])
            detokenizer.add(emitted[0])
            safe = cut_at_stop(detokenizer.text, params.stop)
            safe = safe[: len(safe) - _held_back(safe, params.stop)]
            _print(safe[printed:])
            printed = len(safe)
        detokenizer.finish()
    finally:
        text = cut_at_stop(detokenizer.text, params.stop)
        _print(text[printed:] + "\n" * bool(tokens))
    seconds = elapsed(start)
    figures: dict[str, Any] = {"prompt_tokens": len(ids), "new_tokens": len(tokens)}
    figures |= {"first_token_seconds": first, "seconds": seconds}
    if drafter:
        stats = engine.stats
        figures |= {"drafter": drafter, "drafted": stats.drafted_tokens, "accepted": stats.accepted_tokens}
    return {"command": command_line(), "model": model_name, "dtype": dtype, "seed": params.seed, "text": text} | figures


def _print(text: str) -> None:
    """Print at once. Characters that standard output's encoding lacks are replaced."""
    sys.stdout.write(printable(text, sys.stdout.encoding))
    sys.stdout.flush()


def _held_back(text: str, stop: Iterable[str]) -> int:
    """The number of characters at the end of the text with which a stop string might begin."""
    longest = max(map(len, stop), default=0)
    tails = range(min(longest - 1, len(text)), 0, -1)
    return next((n for n in tails if any(s.startswith(text[-n:]) for s in stop)), 0)
