"""The judge: a learner's function takes the reference's place, and every property is tried on many inputs.

    load      run the learner's text; the reference is hidden meanwhile, so that it cannot be handed in
    place     put the function where the package has the reference
    try       inputs drawn by hypothesis, until one breaks a property; that one is made as small as it can be
    record    the smallest input once more, with every step kept: the player opens where it breaks

Runs in a process of its own (`process.py`), which may be killed at any moment and is never used again.
"""

import copy
import inspect
import io
import linecache
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from numbers import Real
from types import CodeType, FunctionType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from inference_opt.explain.exercises.exercise import Broken, Exercise, Predict, Property, Repair, Write, in_short
from inference_opt.explain.exercises.place import put
from inference_opt.explain.exercises.verdict import Verdict
from inference_opt.explain.record import record
from inference_opt.trace import Trace, emit, emit_at

# Seconds of the processor, so that a verdict does not depend on what else runs.
TRYING, SHRINKING = 5.0, 2.0  # for all properties of an exercise, and for making a counterexample small
ONE_INPUT = 5.0  # that a single input may take
EXAMPLES, FEWEST = 300, 25  # inputs of a property, if there is time; and what there must be time for
PRINTED = 1000  # letters kept of what the learner's code prints


@dataclass
class Solution:
    """What a learner hands in: a file's text, or a function (or a table of answers) of a notebook.

    `sources`: the text of the files, or cells, that the function came from.
    """

    file: str = ""
    text: str = ""
    value: Any = None
    witness: Any = None
    sources: dict[str, list[str]] = field(default_factory=dict)


class Refused(Exception):
    """The solution cannot be judged, or is wrong before any input is tried."""

    def __init__(self, sentence: str, line: int = 0) -> None:
        super().__init__(sentence)
        self.line = line


class Endless(BaseException):
    """One input took longer than an answer may take."""


def judge(exercise: Exercise, solution: Solution, chance: int, note: Callable[[str], None]) -> Verdict:
    """The verdict. `note` is told what is being tried, for whoever has to say why this process was killed."""
    printed = Printed()
    start = time.monotonic()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            verdict = _judge(exercise, solution, chance, note)
        except Refused as refused:
            verdict = Verdict(exercise.id, False, str(refused), line=refused.line)
    verdict.printed, verdict.seed = printed.kept(), chance
    verdict.seconds = round(time.monotonic() - start, 2)
    return verdict


def _judge(exercise: Exercise, solution: Solution, chance: int, note: Callable[[str], None]) -> Verdict:
    if isinstance(exercise, Predict):
        return _predicted(exercise, _answers(solution))
    assert isinstance(exercise, Write)
    names = _loaded(exercise, solution)
    function = _function(exercise, solution, names)
    if isinstance(exercise, Repair):
        witness = solution.witness if solution.value is not None else names.get("witness", ...)
        _check_witness(exercise, witness)
    put(exercise.owner, exercise.name, function)
    tried = 0
    end = time.process_time() + TRYING
    for left, each in zip(range(len(exercise.properties), 0, -1), exercise.properties):
        share = max((end - time.process_time()) / left, 0.5)
        count, failed = first_failure(each, chance, share, note)
        tried += count
        if failed is not None:
            return refusal(exercise, function, each, *failed)
    return Verdict(exercise.id, True, f"{len(exercise.properties)} properties hold on {tried} inputs.")


# Loading


def _loaded(exercise: Write, solution: Solution) -> dict[str, Any]:
    """The names that a learner's file defines."""
    for file, lines in (solution.sources | {solution.file: solution.text.splitlines(keepends=True)}).items():
        linecache.cache[file] = (sum(map(len, lines)), None, lines, file)
    if solution.value is not None:
        return {}

    def hidden(*args: Any, **named: Any) -> Any:
        raise NotImplementedError(f"{exercise.name} is what is to be written: the package's own is not there")

    reference = exercise.reference
    put(exercise.owner, exercise.name, hidden)
    try:
        return _run(solution)
    finally:
        put(exercise.owner, exercise.name, getattr(reference, "fget", getattr(reference, "__func__", reference)))


