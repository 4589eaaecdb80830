"""The commands of the benchmarks that need a CUDA device: `bench kernels`, `bench engine` and `bench together`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

from inference_opt.options import DType, Dtype, Json, console, no_effect, write_json

PAIR = ("DeepSeek-V2-Lite", "DeepSeek-V2-Lite grouped-query")  # with MLA, and as large without


def kernels(
    case: Annotated[
        list[str] | None, typer.Option(help="May be given several times.", show_default="all of them")
    ] = None,
    peer: Annotated[bool, typer.Option(help="Beside FlashInfer, FlashMLA and SGLang, where installed.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="The median is shown.")] = 30,
    json_file: Json = None,
) -> None:
    """Paged decoding kernels on CUDA, against others' and against what the card reads and multiplies."""
    from inference_opt.lab.bench.kernels import CASES, bench_kernels

    out = console()
    with Progress(console=console(stderr=True)) as progress:
        figures = bench_kernels(case or list(CASES), repeats, peer, progress)
    write_json(json_file, figures)
    ceilings = figures["ceilings"]
    title = f"{figures['machine']['device']}: reads {ceilings['read_bandwidth'] / 1e9:,.0f} GB/s, "
    table = Table(title=f"{title}multiplies {ceilings['product_flops'] / 1e12:,.0f} TFLOP/s", title_style="bold")
    for heading in ("case", "kernel", "µs", "GB/s", "TFLOP/s", "of the limit"):
        table.add_column(heading, justify="left" if heading in ("case", "kernel") else "right")
    for row in figures["results"]:
        for who, run in row["times"].items():
            if "error" in run:
                table.add_row(row["case"]["name"], who, run["error"][:60])
                continue
            rates = f"{run['bytes_per_second'] / 1e9:,.0f}", f"{run['operations_per_second'] / 1e12:,.0f}"
            table.add_row(row["case"]["name"], who, f"{1e6 * run['seconds']:,.1f}", *rates, f"{run['of_limit']:.0%}")
    out.print(table)
    out.print(figures["command"], style="dim")


def engine(
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="May be given several times; DeepSeek's one at a time, for their memory; V3's --no-vllm.",
            show_default="Llama's",
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="May be given several times.", show_default="1, 8, 64, 256")
    ] = None,
    context: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Instead: decode from contexts of this length, by default V2-Lite's with MLA and without.",
            show_default="none",
        ),
    ] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="Besides greedy; may be given several times.", show_default="all of them")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens for each request; the first is the prefill's.")] = 128,
    decode_steps: Annotated[int, typer.Option(min=1, help="Tokens decoded in a row before the host looks.")] = 64,
    peer: Annotated[bool, typer.Option(help="Beside transformers, its generate and its continuous batching.")] = True,
    vllm: Annotated[bool, typer.Option(help="Beside vLLM, where it is installed.")] = True,
    gpt_fast: Annotated[
        Path | None, typer.Option(help="A checkout of gpt-fast, to run beside for one request.", exists=True)
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats at most; the median is shown.")] = 5,
    json_file: Json = None,
) -> None:
    """Whole decoding on CUDA, random weights of real shapes: tokens a second beside the peer's and the limit."""
    from inference_opt.lab.bench.engine import MODES, SHAPES, bench_engine

    if context:
        no_effect("with --context", {"--mode": bool(mode), "--gpt-fast": bool(gpt_fast)})
        return _contexts(shape or list(PAIR), batch or [16], context, new_tokens, decode_steps, repeats, json_file)
    out = console()
    with Progress(console=console(stderr=True)) as progress:
        llama = [name for name, config in SHAPES.items() if not (config.latent or config.experts)]
        cases = shape or llama, batch or [1, 8, 64, 256], mode or list(MODES)
        figures = bench_engine(*cases, new_tokens, decode_steps, repeats, peer, vllm, gpt_fast, progress)
    write_json(json_file, figures)
    title = (
        f"{figures['machine']['device']}: reads {figures['read_bandwidth'] / 1e9:,.0f} GB/s; tokens a second in decode"
    )
    table = Table(title=title, title_style="bold")
    first, modes = figures["results"][0], cases[2]
    names = ("inference-opt", "vllm", "transformers", "continuous batching", "gpt-fast")
    who = [name for name in names if name in first or (name == "gpt-fast" and gpt_fast)]
    for heading in ("shape", "batch", *who, *modes, "limit", "of the limit"):
        table.add_column(heading, justify="left" if heading == "shape" else "right")
    for row in figures["results"]:
        rates = [_rate(row[name]["decode"]) if name in row else "" for name in who]
        rates += [_mode(row["modes"][name]) for name in modes]
        table.add_row(row["shape"], str(row["batch"]), *rates, f"{row['limit']:,.0f}", f"{row['of_limit']:.0%}")
    out.print(table)
    long = Table(title="seconds until the first tokens (TTFT), and of a token after (TPOT)", title_style="bold")
    for heading in ("shape", "prompts", *names[:2], "TPOT"):
        long.add_column(heading, justify="left" if heading == "shape" else "right")
    for row in figures["results"]:
        first = [f"{row[name]['prefill_seconds']:.4f}" if name in row else "" for name in names[:2]]
        each = f"{row['batch'] / row['inference-opt']['decode']:.5f}"
        long.add_row(row["shape"], f"{row['batch']} × {figures['prompt']}", *first, each)
    for row in figures["prefill"]:
        first = [f"{row[name]:.4f}" if name in row else "" for name in names[:2]]
        long.add_row(row["shape"], f"{row['batch']} × {row['prompt']:,}", *first, "")
    out.print(long)
    for row in figures["layers"]:
        took = f"{1e6 * row['seconds']:,.0f} µs, {row['least'] / row['seconds']:.0%} of the limit"
        out.print(f"{row['shape']}, batch {row['batch']}: each of the last {row['layers']} layers takes {took}")
    out.print(figures["command"], style="dim")


