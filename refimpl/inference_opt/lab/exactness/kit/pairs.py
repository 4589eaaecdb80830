"""Pairs of models that samplers are judged on: some that people get wrong, drawn ones, and the worst that is found."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np

from inference_opt.lab.exactness.proposals import Prefix

Row = tuple[Fraction, ...]
Rows = dict[Prefix, Row]
LARGEST_WEIGHT = 20  # rows are whole weights over their sum, so that a verdict can be read and reproduced


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models: the distribution of each after every text up to some length. After longer ones: that at the start."""

    name: str
    target_rows: Rows
    draft_rows: Rows

    def __post_init__(self) -> None:
        for rows in (self.target_rows, self.draft_rows):
            for text, row in rows.items():
                if sum(row) != 1 or min(row) < 0:
                    raise ValueError(f"behind {text} a model gives {[str(w) for w in row]}: expected a distribution")

    def target(self, text: Prefix) -> Row:
        """The target's distribution after a text."""
        return self.target_rows.get(text) or self.target_rows[()]

    def draft(self, text: Prefix) -> Row:
        """The draft model's."""
        return self.draft_rows.get(text) or self.draft_rows[()]

    def __str__(self) -> str:
        start = [f"{letter} = ({', '.join(map(str, m(())))})" for letter, m in (("p", self.target), ("q", self.draft))]
        return f"{self.name}: {', '.join(start)} at the start"


def panel(vocab: int, depth: int) -> list[Pair]:
    """Pairs of kinds that rules have failed on. They look `depth` tokens back."""
    rng = np.random.default_rng(20260101)

    def model(one_row: Callable[[], Any]) -> Rows:
        texts = [text for n in range(depth + 1) for text in product(range(vocab), repeat=n)]
        return {text: row(one_row()) for text in texts}

    def anything() -> Any:
        return rng.integers(1, LARGEST_WEIGHT, vocab)

    def with_zeros() -> Any:
        weights = anything()
        weights[rng.permutation(vocab)[: rng.integers(1, vocab)]] = 0
        return weights

    def contrary(rows: Rows) -> Rows:
        return {text: one[::-1] for text, one in rows.items()}

    steep = model(lambda: np.array([LARGEST_WEIGHT] + [1] * (vocab - 1)))
    falling = model(lambda: np.sort(anything())[::-1])
    spread = model(anything)
    return [
        Pair("drawn", model(anything), model(anything)),
        Pair("drawn again", model(anything), model(anything)),
        Pair("contrary", falling, contrary(falling)),
        Pair("zeros in both", model(with_zeros), model(with_zeros)),
        Pair("zeros in the target", model(with_zeros), model(anything)),
        Pair("equal", spread, spread),
        Pair("a steep draft", model(anything), steep),
        Pair("a steep target", steep, model(anything)),
    ]


def row(weights: Any) -> Row:
    """Weights over their sum."""
    total = int(sum(weights))
    return tuple(Fraction(int(w), total) for w in weights)


def neighbours(pair: Pair, rng: np.random.Generator) -> Generator[Pair, Pair | None, None]:
    """Pairs with one row changed: drawn again, or one of its weights moved."""
    while True:
        which = "target_rows" if rng.random() < 0.5 else "draft_rows"
        rows = getattr(pair, which)
        # Rows after longer texts matter less, and there are more of them.
        length = min(int(rng.geometric(0.5)) - 1, max(map(len, rows)))
        texts = [text for text in rows if len(text) == length]
        text = texts[rng.integers(len(texts))]
        old = rows[text]
        weights = np.rint(np.array(old, dtype=float) * LARGEST_WEIGHT).astype(int)
        if rng.random() < 0.5:
            weights = rng.integers(0, LARGEST_WEIGHT + 1, len(old))
        else:
            weights[rng.integers(len(old))] = rng.choice([0, 1, LARGEST_WEIGHT // 2, LARGEST_WEIGHT])
        if weights.sum() > 0:
            pair = (yield replace(pair, name="searched", **{which: {**rows, text: row(weights)}})) or pair
