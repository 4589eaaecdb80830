"""How many tokens a step would give a text, for each number of drafts: what its earlier tokens say, and nothing else.

For a draft that is looked up this is known without trying. After several tokens were decoded, with drafts or without,
each length γ can be replayed on them: what would have been drafted from each beginning of the text, how much of it is
what came, and so how many steps these tokens would have taken (`kernels/hindsight.py`). Other drafters show it only
where they draft: then α, the probability that a draft is accepted, is counted, and Eq. 1 of 2211.17192 (`cost.py`)
gives the number of steps for every length.

Recent tokens count more: the weight of a token falls by a factor e in `MEMORY` tokens.
"""

from collections.abc import Iterable, Sequence
from math import exp

import numpy as np
from jaxtyping import Float

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


def steps_at(alpha: float, tokens: float) -> list[float]:
    """The steps that so many tokens take with each length, if each draft is accepted with probability α."""
    return [tokens / expected_tokens(alpha, length) for length in LENGTHS]


def rates_at(alpha: float) -> list[float]:
    """Tokens a step with each length at this α."""
    return [expected_tokens(alpha, length) for length in LENGTHS]