def _function(exercise: Write, solution: Solution, names: Mapping[str, Any]) -> Any:
    """The learner's function. Refused where it is missing, or does not take what the reference takes."""
    wanted = exercise.function.__name__
    function = names.get(wanted) if solution.value is None else solution.value
    if function is None:
        raise Refused(f"there is no function {wanted} in {solution.file}")
    plain = getattr(function, "fn", function)
    if getattr(plain, "__module__", "").startswith("inference_opt."):
        raise Refused(f"this is the package's own function: write {wanted} yourself")
    if not isinstance(plain, FunctionType):
        raise Refused(f"{wanted} must be a function, got {in_short(function, 80)}")
    kernel = hasattr(exercise.reference, "fn")
    if kernel and plain is function and solution.value is None:
        raise Refused(f"{wanted} must be a Triton kernel: keep the line @triton.jit above it")
    expected, got = inspect.signature(exercise.function), inspect.signature(plain)
    if [(p.name, p.kind) for p in expected.parameters.values()] != [(p.name, p.kind) for p in got.parameters.values()]:
        shapes = [f"({', '.join(map(str, s.replace(return_annotation=s.empty).parameters))})" for s in (expected, got)]
        line = plain.__code__.co_firstlineno
        raise Refused(f"{wanted} must take the parameters {shapes[0]}, yours takes {shapes[1]}", line)
    return type(exercise.reference)(plain) if kernel else function  # a notebook hands over the plain function


def _answers(solution: Solution) -> Any:
    return _run(solution).get("answers") if solution.value is None else solution.value


def _run(solution: Solution) -> dict[str, Any]:
    """Run a learner's file; the names that it defines. Refused if it raises an error, or does not end."""
    names: dict[str, Any] = {"__name__": "solution", "__file__": solution.file}
    try:
        with _one_input():
            exec(compile(solution.text, solution.file, "exec", dont_inherit=True), names)
    except SyntaxError as error:
        raise Refused(f"this is no Python: {error.msg}", error.lineno or 0) from None
    except Endless:
        raise Refused(f"running the file took longer than {ONE_INPUT:.0f} seconds") from None
    except BaseException as error:
        raise Refused(f"running the file raised {_said(error)}", _line(error, solution.file)) from None
    return names


# Trying


def first_failure(
    prop: Property, chance: int, seconds: float, note: Callable[[str], None]
) -> tuple[int, tuple[dict[str, Any], BaseException] | None]:
    """How many inputs were tried, and the smallest found that breaks the property, with what it raised."""
    until = time.process_time() + seconds
    failed: tuple[dict[str, Any], BaseException] | None = None
    tried = 0

    class Breaks(Exception):
        pass

    def trial(example: dict[str, Any]) -> None:
        nonlocal until, failed, tried
        late = time.process_time() > until
        if late and (failed is not None or tried >= FEWEST + len(prop.corners)):
            return  # nothing more is found, nothing becomes smaller
        tried += 1
        note(f"{prop.sentence}, on the input {_shown(example)}")
        try:
            with _one_input():
                prop.holds(**copy.deepcopy(example))
        except BaseException as error:
            if failed is None:
                until = time.process_time() + SHRINKING
            if isinstance(error, Endless):
                until = 0
            failed = copy.deepcopy(example), _raised(error)
            raise Breaks from None

    for corner in prop.corners:
        try:
            trial(dict(corner))
        except Breaks:
            return tried, failed
    run = given(prop.examples)(trial)
    run = settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )(run)
    try:
        seed(chance)(run)()
    except Exception:  # `Breaks`, or hypothesis's complaint that a trial without time no longer breaks
        if failed is None:
            raise
    return tried, failed


