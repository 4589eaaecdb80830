"""Judging a sampler: the distribution of the text that it gives, against the target's own, on many pairs of models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference_opt.lab.exactness.kit import likeness, sampled
from inference_opt.lab.exactness.kit.integrate import Law
from inference_opt.lab.exactness.kit.pairs import Pair, neighbours
from inference_opt.lab.exactness.kit.subject import (
    Noise,
    Subject,
    continued,
    drafted,
    emitted_by,
    probability_of,
    total_variation,
)
from inference_opt.lab.exactness.proposals import Prefix, Propose, chain


@dataclass(frozen=True)
class Verdict:
    """The verdict on a sampler.

    `bias`: total variation between the text's distribution and the target's, on the worst pair found. Computed where
    `tested` is None (`exact` then says that it is below the tolerance, on every pair), else estimated from samples.
    `impossible`: texts that the target never says, met where a number is exactly 0 or the largest float32 below 1.
    `like`: rules of the zoo, or right ones, that emit the same on all pairs compared, else the nearest at a `distance`.
    """

    exact: bool
    bias: float
    worst: Pair
    like: tuple[str, ...]
    distance: float
    impossible: tuple[Prefix, ...] = ()
    numbers: int = 0  # uniform numbers that a step read, at the most
    runs: int = 0  # of the sampler
    tested: "sampled.Test | None" = None

    def __bool__(self) -> bool:
        return self.exact

    def __str__(self) -> str:
        lines = ["exact" if self.exact else "BIASED"]
        if self.tested:
            lines[0] = "no bias seen" if self.exact else "BIASED"
            lines.append(str(self.tested))
        lines.append(f"total variation {self.bias:.2g} on the worst pair, {self.worst}")
        if self.impossible:
            texts = ", ".join(map(str, self.impossible[:3]))
            lines.append(f"where a number is 0, or the largest below 1, it emits what the target never says: {texts}")
        alike = " or ".join(self.like)
        lines.append(f"it behaves like: {alike}" if not self.distance else f"nearest: {alike}, at {self.distance:.2g}")
        lines.append(f"{self.runs:,} runs" + ("" if self.tested else f", up to {self.numbers} numbers read in each"))
        return "\n".join(lines)


def judge(
    sampler: Callable[[Any, Any, Any, Any], Any],
    *,
    vocab: int = 3,
    gamma: int = 2,
    length: int | None = None,
    draft: Propose = chain,
    noise: Noise = "uniforms",
    tolerance: float = 1e-6,
    search: int = 40,
    pairs: Sequence[Pair] | None = None,
    level: float = 1e-3,
    power: float = 0.9,
    sees: float = 0.05,
    seed: int = 0,
) -> Verdict:
    """Judge one step of speculation: `sampler(draft, target, tokens, noise)` returns the 1 to gamma + 1 tokens emitted.

    It gets the distributions of the drafts, an array [gamma, vocab], those of the target, [gamma + 1, vocab] (after
    the text, and after each draft), the drafted tokens, and `Uniforms`. What it emits is continued by the target to
    `length` tokens (gamma + 1 by default), and must then be distributed as the target's own text.

    `draft` draws and reports the drafts (`proposals.chain`, `siblings()`, `branching()`, or an engine's own way: see
    `proposals.Propose`; a tree's arguments are mappings by path, as in `rules.tree`). `noise`: what the fourth argument
    is, numbers ("uniforms"), an int ("seed") or a `torch.Generator` ("generator").

    With numbers the distribution is computed: `exact` if its total variation from the target's is within `tolerance`
    (float32 code: 1e-5) on a panel of pairs of models (or `pairs`) and on `search` more, which climb towards the worst.
    Otherwise it is tested: a right sampler is called biased with probability at most `level`, a sampler whose total
    variation is at least `sees` on a pair of the panel is found with probability `power` or more.

    ValueError if the sampler returns tokens outside the vocabulary, if it is not a step function of its numbers, and
    for settings out of range.
    """
    check(vocab, gamma, level, power, sees)
    subject = Subject(
        hand=lambda pair, choose: drafted(pair, draft, gamma, choose),
        run=lambda handed, given: emitted_by(sampler, (*handed, given), vocab, 1, gamma + 1),
        vocab=vocab,
        gamma=gamma,
        length=length or gamma + 1,
        whole=False,
    )
    if noise != "uniforms":
        return _tested(subject, pairs, noise, level, power, sees, seed)
    return _computed(subject, pairs, tolerance, search, seed)


def judge_text(
    generate: Callable[[Any, Any, int, Any], Any],
    *,
    vocab: int = 3,
    gamma: int = 2,
    length: int = 3,
    noise: Noise = "uniforms",
    tolerance: float = 1e-6,
    search: int = 40,
    pairs: Sequence[Pair] | None = None,
    level: float = 1e-3,
    power: float = 0.9,
    sees: float = 0.05,
    seed: int = 0,
) -> Verdict:
    """Judge a whole decoding loop: `generate(target, draft, length, noise)` returns a text of that many tokens or more.

    `target` and `draft` are functions of a text (a tuple of tokens), which give the distribution after it, an array
    [vocab]. Only so are mistakes of the drafter found, and noise that is shared between steps. `gamma`: how many
    drafts a step has in the rules that it is compared with. The rest as in `judge`.
    """
    check(vocab, gamma, level, power, sees)

    subject = Subject(
        hand=lambda pair, choose: [
            lambda text, model=model: np.array(model(tuple(text)), dtype=float) for model in (pair.target, pair.draft)
        ],
        run=lambda models, given: emitted_by(generate, (*models, length, given), vocab, length, None)[:length],
        vocab=vocab,
        gamma=gamma,
        length=length,
        whole=True,
    )
    if noise != "uniforms":
        return _tested(subject, pairs, noise, level, power, sees, seed)
    return _computed(subject, pairs, tolerance, search, seed)


def _computed(subject: Subject, pairs: Sequence[Pair] | None, tolerance: float, search: int, seed: int) -> Verdict:
    laws: dict[Pair, Law] = {}
    bias: dict[Pair, float] = {}
    impossible: dict[Pair, tuple[Prefix, ...]] = {}

    def look(pair: Pair) -> float:
        laws[pair] = subject.law(pair)
        bias[pair] = total_variation(continued(laws[pair].probability, pair, subject.length), subject.right(pair))
        impossible[pair] = tuple(sorted(e for e in laws[pair].at_ends if probability_of(e, pair) == 0))
        return bias[pair]

    pairs = pairs or subject.pairs()
    for pair in pairs:
        look(pair)
    worst = max(pairs, key=lambda pair: bias[pair])
    searching = neighbours(worst, np.random.default_rng(seed))
    found: Pair | None = None
    for _ in range(search):
        tried = searching.send(found) if found else next(searching)
        found = tried if look(tried) >= bias[worst] else None
        worst = found or worst
    odd = next((pair for pair in laws if impossible[pair]), None)
    exact = bias[worst] <= tolerance and odd is None
    if bias[worst] <= tolerance and odd:
        worst = odd
    candidates = likeness.candidates_for(subject, exact, at_ends=bias[worst] <= tolerance)
    compared = {pair: laws[pair].probability for pair in (worst, *pairs)}
    like, distance = likeness.nearest(compared, subject, 10 * tolerance, candidates)
    return Verdict(
        exact,
        bias[worst],
        worst,
        like,
        distance,
        impossible[odd] if odd else (),
        max(law.numbers for law in laws.values()),
        sum(law.runs for law in laws.values()),
    )


def _tested(
    subject: Subject, pairs: Sequence[Pair] | None, noise: Noise, level: float, power: float, sees: float, seed: int
) -> Verdict:
    pairs = pairs or subject.pairs()[: sampled.PAIRS]
    test, counts = sampled.test(subject, pairs, noise, level, power, sees, seed)
    candidates = likeness.candidates_for(subject, exact=test.passed)
    like, distance = likeness.likeliest(counts, subject, level, candidates)
    worst = max(pairs, key=lambda pair: test.bias[pair])
    runs = sum(sum(count.values()) for count in counts.values())
    return Verdict(test.passed, test.bias[worst], worst, like, distance, runs=runs, tested=test)


def check(vocab: int, gamma: int, level: float, power: float, sees: float) -> None:
    """ValueError for settings out of range."""
    if vocab < 2 or gamma < 1:
        raise ValueError(f"expected at least 2 tokens and 1 draft, got vocab={vocab}, gamma={gamma}")
    if not (0 < level < 1 and 0 < power < 1 and 0 < sees < 1):
        raise ValueError(f"level, power and sees lie between 0 and 1, got {level}, {power}, {sees}")
