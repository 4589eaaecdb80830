"""Traversal verification: a tree of drafts is judged from its leaves up (Weng et al. 2505.12398).

`rules.block` on every path at once, and as pure as the rules there. No engine uses it.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from inference_opt.speculative.rules import Path, Probs, Randomness, ratio


def traversal(
    target: Mapping[Path, Probs],
    draft: Mapping[Path, Sequence[Probs]],
    tokens: Mapping[Path, Sequence[int]],
    rng: Randomness,
) -> list[int]:
    """Judge a tree (see `rules.tree`) from its leaves up, and keep the first path that passes (Weng et al. 2505.12398).

    w is carried down as in `block`. If nothing passes below a candidate x ~ q, its parent goes on with (w p − q)⁺ / S
    as p and S / (S + 1 − w) as w, where S = Σ (w p − q)⁺. The candidates at a node must differ.
    """
    judged = count()

    def climb(path: Path, w: Any) -> list[int] | None:
        p = target[path]
        for q, x in zip(draft[path], tokens[path]):
            if (emitted := climb((*path, x), ratio(w * p[x], q[x]))) is not None:
                return emitted
            owed = np.maximum(w * p - q, 0)
            mass = owed.sum()
            p = owed / mass if mass > 0 else p
            w = mass / (mass + 1 - w) if mass + 1 - w > 0 else 0
        return [*path, rng.choose(p, len(path))] if rng.uniform(next(judged)) < w else None

    return climb((), 1) or [rng.choose(target[()], 0)]  # nothing passed: only by rounding
