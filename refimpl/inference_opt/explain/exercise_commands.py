"""`inference-opt exercise`: list, start, check, hint, solution."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from inference_opt.files import write_json, write_whole
from inference_opt.options import INPUT, OUTPUT, Json, console, no_effect

exercise_app = typer.Typer(no_args_is_help=True, help="Write it yourself: exercises, judged by properties.")
Id = Annotated[str, typer.Argument(help="The exercise's name, for example 03.split (see list).")]


@exercise_app.command("list")
def list_all() -> None:
    """Name the exercises, and say which you have solved (exercises.json in this folder)."""
    from inference_opt.explain.exercises import EXERCISES
    from inference_opt.explain.exercises.progress import Progress, state

    known = Progress().read()
    table = Table("exercise", "kind", "what to do", "minutes", "you")
    for id, each in EXERCISES.items():
        table.add_row(id, each.kind, each.title, str(each.minutes), state(known.get(id, {})))
    console().print(table)
    left = [id for id in EXERCISES if not known.get(id, {}).get("accepted")]
    said = f" The next: inference-opt exercise start {left[0]}" if left else ""
    print(f"{len(EXERCISES) - len(left)} of {len(EXERCISES)} accepted.{said}")


@exercise_app.command()
def start(
    id: Id,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to begin with.", **OUTPUT)] = None,
) -> None:
    """Write the file to begin with: imports, signature and docstring, and no body."""
    from inference_opt.explain.exercises import named

    exercise = named(id)
    path = output or Path(exercise.file)
    if path.exists():
        raise ValueError(f"{path} is there already, and stays as it is: name another file with -o, or move it away")
    write_whole(path, exercise.file_text())
    print(f"{path}: {exercise.title}, about {exercise.minutes} minutes. Then: inference-opt exercise check {id} {path}")


@exercise_app.command()
def check(
    id: Annotated[str | None, typer.Argument(help="The exercise's name.")] = None,
    file: Annotated[Path | None, typer.Argument(help="Your file.", show_default="03_split.py", **INPUT)] = None,
    every: Annotated[bool, typer.Option("--all", help="Check all files of this folder, by their names.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the inputs.", show_default="another every time")] = None,
    json_file: Json = None,
) -> None:
    """Judge your file. Exit status 0: accepted; 1: refused, with the smallest input that shows it; 2: wrong use.

    A refusal's recording is written beside your file, as HTML that opens at the step where it breaks.
    """
    from inference_opt.explain.exercises import EXERCISES, named
    from inference_opt.explain.exercises import check as judged

    if every == (id is not None):
        raise ValueError("expected the name of an exercise, or --all (inference-opt exercise list names them)")
    if every:
        no_effect("with --all", {"FILE": file is not None})
        work = [(name, Path(each.file)) for name, each in EXERCISES.items() if Path(each.file).exists()]
        if not work:
            raise ValueError(f"no file here is named as an exercise, such as {next(iter(EXERCISES.values())).file}")
    else:
        assert id is not None
        work = [(id, file or Path(named(id).file))]
    out, verdicts = console(), []
    for name, path in work:
        with out.status(f"judging {path}"):
            verdict = judged(name, path, seed=seed)
        verdicts.append(verdict)
        out.print("\n".join(verdict.lines()), soft_wrap=True)
        if verdict.trace is not None:
            page = path.with_suffix(".html")
            write_whole(page, verdict.page())
            print(f"  step through it: {page.resolve()}")
        if not verdict.accepted:
            print(f"  a hint: inference-opt exercise hint {name}")
    if every:
        print(f"{sum(each.accepted for each in verdicts)} of {len(verdicts)} accepted")
    write_json(json_file, [each.as_json() for each in verdicts] if every else verdicts[0].as_json())
    if not all(each.accepted for each in verdicts):
        raise typer.Exit(1)


@exercise_app.command()
def hint(id: Id) -> None:
    """Show the next hint of three: a nudge, the idea, nearly the solution."""
    from inference_opt.explain.exercises import hint as next_hint

    console().print(next_hint(id), soft_wrap=True)


@exercise_app.command()
def solution(
    id: Id,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write it to this file.", **OUTPUT)] = None,
) -> None:
    """Print a solution that is accepted: the reference itself."""
    from inference_opt.explain.exercises import solution as solved

    text = solved(id)
    if output is None:
        print(text, end="")
    else:
        write_whole(output, text)
