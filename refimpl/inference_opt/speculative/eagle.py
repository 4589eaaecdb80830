"""The trained drafter at work: one layer that reads the target's own states (EAGLE 2401.15077, EAGLE-3 2503.01840).

Having read token t, the target knows more about token t + 2 than a small model could find out by itself. So the
drafter reads, at slot t, the target's state there and the token that was sampled next:

    slot         …    t − 1       t           t + 1         t + 2
    feature          f_{t−1}     f_t         s_t           s_{t+1}       f: of the target, s: its own, in f's place
    next token       x_t         x_{t+1}     d_1           d_2
    guesses          x_{t+1}     d_1         d_2           d_3

Slots that were drafted are read again as soon as the target's features for them exist. The drafter scores only the
frequent tokens of the vocabulary; the others get probability 0, which every rule allows.

On CUDA the engine's captured steps draft with the same head and pages, without the host (`head_steps.py`). What they
have read is not observed again.

A slot's keys also depend on the token behind it. At the end of a page that several texts share, that is the token of
the text that came first. This costs a little acceptance there, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.cache.fused_forward import can_fuse, fused_layer
from inference_opt.cache.paged import PagedCache
from inference_opt.cache.paged_kernel import PagedKernelBatch
from inference_opt.kernels.batch import uses_triton
from inference_opt.kernels.transfer import sent
from inference_opt.model.attention import CacheBatch
from inference_opt.model.experts import SwiGLU
from inference_opt.model.gqa import GroupedQueryAttention
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import probabilities
from inference_opt.speculative.best_first import Branch
from inference_opt.speculative.drafter import Draft, DraftRequest, Observation, RequestView
from inference_opt.speculative.head import DraftHead
from inference_opt.speculative.models import Autoregressive
from inference_opt.values import shown

Tokens = list[int] | Tensor


@dataclass
class EagleState:
    """What is kept with a text: features that the drafter has not read yet, or the state behind the last one read."""

    start: int  # slot of the first of them
    features: list[Float[Tensor, "slots dim"]] = field(default_factory=list)
    following: list[int] = field(default_factory=list)  # the token behind each slot
    state: Float[Tensor, "dim"] | None = None


class Eagle(Autoregressive):
    """Drafts with a `DraftHead` (by default the one that comes with the package, for SmolLM2-135M-Instruct).

    `confidence`: as of `Autoregressive`. It has no effect in captured steps, whose drafts all have the same length.
    """

    captured = True
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
        head = self.given or DraftHead.load(target)
        c = head.config
        t = target.config
        last = int(head.token_ids.max())
        if (c.dim, c.max_context) != (t.dim, t.max_context) or max(head.taps) >= t.depth or last >= t.vocab_size:
            raise ValueError(
                f"the draft head was made for another target: width {c.dim}, context {c.max_context}, layers up to "
                f"{max(head.taps)} and tokens up to {last}; this one has width {t.dim}, context {t.max_context}, "
                f"{t.depth} layers and {t.vocab_size} tokens"
            )
        bound = Eagle(head, self.confidence)
        bound.head = head
        bound.target = target
        bound.taps = head.taps
        bound.token_ids = head.token_ids.cpu().numpy()
        bound.cost = sum(p.numel() * p.element_size() for p in head.parameters()) / target.weight_bytes()
        pages: dict[str, Any] = {"num_pages": cache.num_pages, "page_size": cache.page_size, "grows": cache.grows}
        bound.cache = type(cache)(**(c.kv_shape | {"depth": 1}), **pages, dtype=head.dtype, device=target.device)
        bound.captured = uses_triton(bound.cache.keys[0]) and _fusible(head) and can_fuse(target)
        return bound

    def network(self, steps: Any, table: Int[Tensor, "max_rows pages"], max_steps: int) -> Any:
        """The head in captured steps."""
        from inference_opt.speculative.head_steps import HeadSteps  # imports Triton, which is there where this runs

        return HeadSteps(self, steps, table, max_steps)

    def first(self, requests: Sequence[DraftRequest]) -> Tensor:
        """Read the features that came since the text last drafted."""
        return self.states([each.text for each in requests])

    @torch.inference_mode()
    def states(self, texts: Sequence[RequestView]) -> Float[Tensor, "texts dim"]:
        """The state behind the last known token of each text, when all features that came have been read.

        Zero for a text of which nothing was read yet: the radix tree had all of it but the last token.
        """
        self._catch_up(texts)
        none = torch.zeros(self.head.config.dim, dtype=self.head.dtype, device=self.target.device)
        known = [text.drafter_state.state if text.drafter_state is not None else None for text in texts]
        return torch.stack([none if state is None else state for state in known])

    def resume(self, texts: Sequence[RequestView], starts: Sequence[int], states: Float[Tensor, "texts dim"]) -> None:
        """Captured steps have read each text up to slot `starts`, and these are the states behind it."""
        for text, start, state in zip(texts, starts, states):
            text.drafter_state = EagleState(start, state=state)

    def further(self, requests: Sequence[DraftRequest], drafts: Sequence[Draft], states: Tensor) -> Tensor:
        """Read one slot each, with the drafter's own last state in the feature's place."""
        slots = [each.text.computed + len(draft.tokens) - 1 for each, draft in zip(requests, drafts)]
        tokens = [draft.tokens[-1] for draft in drafts]
        return self._run([each.text.table for each in requests], slots, [1] * len(requests), states, tokens)

    def branch(self, branches: Sequence[Branch], states: Tensor) -> Tensor:
        """Read a slot for each node, with the drafter's state behind its parent in the feature's place."""
        texts = [each.growth.request.text for each in branches]
        tables, slots = [text.table for text in texts], [text.computed for text in texts]
        trees = [each.growth.rows(slot, each.count) for slot, each in zip(slots, branches)]
        starts = [slot + each.before for slot, each in zip(slots, branches)]
        batch = self.cache.batch(tables, starts, [each.count for each in branches], trees)
        tokens = torch.tensor([x for each in branches for x in each.tokens], device=self.target.device)
        return self.head(states, self.target.embed(tokens), batch.positions, batch)

    def scored(self, indices: Int[Tensor, "nodes best"]) -> Int[Tensor, "nodes best"]:
        """Those in `token_ids`."""
        return self.head.token_ids.to(indices.device)[indices]

    def logits(self, states: Tensor) -> Tensor:
        """Scores of the tokens in `token_ids`."""
        return self.head.logits(states)

    def distribution(self, logits: Tensor, text: RequestView) -> Float[np.ndarray, "vocab"]:
        """Zero at every token that is not scored."""
        q = np.zeros(self.target.config.vocab_size)
        q[self.token_ids] = probabilities(logits, text.params).cpu().numpy()
        return q

    def follow(
        self,
        texts: Sequence[RequestView],
        starts: list[int],
        counts: list[int],
        features: Float[Tensor, "slots dim"],
        following: Int[Tensor, "slots"],
    ) -> None:
        """Read `counts` slots of each text from `starts` on, whose features captured steps have noted."""
        self._catch_up(texts)
        states = self._run([text.table for text in texts], starts, counts, features, following)
        last = sent(torch.from_numpy(np.cumsum(counts) - 1), states.device)
        self.resume(texts, [start + count for start, count in zip(starts, counts)], states[last])

    @torch.inference_mode()
    def observe(self, observations: Sequence[Observation]) -> None:
        """Keep the features, and read at once those whose pages other texts may share from now on.

        No features come of what captured steps have read themselves.
        """
        observations = [each for each in observations if each.states or each.end == each.start]
        for each in observations:
            if each.text.drafter_state is None or each.kind == "prompt":
                each.text.drafter_state = EagleState(each.start)
            state = each.text.drafter_state
            if each.end > each.start:
                state.features.append(self.head.fuse(each.states))
                state.following += each.tokens[1:]
        # One entry a text, its last observation: a text may come twice, and is read once.
        last = {id(each.text): each for each in observations if each.kind != "decode"}.values()
        due = [each for each in last if each.text.drafter_state.features]
        self._digest([each.text for each in due], [each.table for each in due])

    def _catch_up(self, texts: Sequence[RequestView]) -> None:
        late = [text for text in texts if text.drafter_state is not None and text.drafter_state.features]
        self._digest(late, [text.table for text in late])

    def _digest(self, texts: Sequence[RequestView], tables: Sequence[list[int]]) -> None:
        if not texts:
            return
        pending = [text.drafter_state for text in texts]
        counts = [len(each.following) for each in pending]
        features = torch.cat([feature for each in pending for feature in each.features])
        following = [x for each in pending for x in each.following]
        states = self._run(tables, [each.start for each in pending], counts, features, following)
        for text, last, count in zip(texts, np.cumsum(counts) - 1, counts):
            text.drafter_state = EagleState(text.drafter_state.start + count, state=states[last])

    def _run(
        self, tables: Sequence[list[int]], slots: list[int], counts: list[int], features: Tensor, following: Tokens
    ) -> Float[Tensor, "slots dim"]:
        batch = self.cache.batch(tables, slots, counts)
        embeds = self.target.embed(torch.as_tensor(following, device=self.target.device))
        return self._read(features, embeds, batch)

    def _read(self, features: Tensor, embeds: Tensor, batch: CacheBatch) -> Float[Tensor, "slots dim"]:
        """The states of these slots: by fewer launches where kernels run."""
        if not (self.captured and isinstance(batch, PagedKernelBatch)):
            return self.head(features, embeds, batch.positions, batch)
        batch.plan(self.head.layer.attention.heads)  # before `joined`, which is an ordinary launch
        return fused_layer(self.head.joined(features, embeds), self.head.layer, self.head.rope(features), batch)


def _fusible(head: DraftHead) -> bool:
    """Whether the head is made of what captured steps know: dense weights, and one layer without biases and norms."""
    c, layer = head.config, head.layer
    plain = isinstance(layer.attention, GroupedQueryAttention) and isinstance(layer.mlp, SwiGLU)
    return plain and not (c.qk_norm or c.qkv_bias or c.out_bias or c.mlp_bias or head.head.weight.is_mkldnn)
