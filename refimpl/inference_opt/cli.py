"""The command line: tour, generate, bench, fetch."""

import json
import os
import secrets
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
bench_app = typer.Typer(no_args_is_help=True, help="Benchmarks: ratios against a peer and a limit, in one run.")
app.add_typer(bench_app, name="bench")


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


Model = Annotated[str, typer.Option(help="smollm2-135m, a GGUF file, a folder of safetensors, or a hub id.")]
DType = Annotated[Dtype, typer.Option(help="Precision of weights and activations.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.", dir_okay=False)]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")]


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures whole or not at all."""
    if path is None:
        return
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


@app.command()
def fetch(model: Annotated[str, typer.Argument(help="Name of the model.")] = "smollm2-135m") -> None:
    """Download a model's weights once, check them by SHA-256, and print where they are."""
    from inference_opt.model import weights

    print(weights.fetch(model))


@app.command()
def tour(
    model: Model = "smollm2-135m",
    max_new_tokens: MaxNewTokens = 96,
    dtype: DType = Dtype.float32,
    json_file: Json = None,
    report: Annotated[Path, typer.Option(help="Where to put the HTML report.", dir_okay=False)] = Path("tour.html"),
    figure: Annotated[Path | None, typer.Option(help="Save the figure alone (svg, png, pdf).", dir_okay=False)] = None,
) -> None:
    """Generate the same text by every technique in turn, and compare: tokens, speed, memory."""
    from inference_opt.model.load import load_model
    from inference_opt.tour import latency_figure, run_tour, table, write_report

    console = Console()
    with console.status(f"loading {model}"):
        loaded, tokenizer = load_model(model, dtype=dtype.value)
    result = run_tour(loaded, tokenizer, model, max_new_tokens, console)
    console.print(table(result))
    console.print(f"[dim]{result.command}[/]", highlight=False)
    write_report(result, report)
    if figure is not None:
        latency_figure(result).savefig(figure)
    write_json(json_file, result.as_json())
    console.print(f"report: {report.resolve()}", highlight=False, soft_wrap=True)
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
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this string; may be given several times.")] = None,
    drafter: Annotated[
        DrafterName | None, typer.Option(help="Speculate with this drafter.", show_default="plain decoding")
    ] = None,
    gamma: Annotated[int | None, typer.Option(min=0, help="Drafts a step.", show_default="adapted to the text")] = None,
    dtype: DType = Dtype.float32,
    json_file: Json = None,
) -> None:
    """Continue a prompt, showing the text as it is generated."""
    from inference_opt.generate import generate_text
    from inference_opt.sampling import SamplingParams

    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=secrets.randbits(63) if seed is None else seed,
        stop=tuple(stop or ()),
        gamma=gamma,
    )
    if prompt is None:
        if sys.stdin.isatty():
            print("prompt (end with Ctrl-D):", file=sys.stderr)
        prompt = sys.stdin.read()
    write_json(json_file, generate_text(model, dtype.value, prompt, chat, params, drafter and drafter.value))


