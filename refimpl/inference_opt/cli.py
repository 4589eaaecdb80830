"""The command line: tour, generate, step, exercise, ablate, bench, fetch."""

import json
import os
import signal
import sys
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from inference_opt import __version__
from inference_opt.explain.exercise_commands import exercise_app
from inference_opt.files import write_json, write_whole
from inference_opt.lab.bench import cuda
from inference_opt.lab.bench.commands import bench_app
from inference_opt.options import (
    FOLDER,
    INPUT,
    OUTPUT,
    Commands,
    DrafterName,
    DType,
    Dtype,
    Figure,
    Json,
    MaxNewTokens,
    Model,
    console,
    no_effect,
    save_figure,
)

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (cuda.kernels, cuda.engine, cuda.together):
    bench_app.command()(command)
app.add_typer(bench_app, name="bench")
app.add_typer(exercise_app, name="exercise")


def _print_version(asked: bool) -> bool:
    if asked:
        print(f"inference-opt {__version__}")
        raise typer.Exit
    return asked


@app.callback(help=__doc__)
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def fetch(model: Annotated[str, typer.Argument(help="Name of the model.")] = "smollm2-135m") -> None:
    """Download a model's weights once, check them by SHA-256, and print where they are."""
    from inference_opt.loading import download

    print(download.fetch(model))


@app.command()
def tour(
    model: Model = "smollm2-135m",
    max_new_tokens: MaxNewTokens = 96,
    dtype: DType = Dtype.float32,
    json_file: Json = None,
    report: Annotated[Path, typer.Option(help="Where to put the HTML report.", **OUTPUT)] = Path("tour.html"),
    figure: Figure = None,
) -> None:
    """Generate the same text by every technique in turn, and compare: tokens, speed, memory."""
    from inference_opt.explain.tour import run_tour, table, tour_figure, write_report
    from inference_opt.loading.load import load_model
    from inference_opt.loading.tokenizer import needed

    out = console()
    with out.status(Text(f"loading {model}")):
        loaded, tokenizer = load_model(model, dtype=dtype.value)
    result = run_tour(loaded, needed(tokenizer), model, max_new_tokens, out)
    write_report(result, report)
    save_figure(tour_figure(result), figure)
    write_json(json_file, result.as_json())
    out.print(table(result))
    out.print(result.command, style="dim")
    out.print(f"report: {report.resolve()}", soft_wrap=True)
    if not result.exact:
        raise ValueError("a stage did not give the naive stage's tokens, beyond what rounding explains")


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; standard input if none is given.")] = None,
    model: Model = "smollm2-135m",
    chat: Annotated[bool, typer.Option("--chat/--raw", help="A user's message, or text to continue as it is.")] = True,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k most probable tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among the fewest tokens that hold this much probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this fraction of the most probable one.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.", show_default="random")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help="Stop before this string, taken as it stands ($'\\n' in bash is a new line); may be given again."
        ),
    ] = None,
    drafter: Annotated[
        DrafterName | None, typer.Option(help="Speculate with this drafter.", show_default="plain decoding")
    ] = None,
    gamma: Annotated[int | None, typer.Option(min=0, help="Drafts a step.", show_default="adapted to the text")] = None,
    dtype: DType = Dtype.float32,
    json_file: Json = None,
) -> None:
    """Continue a prompt, showing the text as it is generated."""
    from inference_opt.generate import generate_text, in_short
    from inference_opt.sampling import SamplingParams

    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=tuple(stop or ()),
        gamma=gamma,
    )
    if drafter is None:
        no_effect("without --drafter", {"--gamma": gamma is not None})
    if temperature == 0:
        sampling = {"--top-k": top_k != 0, "--top-p": top_p != 1, "--min-p": min_p != 0, "--seed": seed is not None}
        no_effect("at --temperature 0, which is greedy", sampling)
    text = _standard_input() if prompt is None else prompt
    figures = generate_text(model, dtype.value, text, chat, params, drafter and drafter.value)
    console(stderr=True).print(in_short(figures), soft_wrap=True)
    write_json(json_file, figures)


def _standard_input() -> str:
    if sys.stdin is None:
        raise ValueError("expected a prompt, or one on standard input, which is closed")
    if sys.stdin.isatty():
        print("prompt (end with Ctrl-D):", file=sys.stderr)
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"standard input is not text in {error.encoding} ({error.reason}, byte {error.start})"
        ) from None


