"""The readable runner: the model over all chunks and drafts of a step, laid end to end, and one decision a chunk.

chunks     A: 3 tokens of a prompt    B: its last token, 2 drafts    C: its last token
fed        a a a                      b d d                          c                    one call of the model
logits         *                      * * *                          *                    of the rows wanted
emitted    1 token                    1 to 3                         1

How many drafts a step has is decided for RUN steps of one batch at a time (`speculative/choice.py`), from what steps
took and gave. In steps that read a prompt, only those requests draft that name a length.
"""

import itertools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from inference_opt.cache.explicit import plan_forms
from inference_opt.cache.fused_forward import can_fuse, fused_states
from inference_opt.cache.paged import PagedCache
from inference_opt.cache.paged_kernel import PagedKernelBatch
from inference_opt.engine.clock import Clock
from inference_opt.engine.request import Request
from inference_opt.engine.runner import Judged, Result, lefts
from inference_opt.engine.scheduler import Chunk, Repeat
from inference_opt.engine.speculation import Speculation
from inference_opt.kernels.batch import uses_triton
from inference_opt.kernels.tree import TreeRows, tree_rows
from inference_opt.model.attention import CacheBatch
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import sample
from inference_opt.speculative.acceptance import Acceptance, replayed
from inference_opt.speculative.choice import Choice
from inference_opt.speculative.drafter import Draft
from inference_opt.trace import recording, watched

RUN = 8  # steps
FIRST_RUN = 2  # steps with so many drafts as were not tried before: their price is not known


@dataclass
class Run:
    """Steps of the same texts, with as many drafts each: `most` in all, and what those up to now took and gave.

    `lefts`: tokens that each text might have had when it began; None if others waited for a place.
    """

    requests: list[Request] = field(default_factory=list)
    lefts: list[int] | None = None
    drafts: int = 0
    most: int = 0
    steps: int = 0
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0


