"""The readable runner: the model over all chunks and drafts of a step, laid end to end, and one decision a chunk.

chunks     A: 3 tokens of a prompt    B: its last token, 2 drafts    C: its last token
fed        a a a                      b d d                          c                    one call of the model
logits         *                      * * *                          *                    of the rows wanted
emitted    1 token                    1 to 3                         1
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from inference_opt.cache.paged import PagedCache
from inference_opt.engine.request import Request
from inference_opt.engine.runner import Result
from inference_opt.engine.scheduler import Chunk
from inference_opt.engine.speculation import Speculation
from inference_opt.model.transformer import Transformer
from inference_opt.speculative.drafter import Draft
from inference_opt.trace import watched


class EagerRunner:
    """One call of the model, then one decision a chunk."""

    def __init__(self, model: Transformer, cache: PagedCache, speculation: Speculation) -> None:
        self.model, self.cache, self.speculation = model, cache, speculation

    def repeats(self, request: Request) -> bool:
        """Never: the host decides after each step."""
        return False

    def forget(self) -> None:
        """There is nothing to drop."""

    # [run]
    def run(self, chunks: Sequence[Chunk], drafts: Sequence[Draft]) -> list[Result]:
        """Read tokens and drafts at once, and decide."""
        results = self._decide(chunks, drafts, *self._read(chunks, drafts))
        # A draft that breaks the model spoils the rows in front of it, too (0 · NaN): these are read again without it.
        again = [i for i, result in enumerate(results) if result.tokens is None and drafts[i].tokens]
        if again:
            few, theirs = [chunks[i] for i in again], [drafts[i] for i in again]
            alone = self._decide(few, theirs, *self._read(few, [Draft()] * len(few)))
            for i, result in zip(again, alone):
                results[i] = result
        return results

    def _read(self, chunks: Sequence[Chunk], drafts: Sequence[Draft]) -> tuple[Tensor, list[int], list[list[Tensor]]]:
        """Logits [rows, vocab], how many of the rows are each chunk's, and the hidden states that the drafter taps.

        A chunk's rows are those behind its last token and behind each draft; none where there is prompt left.
        """
        fed = [
            chunk.request.tokens[chunk.start : chunk.start + chunk.count].tolist() + draft.tokens
            for chunk, draft in zip(chunks, drafts)
        ]
        counts = [len(ids) for ids in fed]
        batch = self.cache.batch([chunk.request.table for chunk in chunks], [chunk.start for chunk in chunks], counts)
        tokens = torch.tensor([token for ids in fed for token in ids], device=self.model.device)
        wanted = [1 + len(draft.tokens) if chunk.samples else 0 for chunk, draft in zip(chunks, drafts)]
        ends = itertools.accumulate(counts)
        rows = [row for end, count in zip(ends, wanted) for row in range(end - count, end)]
        with torch.inference_mode():
            h, tapped = self.model.hidden_states(tokens, batch.positions, watched(batch), taps=self.speculation.taps)
            logits = self.model.logits(h[torch.tensor(rows, device=h.device).long()])
        states = [list(each) for each in zip(*(tap.split(counts) for tap in tapped))]
        return logits, wanted, states or [[] for _ in chunks]

    def _decide(
        self,
        chunks: Sequence[Chunk],
        drafts: Sequence[Draft],
        logits: Float[Tensor, "rows vocab"],
        counts: Sequence[int],
        states: Sequence[list[Tensor]],
    ) -> list[Result]:
        """All rows are checked together: the device is waited for once.

        A draft is judged as far as its rows are sound. The row behind the last draft that is judged is then missing,
        and what the rule draws from it is left out: the next step draws it, or finds that it cannot.
        """
        tops, best = logits.max(dim=-1)  # NaN if any is; ties go to the lowest id
        sound, tokens = torch.stack((tops.isfinite().long(), best)).tolist()
        results, first = [], 0
        for chunk, draft, rows, state in zip(chunks, drafts, logits.split(list(counts)), states):
            request, own = chunk.request, slice(first, first + len(rows))
            first, accepted = own.stop, 0
            if not chunk.samples:
                emitted: list[int] | None = []
            elif not sound[own.start]:
                emitted = None
            elif not draft.tokens and request.params.temperature == 0:
                emitted = [tokens[own.start]]
            else:
                good = next((i for i, whole in enumerate(sound[own]) if not whole), len(rows))
                judged = self.speculation.accept(request, rows[:good], draft)
                emitted, accepted = judged[:good], len(judged) - 1
            scores = logprobs(rows, emitted) if emitted and request.params.logprobs else []
            results.append(Result(emitted, scores, state, accepted))
        return results

    # [/run]


def logprobs(logits: Float[Tensor, "rows vocab"], tokens: Sequence[int]) -> list[float]:
    """The model's own log-probability of each token, before temperature and filters; row i scores token i."""
    rows = torch.log_softmax(logits[: len(tokens)].double(), dim=-1)
    return [float(row[x]) for row, x in zip(rows, tokens)]
