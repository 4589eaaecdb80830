"""From logits to the next token: one probability function for all who sample, and draws that can be repeated.

Whoever samples, target or drafter, naive or batched, uses the same two:

    p = probabilities(logits, params)              the law, after temperature, top-k, top-p and min-p
    token = Noise(seed, position).choose(p, 0)     the token, from noise that depends on nothing else

Greedy decoding is the limit of temperature 0: all of p on the largest logit. The noise is a function of the request's
seed and the token's position in its text (a counter-based generator: Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3"), so a request's text does not depend on what else is in its batch or on how often it was interrupted.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from inference_opt.values import integer, listed, number, shown, switch


@dataclass(frozen=True)
class SamplingParams:
    """How one request samples and when it stops. ValueError for values outside their range.

    The filters apply in this order, each to what the one before left: temperature, `top_k` (0: off), `top_p` (1: off),
    `min_p` (0: off). Without a `seed` every request draws its own, and its handle's `params.seed` repeats the text.
    A seed that comes with several requests of one call gives each its own (`split`). Requests of one seed that are
    added one by one draw with the same noise, and are not independent of each other.
    Text stops at an end-of-sequence token (unless `ignore_eos`), at the first of the `stop` strings, after
    `max_new_tokens`, or at the end of the model's context. An engine with a drafter drafts `gamma` tokens a step (None:
    as the engine thinks best; 0: none). With `logprobs` it keeps each token's log-probability under the model itself.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: Iterable[str] = ()  # kept as a tuple; one string is taken as one, not as its letters
    ignore_eos: bool = False
    gamma: int | None = None
    logprobs: bool = False

    def __post_init__(self) -> None:
        def given(name: str, check: Callable[..., Any], *more: Any) -> Any:
            value = check(name, getattr(self, name), *more)
            object.__setattr__(self, name, value)  # as Python's own type
            return value

        def require(holds: bool, name: str, expected: str) -> None:
            if not holds:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")

        given("max_new_tokens", integer, 1)
        given("top_k", integer, 0)
        require(given("temperature", number) >= 0, "temperature", "at least 0")
        require(0 < given("top_p", number) <= 1, "top_p", "in (0, 1]")
        require(0 <= given("min_p", number) <= 1, "min_p", "in [0, 1]")
        require(self.seed is None or 0 <= given("seed", integer) < 2**64, "seed", "an integer in [0, 2⁶⁴), or None")
        require(self.gamma is None or given("gamma", integer) >= 0, "gamma", "an integer ≥ 0 (0: no drafts), or None")
        given("ignore_eos", switch)
        given("logprobs", switch)
        stop = [self.stop] if isinstance(self.stop, str) else listed("stop", self.stop, "strings")
        object.__setattr__(self, "stop", tuple(stop))
        require(all(isinstance(s, str) and s for s in stop), "stop", "non-empty strings")

    # [split]
    def split(self, n: int) -> "list[SamplingParams]":
        """The same for `n` requests, with a seed each: the first keeps this one, if there is one, the others derive.

        Seed i > 0 is NumPy's SeedSequence(seed, spawn_key=(i,)), whose numbers are fixed: a seed repeats all texts, and
        more requests change none of those before. Split once for all requests, not what was split: both give seed i.
        """
        return [self._sample(i) for i in range(integer("n", n, 1))]

    def _sample(self, i: int) -> "SamplingParams":
        if self.seed is None:
            return replace(self, seed=secrets.randbits(63))
        if i == 0:
            return self
        root = np.random.SeedSequence(self.seed, spawn_key=(i,))
        return replace(self, seed=int(root.generate_state(1, np.uint64)[0]))


def seeded(params: SamplingParams) -> SamplingParams:
    """For one request: with its seed, or one that is drawn now. ValueError for what are no parameters."""
    return _checked(params).split(1)[0]


