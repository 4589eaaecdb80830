"""What the commands share: how they end, the types of their options, and what is printed with."""

import contextlib
import io
import itertools
import os
import re
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from inference_opt.files import folder, whole, writable
from inference_opt.files import write_json as write_json  # what commands write their figures with


class Commands(TyperGroup):
    """All commands: what ends one early is said in one line, without a traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        """What a stream's encoding lacks is replaced, and never ends a run."""
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by who started us
                setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
            elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        with _ended_in_words():  # help is printed outside `invoke`
            return super().main(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; `main` has ends of its own for Ctrl-C and closed pipes, which say less."""
        with _ended_in_words():
            return super().invoke(ctx)


@contextlib.contextmanager
def _ended_in_words() -> Iterator[None]:
    """Exit status 2: the user can mend it; 130: Ctrl-C; 141: nobody reads what is printed."""
    try:
        try:
            yield
        except (typer.Exit, SystemExit):  # after `--help`, say
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return
    except BrokenPipeError:
        status, said = 141, ""
    except KeyboardInterrupt:
        status, said = 130, "interrupted"
    except OSError as error:
        reason = error.strerror or str(error)
        status, said = 2, f"error: {error.filename}: {reason}" if error.filename else f"error: {reason}"
    except RecursionError:
        status, said = 2, "error: what was given is nested too deeply to be read"
    except (MemoryError, RuntimeError) as error:
        if not re.search("memory", f"{type(error).__name__} {error}", re.IGNORECASE):
            raise
        status, said = 2, "error: not enough memory: take a smaller model, a shorter text or a smaller batch"
    except (ValueError, NotImplementedError) as error:
        status, said = 2, f"error: {error}"
    try:
        sys.stdout.flush()
    except OSError:  # what is left would be tried, and complained about, again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError):
        console(stderr=True).print(said, end="\n" * bool(said), soft_wrap=True)
    sys.exit(status)


def no_effect(where: str, given: dict[str, bool]) -> None:
    """ValueError if an option was given that changes nothing there."""
    if idle := [name for name, there in given.items() if there]:
        raise ValueError(f"{', '.join(idle)} would have no effect {where}: leave out one or the other")


class Dtype(StrEnum):
    """Precisions that models are loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


class DrafterName(StrEnum):
    """Drafters that need nothing but the target (`speculative.DRAFTERS`)."""

    prompt_lookup = "prompt-lookup"
    n_gram = "n-gram"
    first_layers = "first-layers"
    trained = "trained"


def _claim(context: Any, name: str, path: Path, written: bool) -> None:
    """ValueError if another option names a file that is to be written. Devices and FIFOs are no such files."""
    uses: dict[str, tuple[str, bool]] = context.meta.setdefault("inference_opt.files", {})
    if path.exists() and not path.is_file():
        return
    other, other_written = uses.setdefault(os.path.realpath(path), (name, written))
    if other != name and (written or other_written):
        raise ValueError(f"{name} and {other} name the same file, {path}: it would be overwritten")


def _keep_inputs(context: Any, name: str, folder: Path | None = None, file: Path | None = None) -> None:
    """ValueError if a file that is to be written is there already, in a folder that is read (or a link in it is)."""
    folders: list[tuple[str, str]] = context.meta.setdefault("inference_opt.folders", [])
    files: list[tuple[str, Path]] = context.meta.setdefault("inference_opt.outputs", [])
    folders += [] if folder is None else [(name, os.path.realpath(folder))]
    files += [] if file is None or not file.is_file() else [(name, file)]
    for (reads, read), (writes, written) in itertools.product(folders, files):
        places = os.path.realpath(written), os.path.realpath(written.parent)
        if any(Path(place).is_relative_to(read) for place in places):
            raise ValueError(f"{writes} names a file of the folder that {reads} reads, {written}: it would be "
                             "overwritten, give another name")  # fmt: skip


def _read(context: Any, parameter: Any, value: Any) -> Any:
    """Files and folders that a command reads: a command must not write over them."""
    for each in value if isinstance(value, list) else [value]:
        path = "" if each is None else os.path.expanduser(each)  # noqa: PTH111 (Path's methods raise for some names)
        if os.path.isfile(path):  # noqa: PTH113
            _claim(context, parameter.opts[0], Path(path), False)
        elif os.path.isdir(path):  # noqa: PTH112
            _keep_inputs(context, parameter.opts[0], folder=Path(path))
    return value


def _write(context: Any, parameter: Any, value: Path | None) -> Path | None:
    """A file that a command writes: refused before the work begins, not after it."""
    if value is None:
        return None
    name = parameter.opts[-1]
    try:
        path = writable(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    _claim(context, name, path, True)
    _keep_inputs(context, name, file=path)
    return path


def _figure(context: Any, parameter: Any, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in FIGURES and (value.is_file() or not value.exists()):
        raise ValueError(f"{parameter.opts[0]} {value}: expected a name that ends in {', '.join(FIGURES)}")
    return _write(context, parameter, value)


def _folder(context: Any, parameter: Any, value: Path) -> Path:
    """The folder that a study is written to."""
    path = folder(value)
    for name in ("report.html", "study.json"):
        _claim(context, parameter.opts[-1], path / name, True)
    return path


FIGURES = (".svg", ".png", ".pdf")
INPUT: dict[str, Any] = {"callback": _read}
OUTPUT: dict[str, Any] = {"callback": _write, "readable": False}
FOLDER: dict[str, Any] = {"callback": _folder, "readable": False}
Model = Annotated[str, typer.Option(help="smollm2-135m, a GGUF file, a folder of safetensors, or a hub id.", **INPUT)]
DType = Annotated[Dtype, typer.Option(help="Precision of weights and activations.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.", **OUTPUT)]
Figure = Annotated[Path | None, typer.Option(help="A figure alone (svg, png, pdf).", readable=False, callback=_figure)]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")]


def console(stderr: bool = False) -> Console:
    """Prints what it is given: names and texts of others may hold what looks like markup."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


# On a dark page an SVG is turned over and keeps its hues. The page's colour scheme decides: GitHub's, or the site's.
DARK = "<style>@media (prefers-color-scheme: dark) { svg { filter: invert(.92) hue-rotate(180deg) } }</style>"


def svg(figure: Any) -> str:
    """A matplotlib figure as SVG, for light and for dark pages."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue().replace("</svg>", f"{DARK}</svg>")


def save_figure(figure: Any, path: Path | None) -> None:
    """Save a matplotlib figure in the format that the name ends in; to a device, as SVG."""
    if path is not None:
        ending = path.suffix.lower()
        with whole(path) as file:
            if ending in FIGURES[1:]:
                figure.savefig(file, format=ending[1:])
            else:
                file.write(svg(figure).encode())
