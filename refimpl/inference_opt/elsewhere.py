"""Names that other libraries use for what is here: whoever writes one is told the name here, where there is one.

The names are those of vLLM, transformers and llama-cpp-python.
"""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Any, ClassVar, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def elsewhere(**names: str) -> Callable[[Function], Function]:
    """Decorate a function that takes most arguments by name. `names`: those that others use, and what to write here.

    An unknown name, or too many positional arguments, is a TypeError as in Python, whose message says what to write. A
    hint that is the name of an argument makes the other name an alias of it. A function with `**` takes all names but
    these.
    """

    def decorate(function: Function) -> Function:
        known = inspect.signature(function).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
        free = [name for name, p in known.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        called = function.__qualname__.removesuffix(".__init__")

        @wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            for name in [name for name in named if names.get(name) in known]:
                if names[name] in named:
                    both = f"{name} and {names[name]} are the same, and both were given"
                    raise TypeError(f"{called}: {both}: write {names[name]}= alone, in dataclasses.replace, too")
                named[names[name]] = named.pop(name)
            for name in named:
                if name not in known and (name in names or not takes_any):
                    raise TypeError(f"{called} has no argument {name!r}: {_hint(name, names, known)}")
            if len(given) > len(free):
                first = ", ".join(name for name in free if name != "self")
                rest = ", ".join(f"{name}=" for name, p in known.items() if p.kind is p.KEYWORD_ONLY)
                rest = f"the others are {rest}" if rest else "there are no others"
                raise TypeError(f"{called}: only {first} may be given without a name; {rest}")
            return function(*given, **named)

        return call  # type: ignore[return-value]

    return decorate


def _hint(name: str, names: Mapping[str, str], known: Mapping[str, Any]) -> str:
    close = get_close_matches(name, known, 1)
    others = ", ".join(other for other in known if other != "self")
    return names.get(name) or (f"did you mean {close[0]!r}?" if close else f"expected one of {others}")


class Elsewhere:
    """A base of classes whose counterparts have other methods: asking for one of these says what to write."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = {}  # name there: what to write here; "()" for a call of the object itself

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Nothing is called. TypeError: what to write."""
        raise TypeError(
            f"{type(self).__name__} objects are not called: {self.ELSEWHERE.get('()', 'see their methods')}"
        )

    def __getattr__(self, name: str) -> Any:
        if name in self.ELSEWHERE:
            raise AttributeError(f"{type(self).__name__} has no {name!r}: {self.ELSEWHERE[name]}", name=name, obj=self)
        if isinstance(found := getattr(type(self), name, None), property) and found.fget:
            return found.fget(self)  # it raised an AttributeError of its own: so that this one is seen
        further = getattr(super(), "__getattr__", None)
        if further is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        return further(name)
