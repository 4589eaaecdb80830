"""Several requests as one stream of tokens, while others use the same engine.

The requests' handles tell a stream that there is something new, and it makes a step only if there is nothing. So every
token is yielded once, whoever made the step that brought it: this stream, another, or a caller. And however many
requests wait, a step costs what its own requests cost.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from inference_opt.engine.request import Request
from inference_opt.sampling import requests_of


# [stream]
class Stream(Iterator[dict[int, int]]):
    """{index of the request: its next token}, until all have ended. Left early, it aborts those that have not.

    ValueError at the end, when all others have all their tokens, if one could not be continued (`Request.error`).
    """

    def __init__(self, engine: Any, prompts: Any, params: Any, n: int) -> None:
        """ValueError if the engine cannot take one of the prompts."""
        self.engine, self.open = engine, set[int]()
        self.requests: list[Request] = []
        self.news: dict[int, None] = {}  # indices of those with tokens that were not yielded, or that have ended
        for i, (prompt, own) in enumerate(requests_of(prompts, params, n)):
            try:
                self.requests.append(engine.request(prompt, own, None, None))
            except ValueError as error:
                raise ValueError(f"prompt {i // n}: {error}") from error
            self.requests[i].notify = partial(self.news.setdefault, i)
        self.yielded = [len(request.prompt) for request in self.requests]  # with the prompt's
        self.entered, self.open = 0, set(range(len(self.requests)))

    def __next__(self) -> dict[int, int]:
        """The next token of each request that has one."""
        while self.entered < len(self.requests):
            if self.requests[self.entered].arrival < 0:
                self.engine.enter(self.requests[self.entered])
            self.entered += 1
        while self.open:
            new = {i: self.requests[i].tokens[self.yielded[i]] for i in self.news if self.yielded[i] < self._known(i)}
            for i in new:
                self.yielded[i] += 1
            for i in [i for i in self.news if self.yielded[i] == self._known(i)]:
                del self.news[i]
                if self.requests[i].finished:
                    self.open.discard(i)
            if new:
                return new
            if self.open:
                self.engine.step()
        for i, request in enumerate(self.requests):
            if request.error:
                self.requests = []  # said once
                after = f"ended after {len(request.output)} tokens"
                raise ValueError(f"request {i} ({request.id!r}) {after}: {request.error}")
        raise StopIteration

    def _known(self, i: int) -> int:
        return len(self.requests[i].tokens)

    def close(self) -> None:
        """Nothing more is wanted."""
        arrived, self.open = self.requests[: self.entered + 1], set()
        self.entered = len(self.requests)
        self.engine.abandon([request for request in arrived if not request.finished])

    def __del__(self) -> None:
        if self.open:
            self.close()


# [/stream]
