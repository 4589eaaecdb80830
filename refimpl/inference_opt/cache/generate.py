"""Static batching on contiguous caches: the plainest decoding with a KV cache.

All prompts are prefilled in one flat batch, then every step feeds each unfinished sequence its own last token. The
batch only shrinks: no sequence may join, and a slot whose text has ended idles until the last one is done. (Continuous
batching mends that.) Against `naive.py` two lines differ: what is fed, and who answers `attend`.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from inference_opt.cache.contiguous import ContiguousCache
from inference_opt.loading.tokenizer import Tokenizer
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams, StopCheck, requests_of, sample
from inference_opt.trace import emit


def stream(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    tokenizer: Tokenizer | None = None,
    n: int = 1,
) -> Iterator[dict[int, int]]:
    """Yield, step by step, the new token of each unfinished sequence: {index of the sequence: token}.

    `params`: one for all, or one a prompt; either way each sequence has a seed of its own (`SamplingParams.split`).
    `n` samples a prompt, those of the first prompt before those of the second. Raises ValueError, at once, for a prompt
    the model cannot continue, and at the end, when the others are done, for a sequence whose logits held NaN.
    """
    config = model.config
    requests = requests_of(prompts, params, n)
    texts, each = [config.check_prompt(prompt) for prompt, _ in requests], [own for _, own in requests]
    rooms = [config.max_context - len(ids) + 1 for ids in texts]
    checks = [
        StopCheck(p, config.eos_token_ids, room, tokenizer.detokenizer() if tokenizer else None)
        for p, room in zip(each, rooms)
    ]
    return _continue(model, texts, each, checks)


def _continue(
    model: Transformer, texts: list[list[int]], each: list[SamplingParams], checks: list[StopCheck]
) -> Iterator[dict[int, int]]:
    # The last token of a text is never fed: a cache of prompt + new − 1 tokens is full when the text ends.
    capacity = [len(ids) + check.left - 1 for ids, check in zip(texts, checks)]
    cache = ContiguousCache(**model.config.kv_shape, capacity=capacity, dtype=model.dtype, device=model.device)
    running, broken = set(range(len(texts))), dict[int, ValueError]()
    while running:
        # [feed]
        new = [
            ids[n:] if i in running else [] for i, (ids, n) in enumerate(zip(texts, cache.lengths))
        ]  # prompt, then one
        counts = [len(ids) for ids in new]
        batch = cache.batch(counts)
        tokens = torch.tensor([t for ids in new for t in ids], device=model.device)
        last = torch.tensor(counts, device=model.device).cumsum(0)[sorted(running)] - 1  # each sequence's last row
        with torch.inference_mode():
            logits = model(tokens, batch.positions, batch, rows=last)  # [running, vocab]
        # [/feed]
        emitted = {}
        for row, i in enumerate(sorted(running)):
            try:
                emitted[i] = sample(logits[row], each[i], position=len(texts[i]))
            except ValueError as error:  # its logits are NaN: its neighbours go on
                broken[i] = error
                running.remove(i)
                continue
            texts[i].append(emitted[i])
            kept = cache.lengths[i] - counts[i]
            emit(
                "cache.token", model=model, tokens=texts[i], logits=logits[row], params=each[i], kept=kept,
                capacity=capacity[i],
            )  # fmt: skip
            if checks[i].after(emitted[i]) is not None:
                running.remove(i)
        yield emitted
    for i, why in broken.items():
        raise ValueError(f"sequence {i} could not be continued: {why}") from why


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    tokenizer: Tokenizer | None = None,
    n: int = 1,
) -> list[list[int]]:
    """The new tokens of every sequence: `n` texts of the first prompt, then `n` of the second, and so on."""
    texts: defaultdict[int, list[int]] = defaultdict(list)
    for emitted in stream(model, prompts, params, tokenizer, n):
        for i, token in emitted.items():
            texts[i].append(token)
    return [texts[i] for i in sorted(texts)]
