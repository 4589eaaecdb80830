"""Judging by samples, if the sampler draws by itself: a test whose false alarms and power are stated before it runs.

On each of m pairs n texts are drawn and compared with the target's distribution by the G-test (`gtest.py`) at the level
α = level / (2 m): m tests share it, and half of it is kept for what the χ² distribution, a limit for many samples, is
off in its tail. Texts with less than FEW expected samples are put into one cell. A text that the target never says is
proof, whatever the counts.

Power against every bias of total variation d or more: KL ≥ 2 d² (Pinsker), so λ = 2 n KL ≥ 4 n d², and n is the least
for which the noncentral χ² with this λ is above the threshold with the probability asked for.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from inference_opt.lab.exactness.gtest import g_statistic, p_value, power_at
from inference_opt.lab.exactness.kit.pairs import Pair
from inference_opt.lab.exactness.kit.subject import Noise, Subject, continued, total_variation
from inference_opt.lab.exactness.proposals import Prefix

PAIRS = 4  # of the panel
FEW = 10  # expected samples that make a cell


@dataclass(frozen=True, eq=False)
class Test:
    """What was asked, and what came out: `p_values` and the counted total variation (`bias`), a pair each."""

    level: float
    power: float
    sees: float
    samples: int  # on each pair
    p_values: Mapping[Pair, float]
    bias: Mapping[Pair, float]

    @property
    def passed(self) -> bool:
        """Whether no pair's p-value is below its share of the level."""
        return min(self.p_values.values()) >= self.level / (2 * len(self.p_values))

    def __str__(self) -> str:
        return (
            f"{self.samples:,} texts on each of {len(self.p_values)} pairs, least p-value "
            f"{min(self.p_values.values()):.2g}: false alarms at most {self.level:g}; "
            f"a total variation of {self.sees:g} is seen with probability {self.power:g}"
        )


@cache
def samples_for(cells: int, level: float, power: float, sees: float) -> int:
    """The number of texts whose G-test, over that many cells, sees every total variation from `sees` up."""
    n = 1
    while power_at(4 * n * sees**2, cells, level) < power:
        n = math.ceil(1.1 * n) + 1
    return n


def test(
    subject: Subject, pairs: Sequence[Pair], noise: Noise, level: float, power: float, sees: float, seed: int
) -> tuple[Test, dict[Pair, Counter[Prefix]]]:
    """The test, and what was emitted: counts by pair."""
    share = level / (2 * len(pairs))
    n = samples_for(subject.vocab**subject.length, share, power, sees)
    rng = np.random.default_rng(seed)
    emitted, p_values, bias = {}, {}, {}
    for pair in pairs:
        right = subject.right(pair)
        handed, _, shares = zip(*subject.hands(pair))
        emitted[pair] = Counter(
            subject.run(each, source(noise, int(rng.integers(2**31))))
            for each, count in zip(handed, rng.multinomial(n, np.array(shares) / sum(shares)))
            for _ in range(count)
        )
        texts: Counter[Prefix] = Counter()
        for text, count in emitted[pair].items():
            behind = continued({text: 1.0}, pair, subject.length)
            drawn = rng.multinomial(count, np.array(list(behind.values())) / sum(behind.values()))
            texts.update(dict(zip(behind, map(int, drawn))))
        p_values[pair] = p_value(*g_of(texts, right))
        bias[pair] = total_variation({text: count / n for text, count in texts.items()}, right)
    return Test(level, power, sees, n, p_values, bias), emitted


def g_of(counts: Mapping[Prefix, int], law: Mapping[Prefix, float]) -> tuple[float, int]:
    """(G, cells): rare texts share a cell. Infinite where a text was counted that the law does not allow."""
    n = sum(counts.values())
    if any(count and law.get(text, 0) <= 0 for text, count in counts.items()):
        return math.inf, 2
    rare = [text for text, p in law.items() if n * p < FEW]
    cells = [(counts.get(text, 0), p) for text, p in law.items() if n * p >= FEW]
    if rare:
        cells.append((sum(counts.get(text, 0) for text in rare), sum(law[text] for text in rare)))
    observed, expected = zip(*cells)
    return g_statistic(observed, np.array(expected) / sum(expected)), max(len(cells), 2)


def source(noise: Noise, seed: int) -> Any:
    """A sampler's own randomness."""
    if noise == "seed":
        return seed
    if noise == "generator":
        import torch

        return torch.Generator().manual_seed(seed)
    raise ValueError(f'noise is "uniforms", "seed" or "generator", got {noise!r}')
