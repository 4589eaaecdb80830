"""Foreign torch code under our randomness: it is run as it is, once for each path of random outcomes.

`torch.rand`, `torch.multinomial` and the others ask `Branching` (every path, in fractions) or the kit's `Uniforms`
(numbers, integrated) in place of a generator. A uniform number that is known only by comparisons is no tensor:
`Draws` stands in for a tensor of them, and answers what samplers ask of it.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import numpy as np
import torch


class Number:
    """A uniform number times a positive factor; it can be compared with numbers, and thresholds are exact."""

    def __init__(self, uniform: Any, factor: Fraction = Fraction(1)) -> None:
        self.uniform, self.factor = uniform, factor

    def __mul__(self, other: Any) -> "Number":
        return Number(self.uniform, self.factor * Fraction(float(other)))

    def _below(self, threshold: Any, or_equal: bool) -> bool:
        value = float(threshold)
        if value != value:  # NaN: no comparison holds
            return False
        if self.factor == 0 or value == float("inf"):
            return value > 0 or (or_equal and value == 0)
        share = Fraction(value) / self.factor
        return self.uniform <= share if or_equal else self.uniform < share

    def __lt__(self, threshold: Any) -> bool:
        return self._below(threshold, or_equal=False)

    def __le__(self, threshold: Any) -> bool:
        return self._below(threshold, or_equal=True)

    def __gt__(self, threshold: Any) -> bool:
        return not self <= threshold

    def __ge__(self, threshold: Any) -> bool:
        return not self < threshold


class Draws:
    """Stands in for a tensor of uniform numbers."""

    def __init__(self, cells: np.ndarray) -> None:
        self.cells = cells

    def __getitem__(self, index: Any) -> "Draws":
        return Draws(np.asarray(self.cells[index], dtype=object))

    def __mul__(self, other: Any) -> "Draws":
        return Draws(np.multiply(self.cells, np.asarray(other)))

    __rmul__ = __mul__

    def _compare(self, other: Any, holds: Callable[[Any, Any], bool]) -> torch.Tensor:
        return torch.as_tensor(np.vectorize(holds, otypes=[bool])(self.cells, np.asarray(other)))

    def __lt__(self, other: Any) -> torch.Tensor:
        return self._compare(other, lambda u, t: u < t)

    def __le__(self, other: Any) -> torch.Tensor:
        return self._compare(other, lambda u, t: u <= t)

    def __gt__(self, other: Any) -> torch.Tensor:
        return self._compare(other, lambda u, t: u > t)

    def __ge__(self, other: Any) -> torch.Tensor:
        return self._compare(other, lambda u, t: u >= t)


class Race:
    """Stands in for exponential noise: weights / noise is a race, and its argmax the winner."""

    def __init__(self, rng: Any, weights: Any = None) -> None:
        self.rng, self.weights = rng, weights

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.__name__ in ("div", "true_divide", "__truediv__", "truediv"):
            return Race(args[1].rng, args[0])
        if function.__name__ == "argmax":
            return draw(args[0].rng, args[0].weights)
        raise NotImplementedError(function.__name__)


def draw(rng: Any, weights: torch.Tensor) -> torch.Tensor:
    """One token a row, [rows, 1] (or [1] for a single distribution)."""
    rows = weights.reshape(-1, weights.shape[-1]).tolist()
    tokens = [rng.choose(np.array([Fraction(w) for w in row], dtype=object), i) for i, row in enumerate(rows)]
    return torch.tensor(tokens).reshape(*weights.shape[:-1], 1)


@contextmanager
def scripted(rng: Any) -> Iterator[None]:
    """Within: torch's random functions, and `random.random`, take their numbers from `rng`."""

    def rand(*shape: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
        sizes = tuple(shape[0]) if shape and not isinstance(shape[0], int) else shape
        numbers = [rng.uniform(i) for i in range(int(np.prod(sizes, dtype=int)))]
        if numbers and isinstance(numbers[0], float):
            return torch.tensor(numbers, dtype=dtype).reshape(sizes)
        cells = np.empty(len(numbers), dtype=object)
        cells[:] = [Number(u) for u in numbers]
        return Draws(cells.reshape(sizes))

    def one() -> Any:
        number = rng.uniform(0)
        return number if isinstance(number, float) else Number(number)

    with ExitStack() as stack:
        for owner, name, value in (
            (torch, "rand", rand),
            (torch, "rand_like", lambda x, **kw: rand(*x.shape, dtype=x.dtype)),
            (torch, "multinomial", lambda p, num_samples=1, *a, **kw: draw(rng, p)),
            (torch.Tensor, "exponential_", lambda self, *a, **kw: Race(rng)),
            (random, "random", one),
        ):
            stack.enter_context(patch.object(owner, name, value))
        yield
