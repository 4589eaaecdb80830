"""What speculation gains, and when it loses (Leviathan et al. 2211.17192, §3).

Where each draft is accepted with the same probability α, whatever came before:

    tokens a step    1 + α + α² + … + α^γ = (1 − α^(γ+1)) / (1 − α)                  Eq. 1
    speed-up         that, over γ c + 1: γ drafts of cost c and one step              Theorem 3.8
    operations       (1 − α)(γ ĉ + γ + 1) / (1 − α^(γ+1))                             Theorem 3.11

c is the time of one draft in steps of the target, ĉ its arithmetic. Some γ gains exactly if α > c (Corollary 3.9), and
then γ = 1 does. On a real text α changes from place to place, so the formulas are approximate; they also assume that a
step costs the same for γ + 1 tokens as for one.
"""

from typing import Any


def expected_tokens(alpha: Any, gamma: int) -> Any:
    """Tokens a step: the accepted drafts and one more (Eq. 1). ValueError for α outside [0, 1] or γ < 0."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is a probability, got {alpha}")
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")
    return sum((alpha**i for i in range(1, gamma + 1)), 1 + 0 * alpha)


def speedup(alpha: Any, gamma: int, c: Any) -> Any:
    """How many times faster than without drafts (Theorem 3.8). ValueError for a cost below 0."""
    if c < 0:
        raise ValueError(f"the cost of a draft must be at least 0, got {c}")
    return expected_tokens(alpha, gamma) / (gamma * c + 1)


def operations(alpha: Any, gamma: int, c_ops: Any) -> Any:
    """How many times the arithmetic of decoding without drafts (Theorem 3.11). ValueError for a cost below 0."""
    if c_ops < 0:
        raise ValueError(f"the cost of a draft must be at least 0, got {c_ops}")
    return (gamma * c_ops + gamma + 1) / expected_tokens(alpha, gamma)


def best_gamma(alpha: Any, c: Any, max_gamma: int) -> int:
    """The draft length with the largest speed-up; 0 where every draft loses. ValueError for `max_gamma` < 0."""
    if max_gamma < 0:
        raise ValueError(f"max_gamma must be at least 0, got {max_gamma}")
    return max(range(max_gamma + 1), key=lambda gamma: speedup(alpha, gamma, c))
