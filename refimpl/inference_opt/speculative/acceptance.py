"""How many tokens a step would give a text, for each number of drafts: what its earlier tokens say, and nothing else.

For a draft that is looked up this is known without trying. After several tokens were decoded, with drafts or without,
each length γ can be replayed on them: what would have been drafted from each beginning of the text, how much of it is
what came, and so how many steps these tokens would have taken (`kernels/hindsight.py`). Other drafters show it only
where they draft: then α, the probability that a draft is accepted, is counted, and Eq. 1 of 2211.17192 (`cost.py`)
gives the number of steps for every length.

Recent tokens count more: the weight of a token falls by a factor e in `MEMORY` tokens.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from math import exp

import numpy as np
from jaxtyping import Float, Int

from inference_opt.kernels.shape import Shape
from inference_opt.speculative.cost import expected_tokens

LENGTHS = (0, 1, 2, 4, 7, 12)  # drafts a step; each has captured steps of its own
MEMORY = 96  # tokens
HOPE = 0.8  # the acceptance that is assumed of a drafter that can only be tried


class Acceptance:
    """Tokens, and the steps that they would take with each of `LENGTHS`."""

    def __init__(self, memory: float = MEMORY) -> None:
        self.memory, self.tokens, self.steps = memory, 0.0, [0.0] * len(LENGTHS)

    def learn(self, tokens: float, steps: Sequence[float]) -> None:
        """So many more tokens, which would have taken so many steps with each length."""
        self.fade(tokens)
        self.tokens += tokens
        self.steps = [old + new for old, new in zip(self.steps, steps)]

    def fade(self, tokens: float) -> None:
        """What is known counts as if so many tokens had come since."""
        kept = exp(-tokens / self.memory)
        self.tokens, self.steps = kept * self.tokens, [kept * old for old in self.steps]


def rates(
    texts: Iterable[Acceptance], before: Float[np.ndarray, "lengths #n"], weight: float
) -> Float[np.ndarray, "lengths n"]:
    """Tokens a step of each text; `before` is assumed until more than `weight` tokens are known."""
    tokens, steps = np.array([each.tokens for each in texts]), np.array([each.steps for each in texts]).T
    # The prior is `weight` tokens, and the steps that these take.
    return np.maximum((tokens + weight) / (steps + weight / before), 1.0)


def replayed(asked: int, drafted: int, kept: Sequence[int], leaf: bool) -> tuple[float, list[float]]:
    """The tokens of one step, and the steps that they would have taken with each length.

    `kept`: which drafts were accepted. A shorter draft would have been the first ones of this one, also of a tree
    (`best_first.py`). A longer one gives no more, but where all the drafts that were `asked` for ran out (`leaf`:
    nothing was drafted behind the last one accepted). All drafts of longer ones are then taken to be kept, too, until
    one is tried.
    """
    ran_out = leaf and drafted == asked
    gains = [sum(i < length for i in kept) + ran_out * max(length - asked, 0) for length in LENGTHS]
    return len(kept) + 1.0, [(len(kept) + 1) / (gain + 1) for gain in gains]


def of_trees(steps: Int[np.ndarray, "steps 4"], shape: Shape) -> tuple[float, list[float]] | None:
    """What captured steps with trees of this shape tell of all lengths; None: nothing.

    `steps`: drafts, those accepted, tokens emitted, and a bit for each draft that was accepted.
    """
    # Others were cut off at the end of the text, or broke: they do not show what other lengths would give.
    whole = (steps[:, 0] >= shape.gamma) & (steps[:, 2] > steps[:, 1])
    each = [(count, *_of_tree(shape, bits)) for bits, count in Counter(steps[whole, 3].tolist()).items()]
    tokens = sum(count * tokens for count, tokens, _ in each)
    return (tokens, [sum(n * taken[i] for n, _, taken in each) for i in range(len(LENGTHS))]) if each else None


@cache
def _of_tree(shape: Shape, bits: int) -> tuple[float, list[float]]:
    """What one step tells: a smaller tree is the first drafts of this one."""
    kept, further = [i for i in range(shape.gamma) if bits >> i & 1], Shape(LENGTHS[-1], branches=True).parents
    leaf = bool(kept) and kept[-1] not in shape.parents and kept[-1] in further[shape.gamma :]
    return replayed(shape.gamma, shape.gamma, kept, leaf)


def of_chains(steps: Int[np.ndarray, "steps 4"]) -> tuple[float, list[float]] | None:
    """The same of chains, if each draft is accepted with the same probability."""
    drafted, accepted, emitted, _ = steps.T
    rejected = int((accepted < drafted).sum())
    kept, tokens = int(accepted.sum()), float(emitted[drafted > 0].sum())
    return (tokens, steps_at(kept / (kept + rejected), tokens)) if kept + rejected else None


def steps_at(alpha: float, tokens: float) -> list[float]:
    """The steps that so many tokens take with each length, if each draft is accepted with probability α."""
    return [tokens / expected_tokens(alpha, length) for length in LENGTHS]


def rates_at(alpha: float) -> list[float]:
    """Tokens a step with each length at this α."""
    return [expected_tokens(alpha, length) for length in LENGTHS]
