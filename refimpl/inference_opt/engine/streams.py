"""Several requests as one stream of what is new of them, while others use the same engine.

The requests' handles tell a stream that there is something new, and it makes a step only if there is nothing. So every
token is yielded once, whoever made the step that brought it: this stream, another, or a caller. And however many
requests wait, a step costs what its own requests cost.
"""

import warnings
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any

from inference_opt.engine.completion import Completion, Delta, Text
from inference_opt.engine.prompts import is_one, prompts_of
from inference_opt.engine.request import Request
from inference_opt.sampling import requests_of


class Stream(Iterator[Delta]):
    """What is new of each request, until all have ended. `close`, the end of a `with` block, or dropping the last
    reference aborts those that have not.
    """

    def __init__(self, engine: Any, prompts: Any, params: Any, n: int | None) -> None:
        """ValueError if the engine cannot take one of the prompts."""
        self.engine, self.open = engine, set[int]()
        self.one = n is None and is_one(prompts)
        self.requests: list[Request] = []
        self.news: dict[int, None] = {}  # indices of those with tokens that were not yielded, or that have ended
        copies = 1 if n is None else n
        for i, (prompt, own) in enumerate(requests_of(prompts_of(prompts), params, copies)):
            try:
                self.requests.append(engine.request(prompt, own, None, None))
            except ValueError as error:
                raise ValueError(str(error) if self.one else f"prompt {i // copies}: {error}") from error
            self.requests[i].notify = partial(self.news.setdefault, i)
        self.yielded = [len(request.prompt) for request in self.requests]  # with the prompt's
        self.texts = [Text(r.tokenizer, r.params.stop) if r.tokenizer else None for r in self.requests]
        self.entered, self.open = 0, set(range(len(self.requests)))

    def __next__(self) -> Delta:
        """What is new of one request."""
        self._arrive()
        while self.open:
            while self.news:
                i = next(iter(self.news))
                before = self.yielded[i], self.texts[i]
                try:
                    if delta := self._take(i):
                        return delta
                except BaseException:  # the tokenizer's error or an interrupt: nothing was yielded
                    self.yielded[i], self.texts[i] = before
                    self.news[i] = None
                    self.open.add(i)
                    raise
            self.engine.step()
        raise StopIteration

    def _take(self, i: int) -> Delta | None:
        """What is new of request i, which is news no more. None if that is nothing."""
        request, text = self.requests[i], copy(self.texts[i])  # a copy: what is kept must not change before the end
        tokens, ended = request.tokens[self.yielded[i] :].tolist(), request.finish_reason
        new = text.add(tokens, request.finished) if text else ""
        self.texts[i] = text
        self.yielded[i] += len(tokens)
        del self.news[i]
        if ended:
            self.open.discard(i)
        return Delta(i, tokens, new, ended, request.error) if tokens or ended else None

    def completions(self, tell: Callable[[int], Any] = lambda ended: None) -> list[Completion]:
        """Run to the end; nothing is yielded. `tell` hears how many have ended, as they end."""
        self._arrive()
        while self.open:
            while self.news:
                i = next(iter(self.news))
                if self.requests[i].finished:
                    self.open.discard(i)
                    tell(len(self.requests) - len(self.open))
                del self.news[i]
            if self.open:
                self.engine.step()
        for i, request in enumerate(self.requests):
            if request.error:
                after = f"ended after {len(request.output)} tokens"
                warnings.warn(f"completion {i} {after}: {request.error}", stacklevel=3)
        return [Completion.of(request) for request in self.requests]

    def _arrive(self) -> None:
        while self.entered < len(self.requests):
            if self.requests[self.entered].arrival < 0:
                self.engine.enter(self.requests[self.entered])
            self.entered += 1

    def __repr__(self) -> str:
        return f"<Stream of {len(self.requests)} requests, {len(self.open)} not ended>"

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is wanted."""
        arrived, self.open = self.requests[: self.entered + 1], set()
        self.entered = len(self.requests)
        self.engine.abandon([request for request in arrived if not request.finished])

    def __del__(self) -> None:
        if self.open:
            self.close()
