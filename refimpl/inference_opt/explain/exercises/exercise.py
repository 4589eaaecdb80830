"""What an exercise is: three kinds, and the file that a learner begins with.

    Write     a function of the package is missing: its signature and docstring are there, its body is not
    Repair    a function has a bug: find an input that shows it, then mend it
    Predict   say what the code will do, in numbers, before it runs

A starter and a solution are made from the package's own source, so they cannot drift from it.

A `Property` says what must hold of the learner's function for all inputs of a kind. It is the judge's only tool: it
tries inputs that hypothesis draws, and the smallest input that breaks it is the learner's counterexample.
"""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis.strategies import SearchStrategy

from inference_opt.trace.trace import Trace
from inference_opt.values import shown

WIDTH = 100  # of the text of a starter
TELLS = ("emit", "emit_at", "recording", "watched")  # the recorder's: no part of what a learner writes


class Broken(AssertionError):
    """A property does not hold: `sentence` says which part of it, `came` is the learner's value, `right` the judge's."""

    def __init__(self, sentence: str, came: Any = None, right: Any = None) -> None:
        super().__init__(sentence)
        self.sentence, self.came, self.right = sentence, came, right


class Property(NamedTuple):
    """`holds(**example)` raises `Broken` (or anything else) where the learner's function is wrong.

    `examples` gives the keywords of `holds`. In `holds` the package is called as ever: the learner's function has
    taken the reference's place in it. `sentence`: what must hold, in words. `corners`: inputs that are tried first.
    """

    sentence: str
    examples: SearchStrategy[dict[str, Any]]
    holds: Callable[..., None]
    corners: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Exercise:
    """What all kinds have. `task`: paragraphs of plain text. `hints`: from a nudge to nearly the solution."""

    id: str
    title: str
    task: str
    hints: tuple[str, str, str]
    minutes: int  # that it may take

    @property
    def kind(self) -> str:
        """write, repair or predict."""
        return type(self).__name__.lower()

    @property
    def chapter(self) -> str:
        """The number of its chapter, two digits."""
        return self.id.split(".")[0]

    @property
    def file(self) -> str:
        """The name that a learner's file has by default."""
        return self.id.replace(".", "_") + ".py"

    def _head(self) -> str:
        paragraphs = [textwrap.fill(" ".join(each.split()), WIDTH) if not each.startswith("    ") else each.rstrip()
                      for each in textwrap.dedent(self.task).strip().split("\n\n")]  # fmt: skip
        said = "\n\n".join([f"{self.id}: {self.title}.", *paragraphs, f"    inference-opt exercise check {self.id}"])
        return f'"""{said}\n"""\n'

    def starter(self) -> str:
        """The file that a learner begins with."""
        raise NotImplementedError

    def solution(self) -> str:
        """A file that is accepted."""
        raise NotImplementedError


@dataclass(frozen=True)
class Write(Exercise):
    """A function of the package, `name` of the class or module `owner`, is to be written."""

    owner: type | ModuleType
    name: str
    properties: tuple[Property, ...]

    @cached_property
    def reference(self) -> Any:
        """The package's own function, whoever has taken its place since."""
        return _REFERENCES.setdefault((self.owner, self.name), inspect.getattr_static(self.owner, self.name))

    @cached_property
    def function(self) -> Any:
        """The same as a plain function."""
        found = self.reference
        found = found.fget if isinstance(found, property) else getattr(found, "fn", found)  # a Triton kernel's
        return inspect.unwrap(getattr(found, "__func__", found))

    @property
    def whose(self) -> str:
        """Where the function stands, in words."""
        file = self.function.__module__.removeprefix("inference_opt.").replace(".", "/") + ".py"
        if isinstance(self.owner, type):
            return f"A method of `{self.owner.__name__}`, {file}."
        return f"A function of {file}."

    def source(self) -> str:
        """The reference's own text."""
        return textwrap.dedent(inspect.getsource(self.function))

    def starter(self) -> str:
        """Imports, signature, docstring, and no body."""
        return self._file(_without_body(self.source()), leave_out=TELLS)

    def solution(self) -> str:
        """The reference."""
        return self._file(self.source())

    def _file(self, source: str, before: str = "", leave_out: tuple[str, ...] = ()) -> str:
        return f"{self._head()}\n{imports_of(self.function, leave_out)}\n{before}\n# {self.whose}\n{source}"


