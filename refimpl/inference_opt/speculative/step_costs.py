"""What a step costs with and without drafts: measured, not assumed.

On a card the rows of drafts are free until something other than the weights' bandwidth limits a step. Where that is,
the batch, the model and the card decide. So t(n, γ), the seconds of a step of n texts with γ drafts each, is a table of
what steps took. A step that was just captured is replayed a few times for nobody, which shows its price before a text
pays it. A length of which nothing is known is assumed to lie on the line between its neighbours that are, or to cost
little more than the longest, unless batches of other sizes show that it costs more: it is captured where it looks good,
and then known.

Between two runs of steps the host looks: it takes what the steps gave and says what comes next. With drafts it has more
to take and to say, so these looks are kept apart. Where steps run ahead of the host (`engine/flight.py`), looks between
them cost nothing. Then only looks at steps that did not run ahead tell what a look takes.
"""

from collections import defaultdict, deque
from statistics import median

import numpy as np
from jaxtyping import Float

from inference_opt.speculative.acceptance import LENGTHS

KEPT = 7  # measurements of a length that count, the latest
SPREAD = 0.5  # of the number of steps that a run needs, in square roots of it
LOOKS = 64  # that count, with drafts or without: what a look took long ago is forgotten, and so is a slow one
SURE = 5  # looks with drafts, or without, that are believed
FEW = 5.0  # plain steps: what fewer looks may cost at most
UNTRIED = 0.01  # what a draft is assumed to cost on a card, in steps, where it was not measured


class StepCosts:
    """Seconds of a step, by how many texts (rounded up to a power of two) and drafts behind each.

    `untried`: what a draft is assumed to cost, in steps, until it was measured. `ahead`: whether plain steps run ahead
    of the host.
    """

    def __init__(self, untried: float = UNTRIED, ahead: bool = False) -> None:
        self.untried, self.ahead = untried, ahead
        # By size and length: what steps took lately, the median of these, and what steps of nobody took.
        self.seconds: defaultdict[int, dict[int, deque[float]]] = defaultdict(dict)
        self.usual: defaultdict[int, dict[int, float]] = defaultdict(dict)
        self.idle: defaultdict[int, dict[int, float]] = defaultdict(dict)
        # By size: looks with and without drafts lately, and what either usually takes.
        self.looks: defaultdict[int, deque[tuple[bool, float]]] = defaultdict(lambda: deque(maxlen=LOOKS))
        self.usual_look: dict[tuple[int, bool], float] = {}

    def learn(self, texts: int, gamma: int, seconds: float) -> None:
        """A step took so long."""
        size = size_of(texts)
        took = self.seconds[size].setdefault(gamma, deque(maxlen=KEPT))
        took.append(seconds)
        self.usual[size][gamma] = median(took)

    def learn_look(self, texts: int, drafted: bool, seconds: float) -> None:
        """A run took so long besides its steps."""
        size = size_of(texts)
        looks = self.looks[size]
        looks.append((drafted, seconds))
        each = {kind: [took for its, took in looks if its == kind] for kind in (False, True)}
        for kind, own in each.items():
            # Other work on the host only adds to a look, so it is one of the shorter ones. The first ones may all be
            # slow, since kernels are compiled in them. That is no reason to stop.
            took = sorted(own or each[not kind])
            usual = took[len(took) // 4]
            doubted = len(own) < SURE and self.measured(texts, 0)
            self.usual_look[size, kind] = min(usual, FEW * self.of(texts, 0)) if doubted else usual

    def calibrate(self, texts: int, gamma: int, seconds: float) -> None:
        """A step of nobody took so long."""
        self.idle[size_of(texts)][gamma] = seconds

    def measured(self, texts: int, gamma: int) -> bool:
        """Whether a step of this kind has run."""
        return gamma in self.usual[size_of(texts)]

    def known(self, texts: int, gamma: int) -> bool:
        """Whether it has run, be it for nobody."""
        return self.measured(texts, gamma) or gamma in self.idle[size_of(texts)]

    def of(self, texts: int, gamma: int) -> float:
        """What a step costs: as measured; else as steps of nobody compare; else the least that it may cost."""
        size = size_of(texts)
        known, idle = self.usual[size], self.idle[size]
        if gamma in known:
            return known[gamma]
        if 0 not in known:
            return 1 + self.untried * gamma
        if gamma in idle and 0 in idle:
            return known[0] * max(idle[gamma] / idle[0], 1.0)
        # Drafts cost more in a larger batch, but at most in proportion to its size.
        others = [
            known[0] * (1 + (self.of(other, gamma) / self.of(other, 0) - 1) * min(size / other, 1))
            for other in sorted(self.usual)
            if 0 in self.usual[other] and (self.measured(other, gamma) or {0, gamma} <= self.idle[other].keys())
        ]
        lengths = sorted({*known, *(idle if 0 in idle else ())})
        below, above = [each for each in lengths if each < gamma], [each for each in lengths if each > gamma]
        low = self.of(texts, below[-1])
        if above:
            share = (gamma - below[-1]) / (above[0] - below[-1])
            return max([low + share * (self.of(texts, above[0]) - low), *others])
        return max([low * (1 + self.untried * gamma) / (1 + self.untried * below[-1]), *others])

    def all(self, texts: int) -> list[float]:
        """What a step costs with each of `LENGTHS`."""
        return [self.of(texts, length) for length in LENGTHS]

    def look(self, texts: int, drafted: bool) -> float:
        """Seconds of a look, usually; as of the other kind until it was measured; 0 until any was."""
        return 0.0 if self.ahead and not drafted else self.usual_look.get((size_of(texts), drafted), 0.0)

    def margin(self, texts: int, gamma: int, steps: float) -> float:
        """Steps to add to those that a run is expected to need: what is missing in the end takes another look.

        But they should not cost more than half of it.
        """
        return min(SPREAD * steps**0.5, self.look(texts, gamma > 0) / (2 * self.of(texts, gamma)))

    def until_done(self, lefts: Float[np.ndarray, "cases n"], most_steps: int) -> Float[np.ndarray, "cases"]:
        """Φ: seconds until n texts that may still have so many tokens have them, without drafts, in several cases.

        The batch shrinks as texts end. There is a look each `most_steps`, and one at the end.
        """
        texts = n = lefts.shape[1]
        prices = [self.of(n, 0)]  # and of a step of all texts, of all but one, …
        while texts:
            fewer = size_of(texts) // 2  # so many, and those below, are of another size
            prices += [self.of(texts, 0) if self.measured(texts, 0) else prices[-1]] * (texts - fewer)
            texts = fewer
        ends = np.sort(lefts)
        longest, phases = ends[:, -1], ends.copy()  # steps from one end to the next
        phases[:, 1:] -= ends[:, :-1]
        looks = np.where(longest > 0, np.maximum(longest / most_steps, 1), 0)
        return phases @ prices[1:] + looks * self.look(n, False)


def size_of(texts: int) -> int:
    """The next power of two."""
    return 1 << (texts - 1).bit_length()