@app.command("step")
def step_through(
    scenario: Annotated[str | None, typer.Argument(help="Name of the scenario (see --list).")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The HTML file.", **OUTPUT)] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Name the scenarios, one a line.")] = False,
    seed: Annotated[int | None, typer.Option(help="For scenarios with chance.", show_default="the scenario's")] = None,
    trace_file: Annotated[Path | None, typer.Option("--trace", help="Show this saved trace.", **INPUT)] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the trace to this file.", **OUTPUT)] = None,
) -> None:
    """Record a scenario and write it as one HTML file, to be stepped through in any browser."""
    from inference_opt.explain.player.page import page
    from inference_opt.explain.scenarios import SCENARIOS, play
    from inference_opt.trace.trace import Trace

    if list_all:
        width = max(map(len, SCENARIOS))
        for name, each in SCENARIOS.items():
            print(f"{name:{width}}  {each.sentence}")
        return
    if (scenario is None) == (trace_file is None):
        raise ValueError("expected the name of a scenario, or --trace FILE (inference-opt step --list names them all)")
    if trace_file is not None:
        no_effect("with --trace, whose steps are recorded already", {"--seed": seed is not None})
        trace, name = Trace.load(trace_file), trace_file.stem
    else:
        assert scenario is not None
        trace, name = play(scenario, **({} if seed is None else {"seed": seed})), scenario
    write_json(json_file, trace.as_json())
    path = output or (None if json_file else Path(f"{name}.html"))
    if path is not None:
        write_whole(path, page(trace))
        print(f"{len(trace)} steps: {path.resolve()}")
    if trace.cut:
        print(f"note: {trace.cut}", file=sys.stderr)


@app.command()
def ablate(
    dataset: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files or folders (text, JSONL, CSV, Parquet), or built-in names.",
            show_default="all built-in",
            **INPUT,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help='As elsewhere, or sizes for random weights: \'{"dim": 512, "depth": 6, "heads": 8}\'.', **INPUT
        ),
    ] = "smollm2-135m",
    technique: Annotated[list[str] | None, typer.Option(help="One to test.", show_default="all")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="One to take.", show_default="all")] = None,
    design: Annotated[str, typer.Option(help="All combinations (full), one-in, or one-out.")] = "full",
    repeats: Annotated[int, typer.Option(min=1, help="Times that each combination is run, interleaved.")] = 3,
    requests: Annotated[int, typer.Option(min=1, help="At most so many of each dataset.")] = 32,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="By which each request is continued.", show_default="the workload's own"),
    ] = None,
    drafter: Annotated[DrafterName, typer.Option(help="Who guesses.")] = DrafterName.prompt_lookup,
    page_size: Annotated[int, typer.Option(min=1, help="Tokens a page.")] = 16,
    dtype: DType = Dtype.float32,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="Folder of the report. What is there already is not measured again.", **FOLDER
        ),
    ] = Path("ablation"),
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler whose workers are to run it.", show_default="none")
    ] = None,
    json_file: Json = None,
) -> None:
    """Measure every combination of techniques on prompts of your own, against plain cached decoding."""
    from inference_opt.experiment import run_ablation_study
    from inference_opt.experiment.datasets import BUILT_IN
    from inference_opt.experiment.results import table
    from inference_opt.experiment.study import METRICS
    from inference_opt.experiment.trials import TECHNIQUES

    results = run_ablation_study(
        dataset or list(BUILT_IN),
        _sizes(model) if model.startswith("{") else model,
        technique or TECHNIQUES,
        metric or METRICS,
        design=design,
        repeats=repeats,
        requests=requests,
        max_new_tokens=max_new_tokens,
        drafter=drafter.value,
        page_size=page_size,
        dtype=dtype.value,
        folder=output,
        executor=None if scheduler is None else _dask(scheduler),
    )
    write_json(json_file, results.as_json())
    report = results.write(output).resolve()
    out = console()
    out.print(table(results))
    out.print(f"report: {report}", soft_wrap=True)
    if any(row.get("exact") is False for row in results.rows()):
        raise ValueError("a combination did not give the naive oracle's tokens, beyond what rounding explains")


def _sizes(text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"--model {text}: sizes must be JSON ({error})") from None


def _dask(address: str) -> Executor:
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("--scheduler needs Dask: pip install 'inference-opt[cluster]'") from error
    return Client(address, timeout=30).get_executor()


def main() -> None:
    """Run a command. What no one foresaw is a fault of ours: it is said in a line, too, and can be looked into."""
    interrupts = []

    def interrupt(number: int, frame: Any) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        app()
    except Exception as error:
        if interrupts:  # taken for an error of its own by a library, as by torch while it imports NumPy
            console(stderr=True).print("interrupted")
            sys.exit(130)
        if os.environ.get("INFERENCE_OPT_TRACEBACK"):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        console(stderr=True).print(
            f"unexpected {said[:300]}\nThis is a fault of inference-opt: please report it, with what it prints under "
            "INFERENCE_OPT_TRACEBACK=1",
            soft_wrap=True,
        )
        sys.exit(1)
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    main()
