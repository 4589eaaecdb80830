"""Text in, text out: what `inference-opt generate` does, streaming to standard output."""

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
    """Print the continuation as it grows; return it with its figures. What was printed before Ctrl-C stays printed.

    Text that may be the beginning of a stop string is held back until it is known not to be. `drafter`: a name of
    `speculative.DRAFTERS`, None for plain decoding.
    """
    params = seeded(params)
    model, tokenizer = load_model(model_name, dtype=dtype)
    tokenizer = needed(tokenizer)
    ids = tokenizer.chat(prompt) if chat else tokenizer.encode(prompt)
    engine = Engine(model, drafter=DRAFTERS[drafter]() if drafter else None, tokenizer=tokenizer)
    stream, tokens, printed = tokenizer.detokenizer(), [], 0
    start, first = time.perf_counter(), 0.0
    try:
        for emitted in engine.stream([ids], params):
            first = first or elapsed(start)
            tokens.append(emitted[0])
            stream.add(emitted[0])
            safe = cut_at_stop(stream.text, params.stop)
            safe = safe[: len(safe) - _held_back(safe, params.stop)]
            _print(safe[printed:])
            printed = len(safe)
        stream.finish()
    finally:
        text = cut_at_stop(stream.text, params.stop)
        _print(text[printed:] + "\n" * bool(tokens))
    seconds = elapsed(start)
    figures: dict[str, Any] = {"prompt_tokens": len(ids), "new_tokens": len(tokens)}
    figures |= {"first_token_seconds": first, "seconds": seconds}
    if drafter:
        stats = engine.stats
        figures |= {"drafter": drafter, "drafted": stats.drafted_tokens, "accepted": stats.accepted_tokens}
    return {"command": command_line(), "model": model_name, "dtype": dtype, "seed": params.seed, "text": text} | figures


def _print(text: str) -> None:
    """At once; what standard output's encoding lacks is replaced."""
    sys.stdout.write(printable(text, sys.stdout.encoding))
    sys.stdout.flush()


def _held_back(text: str, stop: Iterable[str]) -> int:
    """Characters at the end of the text that a stop string might begin with."""
    longest = max(map(len, stop), default=0)
    tails = range(min(longest - 1, len(text)), 0, -1)
    return next((n for n in tails if any(s.startswith(text[-n:]) for s in stop)), 0)
