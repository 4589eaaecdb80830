"""Several requests as one stream of tokens, while others use the same engine.

A stream looks at its requests' handles, not at what a step returned, and makes a step only where the handles have
nothing new. So every token is yielded once, whoever made the step that brought it: this stream, another, or a caller.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from inference_opt.engine.request import Request
from inference_opt.sampling import SamplingParams


# [stream]
def stream(engine: Any, each: Sequence[tuple[list[int], SamplingParams]]) -> Iterator[dict[int, int]]:
    """Add the requests, and yield {index: token} until all have ended; left early, or by an error, abort the rest.

    ValueError at the end, when all others have all their tokens, if one could not be continued (`Request.error`).
    """
    requests: list[Request] = []
    try:
        for prompt, params in each:
            requests.append(engine.add(prompt, params))
        told = [len(request.tokens) for request in requests]
        while True:
            new = {i: r.tokens[at] for i, (r, at) in enumerate(zip(requests, told)) if at < len(r.tokens)}
            if new:
                told = [at + (i in new) for i, at in enumerate(told)]
                yield new
            elif all(request.finished for request in requests):
                break
            else:
                engine.step()
    finally:
        for request in requests:
            if not request.finished:
                engine.abort(request)
    for i, request in enumerate(requests):
        if request.error:
            raise ValueError(f"request {i} ({request.id!r}) ended after {len(request.output)} tokens: {request.error}")


# [/stream]
