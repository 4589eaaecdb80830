"""The G-test: do counts come from a law? And how many samples it takes to see that they come from another.

    G = 2 Σ O ln(O / E)     O observed and E expected counts, cell by cell

If the law is right, G tends to χ² with k − 1 degrees of freedom for k cells (Wilks 1938), and so its tail is the chance
of a false alarm. If the truth is another law r, it tends to a noncentral χ² with λ = 2 n KL(r ‖ p), and that gives the
power before anything is drawn. Both need some five expected counts a cell. A count where p is 0 settles it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Numbers = Sequence[Any] | np.ndarray


# [gtest]
def g_statistic(counts: Numbers, law: Numbers) -> float:
    """2 Σ O ln(O / E) of counts against a law over the same cells. ValueError for a law that is none."""
    observed, p = np.asarray(counts, dtype=float), np.asarray(law, dtype=float)
    if observed.shape != p.shape or (p < 0).any() or abs(p.sum() - 1) > 1e-6:
        raise ValueError(f"expected {len(observed)} probabilities that sum to one, got {len(p)} that sum to {p.sum()}")
    if (observed[p == 0] > 0).any():
        return math.inf
    seen = observed > 0
    return float(2 * (observed[seen] * np.log(observed[seen] / (observed.sum() * p[seen]))).sum())


def p_value(g: float, cells: int) -> float:
    """The probability of a G at least as large, if the law over so many possible cells is right."""
    return _tail(torch.tensor((cells - 1) / 2, dtype=torch.float64), g).item()


def power(law: Numbers, truth: Numbers, samples: int, alarm: float) -> float:
    """The probability that the test finds out, with so many samples of `truth` and false alarms at a rate `alarm`."""
    divergence, impossible, cells = _compare(law, truth)
    seen = 1 - (1 - impossible) ** samples
    return seen + (1 - seen) * _power(2 * samples * divergence, cells, alarm)


def samples_needed(law: Numbers, truth: Numbers, alarm: float = 1e-3, power: float = 0.9) -> int:
    """The samples that make `truth` found out with probability `power`, and no fewer than give five a cell."""
    divergence, impossible, cells = _compare(law, truth)
    if impossible > 0:  # one such sample is proof
        return math.ceil(math.log1p(-power) / math.log1p(-impossible))
    if divergence <= 0:
        raise ValueError("the two laws are the same: no number of samples tells them apart")
    low, high = 0.0, 1.0  # of λ
    while _power(high, cells, alarm) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, cells, alarm) < power else (low, middle)
    least = min(p for p in law if p > 0)
    return max(math.ceil(high / (2 * divergence)), math.ceil(5 / least))


# [/gtest]


def _tail(half: torch.Tensor, g: float) -> torch.Tensor:
    """χ²'s upper tail, by half the degrees of freedom: Q(k / 2, g / 2)."""
    return torch.special.gammaincc(half, torch.full_like(half, g / 2))


def _compare(law: Numbers, truth: Numbers) -> tuple[float, float, int]:
    """KL(truth ‖ law) over what the law allows, the mass of what it does not, and how many cells it allows."""
    p, r = np.asarray(law, dtype=float), np.asarray(truth, dtype=float)
    both = (p > 0) & (r > 0)
    # Σ r ln(r/p) + p − r: the same sum where both sum to one, and without cancellation where r is close to p
    x = (r[both] - p[both]) / p[both]
    terms = p[both] * ((1 + x) * np.log1p(x) - x)
    return float(terms.sum() + p[(p > 0) & (r == 0)].sum()), float(r[p == 0].sum()), int((p > 0).sum())


def _power(noncentrality: float, cells: int, alarm: float) -> float:
    """The tail of the noncentral χ² above the threshold: a Poisson mixture of central ones."""
    low, high = 0.0, 10.0 * cells + 200.0
    for _ in range(80):
        threshold = (low + high) / 2
        low, high = (threshold, high) if p_value(threshold, cells) > alarm else (low, threshold)
    mean = noncentrality / 2
    spread = 12 * math.sqrt(mean + 1) + 20
    j = torch.arange(max(0, int(mean - spread)), int(mean + spread) + 1, dtype=torch.float64)
    weights = torch.exp(j * math.log(mean) - mean - torch.lgamma(j + 1)) if mean > 0 else (j == 0).double()
    return float((weights * _tail((cells - 1) / 2 + j, low)).sum())
