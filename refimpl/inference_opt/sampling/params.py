"""How a request samples and when it stops, and seeds for many."""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inference_opt.elsewhere import elsewhere
from inference_opt.values import integer, listed, number, shown, switch

NOT_HERE = "not implemented here"
ELSEWHERE = {
    "max_tokens": "max_new_tokens",  # an alias
    "n_predict": "write max_new_tokens=",
    "max_length": "write max_new_tokens=, which does not count the prompt",
    "do_sample": "temperature=0 is greedy, a temperature above 0 samples",
    "stop_strings": "write stop=",
    "stop_token_ids": "write stop=, with the special token's text; end-of-sequence tokens are the model's own",
    "eos_token_id": "end-of-sequence tokens are the model's own; ignore_eos=True ignores them",
    "num_return_sequences": "write n=, an argument of generate and stream",
    "best_of": "write n=, an argument of generate and stream, and choose among the completions",
    "n": "it is an argument of generate and stream",
    "prompt_logprobs": "logprobs=True keeps the log-probability of each new token",
    "top_logprobs": "logprobs=True keeps the log-probability of each new token",
    "id": "it is an argument of add",
    "request_id": "write id=, an argument of add",
    "namespace": "it is an argument of add",
    "progress": "it is an argument of generate",
    "tokenizer": "it is an argument of Engine",
    "params": "it is an argument of generate, stream and add",
    "sampling_params": "write params=, an argument of generate, stream and add",
    "generation_config": "write params=SamplingParams(…), or its fields by name",
    "stream": "Engine.stream yields a text as it grows",
    "streamer": "Engine.stream yields a text as it grows",
    "use_tqdm": "write progress=, an argument of generate",
    "assistant_model": "write drafter=, an argument of Engine",
    "prompt_lookup_num_tokens": "write drafter='prompt-lookup', an argument of Engine",
    "use_cache": "Engine always caches; naive.generate never does",
    "skip_special_tokens": "a completion's text never holds special tokens",
    "include_stop_str_in_output": "a completion's text ends before the stop string, its tokens hold it",
    "echo": "a completion has its prompt's token ids in .prompt",
} | dict.fromkeys(
    ("repetition_penalty", "repeat_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size"), NOT_HERE
) | dict.fromkeys(
    ("num_beams", "use_beam_search", "length_penalty", "logit_bias", "logits_processors", "typical_p", "mirostat_mode",
     "min_tokens", "min_new_tokens", "bad_words", "guided_decoding", "structured_outputs", "grammar"), NOT_HERE
)  # fmt: skip


@dataclass(frozen=True)
class SamplingParams:
    """How one request samples and when it stops. ValueError for values outside their range.

    The filters apply in this order, each to the result of the one before: temperature, `top_k` (0: off), `top_p` (1:
    off), `min_p` (0: off). Without a `seed` every request draws its own; the request's `params.seed` repeats its text.
    Params that are given for several requests of one call give each a seed of its own (`split`). Otherwise, requests
    with equal seeds draw with the same noise and are not independent of each other.
    Text stops at an end-of-sequence token (unless `ignore_eos`), at the first of the `stop` strings, after
    `max_new_tokens`, or at the end of the model's context. An engine with a drafter drafts `gamma` tokens a step (None:
    the engine decides; 0: none). With `logprobs` it keeps each token's log-probability under the model itself.
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

    def split(self, n: int) -> "list[SamplingParams]":
        """The same for `n` requests, with a seed each: the first keeps this one, if there is one; the others derive.

        Seed i > 0 is NumPy's SeedSequence(seed, spawn_key=(i,)), whose numbers are fixed: a seed repeats all texts, and
        more requests change none of those before. Split once for all requests: splitting a split repeats seeds.
        """
        return [self._sample(i) for i in range(integer("n", n, 1))]

    def _sample(self, i: int) -> "SamplingParams":
        if self.seed is None:
            return replace(self, seed=secrets.randbits(63))
        if i == 0:
            return self
        root = np.random.SeedSequence(self.seed, spawn_key=(i,))
        return replace(self, seed=int(root.generate_state(1, np.uint64)[0]))


# By decoration of the finished class: `dataclass` makes the function that is wrapped.
SamplingParams.__init__ = elsewhere(**ELSEWHERE)(SamplingParams.__init__)  # type: ignore[method-assign]


def sampling_params(params: Any, named: Mapping[str, Any]) -> Any:
    """What a caller gave: `params`, or its fields by name, or neither. ValueError for both."""
    if params is not None and named:
        both = ", ".join(f"{name}=" for name in named)
        raise ValueError(f"params and {both} were given: give params=SamplingParams(…) or its fields by name, not both")
    return SamplingParams(**named) if params is None else params


def seeded(params: SamplingParams) -> SamplingParams:
    """For one request: with its own seed, or one drawn now. ValueError for anything but SamplingParams."""
    return _checked(params).split(1)[0]


def requests_of(
    prompts: Iterable[Any], params: SamplingParams | Iterable[SamplingParams], n: int = 1
) -> list[tuple[Any, SamplingParams]]:
    """A batch, request by request: every prompt `n` times, one copy after another, with parameters and a seed each.

    `params`: one for all prompts, or one a prompt. Requests with the same params object get their seeds from it, in
    their order, as `split` gives them. ValueError where prompts and params do not match, or there are none.
    """
    prompts = listed("prompts", prompts, "prompts")
    n = integer("n", n, 1)
    if not prompts:
        raise ValueError("there are no prompts: expected one or more")
    one_for_all = isinstance(params, SamplingParams | Mapping) or not isinstance(params, Iterable)
    each = [_checked(params)] * len(prompts) if one_for_all else params
    each = [_checked(one) for one in listed("params", each, "SamplingParams")]
    if len(each) != len(prompts):
        raise ValueError(f"expected one params for all prompts or one for each, got {len(each)} for {len(prompts)}")
    given: Counter[int] = Counter()  # requests so far of each params
    requests = []
    for prompt, one in zip(prompts, each):
        for _ in range(n):
            requests.append((prompt, one._sample(given[id(one)])))
            given[id(one)] += 1
    return requests


def _checked(params: Any) -> SamplingParams:
    if not isinstance(params, SamplingParams):
        raise ValueError(f"params must be SamplingParams, got {shown(params)}")
    return params