def _contexts(
    shapes: list[str],
    batches: list[int],
    contexts: list[int],
    new: int,
    decode_steps: int,
    repeats: int,
    json_file: Path | None,
) -> None:
    from inference_opt.lab.bench.contexts import bench_contexts

    out = console()
    with Progress(console=console(stderr=True)) as progress:
        figures = bench_contexts(shapes, batches, contexts, new, decode_steps, repeats, progress)
    write_json(json_file, figures)
    table = Table(title=f"{figures['machine']['device']}: tokens a second in decode", title_style="bold")
    for heading in ("shape", "context", "B a token", "batch that fits", "batch", "tokens/s", "limit", "of the limit"):
        table.add_column(heading, justify="left" if heading == "shape" else "right")
    for row in figures["results"]:
        cells = [row["shape"], f"{row['context']:,}"]
        if not row["batch"]:
            table.add_row(*cells, "", "0", "0")
            continue
        cells += [f"{row['bytes_per_token']:,}", str(row["fits"]), str(row["batch"])]
        table.add_row(*cells, f"{row['decode']:,.0f}", f"{row['limit']:,.0f}", f"{row['of_limit']:.0%}")
    out.print(table)
    out.print(figures["command"], style="dim")


def together(
    shape: Annotated[str, typer.Option(help="With MLA; its model without has as many weights.")] = "DeepSeek-V2-Lite",
    requests: Annotated[int, typer.Option(min=1, help="Number of requests that arrive together.")] = 8,
    stem: Annotated[int, typer.Option(min=1, help="Tokens that their prompts share.")] = 16_384,
    new_tokens: Annotated[int, typer.Option(min=2, help="New tokens a request.")] = 128,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Share of the drafts that are accepted.")] = 0.8,
    dtype: DType = Dtype.bfloat16,
    device: Annotated[str, typer.Option(help="cuda, or cpu for a shape that fits.")] = "cuda",
    repeats: Annotated[int, typer.Option(min=1, help="The median is shown.")] = 2,
    json_file: Json = None,
) -> None:
    """Radix reuse, latent attention and speculation, each on and off: eight ways to serve the same requests."""
    from inference_opt.lab.bench.together import bench_together

    out = console()
    with Progress(console=console(stderr=True)) as progress:
        figures = bench_together(shape, dtype.value, device, requests, stem, new_tokens, alpha, repeats, progress)
    write_json(json_file, figures)
    title = f"{shape}, {dtype.value}: {requests} requests on a stem of {stem:,}, {new_tokens} new tokens each"
    table = Table(title=title, title_style="bold", box=SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False)
    left = ("radix", "MLA", "drafts")
    numbers = ("first, s", "tokens/s", "all, s", "× plain", "prompt", "B/token", "GB", "same")
    for heading in (*left, *numbers):
        table.add_column(heading, justify="left" if heading in left else "right")
    for row in figures["results"]:
        on = ["on" if row[name] else "–" for name in ("radix", "mla", "speculation")]
        cells = [
            f"{row['first_token_seconds']:.2f}",
            f"{row['decode_tokens_per_second']:,.0f}",
            f"{row['seconds']:.2f}",
        ]
        cells += [f"{row['over_plain']:.1f}×", f"{row['prefill_tokens']:,}", f"{row['bytes_per_token']:,}"]
        table.add_row(*on, *cells, f"{row['bytes'] / 1e9:.2f}", f"{row['same_texts']} of {requests}")
    out.print(table)
    out.print(figures["command"], style="dim")
    out.print("first: until all have a token; tokens/s: from then on; prompt: tokens computed; GB: most pages in use")
    if not figures["exact"]:
        raise ValueError("not every way gave the plain run's tokens")


def _mode(figures: dict[str, Any]) -> str:
    """A mode's rate, its share of the greedy one, and vLLM's."""
    ours = f"{_rate(figures['decode'])} ({figures['of_greedy']:.0%})"
    return f"{ours}; vLLM {_rate(figures['vllm']['decode'])}" if "vllm" in figures else ours


def _rate(decode: float | None) -> str:
    return "below the noise" if decode is None else f"{decode:,.0f}"
