"""What an exercise is: three kinds, and the file that a learner begins with.

    Write     a function of the package is missing: its signature and docstring are there, its body is not
    Repair    a function has a bug: find an input that shows it, then mend it
    Predict   say what the code will do, in numbers, before it runs

A starter and a solution are made from the package's own source, so they cannot drift from it.

A `Property` says what must hold of the learner's function for all inputs of a kind. It is the judge's only tool: it
tries inputs that hypothesis draws, and the smallest input that breaks it is the learner's counterexample.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis.strategies import SearchStrategy

from inference_opt.explain.views.exercises import written
from inference_opt.trace.trace import Trace

WIDTH = 100  # of the text of a starter
TELLS = ("emit", "emit_at", "recording", "watched")  # the recorder's: no part of what a learner writes


class Broken(AssertionError):
    """A property does not hold. `sentence`: which part of it; `came`: the learner's value; `right`: the judge's."""

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

    @property
    def paragraphs(self) -> list[str]:
        """The task; what is indented stays as it is."""
        parts = textwrap.dedent(self.task).strip().split("\n\n")
        return [part.rstrip() if part.startswith("    ") else " ".join(part.split()) for part in parts]

    def code(self, solved: bool = False) -> str:
        """What a learner begins with, or what is accepted; without the task."""
        raise NotImplementedError

    def call(self) -> str:
        """How a notebook has it judged."""
        raise NotImplementedError

    def file_text(self, solved: bool = False) -> str:
        """The same as a file, which begins with the task."""
        filled = [part if part.startswith("    ") else textwrap.fill(part, WIDTH) for part in self.paragraphs]
        said = "\n\n".join([f"{self.id}: {self.title}.", *filled, f"    inference-opt exercise check {self.id}"])
        return f'"""{said}\n"""\n\n{self.code(solved)}'


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
        for inner in ("fget", "fn", "__func__"):  # of a property, a Triton kernel, a static method
            found = getattr(found, inner, found)
        return inspect.unwrap(found)

    @property
    def whose(self) -> str:
        """Where the function stands, in words."""
        file = self.function.__module__.removeprefix("inference_opt.").replace(".", "/") + ".py"
        if isinstance(self.owner, type):
            return f"A method of `{self.owner.__name__}`, {file}."
        return f"A function of {file}."

    def source(self) -> str:
        """The reference's own text, without the marks of the book's listings."""
        return re.sub(r"^ *# \[/?[\w-]+\]\n", "", textwrap.dedent(inspect.getsource(self.function)), flags=re.MULTILINE)

    def code(self, solved: bool = False) -> str:
        """Imports, signature, docstring; and the body, if solved."""
        source = self.source() if solved else _without_body(self.source())
        return f"{imports_of(self.function, () if solved else TELLS)}\n\n# {self.whose}\n{source}"

    def call(self) -> str:
        """With the function."""
        return f'check("{self.id}", {self.function.__name__})'


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

    def code(self, solved: bool = False) -> str:
        """A witness, and the function; if not solved, with its bug, and the witness to be found."""
        keys = ", ".join(f"{name!r}: …" for name in self.witness)
        witness = f"{dict(self.witness)!r}" if solved else f"...  # an input that shows the bug: {{{keys}}}"
        source = self.source() if solved else self.broken()
        return f"{imports_of(self.function)}\nwitness = {witness}\n\n\n# {self.whose}\n{source}"

    def call(self) -> str:
        """With the witness."""
        return f'check("{self.id}", {self.function.__name__}, witness=witness)'


class Question(NamedTuple):
    """`asks` for a number. `beliefs`: wrong numbers that people give, and why each is wrong."""

    asks: str
    beliefs: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Predict(Exercise):
    """Numbers are to be said beforehand. `run` lets the real code do it: {name: number}, and the recording."""

    questions: Mapping[str, Question]
    run: Callable[[], tuple[dict[str, float], Trace]]

    def code(self, solved: bool = False) -> str:
        """A line for each answer."""
        numbers: Mapping[str, Any] = self.run()[0] if solved else dict.fromkeys(self.questions, "...")
        lines = []
        for name, question in self.questions.items():
            lines += [f"    # {part}" for part in textwrap.wrap(question.asks, WIDTH)]
            lines.append(f"    {name!r}: {numbers[name]},")
        return "\n".join(["answers = {", *lines, "}\n"])

    def call(self) -> str:
        """With the answers."""
        return f'check("{self.id}", answers)'


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
    used -= {function.__name__, *inspect.signature(function).parameters, *leave_out}
    lines: dict[str, set[str]] = {}
    plain = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {
                f"{a.name} as {a.asname}" if a.asname else a.name for a in node.names if (a.asname or a.name) in used
            }
            if names:
                lines.setdefault(node.module, set()).update(names)
        elif isinstance(node, ast.Import):
            plain += [f"import {a.name} as {a.asname}" if a.asname else f"import {a.name}"
                      for a in node.names if (a.asname or a.name).split(".")[0] in used]  # fmt: skip
        elif own := used & set(_defined(node)):
            lines.setdefault(module.__name__, set()).update(own)
    return (
        "\n".join([*plain, *(f"from {name} import {', '.join(sorted(names))}" for name, names in lines.items())]) + "\n"
    )


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


def in_short(value: Any, most: int = 300) -> str:
    """A value as a counterexample shows it."""
    try:
        text = written(value)
    except Exception as error:
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"
    text = text if len(text) <= most else text[: most - 1] + "…"
    if isinstance(value, torch.Tensor | np.ndarray):
        text += f"  (shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')})"
    return text
