"""Drafters that are transformers: a smaller model, or the target's own first layers.

    step of the target      reads  … t          keeps k tokens, knows the next, y, which nobody has read
    propose, first          the drafter reads what it has missed and y, and draws d_1
    propose, i-th           the drafter reads d_{i−1}, and draws d_i                          d_γ is read by nobody
    verification            the target reads y d_1 … d_γ: if all are kept, the drafter has missed d_γ

The drafter's keys and values lie in pages of its own, of which there are as many as the target's, under the same
page tables. So whatever shares a page of the target, by prefix, shares the drafter's; rejected tokens are overwritten
at their slots, as the target's are; and a page that the radix tree lends is right for both.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from inference_opt.cache.paged import PagedCache
from inference_opt.cache.paged_kernel import cache_class
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import probabilities
from inference_opt.speculative.drafter import Draft, Drafter, Job, Span, Text
from inference_opt.values import integer, number, shown


# [loop]
class Autoregressive(Drafter):
    """Drafts token by token, all texts of a batch together. What reads and guesses is the subclass's.

    `confidence`: a text's draft ends after a token to which the drafter itself gives less. The token stays in the
    draft: dropping it would bias the law, since whether it is dropped depends on what was drawn.
    """

    def __init__(self, confidence: float = 0.0) -> None:
        self.confidence = number("confidence", confidence)
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must be a probability, got {confidence}")

    def first(self, jobs: Sequence[Job]) -> Float[Tensor, "jobs dim"]:
        """Read what is missing of each text; a state behind its last known token."""
        raise NotImplementedError

    def further(
        self, jobs: Sequence[Job], drafts: Sequence[Draft], states: Float[Tensor, "jobs dim"]
    ) -> Float[Tensor, "jobs dim"]:
        """Read each draft's last token, which was guessed from `states`; the states behind it."""
        raise NotImplementedError

    def logits(self, states: Float[Tensor, "jobs dim"]) -> Float[Tensor, "jobs scored"]:
        """What the states say of the next token: a number for each token that is scored."""
        raise NotImplementedError

    def law(self, logits: Float[Tensor, "scored"], text: Text) -> Float[np.ndarray, "vocab"]:
        """The law over the target's vocabulary, by the text's own sampling parameters."""
        return probabilities(logits, text.params).cpu().numpy()

    @torch.inference_mode()
    def propose(self, jobs: Sequence[Job]) -> list[Draft]:
        """As many rounds as the longest draft has tokens."""
        drafts: list[Draft] = [Draft([], []) for _ in jobs]
        if not jobs:
            return drafts
        active, states = list(range(len(jobs))), self.first(jobs)
        while True:
            scores = self.logits(states)
            certainty = scores.softmax(dim=-1).amax(dim=-1).tolist() if self.confidence else [1.0] * len(active)
            sound = scores.amax(dim=-1).isfinite().tolist()
            on = []
            for row, (i, scored) in enumerate(zip(active, scores)):
                job, draft = jobs[i], drafts[i]
                if not sound[row]:
                    continue  # nothing can be drawn from broken scores: the draft ends with what was drawn before
                law = self.law(scored, job.text)
                assert draft.laws is not None
                draft.laws.append(law)
                draft.tokens.append(job.chance.choose(law, len(draft.tokens)))
                if len(draft.tokens) < job.gamma and certainty[row] >= self.confidence:
                    on.append(row)
            if not on:
                return drafts
            active = [active[row] for row in on]
            states = self.further([jobs[i] for i in active], [drafts[i] for i in active], states[on])


# [/loop]


def read(
    model: Transformer,
    cache: PagedCache,
    parts: Sequence[tuple[list[int], int, Sequence[int]]],
    depth: int | None = None,
) -> Float[Tensor, "parts dim"]:
    """Run (the first layers of) a model over ragged (page table, start, tokens); the state behind the last of each."""
    tables, starts, texts = zip(*parts)
    counts = [len(text) for text in texts]
    batch = cache.batch(tables, starts, counts)
    tokens = torch.tensor([x for text in texts for x in text], device=model.device)
    h, _ = model.stream(tokens, batch.positions, batch, depth)
    return h[np.cumsum(counts) - 1]