@bench_app.command()
def decode(
    model: Model = "smollm2-135m",
    dtype: Annotated[list[Dtype] | None, typer.Option(help="May be given several times.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="May be given several times.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Timed tokens a request.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats; the median is shown.")] = 5,
    peer: Annotated[bool, typer.Option(help="Run transformers beside.")] = True,
    json_file: Json = None,
) -> None:
    """Plain decoding with a KV cache, beside transformers and beside the limit that memory bandwidth sets."""
    from inference_opt.bench.decode import bench_decode

    dtypes = [d.value for d in dtype or (Dtype.float32, Dtype.bfloat16)]
    console = Console()
    with Progress(console=Console(stderr=True)) as progress:
        figures = bench_decode(model, dtypes, batch or [1, 8], new_tokens, repeats, peer, progress)
    table = Table(title="tokens a second in decode (median, least to most)", title_style="bold")
    for heading in ("dtype", "batch", "inference-opt", "transformers", "ratio", "limit", "of limit"):
        table.add_column(heading, justify="left" if heading == "dtype" else "right")
    for row in figures["results"]:
        cells = [_rates(row[name]) if name in row else "–" for name in ("inference-opt", "transformers")]
        ratio = f"{row['over_transformers']:.2f}×" if "over_transformers" in row else "–"
        table.add_row(row["dtype"], str(row["batch"]), *cells, ratio, f"{row['limit']:.0f}", f"{row['of_limit']:.0%}")
    console.print(table)
    console.print(f"[dim]{figures['command']}[/]", highlight=False)
    write_json(json_file, figures)


@bench_app.command()
def prefix(
    model: Model = "smollm2-135m",
    dtype: DType = Dtype.float32,
    requests: Annotated[int, typer.Option(min=1, help="How many arrive together.")] = 16,
    stem: Annotated[int, typer.Option(min=1, help="Tokens that their prompts share.")] = 1000,
    new_tokens: Annotated[int, typer.Option(min=1, help="New tokens a request.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats; the median is shown.")] = 3,
    peer: Annotated[bool, typer.Option(help="Run transformers beside.")] = True,
    json_file: Json = None,
) -> None:
    """Requests that share a long beginning, with its keys and values reused and without, beside transformers."""
    from inference_opt.bench.prefix import bench_prefix

    console = Console()
    with Progress(console=Console(stderr=True)) as progress:
        figures = bench_prefix(model, dtype.value, requests, stem, new_tokens, repeats, peer, progress)
    title = f"{requests} requests on a stem of {stem} tokens, {new_tokens} new tokens each, {dtype.value}"
    table = Table(title=title, title_style="bold")
    for heading in ("engine", "seconds", "new tokens/s", "time of it", "prompt computed", "scheduler", "same tokens"):
        table.add_column(heading, justify="left" if heading in ("engine", "same tokens") else "right")
    for row in figures["results"]:
        table.add_row(
            row["name"],
            f"{row['seconds']:.2f} ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})",
            f"{row['tokens_per_second']:.1f}",
            f"{row['ratio']:.1f}×",
            f"{row['prefill_tokens']:,}",
            f"{row['overhead']:.1%}" if "overhead" in row else "–",
            row["agreement"],
        )
    console.print(table)
    console.print(f"[dim]{figures['command']}[/]", highlight=False)
    write_json(json_file, figures)
    if not figures["exact"]:
        raise ValueError("not every engine gave the same tokens, beyond what rounding explains")


@bench_app.command()
def radix(
    trace: Annotated[
        Path | None,
        typer.Argument(
            help="A Mooncake trace, such as conversation_trace.jsonl of github.com/kvcache-ai/Mooncake "
            "(FAST25-release/traces, Apache-2.0). Without one, generated traffic only.",
            dir_okay=False,
        ),
    ] = None,
    capacity: Annotated[list[int] | None, typer.Option(min=1, help="Pages; may be given several times.")] = None,
    sglang: Annotated[
        Path | None, typer.Option(help="Wheel of sglang 0.5.23: run its tree beside.", exists=True, dir_okay=False)
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats of the timings.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the generated traffic.")] = 0,
    figure: Annotated[
        Path | None, typer.Option(help="Save hit rate by capacity (svg, png, pdf).", dir_okay=False)
    ] = None,
    json_file: Json = None,
) -> None:
    """The radix tree alone: hit rate by policy and capacity beside Belady's bound, and operations a second."""
    from inference_opt.bench.radix import bench_radix, hit_rate_figure
    from inference_opt.bench.workloads import TRACE_URL

    console = Console()
    if trace is None:
        console.print(f"no trace given: its part is skipped (published at {TRACE_URL})", highlight=False)
    capacities = sorted(capacity or [1_000, 5_000, 10_000, 30_000, 100_000])
    with Progress(console=Console(stderr=True)) as progress:
        figures = bench_radix(trace, capacities, sglang, repeats, seed, progress)
    for workload, rows in figures["hit_rates"].items():
        table = Table(title=f"{workload}: hit rate by capacity in blocks", title_style="bold")
        for heading in ("policy", *(f"{c:,}" for c in capacities), "µs a prompt"):
            table.add_column(heading, justify="left" if heading == "policy" else "right")
        for row in rows:
            table.add_row(row["policy"], *(f"{r:.3f}" for r in row["hit_rate"]), f"{max(row['microseconds']):.0f}")
        console.print(table)
    speed = figures["speed"]
    table = Table(title=f"operations a second, {speed['workload']}, unbounded", title_style="bold")
    for heading in ("tree", "match", "insert", "ours / its match", "ours / its insert"):
        table.add_column(heading, justify="left" if heading == "tree" else "right")
    for name in ("inference-opt", "dictionary", *(["SGLang"] if sglang else [])):
        case = speed[name]
        ratios = [f"{case[f'ours_over_{operation}']:.1f}×" for operation in ("match", "insert")]
        table.add_row(name, f"{case['match']:,.0f}", f"{case['insert']:,.0f}", *ratios)
    console.print(table)
    sizes = ", ".join(f"{row['sequences']:,} sequences {row['microseconds']:.1f} µs" for row in figures["scaling"])
    console.print(f"a match of 1,024 tokens among {sizes}", highlight=False)
    console.print(f"[dim]{figures['command']}[/]", highlight=False)
    if figure is not None:
        hit_rate_figure(figures, next(iter(figures["hit_rates"]))).savefig(figure)
    write_json(json_file, figures)


def _rates(case: dict[str, Any]) -> str:
    least, most = case["spread"]
    return f"{case['decode']:.1f} ({least:.1f} to {most:.1f})"


def main() -> None:
    """Run a command; whatever is the user's to mend is said in one line, without a traceback."""
    try:
        app(standalone_mode=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError, NotImplementedError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
