"""Whether drafts pay for a batch: what a step costs with and without them is measured, not assumed.

With γ drafts behind each text, a step gives Σ_i (1 + α_i + … + α_i^γ_i) tokens (`cost.py`), where text i wants γ_i ≤ γ
drafts and keeps each with probability α_i. It costs t(n, γ) seconds for n texts. The best γ gives the most tokens a
second. On a card t jumps where the rows stop being free, and the batch decides where: so t is a table of what earlier
steps took. A length that was not tried is assumed to cost little more than the nearest one that was: so it is tried
once where it looks good, and then known. Plain decoding, γ = 0, is measured first, and again from time to time.

The output does not depend on γ, since only tokens that the target would have drawn itself are kept (`rules.coupled`).
"""

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from functools import partial

from inference_opt.speculative.cost import expected_tokens

LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12)  # each has captured steps of its own
KEPT = 8  # measurements of a length that count, the latest
UNTRIED = 0.01  # what a draft is assumed to cost, in steps, where it was not measured
AGAIN = 64  # choices until plain decoding is measured again


class StepCosts:
    """Seconds of a step, by how many texts (rounded up to a power of two) and drafts behind each."""

    def __init__(self) -> None:
        self.seconds: defaultdict[int, dict[int, deque[float]]] = defaultdict(dict)
        self.choices: Counter[int] = Counter()

    def learn(self, texts: int, gamma: int, seconds: float) -> None:
        """A step took so long."""
        self.seconds[_size(texts)].setdefault(gamma, deque(maxlen=KEPT)).append(seconds)

    def of(self, texts: int, gamma: int) -> float:
        """What a step costs: as measured, or by the nearest length that was."""
        known = self.seconds[_size(texts)]
        near = min(known, key=lambda each: abs(each - gamma), default=None)
        if near is None:
            return 1 + UNTRIED * gamma
        return sum(known[near]) / len(known[near]) * (1 + UNTRIED * gamma) / (1 + UNTRIED * near)

    def best(self, alphas: Sequence[float], wanted: Sequence[int]) -> int:
        """The number of drafts a step, 0 … max(wanted), that gives the most tokens a second."""
        texts, size = len(alphas), _size(len(alphas))
        self.choices[size] += 1
        if 0 not in self.seconds[size] or self.choices[size] % AGAIN == 0:
            return 0
        return max((each for each in LENGTHS if each <= max(wanted)), key=partial(self._rate, texts, alphas, wanted))

    def _rate(self, texts: int, alphas: Sequence[float], wanted: Sequence[int], gamma: int) -> float:
        tokens = sum(expected_tokens(alpha, min(gamma, most)) for alpha, most in zip(alphas, wanted))
        return tokens / self.of(texts, gamma)


def _size(texts: int) -> int:
    """The next power of two."""
    return 1 << (texts - 1).bit_length()
