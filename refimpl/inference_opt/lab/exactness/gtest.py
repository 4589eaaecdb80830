"""The G-test: do counts come from a distribution? And how many samples show that they do not?

    G = 2 Σ O ln(O / E)     O observed and E expected counts, cell by cell

If the stated distribution p is right, G tends to χ² with k − 1 degrees of freedom for k cells (Wilks 1938), whose tail
is then the probability of a false alarm. If the truth is another distribution r, G tends to a noncentral χ² with
λ = 2 n KL(r ‖ p), which gives the test's power before anything is drawn. Both need about five expected counts in every
cell. A single count where p is 0 is proof.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Numbers = Sequence[Any] | np.ndarray


# [gtest]
def g_statistic(counts: Numbers, stated: Numbers) -> float:
    """2 Σ O ln(O / E) of counts against the probabilities of the same cells. ValueError if these do not sum to one."""
    from scipy.special import rel_entr

    observed, p = np.asarray(counts, dtype=float), np.asarray(stated, dtype=float)
    if observed.shape != p.shape or (p < 0).any() or abs(p.sum() - 1) > 1e-6:
        raise ValueError(f"expected {len(observed)} probabilities that sum to one, got {len(p)} that sum to {p.sum()}")
    return float(2 * rel_entr(observed, observed.sum() * p).sum())  # 0 ln 0 = 0; infinite where only p is 0


def p_value(g: float, cells: int) -> float:
    """The probability of a G at least as large, if the stated distribution over that many possible cells is right."""
    from scipy.stats import chi2

    return float(chi2.sf(g, cells - 1))


def power(stated: Numbers, truth: Numbers, samples: int, alarm: float) -> float:
    """The probability that the test finds `samples` draws from `truth`, with false alarms at the rate `alarm`."""
    divergence, impossible, cells = _compare(stated, truth)
    proof = 1 - (1 - impossible) ** samples
    return proof + (1 - proof) * power_at(2 * samples * divergence, cells, alarm)


def samples_needed(stated: Numbers, truth: Numbers, alarm: float = 1e-3, power: float = 0.9) -> int:
    """The number of samples that finds `truth` with probability `power`, and at least five expected in every cell."""
    from scipy.optimize import brentq

    divergence, impossible, cells = _compare(stated, truth)
    if impossible > 0:  # one such sample is proof
        return math.ceil(math.log1p(-power) / math.log1p(-impossible))
    if divergence <= 0:
        raise ValueError("the two distributions are the same: no number of samples tells them apart")
    high = 1.0
    while power_at(high, cells, alarm) < power:
        high *= 2
    noncentrality = brentq(lambda value: power_at(value, cells, alarm) - power, 0, high)
    rarest = min(p for p in stated if p > 0)
    return max(math.ceil(noncentrality / (2 * divergence)), math.ceil(5 / rarest))


def power_at(noncentrality: float, cells: int, alarm: float) -> float:
    """The tail of the noncentral χ² above the threshold of the false alarms."""
    from scipy.stats import chi2, ncx2

    return float(ncx2.sf(chi2.isf(alarm, cells - 1), cells - 1, noncentrality))


# [/gtest]


def _compare(stated: Numbers, truth: Numbers) -> tuple[float, float, int]:
    """KL(r ‖ p) over the cells that p allows, the mass of r where it allows none, and the number that it allows."""
    p, r = np.asarray(stated, dtype=float), np.asarray(truth, dtype=float)
    both = (p > 0) & (r > 0)
    # Σ r ln(r/p) + p − r: the same sum where both sum to one, and without cancellation where r is close to p
    x = (r[both] - p[both]) / p[both]
    terms = p[both] * ((1 + x) * np.log1p(x) - x)
    return float(terms.sum() + p[(p > 0) & (r == 0)].sum()), float(r[p == 0].sum()), int((p > 0).sum())
