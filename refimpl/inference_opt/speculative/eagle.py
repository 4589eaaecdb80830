"""The trained drafter at work: one layer that reads the target's own states (EAGLE 2401.15077, EAGLE-3 2503.01840).

The target, in reading token t, knows more about token t + 2 than a small model could find out by itself. So the
drafter reads, at slot t, the target's state there and the token that was sampled next:

    slot         …    t − 1       t           t + 1         t + 2
    feature          f_{t−1}     f_t         s_t           s_{t+1}       f: of the target, s: its own, in f's place
    next token       x_t         x_{t+1}     d_1           d_2
    guesses          x_{t+1}     d_1         d_2           d_3

Slots that were drafted are read again with the target's features once these are there. The drafter scores a part of
the vocabulary only, the tokens that are frequent; the others get probability 0, which every rule allows.

A slot's keys depend on the token behind it, too: at the end of a page that texts share, on the token of the one that
came first. That costs a little acceptance there, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.cache.paged import PagedCache
from inference_opt.cache.paged_kernel import cache_class
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import probabilities
from inference_opt.speculative.drafter import Draft, Job, Span, Text
from inference_opt.speculative.head import DraftHead
from inference_opt.speculative.models import Autoregressive
from inference_opt.values import shown


@dataclass
class Notes:
    """What is remembered with a text: features that were not read yet, or the state behind the last that was."""

    start: int  # slot of the first of them
    features: list[Float[Tensor, "slots dim"]] = field(default_factory=list)
    following: list[int] = field(default_factory=list)  # the token behind each slot
    state: Float[Tensor, "dim"] | None = None


# [eagle]
class Eagle(Autoregressive):
    """Drafts with a `DraftHead` (by default the one that comes with the package, for SmolLM2-135M-Instruct)."""

    head: DraftHead
    target: Transformer
    token_ids: Int[np.ndarray, "scored"]
    cache: PagedCache

    def __init__(self, head: DraftHead | None = None, confidence: float = 0.4) -> None:
        super().__init__(confidence)
        if head is not None and not isinstance(head, DraftHead):
            raise ValueError(f"head must be a DraftHead, or None for the one of the package, got {shown(head)}")
        self.given = head

    def bind(self, target: Transformer, cache: PagedCache) -> "Eagle":
        """With one layer of cache, page by page beside the target's. ValueError where the head was not made for it."""
        head, t = self.given or DraftHead.load(target), target.config
        c, last = head.config, int(head.token_ids.max())
        if (c.dim, c.max_context) != (t.dim, t.max_context) or max(head.taps) >= t.depth or last >= t.vocab_size:
            raise ValueError(
                f"the draft head was made for another target: width {c.dim}, context {c.max_context}, layers up to "
                f"{max(head.taps)} and tokens up to {last}; this one has width {t.dim}, context {t.max_context}, "
                f"{t.depth} layers and {t.vocab_size} tokens"
            )
        bound = Eagle(head, self.confidence)
        bound.head, bound.target, bound.taps = head, target, head.taps
        bound.token_ids = head.token_ids.cpu().numpy()
        bound.cost = sum(p.numel() * p.element_size() for p in head.parameters()) / target.weight_bytes()
        pages: dict[str, Any] = {"num_pages": cache.num_pages, "page_size": cache.page_size, "grows": cache.grows}
        bound.cache = cache_class(target.device)(
            **(c.kv_shape | {"depth": 1}), **pages, dtype=head.dtype, device=target.device
        )
        return bound

    def first(self, jobs: Sequence[Job]) -> Tensor:
        """The features that came since the text last drafted."""
        late = [job.text for job in jobs if job.text.memo.features]
        self._digest(late, [text.table for text in late])
        return torch.stack([job.text.memo.state for job in jobs])

    def further(self, jobs: Sequence[Job], drafts: Sequence[Draft], states: Tensor) -> Tensor:
        """One slot each, its own last state in the feature's place."""
        slots = [job.text.computed + len(draft.tokens) - 1 for job, draft in zip(jobs, drafts)]
        tokens = [draft.tokens[-1] for draft in drafts]
        return self._run([job.text.table for job in jobs], slots, [1] * len(jobs), states, tokens)

    def logits(self, states: Tensor) -> Tensor:
        """Of the tokens in `token_ids`."""
        return self.head.logits(states)

    def law(self, logits: Tensor, text: Text) -> Float[np.ndarray, "vocab"]:
        """Zero at every token that is not scored."""
        law = np.zeros(self.target.config.vocab_size)
        law[self.token_ids] = probabilities(logits, text.params).cpu().numpy()
        return law

    @torch.inference_mode()
    def observe(self, spans: Sequence[Span]) -> None:
        """Take note of the features, and read at once what others may find in these pages."""
        for span in spans:
            if span.text.memo is None or span.kind == "prompt":
                span.text.memo = Notes(span.start)
            if span.end > span.start:
                span.text.memo.features.append(self.head.fuse(span.states))
                span.text.memo.following += span.tokens[1:]
        due = {id(span.text): span for span in spans if span.kind != "decode" and span.text.memo.features}.values()
        self._digest([span.text for span in due], [span.table for span in due])

    def _digest(self, texts: Sequence[Text], tables: Sequence[list[int]]) -> None:
        if not texts:
            return
        notes = [text.memo for text in texts]
        counts = [len(each.following) for each in notes]
        features = torch.cat([feature for each in notes for feature in each.features])
        following = [x for each in notes for x in each.following]
        states = self._run(tables, [each.start for each in notes], counts, features, following)
        for text, last, count in zip(texts, np.cumsum(counts) - 1, counts):
            text.memo = Notes(text.memo.start + count, state=states[last])

    def _run(
        self, tables: Sequence[list[int]], slots: list[int], counts: list[int], features: Tensor, following: list[int]
    ) -> Float[Tensor, "slots dim"]:
        batch = self.cache.batch(tables, slots, counts)
        tokens = torch.tensor(following, device=self.target.device)
        return self.head(features, self.target.embed(tokens), batch.positions, batch)


# [/eagle]