class EagerRunner:
    """One call of the model, then one decision a chunk."""

    draft_rows = 64

    def __init__(self, model: Transformer, cache: PagedCache, speculation: Speculation) -> None:
        self.model, self.cache, self.speculation = model, cache, speculation
        # On CUDA the layers run in fewer launches, if they are of a kind that `fused_states` knows.
        self.fuses = cache.device.type == "cuda" and uses_triton(cache.keys[0]) and can_fuse(model)
        self.now = Run()
        self.chosen, self.began = False, 0.0  # whether the step belongs to the run, and when it began

    def choose(self, chunks: Sequence[Chunk]) -> Repeat | None:
        """As many drafts as pay for those that name no length, or the most that is named. The host decides after each
        step.
        """
        choice, free = self.speculation.eager, [each for each in chunks if each.request.acceptance is not None]
        if choice is None or not free:
            return None
        requests = [each.request for each in free]
        self.chosen = len(free) == len(chunks)  # steps in which others draft as they like do not tell prices
        if not self.chosen or self.now.requests != requests or self.now.steps == self.now.most:
            self._learn(choice)
            texts = [each.acceptance or Acceptance() for each in requests]
            drafts, steps = choice.best(texts, [each.drafts for each in free], lefts(free), RUN)
            known = choice.costs.measured(len(texts), drafts) or not drafts
            most = steps if known else min(steps, FIRST_RUN)
            self.now = Run(requests, lefts(free), drafts, most, tokens=[0] * len(requests))
        return Repeat(max([self.now.drafts, *(each.drafts for each in chunks if each.request.acceptance is None)]), 1)

    def _learn(self, choice: Choice) -> None:
        """What the run took and gave."""
        run = self.now
        if run.steps:
            seconds = Clock(self.cache.device, self.model.is_sharded).agreed(run.seconds / run.steps)
            choice.learn(run.tokens, run.lefts, run.drafts, run.steps, RUN, seconds)

    def forget(self) -> None:
        """There is nothing to drop."""

    def propose(self, chunks: Sequence[Chunk]) -> list[Draft]:
        """A draft for each chunk, by the drafter."""
        self.began = perf_counter()
        decode = all(each.decodes for each in chunks)
        self.chosen, most = self.chosen and decode, self.now.drafts if decode else 0
        return self.speculation.propose(
            [
                each if each.request.acceptance is None else replace(each, drafts=min(each.drafts, most))
                for each in chunks
            ]
        )

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
        if self.chosen:
            self.chosen = False
            self.now.steps += 1
            self.now.tokens = [had + len(each.tokens or []) for had, each in zip(self.now.tokens, results)]
            self.now.seconds += perf_counter() - self.began
        return results

    def _read(self, chunks: Sequence[Chunk], drafts: Sequence[Draft]) -> tuple[Tensor, list[int], list[list[Tensor]]]:
        """Logits [rows, vocab], how many of its rows belong to each chunk, and the hidden states that the drafter taps.

        A chunk's rows are those behind its last token and behind each draft; none where there is prompt left.
        """
        fed = [
            chunk.request.tokens[chunk.start : chunk.start + chunk.count] + array("i", draft.tokens)
            for chunk, draft in zip(chunks, drafts)
        ]
        counts = [len(ids) for ids in fed]
        tables, starts = [chunk.request.table for chunk in chunks], [chunk.start for chunk in chunks]
        batch = self.cache.batch(tables, starts, counts, [_tree(*each) for each in zip(chunks, drafts)])
        tokens = torch.from_numpy(np.concatenate(fed)).to(self.model.device).long()
        wanted = [1 + len(draft.tokens) if chunk.samples else 0 for chunk, draft in zip(chunks, drafts)]
        ends = itertools.accumulate(counts)
        rows = [row for end, count in zip(ends, wanted) for row in range(end - count, end)]
        with torch.inference_mode():
            h, tapped = self._states(tokens, batch)
            logits = self.model.logits(h[torch.tensor(rows, device=h.device).long()])
        states = [list(each) for each in zip(*(tap.split(counts) for tap in tapped))]
        return logits, wanted, states or [[] for _ in chunks]

    def _states(self, tokens: Tensor, batch: CacheBatch) -> tuple[Tensor, list[Tensor]]:
        """The states after the last layer, and those that the drafter taps. A recording wants each operation."""
        taps = self.speculation.taps
        if self.fuses and isinstance(batch, PagedKernelBatch) and not recording():
            plan, explicit = plan_forms(self.model.config, batch)
            return fused_states(self.model, tokens, batch.positions, batch.slots, batch.cache, plan, taps, explicit)
        return self.model.hidden_states(tokens, batch.positions, watched(batch), taps=taps)

    def _decide(
        self,
        chunks: Sequence[Chunk],
        drafts: Sequence[Draft],
        logits: Float[Tensor, "rows vocab"],
        counts: Sequence[int],
        states: Sequence[list[Tensor]],
    ) -> list[Result]:
        """What each chunk emits.

        All rows are checked at once, and the tokens of all chunks without a draft are drawn at once, so that the host
        waits for the device only twice. Of a draft only the tokens whose rows are sound are judged. If all of these are
        accepted, the token that the rule draws behind them has no sound row, and is left out: the next step draws it,
        or finds that it cannot. Of a tree, the rows of the path that is kept move to consecutive slots.
        """
        tops, best = logits.max(dim=-1)  # NaN if any is; ties go to the lowest id
        sound, tokens = torch.stack((tops.isfinite().long(), best)).tolist()
        firsts = [0, *itertools.accumulate(counts)]
        plain = [
            i
            for i, (chunk, draft) in enumerate(zip(chunks, drafts))
            if chunk.samples and not draft.tokens and chunk.request.params.temperature > 0 and sound[firsts[i]]
        ]
        drawn = draw(logits, [firsts[i] for i in plain], [chunks[i].request for i in plain])
        for i, token in zip(plain, drawn):
            tokens[firsts[i]] = token
        results = []
        paths: list[list[int]] = [[] for _ in chunks]  # of trees: the rows kept
        for i, (chunk, draft, state) in enumerate(zip(chunks, drafts, states)):
            own = slice(firsts[i], firsts[i + 1])
            nodes: list[int] = []  # the drafts accepted
            scored, leaf = logits[own], True
            if not chunk.samples:
                emitted: list[int] | None = []
            elif not sound[own.start]:
                emitted = None
            elif not draft.tokens:
                emitted = [tokens[own.start]]
            elif self.speculation.trees or draft.parents is not None:
                emitted, nodes = self.speculation.accept_tree(chunk.request, scored, sound[own], draft)
                leaf = ([-1, *nodes])[-1] not in draft.rising
                path = [0, *(node + 1 for node in nodes)][: len(emitted)]  # the last draft's row may be broken
                paths[i], scored, state = path, scored[path], [tap[path] for tap in state]
            else:
                good = next((n for n, whole in enumerate(sound[own]) if not whole), counts[i])
                judged = self.speculation.accept(chunk.request, scored[:good], draft)
                emitted, nodes = judged[:good], list(range(len(judged) - 1))
                leaf = len(nodes) == len(draft.tokens)
            scores = logprobs(scored, emitted) if emitted and chunk.request.params.logprobs else []
            judging = [Judged(len(draft.tokens), len(nodes), len(emitted or []))]
            lengths = replayed(chunk.drafts, len(draft.tokens), nodes, leaf) if chunk.drafts and self.chosen else None
            results.append(Result(emitted, scores, state, judging if chunk.samples else [], lengths))
        if any(paths):
            self.cache.keep_paths([each.request.table for each in chunks], [each.start for each in chunks], paths)
        return results


def _tree(chunk: Chunk, draft: Draft) -> TreeRows | None:
    """A chunk's rows, with those of a tree of drafts behind its tokens."""
    if draft.parents is None:
        return None
    end = chunk.start + chunk.count
    return tree_rows(draft.parents, end).behind(range(chunk.start, end))


def draw(logits: Float[Tensor, "rows vocab"], rows: Sequence[int], requests: Sequence[Request]) -> list[int]:
    """Each request's next token, from its row of the logits. All rows are sound.

    On CUDA all are drawn at once, by the kernels of the captured steps.
    """
    positions = [len(request.tokens) for request in requests]
    if not (rows and uses_triton(logits) and logits.is_cuda):
        return [sample(logits[row], each.params, at) for row, each, at in zip(rows, requests, positions)]
    from inference_opt.kernels.steps import draw_rows  # imports Triton, which is there where this runs

    return draw_rows(logits[list(rows)], [each.params for each in requests], positions)


def logprobs(logits: Float[Tensor, "rows vocab"], tokens: Sequence[int]) -> list[float]:
    """The model's own log-probability of each token, before temperature and filters; row i scores token i."""
    x = logits[: len(tokens)].double()
    chosen = x.gather(1, torch.tensor(tokens, device=x.device)[:, None])[:, 0]
    scores: list[float] = (chosen - x.logsumexp(dim=-1)).tolist()
    return scores