@contextmanager
def _one_input() -> Iterator[None]:
    """Raises `Endless` in the block after `ONE_INPUT` seconds."""

    def late(*_: Any) -> None:
        raise Endless

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, ONE_INPUT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# Refusing


def refusal(exercise: Write, function: Any, prop: Property, example: dict[str, Any], error: BaseException) -> Verdict:
    """What is said of a counterexample, and its recording."""
    shown = _shown(example)
    file = getattr(function, "fn", function).__code__.co_filename
    if isinstance(error, NotImplementedError):
        return Verdict(exercise.id, False, f"it is not written yet: {_said(error)}", line=_line(error, file))
    trace = None
    if not isinstance(error, Endless):
        trace = _recorded(exercise, function, prop, example, error)
        if trace.cut:  # a picture could not be made of what the learner's code left behind
            trace = _recorded(exercise, function, prop, example, error, only="exercise.")
    sentence, came, right = _told(prop, error)
    line = 0 if isinstance(error, Broken) else _line(error, file)
    return Verdict(exercise.id, False, sentence, shown, came, right, line, trace=trace)


def _recorded(
    exercise: Write, function: Any, prop: Property, example: dict[str, Any], error: BaseException, only: str = ""
) -> Trace:
    """A counterexample run once more, step by step, up to where it breaks; `error`: what it raised before."""
    shown = _shown(example)
    with record(f"{exercise.id}, {exercise.title}: a counterexample", only=only) as trace:
        emit("exercise.given", given=shown)
        again = None
        try:
            with _one_input():
                prop.holds(**copy.deepcopy(example))
        except BaseException as raised:
            again = _raised(raised)
        sentence, came, right = _told(prop, again or error)
        if again is None:
            sentence += ". (This time it was right: does your code keep something from one call to the next?)"
        code, line = _place(function, again or error)
        rows = [("your code", came, right)] if came or right else []
        emit_at(code, line, "exercise.broken", sentence=sentence, given=shown, rows=rows)
    return trace


def _told(prop: Property, error: BaseException) -> tuple[str, str, str]:
    """(what broke, what came, what is right)."""
    if isinstance(error, Broken):
        came, right = (in_short(value) if value is not None else "" for value in (error.came, error.right))
        if came == right != "":  # they differ in digits that are not shown, or by their types
            came, right = f"{error.came!r}"[:300], f"{error.right!r}"[:300]
        return f"{prop.sentence}: {error.sentence}" if error.sentence else prop.sentence, came, right
    if isinstance(error, Endless):
        return f"{prop.sentence}: no answer within {ONE_INPUT:.0f} seconds on this input", "", ""
    return f"{prop.sentence}: your code raised an error", _said(error), "no error"


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"SystemExit({error.code!r}): it asks to end the process, which is not its to end"
    if isinstance(error, RecursionError):
        return "RecursionError: it calls itself without end"
    try:
        words = str(error).strip()
    except Exception:
        words = "(and its message cannot be shown)"
    return f"{type(error).__name__}: {words}"[:PRINTED] if words else type(error).__name__


def _raised(error: BaseException) -> BaseException:
    """The error itself, where Triton's interpreter has wrapped it in its own."""
    return error.__cause__ or error if type(error).__name__ == "InterpreterError" else error


def _frames(error: BaseException) -> Iterator[tuple[CodeType, int]]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code, trace.tb_lineno
        trace = trace.tb_next


def _line(error: BaseException, file: str) -> int:
    """The innermost line of a file that an error went through; 0 if it went through none."""
    lines = [line for code, line in _frames(error) if code.co_filename == file]
    return lines[-1] if lines else 0


def _place(function: Any, error: BaseException) -> tuple[CodeType, int]:
    """The learner's line that raised; or, where a value was wrong, the beginning of the function."""
    code: CodeType = getattr(function, "fn", function).__code__
    inside = [(at, line) for at, line in _frames(error) if at.co_filename == code.co_filename]
    return inside[-1] if inside else (code, code.co_firstlineno)


