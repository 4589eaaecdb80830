"""Where a text ends: at a token, at a string, at a length."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Literal, Protocol, runtime_checkable

from inference_opt.sampling.params import SamplingParams


@runtime_checkable
class Detokenizer(Protocol):
    """What stop strings are looked for in: text that grows by tokens (`loading.detokenizer.Detokenizer`).

    A `copy.copy` of it must go on by itself: what a failed step added to a copy is dropped with it.
    """

    text: str

    def add(self, token: int) -> str:
        """Take one token; return the text that it completes."""
        ...


FinishReason = Literal["eos", "stop", "length"]


class StopCheck:
    """Says after every token whether a text ends there, and of several tokens how many still belong to it.

    A stop string is found in the text, as soon as it certainly stands there; one that names a special token, which is
    no part of the text, is that token.
    """

    def __init__(
        self, params: SamplingParams, eos_token_ids: Sequence[int], room: int, detokenizer: Detokenizer | None = None
    ) -> None:
        """`room`: tokens that the model's context has left. ValueError for stop strings that cannot be looked for."""
        if params.stop and detokenizer is None:
            raise ValueError("stop strings need a tokenizer to look for them in: pass tokenizer=")
        special: Mapping[str, int] = getattr(detokenizer, "special_ids", {}) if params.stop else {}
        for s in params.stop:
            if s not in special and (name := next((name for name in special if name in s), None)) is not None:
                part = f"{name!r} in it is a special token, no part of the text"
                raise ValueError(f"the stop string {s!r} cannot be found: {part}; give {name!r} as one of its own")
        self.stop_ids = frozenset(special[s] for s in params.stop if s in special)
        self.left = min(params.max_new_tokens, room)
        self.eos = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self.stop = params.stop
        self.detokenizer = detokenizer

    def __copy__(self) -> "StopCheck":
        """One that goes on from here by itself."""
        twin = object.__new__(StopCheck)
        twin.__dict__.update(self.__dict__)
        if self.stop:
            twin.detokenizer = copy(self.detokenizer)
        return twin

    def after(self, token: int) -> FinishReason | None:
        """The reason to stop right after this token, if there is one."""
        self.left -= 1
        if token in self.eos:
            return "eos"
        if token in self.stop_ids:
            return "stop"
        if self.stop and self.detokenizer is not None:
            new = self.detokenizer.add(token)
            # Only a match that ends in the new text is new.
            recent = self.detokenizer.text[-(len(new) + max(map(len, self.stop)) - 1) :] if new else ""
            if any(s in recent for s in self.stop):
                return "stop"
        return "length" if self.left <= 0 else None

    def within(self, tokens: list[int]) -> tuple[list[int], FinishReason | None]:
        """The tokens, in turn, up to the one that ends the text, and the reason, if there is one."""
        if not self.stop and self.eos.isdisjoint(tokens):  # most texts, most of the time: no need to look at each
            tokens = tokens[: self.left]
            self.left -= len(tokens)
            return tokens, "length" if self.left <= 0 else None
        for i, token in enumerate(tokens):
            if reason := self.after(token):
                return tokens[: i + 1], reason
        return tokens, None


def cut_at_stop(text: str, stop: Iterable[str]) -> str:
    """The text before the first stop string in it (one string is taken as one)."""
    stop = (stop,) if isinstance(stop, str) else stop
    return text[: min((i for s in stop if (i := text.find(s)) >= 0), default=len(text))]
