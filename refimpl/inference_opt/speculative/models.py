"""Drafters that are transformers: a smaller model, or the target's own first layers.

    step of the target      reads  … t          keeps k tokens, knows the next, y, which nobody has read
    propose, first          the drafter reads what it has missed and y, and draws d_1
    propose, i-th           the drafter reads d_{i−1}, and draws d_i                          d_γ is read by nobody
    verification            the target reads y d_1 … d_γ: if all are kept, the drafter has missed d_γ

The drafter's keys and values lie in pages of its own, as many as the target has, under the same page tables. So texts
that share a page of the target, by prefix, share the drafter's too; rejected tokens are overwritten at their slots, as
the target's are; and a page that the radix tree lends is right for both.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.cache.paged import PagedCache
from inference_opt.cache.paged_kernel import cache_class
from inference_opt.kernels.tree import TreeRows
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import probabilities
from inference_opt.speculative.best_first import Branch, best_first
from inference_opt.speculative.drafter import Draft, Drafter, DraftRequest, Observation, RequestView
from inference_opt.values import integer, number, shown


class Autoregressive(Drafter):
    """Drafts token by token, all texts of a batch together. What reads and guesses is the subclass's.

    `confidence`: a text's draft ends after a token where the drafter's largest probability is below it. The token
    stays in the draft: dropping it would bias the output, since whether it is dropped depends on what was drawn.
    Trees (`best_first.py`) are as large as asked for.
    """

    trees = True

    def __init__(self, confidence: float = 0.0) -> None:
        self.confidence = number("confidence", confidence)
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must be a probability, got {confidence}")

    def first(self, requests: Sequence[DraftRequest]) -> Float[Tensor, "requests dim"]:
        """Read what the drafter has not read of each text; return the state behind its last known token."""
        raise NotImplementedError

    def further(
        self, requests: Sequence[DraftRequest], drafts: Sequence[Draft], states: Float[Tensor, "requests dim"]
    ) -> Float[Tensor, "requests dim"]:
        """Read each draft's last token, which was guessed from `states`; return the states behind it."""
        raise NotImplementedError

    def branch(self, branches: Sequence[Branch], states: Float[Tensor, "nodes dim"]) -> Float[Tensor, "nodes dim"]:
        """Read nodes of trees, whose parents' states are `states`; return the states behind them."""
        raise NotImplementedError

    def logits(self, states: Float[Tensor, "requests dim"]) -> Float[Tensor, "requests scored"]:
        """Scores of the next token, for each token that the drafter scores."""
        raise NotImplementedError

    def scored(self, indices: Int[Tensor, "nodes best"]) -> Int[Tensor, "nodes best"]:
        """The tokens behind columns of the scores: here all tokens are scored."""
        return indices

    def distribution(self, logits: Float[Tensor, "scored"], text: RequestView) -> Float[np.ndarray, "vocab"]:
        """Over the target's vocabulary, by the text's own sampling parameters."""
        return probabilities(logits, text.params).cpu().numpy()

    @torch.inference_mode()
    def propose(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """One round for each token of the longest chain; and the trees."""
        trees = iter(best_first(self, [each for each in requests if each.depth is not None]))
        drafts = [Draft([], []) if each.depth is None else next(trees) for each in requests]
        # [rounds]
        active = [i for i, each in enumerate(requests) if each.depth is None]
        if not active:
            return drafts
        states = self.first([requests[i] for i in active])
        while True:
            scores = self.logits(states)
            certainty = scores.softmax(dim=-1).amax(dim=-1).tolist() if self.confidence else [1.0] * len(active)
            sound = scores.amax(dim=-1).isfinite().tolist()
            on = []
            for row, (i, scored) in enumerate(zip(active, scores)):
                request = requests[i]
                draft = drafts[i]
                if not sound[row]:
                    continue  # nothing can be drawn from broken scores: the draft ends with what was drawn before
                q = self.distribution(scored, request.text)
                assert draft.probs is not None
                draft.probs.append(q)
                draft.tokens.append(request.rng.choose(q, len(draft.tokens)))
                if len(draft.tokens) < request.gamma and certainty[row] >= self.confidence:
                    on.append(row)
            if not on:
                return drafts
            active = [active[row] for row in on]
            states = self.further([requests[i] for i in active], [drafts[i] for i in active], states[on])
        # [/rounds]


def read(
    model: Transformer,
    cache: PagedCache,
    parts: Sequence[tuple[list[int], int, Sequence[int]]],
    depth: int | None = None,
) -> Float[Tensor, "parts dim"]:
    """Run (the first layers of) a model over ragged (page table, start, tokens); the state behind the last of each."""
    counts = [len(tokens) for _, _, tokens in parts]
    return read_all(model, cache, parts, (), depth)[np.cumsum(counts) - 1]


def read_all(
    model: Transformer,
    cache: PagedCache,
    parts: Sequence[tuple[list[int], int, Sequence[int]]],
    trees: Sequence[TreeRows],
    depth: int | None = None,
) -> Float[Tensor, "tokens dim"]:
    """The states behind all tokens, which may be rows of trees."""
    tables, starts, texts = zip(*parts)
    batch = cache.batch(tables, starts, [len(text) for text in texts], trees)
    tokens = torch.tensor([x for text in texts for x in text], device=model.device)
    h, _ = model.hidden_states(tokens, batch.positions, batch, depth)
    return h


class SmallerModel(Autoregressive):
    """Any transformer with the target's vocabulary.

    A text's `drafter_state`: how many positions hold keys and values of its tokens, or of drafts that may be kept.
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
        c = self.model.config
        t = target.config
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

    def first(self, requests: Sequence[DraftRequest]) -> Tensor:
        """The last token, or two where all drafts were kept: the last draft was never read here."""
        texts = [each.text for each in requests]
        parts = [(text.table, text.drafter_state, text.tokens[text.drafter_state :]) for text in texts]
        for text in texts:
            text.drafter_state = len(text.tokens)
        return read(self.model, self.cache, parts)

    def further(self, requests: Sequence[DraftRequest], drafts: Sequence[Draft], states: Tensor) -> Tensor:
        """One token each."""
        texts = [each.text for each in requests]
        parts = [(text.table, text.drafter_state, draft.tokens[-1:]) for text, draft in zip(texts, drafts)]
        for text in texts:
            text.drafter_state += 1
        return read(self.model, self.cache, parts)

    def branch(self, branches: Sequence[Branch], states: Tensor) -> Tensor:
        """Into the slots behind the text. They do not count as read: what is kept of a tree is read again."""
        texts = [each.growth.request.text for each in branches]
        ends = [text.drafter_state for text in texts]
        parts = [(text.table, end + each.before, each.tokens) for text, end, each in zip(texts, ends, branches)]
        trees = [each.growth.rows(end, each.count) for end, each in zip(ends, branches)]
        return read_all(self.model, self.cache, parts, trees)

    def logits(self, states: Tensor) -> Tensor:
        """From the smaller model's own head."""
        return self.model.logits(states)

    @torch.inference_mode()
    def observe(self, observations: Sequence[Observation]) -> None:
        """Read at once what other texts may find in these pages. A text in decode is read when it next drafts."""
        parts = []
        for each in observations:
            text = each.text
            end = each.end
            # What was read behind the end was a draft, and rejected.
            start = each.start if each.kind == "prompt" else min(text.drafter_state, end)
            text.drafter_state = start if each.kind == "decode" else end
            if start < text.drafter_state:
                parts.append((each.table, start, text.tokens[start:end]))
        if parts:
            read(self.model, self.cache, parts)


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
        """ValueError where the target does not have more layers than that."""
        layers = target.config.depth
        depth = max(layers // 4, 1) if self.depth is None else self.depth
        if not 1 <= depth < layers:
            raise ValueError(
                f"a draft by the first {depth} of {layers} layers: expected at least 1, and fewer than all"
            )
        bound = FirstLayers(depth, self.confidence)
        bound.model = target
        bound.cache = cache
        skipped = sum(p.numel() * p.element_size() for p in target.layers[depth:].parameters())
        bound.cost = 1 - skipped / target.weight_bytes()
        return bound

    def first(self, requests: Sequence[DraftRequest]) -> Tensor:
        """The last token alone: the target has read the others."""
        texts = [each.text for each in requests]
        return self._read([(text.table, text.computed, text.tokens[text.computed :]) for text in texts])

    def further(self, requests: Sequence[DraftRequest], drafts: Sequence[Draft], states: Tensor) -> Tensor:
        """One token each."""
        texts = [each.text for each in requests]
        return self._read(
            [(text.table, text.computed + len(d.tokens), d.tokens[-1:]) for text, d in zip(texts, drafts)]
        )

    def branch(self, branches: Sequence[Branch], states: Tensor) -> Tensor:
        """Into the slots behind the text, which verification writes again."""
        texts = [each.growth.request.text for each in branches]
        parts = [(text.table, text.computed + 1 + each.before, each.tokens) for text, each in zip(texts, branches)]
        trees = [each.growth.rows(text.computed + 1, each.count) for text, each in zip(texts, branches)]
        return read_all(self.model, self.cache, parts, trees, self.depth)

    def logits(self, states: Tensor) -> Tensor:
        """From the target's head."""
        return self.model.logits(states)

    def _read(self, parts: Sequence[tuple[list[int], int, Sequence[int]]]) -> Float[Tensor, "parts dim"]:
        return read(self.model, self.cache, parts, self.depth)