def _shown(example: Mapping[str, Any]) -> dict[str, str]:
    return {name: in_short(value) for name, value in example.items()}


# The other kinds


def _check_witness(exercise: Repair, witness: Any) -> None:
    """Refused unless the function with its bug breaks on the witness, and the reference does not."""
    names = ", ".join(exercise.witness)
    if witness is ... or witness is None:
        raise Refused(f"first find an input that shows the bug: witness = a dict with the keys {names}")
    if not isinstance(witness, dict) or set(witness) != set(exercise.witness):
        raise Refused(f"the witness must be a dict with the keys {names}, got {in_short(witness, 120)}")
    space = dict(exercise.function.__globals__)
    exec(compile(exercise.broken(), f"<{exercise.id}>", "exec"), space)
    put(exercise.owner, exercise.name, space[exercise.function.__name__])
    shows = any(_breaks(each, witness) for each in exercise.properties)
    put(exercise.owner, exercise.name, exercise.function)
    wrong = [error for each in exercise.properties if (error := _breaks(each, witness))]
    if wrong:
        raise Refused(
            f"the witness {in_short(witness, 120)} is no input that the right function can take: {_said(wrong[0])}"
        )
    if not shows:
        raise Refused(f"the witness {in_short(witness, 120)} does not show the bug: the broken function is right on it")


def _breaks(prop: Property, example: Mapping[str, Any]) -> BaseException | None:
    if set(inspect.signature(prop.holds).parameters) != set(example):
        return None  # a property of other inputs
    try:
        with _one_input():
            prop.holds(**copy.deepcopy(dict(example)))
    except BaseException as error:
        return error
    return None


def _predicted(exercise: Predict, answers: Any) -> Verdict:
    """Each number, against what the code does."""
    if not isinstance(answers, dict) or set(answers) != set(exercise.questions):
        names = ", ".join(map(repr, exercise.questions))
        raise Refused(f"expected answers = a dict with the keys {names}, got {in_short(answers, 120)}")
    if open_ := [name for name, value in answers.items() if value is ... or value is None]:
        raise Refused(f"not answered yet: {', '.join(open_)}")
    numbers = {name: _number(value) for name, value in answers.items()}
    if odd := [name for name, number in numbers.items() if not isfinite(number)]:
        raise Refused(f"the answer to {odd[0]!r} must be a number, got {in_short(answers[odd[0]], 80)}")
    right, trace = exercise.run()
    said = []
    for name, number in numbers.items():
        if abs(number - right[name]) > 1e-6 * max(1, abs(right[name])):
            beliefs = exercise.questions[name].beliefs
            why = next((f" ({why})" for belief, why in beliefs if abs(belief - number) < 1e-9), "")
            said.append(f"{name}: {answers[name]} is too {'small' if number < right[name] else 'large'}{why}")
    if said:
        return Verdict(exercise.id, False, "; ".join(said), trace=trace)
    return Verdict(exercise.id, True, f"{len(right)} numbers are what the code does.")


def _number(value: Any) -> float:
    """The value as a float; nan for what is none."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else nan
    except OverflowError:
        return inf


class Printed(io.TextIOBase):
    """Takes what is printed, and keeps the beginning."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.length = 0

    def write(self, text: str) -> int:
        """Keep it, while there is room."""
        if self.length < PRINTED:
            self.parts.append(text[: PRINTED - self.length])
        self.length += len(text)
        return len(text)

    def kept(self) -> str:
        """The beginning of all, and how much more there was."""
        more = self.length - PRINTED
        return "".join(self.parts).strip() + (f"… and {more:,} letters more" if more > 0 else "")


def any_seed() -> int:
    """For a check that names none: other inputs every time, so that no table of answers passes."""
    return secrets.randbits(32)
