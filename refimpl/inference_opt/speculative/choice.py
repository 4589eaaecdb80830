"""How many drafts a step, and for how many steps until the next choice: most tokens a second, and never a loss.

With γ drafts behind each of n texts, a step gives Σ_i E_i(γ) tokens (`acceptance.py`) and costs t(n, γ) seconds
(`step_costs.py`); the best γ gives the most tokens a second. Both are estimates, so what they may lose is bounded
(compare Wu et al. 2016, Conservative Bandits, 1602.04282):

    credit   what speculation has gained on plain decoding so far, in seconds; a share of the time of plain steps is
             added. It never grows, nor falls, beyond some plain steps
    risk     what a step loses if only half of the tokens come that drafts are expected to give (none, before any
             text has shown what to expect)
    look     what the host takes between two runs of steps: a run of few steps pays it early
    steps    as many as the credit pays for

So speculation loses at most a small share of the time. It begins with few steps, and goes on longer as it gains. A
drafter whose acceptance is seen only where it drafts is tried whenever the credit has grown enough.

The output does not depend on γ, since only tokens that the target would have drawn itself are kept (`rules.coupled`).
"""

from collections import deque
from collections.abc import Sequence

from inference_opt.speculative.acceptance import HOPE, LENGTHS, Acceptance, rates_at
from inference_opt.speculative.step_costs import UNTRIED, StepCosts

SPARE = 0.01  # of the time of plain steps, for trials that fail
CAP = 12.0  # plain steps: the most that speculation may lose before it pays again, and that is held against it
WORST = 24.0  # plain steps: the most that one run may lose, besides two looks
BEGIN = 4.0  # plain steps of credit at first
FIRST = 16  # plain steps until a text's first choice
SHORT = 8  # steps of a trial, and those that measure plain decoding again
LEAST = 4  # steps that are worth a trial
TRIED = 3  # drafts of a chain, at most, while nothing is known: α shows in few drafts as well
AGAIN = 32  # choices until plain decoding is measured again
BETTER = 1.05  # times plain: less is lost again where texts end at different times
WEIGHT = 24.0  # tokens that the other texts' acceptance counts for in a text's own
LOOKS = 9  # that count
KNOWN = 128  # tokens of earlier texts that tell what texts are like
LATELY = 2048.0  # tokens of other texts that count


class Choice:
    """Decides for all texts of a batch. `seen`: whether acceptance is known from plain steps, too (`acceptance.py`).

    `untried`: as of `StepCosts`. `tried`: drafts, at most, of a drafter of which nothing is known.
    """

    def __init__(self, seen: bool, untried: float = UNTRIED, tried: int = TRIED) -> None:
        self.seen, self.costs, self.lately = seen, StepCosts(untried), Acceptance(LATELY)
        self.tried = tried
        self.credit = BEGIN  # in plain steps
        self.looks: deque[float] = deque(maxlen=LOOKS)  # seconds of the host between two runs, the latest
        self.since_plain = 0
        self.why = "nothing was decided yet"

    def best(self, texts: Sequence[Acceptance], wanted: Sequence[int], most_steps: int) -> tuple[int, int]:
        """How many drafts a step, up to those wanted, and at most how many steps."""
        n = len(texts)
        new = sum(each.tokens < FIRST for each in texts) * 2 > n
        if not self.costs.measured(n, 0):
            self.why = f"plain decoding of {n} texts is measured first"
            return 0, min(FIRST, most_steps)
        usual = self._usual()
        costs = self.costs.all(n)
        relative = [each / costs[0] for each in costs]
        tokens = [0.0] * len(LENGTHS)  # of a text on average
        for text, most in zip(texts, wanted):
            rates = text.rates(usual, WEIGHT)
            for i, length in enumerate(LENGTHS):
                if length > most:
                    rates[i] = rates[i - 1]
                tokens[i] += rates[i] / n
        gains = [each / cost for each, cost in zip(tokens, relative)]
        tried = self._unknown and not self.seen
        most = min(max(wanted), self.tried) if tried else max(wanted)
        lengths = [i for i, each in enumerate(LENGTHS) if 0 < each <= most] or [0]
        lengths.sort(key=gains.__getitem__, reverse=True)
        said = [
            f"{n} texts: {LENGTHS[i]} drafts give {tokens[i]:.2f} tokens a step at {relative[i]:.2f} plain steps"
            for i in lengths
        ]
        # The first tokens of the first texts show whether drafts pay. Later texts are taken to be like them.
        plain = min(FIRST, most_steps) if new and self.seen and self._unknown else most_steps
        if gains[lengths[0]] < BETTER:
            self.why, self.since_plain = f"{said[0]}: plain decoding", 0
            return 0, plain
        # Where the credit does not pay for the best, it may pay for one that risks less.
        for i, why in zip(lengths, said):
            self.why = why
            steps = self._steps(n, relative[i], 1.0 if tried else (1 + tokens[i]) / 2, most_steps)
            if (new and self._unknown) or not self.costs.measured(n, LENGTHS[i]):
                steps = min(steps, SHORT)
            if gains[i] >= BETTER and steps >= min(LEAST, most_steps) and self.credit >= 0:
                break
        else:
            self.why = f"{said[0]}, but too much was lost lately: plain decoding"
            return 0, plain
        self.since_plain += 1
        if self.since_plain >= AGAIN:
            self.since_plain = 0
            return 0, min(SHORT, most_steps)
        return LENGTHS[i], steps

    def _steps(self, texts: int, price: float, hoped: float, most: int) -> int:
        """As many steps of this price as may be risked, if at least the tokens come that are hoped for."""
        risk, steps = price - hoped, most
        if risk > 0 and self.credit < most * risk:
            steps = max(int((self.credit - self.look(texts)) / risk), 0)
        if price > 1:  # texts change: no draft may be accepted any more
            worst = WORST + 2 * self.look(texts)
            steps = min(steps, max(int(worst / (price - 1)), LEAST))
        return steps

    @property
    def _unknown(self) -> bool:
        return self.lately.tokens < KNOWN

    def _usual(self) -> list[float]:
        """Tokens a step that texts had lately; at first none are expected, but of a drafter that must be tried."""
        return self.lately.rates(rates_at(0.0 if self.seen else HOPE), WEIGHT)

    def look(self, texts: int) -> float:
        """What the host takes between two runs of steps, in plain steps of so many texts; 0 while it is not known."""
        # The least of the latest: some also compiled a kernel, or met a busy machine.
        return min(self.looks) / self.costs.of(texts, 0) if self.looks and self.costs.measured(texts, 0) else 0.0

    def learn(
        self,
        texts: int,
        drafts: int,
        steps: int,
        tokens: float,
        seconds: float | None,
        short: bool = False,
        look: float | None = None,
    ) -> None:
        """A run of so many steps: tokens of a text on average, seconds of a step (None: not measured).

        `short`: it would have had more steps if more had been risked. `look`: seconds of the host since the run before.
        """
        if look is not None:
            self.looks.append(look)
        if seconds is not None:
            self.costs.learn(texts, drafts, seconds)
        if not self.seen and not drafts:
            self.lately.fade(float(steps))  # what was seen long ago may have changed
        if not drafts:
            self.credit += SPARE * steps
        elif self.costs.measured(texts, 0):  # it may not be, where requests name their lengths
            self.credit += tokens - steps * self.costs.of(texts, drafts) / self.costs.of(texts, 0)
            self.credit -= short * self.look(texts)
        self.credit = min(max(self.credit, -CAP), CAP)
