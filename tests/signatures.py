"""Signatures are checked while testing, their shapes too. Once a call, and by beartype alone where there are no shapes.

jaxtyping's own check of a call takes 7 µs, of one without shapes too, where beartype's takes half a microsecond. Tests
that make many small calls took twice as long.
"""

import functools
import inspect
import typing
from dataclasses import is_dataclass

import jaxtyping
from beartype import BeartypeConf, beartype

jaxtyped = jaxtyping.jaxtyped  # what jaxtyping's import hook decorates every function and class with

AS_THERE = BeartypeConf(violation_type=jaxtyping.TypeCheckError)


def has_shapes(annotation):
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(has_shapes, typing.get_args(annotation)))


def checked(decorated=None, **given):
    """In the place of `jaxtyped`. `jaxtyping.config` turns the check off here as there."""
    if decorated is None:
        return checked
    if inspect.isclass(decorated):
        if is_dataclass(decorated):
            decorated.__init__ = checked(decorated.__init__)
        return decorated
    written = decorated.__annotations__
    known = {name: hint for name, hint in written.items() if not isinstance(hint, str)}
    decorated.__annotations__ = known  # what is quoted is not there yet, or never where the code runs
    strict = beartype(decorated, conf=AS_THERE)
    decorated.__annotations__ = written
    # Of a generator's values none is checked; `jaxtyped` would no longer check their type anywhere else.
    if any(map(has_shapes, known.values())) and not inspect.isgeneratorfunction(decorated):
        strict = jaxtyped(strict, typechecker=None)  # a letter is one number in the whole signature

    @functools.wraps(decorated)
    def call(*args, **kwargs):
        return (decorated if jaxtyping.config.jaxtyping_disable else strict)(*args, **kwargs)

    return call


def check_signatures(modules):
    """Of those of the modules that are imported from now on."""
    jaxtyping.jaxtyped = checked
    jaxtyping.install_import_hook(modules, "beartype.beartype")