def requests_of(
    prompts: Iterable[Any], params: SamplingParams | Iterable[SamplingParams], n: int = 1
) -> list[tuple[Any, SamplingParams]]:
    """A batch, request by request: every prompt `n` times, one copy after another, with parameters and a seed each.

    `params`: one for all prompts, or one a prompt. Requests that come with one seed share it out, in their order, as
    `split` does. ValueError where prompts and params do not match, or are none.
    """
    prompts, n = listed("prompts", prompts, "prompts"), integer("n", n, 1)
    each = [params] * max(len(prompts), 1) if isinstance(params, SamplingParams) else params
    each = [_checked(one) for one in listed("params", each, "SamplingParams")]
    if not prompts or len(each) != len(prompts):
        count = len(each)
        raise ValueError(f"expected one params for each of one or more prompts, got {count} for {len(prompts)}")
    given: Counter[int | None] = Counter()  # requests so far, by the seed that they came with
    requests = []
    for prompt, one in zip(prompts, each):
        for _ in range(n):
            requests.append((prompt, one._sample(given[one.seed])))
            given[one.seed] += 1
    return requests


def _checked(params: Any) -> SamplingParams:
    if not isinstance(params, SamplingParams):
        raise ValueError(f"params must be SamplingParams, got {shown(params)}")
    return params


# [/split]


BROKEN = "the logits hold NaN or infinity: the model's output is broken, there is no law to sample"


# [probabilities]
def probabilities(logits: Float[Tensor, "*rows vocab"], params: SamplingParams) -> Float[Tensor, "*rows vocab"]:
    """The law that the next token is drawn from, in float64, row by row; each row sums to one.

    Raises ValueError where a row holds NaN or +∞, or nothing above −∞: a broken model is not sampled from.
    """
    x = logits.double()
    top = x.amax(dim=-1, keepdim=True)
    check_top(top)
    if params.temperature == 0:
        # Ties go to the lowest token id, so that greedy decoding is a function.
        return torch.zeros_like(x).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    # Subtracting the maximum first keeps any positive temperature from overflowing.
    p = torch.softmax((x - top) / params.temperature, dim=-1)
    if 0 < params.top_k < p.shape[-1]:
        kth = p.topk(params.top_k, dim=-1).values[..., -1:]
        p = _keep(p, p >= kth)  # ties with the k-th stay
    if params.top_p < 1:
        # Nucleus (Holtzman et al. 2019): the fewest most probable tokens that hold at least top_p of the mass,
        # that is each token for which the mass of those before it is still below top_p.
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        p = _keep(p, torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, before < params.top_p))
    if params.min_p > 0:
        p = _keep(p, p >= params.min_p * p.amax(dim=-1, keepdim=True))
    return p


def check_top(top: Float[Tensor, "*rows"]) -> None:
    """ValueError unless all are finite: a row's largest logit is NaN if any is, +∞ if any is, and −∞ if all are."""
    if not torch.isfinite(top).all():
        raise ValueError(BROKEN)


def _keep(p: Float[Tensor, "*rows vocab"], mask: Tensor) -> Float[Tensor, "*rows vocab"]:
    """The law given that the token is one of the mask's."""
    p = p * mask
    return p / p.sum(dim=-1, keepdim=True)


# [/probabilities]


