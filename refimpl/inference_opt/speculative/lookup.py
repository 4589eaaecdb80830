"""Drafters without a model: what follows was often there before.

Editing, summarising and quoting repeat the prompt, and code repeats itself. `PromptLookup` finds the last few tokens
earlier in the text and copies what came after them (Saxena 2023; Yang et al. 2304.04487); `NGram` counts all
that came after them and draws from these counts, an n-gram model of this one text (2211.17192, §4.2, tries bigrams).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from inference_opt.cache.paged import PagedCache
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import probabilities
from inference_opt.speculative.drafter import Draft, Drafter, DraftRequest
from inference_opt.speculative.rules import Probs
from inference_opt.values import integer

TOKEN_BYTES = 4  # of a token in an array of int32
OCCURRENCES = 8  # merged into a tree
WEIGHT = 0.8  # of a level of a tree by the one above it: about what is accepted of a chain


class PromptLookup(Drafter):
    """Copy what followed the latest earlier occurrence of the text's last `max_ngram` tokens, or of its last
    `max_ngram` − 1, …, `min_ngram`, where no longer end of the text occurred before.

    Nothing is drawn: q is a point mass, and a draft x is accepted with probability p(x).

    A tree merges what followed several earlier occurrences.
    """

    found = True
    captured = True
    trees = True
    reviewed = True

    def __init__(self, max_ngram: int = 4, min_ngram: int = 2) -> None:
        self.max_ngram = integer("max_ngram", max_ngram)
        self.min_ngram = integer("min_ngram", min_ngram)
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"expected 1 ≤ min_ngram ≤ max_ngram, got min_ngram {min_ngram}, max_ngram {max_ngram}")

    def propose(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """A draft as long as asked wherever there is a match."""
        return [self._chain(each) if each.depth is None else self._tree(each, each.depth) for each in requests]

    def guess(self, steps: Any, rows: int, gamma: int) -> None:
        """The same on the device."""
        steps.look_up(rows, gamma, self.min_ngram, self.max_ngram)

    def review(self, steps: Any, rows: int) -> Tensor:
        """Exactly, on the device."""
        taken: Tensor = steps.review(rows, self.min_ngram, self.max_ngram)
        return taken

    def _chain(self, request: DraftRequest) -> Draft:
        tokens = request.text.tokens
        start = self._find(np.asarray(tokens, dtype=np.int32).tobytes())
        return Draft() if start is None else Draft(self._copy(tokens, start, request.gamma))

    def _tree(self, request: DraftRequest, depth: int) -> Draft:
        """What followed the latest occurrences of one end of the text, merged where they begin alike.

        A node counts the share of the continuations that pass it, times WEIGHT for each level. The γ nodes that count
        most are a tree, because none counts more than its parent.
        """
        tokens = request.text.tokens
        votes: Counter[tuple[int, ...]] = Counter()
        # A copy: the text cannot grow while anyone looks at its own memory, be it a profiler that keeps this frame.
        for start in self._occurrences(np.array(tokens, dtype=np.int32)):
            copied = self._copy(tokens, start, depth)
            votes.update(tuple(copied[:level]) for level in range(1, depth + 1))
        # Sorting is stable: of equal ones the latest occurrence's comes first.
        best = sorted(votes, key=lambda path: -votes[path] * WEIGHT ** len(path))[: request.gamma]
        places = {path: i for i, path in enumerate(best)}
        return Draft([path[-1] for path in best], parents=[places.get(path[:-1], -1) for path in best])

    def _copy(self, tokens: Sequence[int], start: int, gamma: int) -> list[int]:
        copied = list(tokens[start : start + gamma])
        while len(copied) < gamma:  # the copy has caught up with the text, and goes on copying itself
            copied.append(copied[start - len(tokens)])
        return copied

    def _find(self, text: bytes) -> int | None:
        """The position behind the latest earlier occurrence of the text's end."""
        for n in range(min(self.max_ngram, len(text) // TOKEN_BYTES - 1), self.min_ngram - 1, -1):
            end = text[-n * TOKEN_BYTES :]
            at = text.rfind(end, 0, len(text) - TOKEN_BYTES)
            while at > 0 and at % TOKEN_BYTES:  # found across two tokens' bytes: search on, further left
                at = text.rfind(end, 0, at + len(end) - 1)
            if at >= 0:
                return at // TOKEN_BYTES + n
        return None

    def _occurrences(self, text: Int32[np.ndarray, "tokens"]) -> list[int]:
        """The positions behind several, the latest first, of the end that `_find` finds."""
        for n in range(min(self.max_ngram, len(text) - 1), self.min_ngram - 1, -1):
            same = np.lib.stride_tricks.sliding_window_view(text[:-1], n) == text[-n:]
            if (found := np.flatnonzero(same.all(axis=1))).size:
                return (found[: -OCCURRENCES - 1 : -1] + n).tolist()
        return []


class NGram(Drafter):
    """Draw from the counts of what followed the last n − 1 tokens, or fewer where those are new, in this text so far.

    The logarithms of the counts are the logits, so temperature, top-k and top-p apply.
    """

    vocab_size: int

    def __init__(self, n: int = 4) -> None:
        self.n = integer("n", n)
        if self.n < 2:
            raise ValueError(f"n must be at least 2 (one token, and the one that follows), got {n}")

    def bind(self, target: Transformer, cache: PagedCache) -> "NGram":
        """Distributions are over the target's vocabulary."""
        bound = NGram(self.n)
        bound.vocab_size = target.config.vocab_size
        return bound

    def propose(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """A draft that ends where no context was seen before."""
        return [self._draw(each) for each in requests]

    def _draw(self, request: DraftRequest) -> Draft:
        counts = self._counts(request)
        probs: list[Probs] = []
        draft = Draft([], probs)
        context = list(request.text.tokens[-self.n + 1 :])
        while len(draft.tokens) < request.gamma:
            seen = next((c for i in range(len(context)) if (c := counts.get(tuple(context[i:])))), None)
            if seen is None:
                break
            logits = torch.full((self.vocab_size,), -torch.inf, dtype=torch.float64)
            logits[list(seen)] = torch.tensor(list(seen.values()), dtype=torch.float64).log()
            probs.append(probabilities(logits, request.text.params).numpy())
            draft.tokens.append(request.rng.choose(probs[-1], len(draft.tokens)))
            context = [*context, draft.tokens[-1]][-self.n + 1 :]
        return draft

    def _counts(self, request: DraftRequest) -> dict[tuple[int, ...], Counter[int]]:
        """{context: how often each token followed it}, kept with the text and updated."""
        empty: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        counts, done = request.text.drafter_state or (empty, 1)
        tokens = request.text.tokens
        for i in range(done, len(tokens)):
            before = tuple(tokens[max(i - self.n + 1, 0) : i])
            for start in range(len(before)):
                counts[before[start:]][tokens[i]] += 1
        request.text.drafter_state = counts, len(tokens)
        return counts