# [smaller_model]
class SmallerModel(Autoregressive):
    """Any transformer with the target's vocabulary.

    `memo` of a text: how many positions hold keys and values of its tokens, or of drafts that may have been kept.
    """

    cache: PagedCache

    def __init__(self, model: Transformer, confidence: float = 0.0) -> None:
        super().__init__(confidence)
        if not isinstance(model, Transformer):
            raise ValueError(f"model must be a Transformer, as load_model returns it, got {shown(model)}")
        self.model = model

    def bind(self, target: Transformer, cache: PagedCache) -> "SmallerModel":
        """With a cache of its own, page by page beside the target's.

        ValueError for another vocabulary, or less context.
        """
        c, t = self.model.config, target.config
        if c.vocab_size != t.vocab_size:
            raise ValueError(f"the drafter's vocabulary has {c.vocab_size} tokens, the target's {t.vocab_size}")
        if c.max_context < t.max_context:
            raise ValueError(f"the drafter's context ({c.max_context}) is shorter than the target's ({t.max_context})")
        bound = SmallerModel(self.model.packed(), self.confidence)
        bound.cost = self.model.weight_bytes() / target.weight_bytes()
        pages: dict[str, Any] = {"num_pages": cache.num_pages, "page_size": cache.page_size, "grows": cache.grows}
        bound.cache = cache_class(self.model.device)(
            **c.kv_shape, **pages, dtype=self.model.dtype, device=self.model.device
        )
        return bound

    def first(self, jobs: Sequence[Job]) -> Tensor:
        """The last token, or two where all drafts were kept: the last draft was never read here."""
        starts = [job.text.memo for job in jobs]
        for job in jobs:
            job.text.memo = len(job.text.tokens)
        parts = [(job.text.table, start, job.text.tokens[start:]) for job, start in zip(jobs, starts)]
        return read(self.model, self.cache, parts)

    def further(self, jobs: Sequence[Job], drafts: Sequence[Draft], states: Tensor) -> Tensor:
        """One token each."""
        parts = [(job.text.table, job.text.memo, draft.tokens[-1:]) for job, draft in zip(jobs, drafts)]
        for job in jobs:
            job.text.memo += 1
        return read(self.model, self.cache, parts)

    def logits(self, states: Tensor) -> Tensor:
        """By its own head."""
        return self.model.logits(states)

    @torch.inference_mode()
    def observe(self, spans: Sequence[Span]) -> None:
        """Read what others may find in these pages. A text that goes on is read when it next drafts."""
        parts = []
        for span in spans:
            # What was read behind the end was a draft, and rejected.
            start = span.start if span.kind == "prompt" else min(span.text.memo, span.end)
            span.text.memo = start if span.kind == "decode" else span.end
            if start < span.text.memo:
                parts.append((span.table, start, span.text.tokens[start : span.end]))
        if parts:
            read(self.model, self.cache, parts)


# [/smaller_model]


# [first_layers]
class FirstLayers(Autoregressive):
    """The target's first `depth` layers under its own head: a smaller model that costs no memory and no training.

    It reads and writes the target's own cache: what the first layers compute of a draft is what verification will.
    Without a depth it takes a quarter of the layers.
    """

    model: Transformer
    cache: PagedCache

    def __init__(self, depth: int | None = None, confidence: float = 0.0) -> None:
        super().__init__(confidence)
        self.depth = None if depth is None else integer("depth", depth)

    def bind(self, target: Transformer, cache: PagedCache) -> "FirstLayers":
        """ValueError where the target has no more layers than that."""
        layers = target.config.depth
        depth = max(layers // 4, 1) if self.depth is None else self.depth
        if not 1 <= depth < layers:
            raise ValueError(
                f"a draft by the first {depth} of {layers} layers: expected at least 1, and fewer than all"
            )
        bound = FirstLayers(depth, self.confidence)
        bound.model, bound.cache = target, cache
        skipped = sum(p.numel() * p.element_size() for p in target.layers[depth:].parameters())
        bound.cost = 1 - skipped / target.weight_bytes()
        return bound

    def first(self, jobs: Sequence[Job]) -> Tensor:
        """The last token alone: the target has read the others."""
        return self._read([(job.text.table, job.text.computed, job.text.tokens[job.text.computed :]) for job in jobs])

    def further(self, jobs: Sequence[Job], drafts: Sequence[Draft], states: Tensor) -> Tensor:
        """One token each."""
        return self._read(
            [(job.text.table, job.text.computed + len(d.tokens), d.tokens[-1:]) for job, d in zip(jobs, drafts)]
        )

    def logits(self, states: Tensor) -> Tensor:
        """By the target's head."""
        return self.model.logits(states)

    def _read(self, parts: Sequence[tuple[list[int], int, Sequence[int]]]) -> Float[Tensor, "parts dim"]:
        return read(self.model, self.cache, parts, self.depth)


# [/first_layers]