# [draw]
@dataclass(frozen=True)
class Noise:
    """All the chance there is in one step of one text: a function of its seed and the position where the step begins.

    `i` counts the step's draws: a plain step has one, i = 0; a speculative step several. `stream` keeps apart who draws
    (0: the target, 1: a drafter that must not know the target's draws).
    """

    seed: int
    start: int
    stream: int = 0

    def _generator(self, i: int, kind: int) -> np.random.Generator:
        # Arrays of uint64: a list would pass through floats, and large seeds would meet.
        key = np.array([self.seed, self.start], dtype=np.uint64)
        counter = np.array([0, 0, i, 2 * self.stream + kind], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def uniform(self, i: int) -> float:
        """A number in [0, 1)."""
        return float(self._generator(i, 1).random())

    def choose(self, weights: Float[np.ndarray, "vocab"], i: int) -> int:
        """A token, with probability in proportion to its weight: the first to arrive of a race.

        E_x ~ Exp(1) for every token x; the least E_x / w_x wins, which is x with probability w_x / Σ w. (−log E is
        Gumbel noise, so this is argmax of log w + Gumbel: Maddison et al. 2014, 1411.0030.) Two laws that race with
        the same noise choose the same token more often than not: what coupled speculation lives on. A token of
        weight zero never runs.
        """
        runners = np.flatnonzero(weights)
        if len(runners) == 0:
            raise ValueError("there is no token to choose: all weights are zero")
        if len(runners) == 1:
            return int(runners[0])
        # Times a power of two, which changes no order: E over the least of weights, 2⁻¹⁰⁷⁴, is more than a float holds.
        noise = self._generator(i, 0).standard_exponential(len(weights)) * 2.0**-64
        return int(runners[np.argmin(noise[runners] / weights[runners])])


@dataclass(frozen=True)
class CommonNoise(Noise):
    """The same, but draw i of a step from `start` is draw 0 of a step from `start + i`: steps may be cut anywhere."""

    def _generator(self, i: int, kind: int) -> np.random.Generator:
        return Noise(self.seed, self.start + i, self.stream)._generator(0, kind)


def greedy(logits: Float[Tensor, "rows vocab"]) -> list[int]:
    """Each row's token at temperature 0: the whole law is on the largest logit, no need to write it down."""
    tops, tokens = logits.max(dim=-1)  # of equals the first
    check_top(tops)
    return tokens.tolist()


def sample(logits: Float[Tensor, "vocab"], params: SamplingParams, position: int) -> int:
    """The token at `position` (counted from the start of prompt and text) of a request with these parameters."""
    if params.temperature == 0:
        return greedy(logits[None])[0]
    seed = secrets.randbits(63) if params.seed is None else params.seed
    return Noise(seed, position).choose(probabilities(logits, params).cpu().numpy(), 0)


# [/draw]


@runtime_checkable
class TextStream(Protocol):
    """What stop strings are looked for in: text that grows by tokens (`loading.stream.TextStream`)."""

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
        self, params: SamplingParams, eos_token_ids: Sequence[int], room: int, stream: TextStream | None = None
    ) -> None:
        """`room`: tokens that the model's context has left. ValueError for stop strings that cannot be looked for."""
        if params.stop and stream is None:
            raise ValueError("stop strings need a tokenizer to look for them in: pass tokenizer=")
        special: Mapping[str, int] = getattr(stream, "special_ids", {}) if params.stop else {}
        for s in params.stop:
            if s not in special and (name := next((name for name in special if name in s), None)) is not None:
                part = f"{name!r} in it is a special token, no part of the text"
                raise ValueError(f"the stop string {s!r} cannot be found: {part}; give {name!r} as one of its own")
        self.stop_ids = frozenset(special[s] for s in params.stop if s in special)
        self.left = min(params.max_new_tokens, room)
        self.eos = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self.stop, self.stream = params.stop, stream

    def __copy__(self) -> "StopCheck":
        """One that goes on from here by itself."""
        twin = object.__new__(StopCheck)
        twin.__dict__ |= self.__dict__ | {"stream": copy(self.stream)}
        return twin

    def after(self, token: int) -> FinishReason | None:
        """The reason to stop right after this token, if there is one."""
        self.left -= 1
        if token in self.eos:
            return "eos"
        if token in self.stop_ids:
            return "stop"
        if self.stop and self.stream is not None:
            new = self.stream.add(token)
            # Only a match that ends in the new text is new.
            recent = self.stream.text[-(len(new) + max(map(len, self.stop)) - 1) :] if new else ""
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
