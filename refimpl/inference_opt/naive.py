"""The oracle: generate text by recomputing everything, one token at a time.

For each new token the model reads the whole text again: prompt, and all that was generated so far. Nothing is
remembered, so nothing can be remembered wrongly. Every technique in this package must give these tokens.

    step 1   [p p p p]              → a
    step 2   [p p p p a]            → b        n tokens after a prompt of m cost m + (m+1) + … + (m+n−1)
    step 3   [p p p p a b]          → c        token evaluations: quadratic, where a cache makes do with m + n − 1
"""

from collections.abc import Iterator, Sequence

import torch

from inference_opt.loading.tokenizer import Tokenizer
from inference_opt.model.attention import NoCache
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams, StopCheck, sample, seeded
from inference_opt.trace import emit


def stream(
    model: Transformer, prompt_ids: Sequence[int], params: SamplingParams, tokenizer: Tokenizer | None = None
) -> Iterator[int]:
    """Yield each new token as it is sampled (a text that ends itself ends with its end-of-sequence token).

    `tokenizer` is needed where `params.stop` names strings. Raises ValueError, at once, for a prompt the model cannot
    continue. Without a seed in `params` each call draws its own.
    """
    ids, params = model.config.check_prompt(prompt_ids), seeded(params)
    # The last token of a text is never fed back, hence the + 1.
    room = model.config.max_context - len(ids) + 1
    check = StopCheck(params, model.config.eos_token_ids, room, tokenizer.detokenizer() if tokenizer else None)
    return _continue(model, ids, params, check)


def _continue(model: Transformer, ids: list[int], params: SamplingParams, check: StopCheck) -> Iterator[int]:
    reason = None
    while reason is None:
        # [feed]
        tokens = torch.tensor(ids, device=model.device)  # [n]: the whole text, every time
        positions = torch.arange(len(ids), device=model.device)
        last = torch.tensor([len(ids) - 1], device=model.device)
        with torch.inference_mode():
            logits = model(tokens, positions, NoCache([len(ids)]), rows=last)[0]  # [vocab]: what follows the text
        # [/feed]
        token = sample(logits, params, position=len(ids))
        ids.append(token)
        emit("naive.token", model=model, tokens=ids, logits=logits, params=params)
        reason = check.after(token)
        yield token


def generate(
    model: Transformer, prompt_ids: Sequence[int], params: SamplingParams, tokenizer: Tokenizer | None = None
) -> list[int]:
    """The new tokens, all at once."""
    return list(stream(model, prompt_ids, params, tokenizer))