@dataclass(frozen=True)
class Repair(Write):
    """The function has a bug, put in by `bug`: pairs of text, right and wrong. `witness`: an input that shows it."""

    bug: tuple[tuple[str, str], ...]
    witness: Mapping[str, Any]

    def broken(self) -> str:
        """The reference's text with the bug in it."""
        source = self.source()
        for right, wrong in self.bug:
            if source.count(right) != 1:
                raise ValueError(f"{self.id}: the reference has {right!r} {source.count(right)} times, expected once")
            source = source.replace(right, wrong)
        return source

    def starter(self) -> str:
        """The function with its bug, and a witness to be found."""
        keys = ", ".join(f"{name!r}: …" for name in self.witness)
        return self._file(self.broken(), f"\n# An input that shows the bug: {{{keys}}}\nwitness = ...\n")

    def solution(self) -> str:
        """The reference, and a witness."""
        return self._file(self.source(), f"\nwitness = {dict(self.witness)!r}\n")


class Question(NamedTuple):
    """`asks` for a number. `beliefs`: wrong numbers that people give, and why each is wrong."""

    asks: str
    beliefs: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Predict(Exercise):
    """Numbers are to be said beforehand. `run` lets the real code do it: {name: number}, and the recording."""

    questions: Mapping[str, Question]
    run: Callable[[], tuple[dict[str, float], Trace]]

    def starter(self) -> str:
        """A line for each answer."""
        return self._answers({})

    def solution(self) -> str:
        """What the code does."""
        return self._answers(self.run()[0])

    def _answers(self, numbers: Mapping[str, Any]) -> str:
        lines = [line for name, question in self.questions.items() for line in (
            *(f"    # {part}" for part in textwrap.wrap(question.asks, WIDTH)),
            f"    {name!r}: {numbers.get(name, ...) if name in numbers else '...'},",
        )]  # fmt: skip
        return "\n".join([self._head(), "answers = {", *lines, "}\n"])


_REFERENCES: dict[tuple[Any, str], Any] = {}


def imports_of(function: Any, leave_out: tuple[str, ...] = ()) -> str:
    """Import lines for all names of its module that a function uses, its own left out."""
    module = inspect.getmodule(function)
    assert module is not None
    text = inspect.getsource(module)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):  # names within annotations that are strings
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            used.add(node.value)
    used -= {function.__name__, *leave_out}
    lines: dict[str, set[str]] = {}
    plain = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{a.name} as {a.asname}" if a.asname else a.name for a in node.names if (a.asname or a.name) in used}
            if names:
                lines.setdefault(node.module, set()).update(names)
        elif isinstance(node, ast.Import):
            plain += [f"import {a.name} as {a.asname}" if a.asname else f"import {a.name}"
                      for a in node.names if (a.asname or a.name).split(".")[0] in used]  # fmt: skip
        elif own := used & set(_defined(node)):
            lines.setdefault(module.__name__, set()).update(own)
    return "\n".join([*plain, *(f"from {name} import {', '.join(sorted(names))}" for name, names in lines.items())]) + "\n"


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    for target in getattr(node, "targets", [getattr(node, "target", None)]):
        for name in ast.walk(target) if target is not None else ():
            if isinstance(name, ast.Name):
                yield name.id


def _without_body(source: str) -> str:
    """A function's text up to the end of its docstring, and a line that says that the rest is missing."""
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    doc = node.body[0]
    kept = doc.end_lineno if ast.get_docstring(node) else doc.lineno - 1
    return "\n".join([*source.splitlines()[:kept], "    raise NotImplementedError", ""])


# What properties are made with


def expect(came: Any, right: Any, sentence: str) -> None:
    """`Broken` unless two plain values are equal and of one type (an int is not a float, a list is not a tuple)."""
    if type(came) is not type(right) or came != right:
        raise Broken(sentence, came, right)


def expect_close(came: Any, right: Any, sentence: str, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """`Broken` unless two arrays or tensors have one shape and the same numbers, up to rounding."""
    if type(came) is not type(right):
        raise Broken(f"{sentence}: expected a {type(right).__name__}, got a {type(came).__name__}", came, right)
    if tuple(came.shape) != tuple(right.shape):
        raise Broken(f"{sentence}: the shape is {tuple(came.shape)}, expected {tuple(right.shape)}", came, right)
    if came.dtype != right.dtype:
        raise Broken(f"{sentence}: the dtype is {came.dtype}, expected {right.dtype}", came, right)
    close = torch.isclose if isinstance(right, torch.Tensor) else np.isclose
    if not close(came, right, rtol=rtol, atol=atol, equal_nan=True).all():
        raise Broken(sentence, came, right)


def expect_error(call: Callable[[], Any], sentence: str) -> None:
    """`Broken` unless the call raises ValueError."""
    try:
        came = call()
    except ValueError:
        return
    raise Broken(sentence, came, "ValueError")


def load(path: str) -> Any:
    """A module by its dotted name."""
    return importlib.import_module(path)


def in_short(value: Any, most: int = 300) -> str:
    """A value as a counterexample shows it."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        text = np.array2string(value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy(), precision=4)
        text += f"  (shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')})"
    elif isinstance(value, np.ndarray):
        text = f"{np.array2string(value, precision=4)}  (shape {value.shape}, {value.dtype})"
    else:
        text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"
