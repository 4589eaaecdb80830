"""What comes back: completions when all is done, deltas while a text grows."""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from inference_opt.engine.prompts import needed
from inference_opt.engine.request import Metrics, Reason, Request
from inference_opt.sampling import SamplingParams, cut_at_stop
from inference_opt.values import brief


class Text:
    """A text that is shown while it grows: never half a character, and nothing of a stop string.

    Text that may be the beginning of a stop string is held back until it is certain that it is not.
    """

    def __init__(self, tokenizer: Any, stop: Iterable[str]) -> None:
        self.detokenizer, self.stop = tokenizer.detokenizer(), tuple(stop)
        self.shown = 0  # characters

    def __copy__(self) -> "Text":
        twin = object.__new__(Text)
        twin.__dict__.update(self.__dict__, detokenizer=copy(self.detokenizer))
        return twin

    def add(self, tokens: Iterable[int], finished: bool) -> str:
        """Take tokens; return the text that is certain now. If the text has `finished`, that is the rest of it.

        If it fails, it may have taken some of the tokens: try on a copy.
        """
        for token in tokens:
            self.detokenizer.add(token)
        if finished:
            self.detokenizer.finish()
        # Only the rest needs to be searched: no stop string begins in what is shown.
        rest = cut_at_stop(self.detokenizer.text[self.shown :], self.stop)
        new = rest if finished else rest[: len(rest) - _held_back(rest, self.stop)]
        self.shown += len(new)
        return new


def _held_back(text: str, stop: Sequence[str]) -> int:
    """The number of characters at the end of the text with which a stop string might begin."""
    longest = max(map(len, stop), default=0)
    tails = range(min(longest - 1, len(text)), 0, -1)
    return next((n for n in tails if any(s.startswith(text[-n:]) for s in stop)), 0)


@dataclass(frozen=True, eq=False, repr=False)
class Completion:
    """A prompt's continuation. `params` holds the seed: to get the same text again, generate with these params."""

    prompt: list[int]
    tokens: list[int]  # with the token that ended the text: an end of sequence, or the last one of a stop string
    logprobs: list[float] | None  # of each token, under the model itself, if they were asked for
    finish_reason: Reason | None  # None: it is not finished
    error: str | None  # what was wrong, if `finish_reason` is "error"
    params: SamplingParams
    metrics: Metrics
    tokenizer: Any  # with `detokenizer()`, or None

    @classmethod
    def of(cls, request: Request) -> "Completion":
        """What a request, the handle that `add` returned, has so far."""
        logprobs = list(request.logprobs) if request.params.logprobs else None
        end = request.finish_reason, request.error, request.params, request.metrics
        return cls(request.prompt, request.output, logprobs, *end, request.tokenizer)

    @cached_property
    def text(self) -> str:
        """The text of the tokens: without those that the tokenizer calls special, and without the stop string.

        ValueError if the engine has no tokenizer.
        """
        return Text(needed(self.tokenizer), self.params.stop).add(self.tokens, finished=True)

    def __repr__(self) -> str:
        what = brief(self.text) if self.tokenizer else f"tokens {brief(self.tokens)}"
        said = f": {self.error}" if self.error else ""
        return f"<Completion {what}, {len(self.tokens)} tokens, finish_reason {self.finish_reason!r}{said}>"


@dataclass(frozen=True)
class Delta:
    """What is new of one text: tokens, and the text that they make certain ("" without a tokenizer)."""

    index: int  # of the text among those that were asked for
    tokens: list[int]
    text: str
    finish_reason: Reason | None  # None: more will come
    error: str | None = None
