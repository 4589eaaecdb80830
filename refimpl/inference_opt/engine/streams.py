"""Several requests as one stream of tokens, while others use the same engine.

A stream is told by its requests' handles that there is something new, and makes a step only where there is nothing. So
every token is yielded once, whoever made the step that brought it: this stream, another, or a caller. And however many
requests wait, a step costs what its own requests cost.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from inference_opt.engine.request import Request


# [stream]
class Stream(Iterator[dict[int, int]]):
    """{index of the request: its next token}, until all have ended. Left early, it aborts those that have not.

    ValueError at the end, when all others have all their tokens, if one could not be continued (`Request.error`).
    """

    def __init__(self, engine: Any, requests: Sequence[Request]) -> None:
        self.engine, self.requests = engine, requests
        self.news: dict[int, None] = {}  # indices of those with tokens that were not yielded, or that have ended
        self.told = [len(request.prompt) for request in requests]  # tokens that were yielded, and the prompt's
        self.entered, self.open = 0, set(range(len(requests)))
        for i, request in enumerate(requests):
            request.heard = partial(self.news.setdefault, i)

    def __next__(self) -> dict[int, int]:
        """The next token of each request that has one."""
        while self.entered < len(self.requests):
            if self.requests[self.entered].arrival < 0:
                self.engine.enter(self.requests[self.entered])
            self.entered += 1
        while self.open:
            new = {i: self.requests[i].tokens[self.told[i]] for i in self.news if self.told[i] < self._known(i)}
            for i in new:
                self.told[i] += 1
            for i in [i for i in self.news if self.told[i] == self._known(i)]:
                del self.news[i]
                if self.requests[i].finished:
                    self.open.discard(i)
            if new:
                return new
            if self.open:
                self.engine.step()
        for i, request in enumerate(self.requests):
            if request.error:
                self.requests = ()  # said once
                after = f"ended after {len(request.output)} tokens"
                raise ValueError(f"request {i} ({request.id!r}) {after}: {request.error}")
        raise StopIteration

    def _known(self, i: int) -> int:
        return len(self.requests[i].tokens)

    def close(self) -> None:
        """Nothing more is wanted."""
        left, self.open = self.requests[: self.entered + 1], set()
        self.entered = len(self.requests)
        self.engine.abandon([request for request in left if not request.finished])

    def __del__(self) -> None:
        if self.open:
            self.close()


# [/stream]
