"""The distribution of a program's outcome, exactly, where the outcome is a step function of each uniform number.

The unit cube of the numbers is cut into boxes. Inside a box the outcome is looked up at a point, then along every axis,
close to both ends of the interval and in between; where it differs, bisection finds the place, and the box is cut in
two there. Cutting is never wrong, wherever it happens; only an uncut box must be checked, and it is, once more, at
points drawn inside. Which numbers are read, and how many, is seen as they are read, so a number that only some paths
read is an axis of their boxes alone. Draws by weight (`Uniforms.choose`) are not searched but enumerated.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from inference_opt.lab.exactness.kit.uniforms import INSIDE, LARGEST, NO_RACES, Races, Uniforms

RESOLUTION = 2.0**-34  # how precisely a place is found where the outcome changes
BETWEEN = (0.17, 0.59, 0.83)  # where an interval is examined, besides its ends
POINTS = 4  # drawn inside a box before it is believed to be uncut

Program = Callable[[Uniforms], Hashable]
Point = dict[Hashable, float]


class NotAStepFunction(ValueError):
    """The outcome changes in more places than boxes can be cut."""


@dataclass
class Law:
    """The probability of each outcome, and the outcomes met only at the ends 0 and 1 of a number."""

    probability: dict[Any, float] = field(default_factory=dict)
    at_ends: set[Any] = field(default_factory=set)
    runs: int = 0  # of the program
    numbers: int = 0  # the most that a run read


@dataclass(frozen=True)
class Box:
    """Part of the cube: an interval for each number that was read, and the tokens chosen."""

    weight: float  # of the choices
    intervals: dict[Hashable, tuple[float, float]]
    choices: dict[Hashable, int]

    def at(self, key: Hashable, share: float = INSIDE) -> float:
        low, high = self.intervals[key]
        return low + (high - low) * share


def integrate(program: Program, races: Races = NO_RACES, most_boxes: int = 20_000) -> Law:
    """The distribution of `program(uniforms)`. `races`: those before. NotAStepFunction if it needs too many boxes."""
    law = Law()
    rng = np.random.default_rng(0)
    boxes, seen = [Box(1.0, {}, {})], 0
    while boxes:
        box = boxes.pop()
        if (seen := seen + 1) > most_boxes:
            raise NotAStepFunction(
                f"the outcome changes in more than {most_boxes} places: it is no step function of its numbers, or of "
                'too many. Replace draws by `uniforms.choose(weights)`, or judge by a test: noise="seed"'
            )

        def run(point: Point, box: Box = box) -> tuple[Any, Uniforms]:
            law.runs += 1
            uniforms = Uniforms(point, box.choices, races)
            return program(uniforms), uniforms

        outcome, uniforms = run({key: box.at(key) for key in box.intervals})
        seen_so_far, choice = _signature(outcome, uniforms, box)
        axes = [key for kind, key, *_ in seen_so_far if kind == "number"]
        box = Box(box.weight, {**dict.fromkeys(axes, (0.0, 1.0)), **box.intervals}, box.choices)
        cut = _cut(box, axes, seen_so_far, partial(_look, run, box), rng)
        if cut:
            key, place = cut
            low, high = box.intervals[key]
            for interval in ((low, place), (place, high)):
                boxes.append(Box(box.weight, {**box.intervals, key: interval}, box.choices))
        elif choice:  # its weights are the same in all of the box
            _, key, weights, _ = choice
            for token in np.flatnonzero(weights):
                boxes.append(Box(box.weight * weights[token], box.intervals, {**box.choices, key: int(token)}))
        else:
            size = float(np.prod([high - low for low, high in box.intervals.values()]))
            law.probability[outcome] = law.probability.get(outcome, 0.0) + box.weight * size
            law.numbers = max(law.numbers, len(axes))
            middle = {key: box.at(key) for key in box.intervals}
            for key in axes:
                low, high = box.intervals[key]
                law.at_ends |= {run({**middle, key: end})[0] for end in (0.0, LARGEST) if low <= end <= high}
    law.at_ends -= set(law.probability)
    return law


def _signature(outcome: Any, uniforms: Uniforms, box: Box) -> tuple[Any, Any]:
    """What a run shows up to the first choice that the box leaves open, its weights included; and that choice."""
    for i, (kind, key, *more) in enumerate(uniforms.trace):
        if kind == "choice" and key not in box.choices:
            return (*uniforms.trace[:i], ("open", key, more[0])), uniforms.trace[i]
    return (*uniforms.trace, ("outcome", outcome)), None


def _look(run: Callable[[Point], tuple[Any, Uniforms]], box: Box, point: Point) -> Any:
    return _signature(*run(point), box)[0]


def _cut(
    box: Box, axes: list[Hashable], start: Any, look: Callable[[Point], Any], rng: np.random.Generator
) -> tuple[Hashable, float] | None:
    """A number and a place where what is seen changes along a line through the box; None if none was found."""
    middle = {key: box.at(key) for key in box.intervals}
    axes = [key for key in axes if box.intervals[key][1] - box.intervals[key][0] > 16 * RESOLUTION]
    for key in axes:
        low, high = box.intervals[key]
        for value in (low + 2 * RESOLUTION, high - 2 * RESOLUTION, *(box.at(key, share) for share in BETWEEN)):
            if look({**middle, key: value}) != start:
                return key, _bisect(look, middle, key, value)
    for _ in range(POINTS if len(axes) > 1 else 0):
        point = dict(middle)
        for key in axes:  # from the middle to a drawn point, one number after the other
            there = box.at(key, rng.random())
            if look({**point, key: there}) != start:
                return key, _bisect(look, point, key, there)
            point[key] = there
    return None


def _bisect(look: Callable[[Point], Any], inside: Point, key: Hashable, outside: float) -> float:
    """Between a point and one where a number is another and another thing is seen: the number where that changes."""
    start, low, high = look(inside), inside[key], outside
    while abs(low - high) > RESOLUTION:
        middle = (low + high) / 2
        low, high = (middle, high) if look({**inside, key: middle}) == start else (low, middle)
    return (low + high) / 2
