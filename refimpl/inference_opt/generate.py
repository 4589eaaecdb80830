"""Text in, text out: the work of `inference-opt generate`, which streams to standard output."""

import sys
import time
from typing import Any

from inference_opt.engine.completion import Completion
from inference_opt.engine.engine import Engine
from inference_opt.environment import command_line, elapsed
from inference_opt.files import printable
from inference_opt.loading.load import load_model
from inference_opt.loading.tokenizer import needed
from inference_opt.sampling import SamplingParams, seeded


def generate_text(
    model_name: str, dtype: str, prompt: str, chat: bool, params: SamplingParams, drafter: str | None = None
) -> dict[str, Any]:
    """Print the continuation as it grows; return it with its figures. Text that was printed before Ctrl-C stays.

    `drafter`: a name in `speculative.DRAFTERS`; None for plain decoding.
    """
    params = seeded(params)
    model, tokenizer = load_model(model_name, dtype=dtype)
    tokenizer = needed(tokenizer)
    engine = Engine(model, drafter=drafter, tokenizer=tokenizer)
    start, first, printed = time.perf_counter(), 0.0, ""
    stream = engine.stream([tokenizer.chat(prompt) if chat else tokenizer.encode(prompt)], params)
    try:
        for delta in stream:
            first = first or elapsed(start)
            printed += delta.text
            _print(delta.text)
    finally:
        completion = Completion.of(stream.requests[0])
        # At an interrupt, what was held back, since a stop string might have begun there, but not half a character.
        rest = completion.text[len(printed) :]
        rest = rest if completion.finish_reason else rest.rstrip("\ufffd")
        _print(rest + "\n" * bool(completion.tokens))
    if completion.error:
        raise ValueError(completion.error)
    seconds, metrics = elapsed(start), completion.metrics
    figures: dict[str, Any] = {"prompt_tokens": len(completion.prompt), "new_tokens": len(completion.tokens)}
    figures |= {"reused_tokens": metrics.cached_tokens, "first_token_seconds": first, "seconds": seconds}
    figures |= {"tokens_per_second": len(completion.tokens) / seconds}
    if drafter:
        drafts = {"drafter": drafter, "drafted": metrics.drafted_tokens, "accepted": metrics.accepted_tokens}
        figures |= drafts | {"acceptance": engine.stats.acceptance}
    said = {"command": command_line(), "model": model_name, "dtype": dtype, "seed": params.seed}
    said["sampled"] = params.temperature > 0
    return said | {"text": completion.text, "finish_reason": completion.finish_reason} | figures


def in_short(figures: dict[str, Any]) -> str:
    """The figures of `generate_text` in one line."""
    f, new = figures, figures["new_tokens"]
    line = f"{new} new token{'s' * (new != 1)} in {f['seconds']:.2f} s: {f['tokens_per_second']:.1f} tokens/s, "
    line += f"the first after {f['first_token_seconds']:.2f} s; "
    line += f"{f['reused_tokens']} of {f['prompt_tokens']} prompt tokens reused"
    if "drafter" in f:
        line += f"; {f['accepted']} of {f['drafted']} drafts accepted"
    return line + f"; seed {f['seed']}" * f["sampled"]


def _print(text: str) -> None:
    """Print at once. Characters that standard output's encoding lacks are replaced."""
    sys.stdout.write(printable(text, sys.stdout.encoding))
    sys.stdout.flush()
