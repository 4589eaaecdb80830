"""How the judge is judged: solutions that are wrong, each for a reason, and right ones that are written differently.

A file a chapter has two tables, {exercise: {what is wrong with it, or how it is written: solution}}. A solution is

    pairs of text (right, wrong)     the reference's own text, changed
    text                             the whole function (the starter's imports stand above it)
    a dict of numbers                of a `Predict`: the right answers, with these changed
"""

import inspect
import textwrap

from inference_opt.explain.exercises import EXERCISES
from inference_opt.explain.exercises.exercise import Predict, Repair, imports_of
from inference_opt.explain.exercises.judge import Solution
from inference_opt.explain.exercises.process import run


def text_of(exercise, change):
    """The file that a learner would hand in."""
    if isinstance(exercise, Predict):
        return f"answers = {exercise.run()[0] | change!r}\n"
    witness = f"witness = {dict(exercise.witness)!r}\n" if isinstance(exercise, Repair) else ""
    head = imports_of(exercise.function) + "\n" + witness
    if isinstance(change, str):
        return head + textwrap.dedent(change)
    source = exercise.source()
    for right, wrong in change:
        assert right in source, f"{exercise.id} does not have {right!r}: put the mistake into the reference as it is"
        source = source.replace(right, wrong)
    return head + source


def verdict_on(id, text, seed=0):
    """What the judge says of a file with this text."""
    return run(id, Solution(file=f"{id.replace('.', '_')}.py", text=text), seed)


def renamed(function, name):
    """The text of a function under another name."""
    return textwrap.dedent(inspect.getsource(function)).replace(f"def {function.__name__}(", f"def {name}(", 1)


def all_of(tables):
    """[(exercise, name, change)] of several chapters' tables."""
    return [(id, name, change) for table in tables for id, each in table.items() for name, change in each.items()]


__all__ = ["EXERCISES", "all_of", "renamed", "text_of", "verdict_on"]
