"""How many drafts a step, and for how many steps until the next choice: what gains the most time, and never loses much.

With γ drafts behind each of n texts, text i gets E_i(γ) tokens a step (`acceptance.py`), and a step costs t(n, γ)
seconds (`step_costs.py`). What is it worth? As much as the plain steps that it saves. Texts wait for the slowest of
them, and those that are left have cheaper steps. So if text i may still have L_i tokens, and Φ(L) is the time in
which plain steps decode all of them, a run of S steps gains

    Φ(L) − Φ(max(L − S · E(γ), 0)) − S · t(n, γ) − a look

If other requests wait for a place, whoever ends makes room, and the tokens of all texts count alike. The best γ gains
the most for its time. All of this is estimated, so what it may lose is bounded (compare Wu et al. 2016, Conservative
Bandits, 1602.04282):

    credit   what speculation has gained on plain decoding so far, in seconds; a share of the time of plain steps is
             added. A look is taken off where plain steps had to wait for one because of drafts. The credit never
             grows, nor falls, beyond some plain steps
    risk     what a step loses if only half of what drafts are expected to gain comes (nothing, before any text has
             shown what to expect)
    look     what a run takes besides its steps, more with drafts than without: a run of few steps pays it early. There
             is none between steps and those that were launched behind them
    steps    as many as the credit pays for. Where only drafting shows what a drafter gives, and so few steps would not
             make up for their look even if they gave what is expected, the credit is kept until it pays for more
    capture  a step that was never captured must be (`engine/captured_steps.py`), which takes as long as hundreds of
             steps. How often a size of batch comes is not known. So it is done when what such steps would have gained
             so far has reached what it takes: then at most twice the time is lost that the best plan would have lost
             (as with skis: rent them until the rent has reached their price; Karlin et al. 1988). What they would have
             gained is an estimate, so after the first few, captures may take a share of the time

So speculation loses at most a small share of the time. It begins with few steps, and goes on longer as it gains. A
drafter whose acceptance is seen only where it drafts is tried whenever the credit has grown enough. Texts that have
just begun are taken to be as different from each other as those that ended lately.

The output does not depend on γ, since only tokens that the target would have drawn itself are kept (`rules.coupled`).
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from inference_opt.speculative.acceptance import HOPE, LENGTHS, Acceptance, rates, rates_at
from inference_opt.speculative.step_costs import UNTRIED, StepCosts, size_of

SPARE = 0.01  # of the time of plain steps, for trials that fail
CAP = 12.0  # plain steps: the most that speculation may lose before it pays again, and that is held against it
WORST = 24.0  # plain steps: the most that one run may lose, besides two looks
FEW_TEXTS = 8  # at most, show too little in few steps
FORGIVEN = 5.0  # plain steps of so few texts: of the look of a trial
BEGIN = 4.0  # plain steps of credit at first
FIRST = 16  # plain steps until a text's first choice
SHORT = 8  # steps of a first trial, and those that measure plain decoding again
LEAST = 4  # steps that are worth a trial
TRIED = 3  # drafts of a chain, at most, while nothing is known: α shows in few drafts as well
AGAIN = 32  # choices until plain decoding is measured again
BETTER = 1.05  # times plain: estimates are rough
WEIGHT = 24.0  # tokens that the other texts' acceptance counts for in a text's own
ENDED = 64  # texts that tell how different texts are
KNOWN = 32  # tokens of earlier texts that tell what texts are like
LATELY = 2048.0  # tokens of other texts that count
AT_ONCE = 6  # captures that take no share of the time
CAPTURE = 0.05  # seconds: what a capture is assumed to take before one was measured


class Expected(NamedTuple):
    """What a run of steps with so many drafts would give."""

    length: int
    steps: int  # at most
    tokens: float  # of a text on average, a step
    worth: float  # plain steps that a step saves, each with its share of a look
    price: float  # of a step, in plain steps
    gain: float  # times plain decoding

    def __str__(self) -> str:
        given = f"{self.length} drafts give {self.tokens:.2f} tokens a step"
        return f"{given}, worth {self.worth:.2f} plain steps, at the price of {self.price:.2f}"


class Choice:
    """Decides for all texts of a batch. `seen`: whether acceptance is known from plain steps, too (`acceptance.py`).

    `untried`: as of `StepCosts`. `tried`: drafts, at most, of a drafter of which nothing is known. `trees`: whether
    drafts are trees of fixed shapes. `capture`: seconds that it takes to capture a step; 0: steps are not captured.
    `ahead`: as of `StepCosts`.
    """

    def __init__(
        self,
        seen: bool,
        untried: float = UNTRIED,
        tried: int = TRIED,
        trees: bool = False,
        capture: float = 0.0,
        ahead: bool = False,
    ) -> None:
        self.seen, self.costs, self.lately = seen, StepCosts(untried, ahead), Acceptance(LATELY)
        self.trees, self.largest = trees, 0  # the largest tree that has run, as an index of `LENGTHS`
        self.ended: deque[Acceptance] = deque(maxlen=ENDED)  # of texts that ended lately
        self.tried, self.capture = tried, capture
        # For want of a captured step: the share of the time that is missed now, and seconds so far, by size.
        self.missing, self.missed = 0.0, defaultdict[int, float](float)
        self.captures, self.lived = 0, 0.0  # steps with drafts that were captured; seconds of all steps
        self.credit = BEGIN  # in plain steps
        self.since_plain = 0
        self.why = "nothing was decided yet"

    def best(
        self,
        texts: Sequence[Acceptance],
        wanted: Sequence[int],
        lefts: Sequence[int] | None,
        most_steps: int,
        going: int = 0,
    ) -> tuple[int, int]:
        """How many drafts a step, up to those wanted, and at most how many steps.

        `lefts`: how many tokens each text may still have; None if others wait for a place. `going`: steps with so many
        drafts are under way, and more of them can be launched behind them: there is no look in between.
        """
        n, self.missing = len(texts), 0.0
        new = sum(each.tokens < FIRST for each in texts) * 2 > n
        if not self.costs.measured(n, 0):
            self.why = f"plain decoding of {n} texts is measured first"
            return 0, min(FIRST, most_steps)
        expected = self._expected(texts, wanted, lefts, most_steps, going)
        tried = self._unknown and not self.seen
        most = min(max(wanted), self.tried) if tried else max(wanted)
        lengths = [each for each in expected if 0 < each.length <= most] or expected[:1]
        lengths.sort(key=lambda each: each.gain, reverse=True)
        # The first tokens of the first texts show whether drafts pay. Later texts are taken to be like them.
        few = min(FIRST, most_steps) if new and self.seen and self._unknown else most_steps
        if lengths[0].gain < BETTER:
            self.why = f"{n} texts: {lengths[0]}: plain decoding"
            return 0, few
        # Where the credit does not pay for the best, it may pay for one that risks less.
        ready = self._captured(n, lengths)
        for each in ready:
            self.why = f"{n} texts: {each}"
            look = self.look(n) if each.length != going else 0.0
            steps = self._steps(n, each, 1.0 if tried else (1 + each.worth) / 2, most_steps, look)
            if (new and self._unknown) or not self.costs.measured(n, each.length):
                steps = min(steps, SHORT)
            if each.gain >= BETTER and steps >= min(LEAST, each.steps) and (self.credit >= 0 or not self.seen):
                break
        else:
            but = "too much was lost lately" if ready else "to capture its steps does not pay yet"
            self.why = f"{n} texts: {lengths[0]}, but {but}: plain decoding"
            return 0, few
        if steps == each.steps:
            steps = min(steps + ceil(self.costs.margin(n, each.length, float(steps))), most_steps)
        self.since_plain += 1
        if self.since_plain >= AGAIN:  # until plain steps have run
            self.why = "plain decoding is measured again"
            return 0, min(SHORT, most_steps)
        return each.length, steps

    def _expected(
        self,
        texts: Sequence[Acceptance],
        wanted: Sequence[int],
        lefts: Sequence[int] | None,
        most_steps: int,
        going: int,
    ) -> list[Expected]:
        """What a run with each length would give."""
        n, given = len(texts), self._rates(texts, wanted)
        look, plain_look = self.look(n), self.look(n, False)
        prices, worst = np.array(self.costs.all(n)) / self.costs.of(n, 0), WORST + 2 * look
        # Texts change: no draft may be accepted any more.
        steps = np.clip(worst / np.maximum(prices - 1, 1e-9), LEAST, most_steps)
        if lefts is not None:
            steps = np.minimum(steps, np.ceil(lefts / given).max(axis=1))
        steps = steps.astype(int)
        saved = self._saved(steps[:, None] * given, lefts, most_steps)
        looks = [0.0 if going and length == going else look for length in LENGTHS]
        gains = saved / (steps * prices + looks)
        worths = saved / steps / (1 + plain_look / most_steps)
        columns = (each.tolist() for each in (steps, given.mean(axis=1), worths, prices, gains))
        return list(map(Expected, LENGTHS, *columns))

    def _rates(self, texts: Sequence[Acceptance], wanted: Sequence[int]) -> Float[np.ndarray, "lengths n"]:
        """Tokens a step with each length. No text has more drafts than it wants."""
        found, most = rates(texts, self._usual(len(texts)), WEIGHT), np.array(wanted)
        for i, length in enumerate(LENGTHS):
            found[i] = np.where(most < length, found[i - 1], found[i])
        return found

    def _usual(self, n: int) -> Float[np.ndarray, "lengths n"]:
        """Tokens a step that n texts have before they show it: as different as those of the texts that ended lately.

        At first none are expected, but of a drafter that must be tried.
        """
        before = rates_at(0.0 if self.seen else HOPE)
        usual = rates([self.lately], np.array(before)[:, None], WEIGHT)
        if n == 1 or not self.ended:
            return usual.repeat(n, axis=1)
        ended = np.sort(rates(self.ended, usual, WEIGHT))  # in n equal groups, from slow to fast:
        return ended.repeat(n, axis=1).reshape(len(LENGTHS), n, -1).mean(axis=2)

    def _saved(
        self, tokens: Float[np.ndarray, "lengths n"], lefts: Sequence[int] | None, most_steps: int
    ) -> Float[np.ndarray, "lengths"]:
        """Plain steps that are saved if each text has so many more tokens."""
        n = tokens.shape[1]
        if lefts is None:
            return tokens.mean(axis=1) * (1 + self.look(n, False) / most_steps)
        after = np.maximum(lefts - np.vstack((np.zeros(n), tokens)), 0)
        left = self.costs.until_done(after, most_steps) / self.costs.of(n, 0)
        return left[0] - left[1:]

    def _captured(self, n: int, lengths: list[Expected]) -> list[Expected]:
        """Those of these, sorted by what they gain, whose steps are captured. The best is, if enough was missed."""
        if not self.capture:
            return lengths
        ready = [each for each in lengths if self.costs.known(n, each.length)]
        if lengths[0] in ready:
            return ready
        self.missing = 1 - max(max((each.gain for each in ready), default=1.0), 1.0) / lengths[0].gain
        spare = self.lived * SPARE / self.capture + AT_ONCE  # captures
        return [lengths[0], *ready] if self.missed[size_of(n)] >= self.capture and self.captures < spare else ready

    def captured(self, texts: int, drafts: int, step: float, seconds: float) -> None:
        """A step was captured in so many seconds, and took `step` seconds for nobody."""
        self.costs.calibrate(texts, drafts, step)
        if drafts:
            self.capture = min(self.capture, seconds)  # others compiled kernels, too
            self.missed[size_of(texts)], self.captures = 0.0, self.captures + 1

    def _steps(self, texts: int, each: Expected, hoped: float, most_steps: int, look: float) -> int:
        """As many steps as may be risked, if each saves at least the plain steps that are hoped for."""
        plain = 1 + self.look(texts, False) / most_steps
        risk = each.price - hoped * plain
        if look + each.steps * risk <= self.credit:  # if that is below 0: what was lost is won back
            return each.steps
        # In few steps, few texts do not show what a drafter gives that must be tried. So most of a look is forgiven.
        forgiven = 0.0 if self.seen or texts > FEW_TEXTS else min(look, FORGIVEN)
        left = min(self.credit - look + forgiven, CAP)
        if left < 0:
            return 0
        if each.steps * risk <= left:
            return each.steps
        steps = int(left / risk)
        return steps if self.seen or steps * (each.worth * plain - each.price) >= look else 0

    def shown(self, steps: Sequence[float], drafts: int) -> list[float]:
        """The steps that a text's tokens would have taken with each length, after it had up to so many drafts a step.

        A larger tree has more siblings, and its steps would have kept some that are not in a smaller one. So where a
        small tree shows no gain of larger ones that have run, these keep the ratio that they lately had to it.
        """
        known = max(i for i, length in enumerate(LENGTHS) if length <= drafts)
        self.largest = max(self.largest, known)
        lately = self.lately.steps
        if not self.trees or known == self.largest or not lately[known]:
            return list(steps)
        larger = zip(steps[known + 1 :], lately[known + 1 :])
        return [*steps[: known + 1], *(min(own, steps[known] * its / lately[known]) for own, its in larger)]

    @property
    def _unknown(self) -> bool:
        return self.lately.tokens < KNOWN

    def look(self, texts: int, drafted: bool = True) -> float:
        """What a run takes besides its steps, in plain steps of so many texts; 0 while it is not known."""
        return self.costs.look(texts, drafted) / self.costs.of(texts, 0) if self.costs.measured(texts, 0) else 0.0

    def learn(
        self,
        tokens: Sequence[int],
        lefts: Sequence[int] | None,
        drafts: int,
        steps: int,
        most_steps: int,
        seconds: float | None,
        look: float | None = None,
        ran_ahead: bool = False,
    ) -> None:
        """A run of so many steps, of `most_steps` that it might have had: tokens of each text.

        `lefts`: as of `best`, before the run. `seconds` of a step, and of a `look`, which is what the run took besides;
        None: not measured. `ran_ahead`: it was launched before anyone looked at the run in front of it.
        """
        n = len(tokens)
        if look is not None:
            self.costs.learn_look(n, drafts > 0, look)
        if seconds is not None:
            self.costs.learn(n, drafts, seconds)
            self.missed[size_of(n)] += self.missing * steps * seconds
            self.lived += steps * seconds
        if not self.seen and not drafts:
            self.lately.fade(float(steps))  # what was seen long ago may have changed
        # Of a drafter that only shows in its steps what it gives, little of a run is held against it: the run may have
        # been slow.
        least = min(self.credit, -(CAP if self.seen else BEGIN))
        if not drafts:
            self.credit, self.since_plain = self.credit + SPARE * steps, 0
        elif self.costs.measured(n, 0):  # it may not be, where requests name their lengths
            self.credit += float(self._saved(np.array([tokens], dtype=float), lefts, most_steps)[0])
            self.credit -= 0.0 if ran_ahead else self.look(n)
            self.credit -= steps * self.costs.of(n, drafts) / self.costs.of(n, 0)
        self.credit = min(max(self.credit, least), CAP)

    def paused(self, texts: int) -> None:
        """Plain steps had to wait for a look, because drafts came before them, or seemed to pay and then did not."""
        self.credit = max(self.credit - self.look(texts), -CAP)
