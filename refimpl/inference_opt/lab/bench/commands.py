"""The commands of `inference-opt bench`: options in, a table out. Each benchmark itself has a file of its own."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

from inference_opt.files import growing
from inference_opt.options import (
    INPUT,
    DrafterName,
    DType,
    Dtype,
    Figure,
    Json,
    Model,
    console,
    no_effect,
    save_figure,
    write_json,
)

bench_app = typer.Typer(no_args_is_help=True, help="Benchmarks: ratios against a peer and a limit, in one run.")


@bench_app.command()
def decode(
    model: Model = "smollm2-135m",
    dtype: Annotated[list[Dtype] | None, typer.Option(help="May be given several times.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="May be given several times.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Timed tokens a request.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats; the median is shown.")] = 5,
    peer: Annotated[bool | None, typer.Option(help="Run transformers as well.", show_default="peer")] = None,
    busy: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Instead: one request, alone and beside this many busy processes.", show_default="none"
        ),
    ] = None,
    json_file: Json = None,
) -> None:
    """Plain decoding with a KV cache, beside transformers and the limit that memory bandwidth sets."""
    dtypes = [d.value for d in dtype or (Dtype.float32, Dtype.bfloat16)]
    if busy is not None:
        no_effect("with --busy, which decodes one request", {"--batch": bool(batch), "--peer": bool(peer)})
        return _decode_busy(model, dtypes, busy, new_tokens, repeats, json_file)
    from inference_opt.lab.bench.decode import bench_decode

    out = console()
    with Progress(console=console(stderr=True)) as progress:
        figures = bench_decode(model, dtypes, batch or [1, 8], new_tokens, repeats, peer is not False, progress)
    write_json(json_file, figures)
    table = Table(title="tokens a second in decode (median, lowest to highest)", title_style="bold")
    for heading in ("dtype", "batch", "inference-opt", "transformers", "ratio", "limit", "of limit"):
        table.add_column(heading, justify="left" if heading == "dtype" else "right")
    for row in figures["results"]:
        cells = [_rates(row[name]) if name in row else "–" for name in ("inference-opt", "transformers")]
        ratio = f"{row['over_transformers']:.2f}×" if "over_transformers" in row else "–"
        table.add_row(row["dtype"], str(row["batch"]), *cells, ratio, f"{row['limit']:.0f}", f"{row['of_limit']:.0%}")
    out.print(table)
    out.print(figures["command"], style="dim")


def _decode_busy(
    model: str, dtypes: list[str], busy: int, new_tokens: int, repeats: int, json_file: Path | None
) -> None:
    from inference_opt.lab.bench.busy import bench_busy

    out = console()
    with Progress(console=console(stderr=True)) as progress:
        figures = bench_busy(model, dtypes, busy, new_tokens, repeats, progress)
    write_json(json_file, figures)
    table = Table(title="tokens a second in decode (median, lowest to highest)", title_style="bold")
    for heading in ("dtype", "waiting threads", "alone", f"beside {busy} busy", "kept"):
        table.add_column(heading, justify="left" if heading in ("dtype", "waiting threads") else "right")
    for row in figures["results"]:
        rates = [_rates(row[where]) for where in ("alone", "busy")]
        table.add_row(row["dtype"], row["setting"], *rates, f"{row['kept']:.0%}")
    out.print(table)
    out.print(figures["command"], style="dim")


@bench_app.command()
def mla(
    shape: Annotated[
        list[str] | None, typer.Option(help="May be given several times.", show_default="DeepSeek's and SmolLM2's")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: DType = Dtype.float32,
    context: Annotated[list[int] | None, typer.Option(min=1, help="Tokens kept; may be given several times.")] = None,
    prompt: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Instead: new tokens by our kernels, without a prefix and behind each context; several times.",
            show_default="none",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="The median is shown.")] = 5,
    json_file: Json = None,
) -> None:
    """Latent attention: the explicit and the absorbed form by context, and where they cross."""
    from inference_opt.lab.bench.mla import bench_mla, shapes

    if prompt:
        names = shape or list(shapes())
        return _prompt_forms(names, device, dtype.value, [0, *(context or [])], prompt, repeats, json_file)
    contexts = context or [64, 256, 1024, 4096]
    out = console()
    with Progress(console=console(stderr=True)) as progress:
        figures = bench_mla(shape or list(shapes()), device, dtype.value, contexts, repeats, progress)
    write_json(json_file, figures)
    for name in dict.fromkeys(row["shape"] for row in figures["results"]):
        table = Table(title=f"{name}, one layer, one sequence, {dtype.value} on {device}", title_style="bold")
        for heading in ("context", "explicit, ms", "absorbed, ms", "ratio", "predicted", "cross at", "predicted at"):
            table.add_column(heading, justify="right")
        for row in figures["results"]:
            if row["shape"] == name:
                table.add_row(
                    str(row["context"]),
                    *(f"{1e3 * row[form]['seconds'][0]:.3f}" for form in ("explicit", "absorbed")),
                    f"{row['decode_speedup']:.1f}×",
                    f"{row['predicted_decode_speedup']:.1f}×",
                    *(f"{at:.0f} new" if (at := row[key]) else "–" for key in ("crossing", "predicted_crossing")),
                )
        out.print(table)
    ceilings = figures["ceilings"]
    out.print(
        f"ceilings: {ceilings['product_flops'] / 1e9:,.0f} GFLOP/s, {ceilings['read_bandwidth'] / 1e9:,.0f} GB/s; "
        "times are of one new token"
    )
    out.print(figures["command"], style="dim")


def _prompt_forms(
    names: list[str],
    device: str,
    dtype: str,
    prefixes: list[int],
    prompts: list[int],
    repeats: int,
    json_file: Path | None,
) -> None:
    from inference_opt.lab.bench.mla import bench_prompts

    out = console()
    with Progress(console=console(stderr=True)) as progress:
        figures = bench_prompts(names, device, dtype, prefixes, prompts, repeats, progress)
    write_json(json_file, figures)
    table = Table(title=f"one layer, one sequence, {dtype} on {device}", title_style="bold")
    for heading in ("shape", "prefix", "new tokens", "explicit, ms", "absorbed, ms", "engine takes"):
        table.add_column(heading, justify="left" if heading in ("shape", "engine takes") else "right")
    for row in figures["results"]:
        times = [f"{1e3 * row[form]:.3f}" for form in ("explicit", "absorbed")]
        table.add_row(row["shape"], f"{row['prefix']:,}", f"{row['new_tokens']:,}", *times, row["chosen"])
    out.print(table)
    out.print(figures["command"], style="dim")


@bench_app.command()
def prefix(
    model: Model = "smollm2-135m",
    dtype: DType = Dtype.float32,
    requests: Annotated[int, typer.Option(min=1, help="Number of requests that arrive together.")] = 16,
    stem: Annotated[int, typer.Option(min=1, help="Tokens that their prompts share.")] = 1000,
    new_tokens: Annotated[int, typer.Option(min=1, help="New tokens a request.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats; the median is shown.")] = 3,
    peer: Annotated[bool, typer.Option(help="Run transformers as well.")] = True,
    json_file: Json = None,
) -> None:
    """Requests that share a long prefix, with and without reuse of its keys and values, beside transformers."""
    from inference_opt.lab.bench.prefix import bench_prefix

    out = console()
    with Progress(console=console(stderr=True)) as progress:
        figures = bench_prefix(model, dtype.value, requests, stem, new_tokens, repeats, peer, progress)
    write_json(json_file, figures)
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
    out.print(table)
    out.print(figures["command"], style="dim")
    if not figures["exact"]:
        raise ValueError("not every engine gave the same tokens, and rounding does not explain it")


@bench_app.command()
def radix(
    trace: Annotated[
        Path | None,
        typer.Argument(
            help="A Mooncake trace, such as conversation_trace.jsonl of github.com/kvcache-ai/Mooncake "
            "(FAST25-release/traces, Apache-2.0). Without one, generated traffic only.",
            dir_okay=False,
            **INPUT,
        ),
    ] = None,
    capacity: Annotated[list[int] | None, typer.Option(min=1, help="Pages; may be given several times.")] = None,
    sglang: Annotated[
        Path | None, typer.Option(help="Wheel of sglang 0.5.23, to run its tree as well.", exists=True, dir_okay=False)
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats of the timings.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the generated traffic.")] = 0,
    figure: Figure = None,
    json_file: Json = None,
) -> None:
    """The radix tree alone: hit rate by policy and capacity beside Belady's bound, and operations a second."""
    from inference_opt.lab.bench.radix import bench_radix, hit_rate_figure
    from inference_opt.lab.bench.workloads import TRACE_URL

    out = console()
    if trace is None:
        out.print(f"no trace given: its part is skipped (it is published at {TRACE_URL})")
    capacities = sorted(capacity or [1_000, 5_000, 10_000, 30_000, 100_000])
    with Progress(console=console(stderr=True)) as progress:
        figures = bench_radix(trace, capacities, sglang, repeats, seed, progress)
    write_json(json_file, figures)
    save_figure(hit_rate_figure(figures, next(iter(figures["hit_rates"]))), figure)
    for workload, rows in figures["hit_rates"].items():
        table = Table(title=f"{workload}: hit rate by capacity in blocks", title_style="bold")
        for heading in ("policy", *(f"{c:,}" for c in capacities), "µs a prompt"):
            table.add_column(heading, justify="left" if heading == "policy" else "right")
        for row in rows:
            table.add_row(row["policy"], *(f"{r:.3f}" for r in row["hit_rate"]), f"{max(row['microseconds']):.0f}")
        out.print(table)
    speed = figures["speed"]
    table = Table(title=f"operations a second, {speed['workload']}, unbounded", title_style="bold")
    for heading in ("tree", "match", "insert", "ours / its match", "ours / its insert"):
        table.add_column(heading, justify="left" if heading == "tree" else "right")
    for name in ("inference-opt", "dictionary", *(["SGLang"] if sglang else [])):
        case = speed[name]
        ratios = [f"{case[f'ours_over_{operation}']:.1f}×" for operation in ("match", "insert")]
        table.add_row(name, f"{case['match']:,.0f}", f"{case['insert']:,.0f}", *ratios)
    out.print(table)
    sizes = ", ".join(f"{row['sequences']:,} sequences {row['microseconds']:.1f} µs" for row in figures["scaling"])
    out.print(f"a match of 1,024 tokens among {sizes}")
    out.print(figures["command"], style="dim")


class Task(StrEnum):
    """What the built-in prompts ask for (`lab.bench.speculative.TASKS`)."""

    editing = "editing"
    summarising = "summarising"
    humaneval = "humaneval"
    chat = "chat"


@bench_app.command()
def speculative(
    model: Model = "smollm2-135m",
    task: Annotated[list[Task] | None, typer.Option(help="May be given several times.", show_default="all")] = None,
    drafter: Annotated[
        list[DrafterName] | None, typer.Option(help="May be given several times.", show_default="all")
    ] = None,
    gamma: Annotated[int | None, typer.Option(min=0, help="Drafts a step.", show_default="adapted to the text")] = None,
    dtype: DType = Dtype.float32,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of each task, at most.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=2, help="New tokens a prompt, at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy, and compared token by token.")] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of the first prompt; the next count up.", show_default="0"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats; the median is shown.")] = 3,
    tree: Annotated[bool, typer.Option("--tree", help="Run trees as well; with --gamma, of as many rows.")] = False,
    peer: Annotated[bool, typer.Option(help="Run transformers as well, plain and with its prompt lookup.")] = True,
    json_file: Json = None,
) -> None:
    """Speculative decoding by task and drafter, beside plain decoding, transformers and the cost model."""
    from inference_opt.lab.bench.speculative import TASKS, bench_speculative

    if temperature == 0:
        no_effect("at --temperature 0, which is greedy", {"--seed": seed is not None})
    tasks = [each.value for each in task] if task else list(TASKS)
    names = [each.value for each in drafter] if drafter else None
    out = console()
    with Progress(console=console(stderr=True)) as progress:
        figures = bench_speculative(
            model,
            dtype.value,
            tasks,
            names,
            gamma,
            prompts,
            new_tokens,
            repeats,
            peer,
            temperature,
            seed or 0,
            progress,
            tree,
        )
    write_json(json_file, figures)
    for each in figures["workloads"]:
        rows = [row for row in figures["results"] if row["task"] == each]
        out.print(_speculative_table(f"{each}, {rows[0]['tokens']} tokens, {dtype.value}", rows))
        for row in rows:
            notes = [f"same tokens in {row['agreement']}"] if "agreement" in row else []
            notes += [row["reason"]] if row.get("reason") else []
            if notes:
                out.print(f"{row['name']}: {'; '.join(notes)}")
    for left_out, why in figures["left_out"].items():
        out.print(f"without {left_out}: {why}")
    out.print(figures["command"], style="dim")
    if not figures.get("exact", True):
        raise ValueError("speculation did not give plain decoding's tokens, and rounding does not explain it")


class BenchedShape(StrEnum):
    """Shapes of real models (`lab.bench.shapes.SHAPES`)."""

    smollm2 = "SmolLM2-135M"
    llama_1b = "Llama-3.2-1B"
    llama_8b = "Llama-3.1-8B"


@bench_app.command()
def drafts(
    model: Model = "smollm2-135m",
    shape: Annotated[
        BenchedShape | None, typer.Option(help="Instead: a model of this shape, and drafts of known acceptance.")
    ] = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Acceptance, with --shape. May be given several times.", show_default="0.8"),
    ] = None,
    task: Annotated[list[Task] | None, typer.Option(help="May be given several times.", show_default="all")] = None,
    drafter: Annotated[DrafterName | None, typer.Option(show_default="prompt-lookup")] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(min=0, help="May be given several times.", show_default="0")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="May be given several times.")] = None,
    gamma: Annotated[
        list[int] | None, typer.Option(min=1, help="Drafts a step, beside what the engine chooses.", show_default="3")
    ] = None,
    dtype: DType = Dtype.float32,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    new_tokens: Annotated[int, typer.Option(min=2, help="New tokens a request, at most.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats; the median is shown.")] = 5,
    peer: Annotated[bool, typer.Option("--peer", help="Run vLLM as well, plain and with its n-gram drafts.")] = False,
    json_file: Json = None,
) -> None:
    """What drafts gain by batch: on real tasks, or at a known acceptance, predicted and measured.

    Until it ends, the cases that are done lie beside the JSON file, in FILE.partial.
    """
    from inference_opt.lab.bench.drafts import bench_shape, bench_tasks
    from inference_opt.lab.bench.speculative import TASKS

    common = (batch or [1, 4], gamma or [3], new_tokens, repeats)
    if shape:
        given = {"--task": bool(task), "--drafter": bool(drafter), "--temperature": bool(temperature)}
        no_effect("with --shape, where drafts of known acceptance are greedy", given | {"--peer": peer})
    else:
        no_effect("without --shape", {"--alpha": bool(alpha)})
    with growing(json_file) as keep:
        with Progress(console=console(stderr=True)) as progress:
            if shape:
                figures = bench_shape(shape.value, dtype.value, device, alpha or [0.8], *common, progress, keep)
            else:
                tasks = [each.value for each in task] if task else list(TASKS)
                name = (drafter or DrafterName("prompt-lookup")).value
                batches, lengths, new, times = common
                figures = bench_tasks(
                    model,
                    dtype.value,
                    device,
                    tasks,
                    name,
                    batches,
                    temperature or [0.0],
                    lengths,
                    new,
                    times,
                    progress,
                    peer,
                    keep,
                )
        write_json(json_file, figures)
    columns = ("tokens/s", "× plain", "lowest to highest", "predicted", "accepted", "same texts")
    title = f"{figures['model']}, {dtype.value}, {device}"
    table = Table(title=title, title_style="bold", box=SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False)
    chosen: list[str] = []
    for heading in ("case", "batch", "drafts", *columns):
        table.add_column(heading, justify="left" if heading in ("case", "drafts") else "right")
    for case in figures["results"]:
        name = f"α = {case['alpha']}" if shape else f"{case['task']}, T = {case['temperature']:g}"
        for row in case["rows"]:
            low, high = row["over_plain_spread"]
            cells = [f"{row['tokens_per_second']:,.0f}", f"{row['over_plain']:.2f}×", f"{low:.2f}–{high:.2f}"]
            cells += [f"{row['predicted']:.2f}×" if "predicted" in row else "–", f"{row['acceptance']:.0%}"]
            table.add_row(name, str(case["batch"]), row["name"], *cells, f"{row['same_texts']} of {case['batch']}")
            if row.get("why"):
                cold = f"{row['first_tokens_per_second']:,.0f} tokens/s in the first run"
                chosen.append(f"{name}, batch {case['batch']}: {row['why']}; {cold}")
    out = console()
    out.print(table)
    out.print("The last choice of each engine:", *chosen, sep="\n")
    out.print(figures["command"], style="dim")


def _speculative_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_style="bold", box=SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False)
    table.add_column("decoder")
    columns = {
        "tokens/s": ("tokens_per_second", "{:.1f}"),
        "× plain": ("over_plain", "{:.2f}×"),
        "× its lookup": ("over_peer_lookup", "{:.2f}×"),
        "a step": ("tokens_per_step", "{:.2f}"),
        "accepted": ("acceptance", "{:.0%}"),
        "α": ("alpha", "{:.2f}"),
        "γ": ("gamma", "{:.1f}"),
        "c": ("c", "{:.3f}"),
        "expected": ("expected", "{:.2f}×"),
        "drafting": ("draft_share", "{:.0%}"),
    }
    for heading in columns:
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [form.format(row[key]) if key in row else "–" for key, form in columns.values()]
        cells[1] += " ({:.2f} to {:.2f})".format(*row["over_plain_spread"])
        table.add_row(row["name"], *cells)
    return table


@bench_app.command()
def roofline(
    shape: Annotated[
        list[str] | None, typer.Option(help="May be given several times.", show_default="SmolLM2-135M")
    ] = None,
    card: Annotated[
        list[str] | None,
        typer.Option(help="By its data sheet, or here: measured. May be given several times.", show_default="here"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda: the device that is here.")] = "cpu",
    dtype: DType = Dtype.float32,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt that is prefilled.")] = 512,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Requests in decode; may be given several times.", show_default="1, 8, 32"),
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of each request in decode.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats; the median is shown.")] = 5,
    json_file: Json = None,
) -> None:
    """Predict the time of a prefill and of a decoding step from bytes and operations, and measure it here."""
    from inference_opt.lab.bench.roofline import bench_roofline

    out = console()
    cases = shape or ["SmolLM2-135M"], card or ["here"], dtype.value, prompt, batch or [1, 8, 32], context
    with Progress(console=console(stderr=True)) as progress:
        figures = bench_roofline(*cases, device, repeats, progress)
    write_json(json_file, figures)
    for name in dict.fromkeys(row["shape"] for row in figures["results"]):
        title = f"{name}, {dtype.value}: a step's least time and its time here, ms"
        table = Table(
            title=title, title_style="bold", box=SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False
        )
        for heading in ("card", "step", "GB", "FLOP/B", "bound by", "least", "taken", "ratio"):
            table.add_column(heading, justify="left" if heading in ("card", "step", "bound by") else "right")
        for row in figures["results"]:
            if row["shape"] == name:
                step = "prefill" if row["phase"] == "prefill" else f"decode {row['batch']} ×"
                cells = [row["card"], f"{step} {row['context']:,}", f"{row['bytes'] / 1e9:.3f}"]
                cells += [f"{row['intensity']:,.1f}", row["bound"], f"{1e3 * row['predicted']:,.3f}"]
                taken = [f"{1e3 * row['measured']:,.3f}", f"{row['ratio']:.2f}×"] if "measured" in row else ["–", "–"]
                table.add_row(*cells, *taken)
        out.print(table)
    frees = {(row["shape"], row["card"]): (row["ridge"], row["free_rows"]) for row in figures["results"]}
    for (name, where), (ridge, free) in frees.items():
        rows = f"{free['arithmetic']:,} by arithmetic, from {free['caches']:,} by their caches of {context:,} tokens"
        out.print(f"{name}, {where}: ridge {ridge:,.0f} FLOP/B; rows cost time from {rows}")
    for name, sheet in figures["data_sheets"].items():
        out.print(f"{name}: {sheet['source']}")
    out.print(figures["command"], style="dim")


@bench_app.command()
def gamma(
    alpha: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Probability that a draft is accepted; several times.", show_default="0.8"),
    ] = None,
    cost: Annotated[float, typer.Option(min=0, help="Of a draft, in plain steps.")] = 0.0,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Texts; may be given several times.", show_default="1, 8, 64, 256")
    ] = None,
    shape: Annotated[str, typer.Option(help="Of the model.")] = "Llama-3.1-8B",
    card: Annotated[str, typer.Option(help="By its data sheet.")] = "H100",
    dtype: DType = Dtype.bfloat16,
    context: Annotated[int, typer.Option(min=1, help="Tokens of each text.")] = 512,
    most: Annotated[int, typer.Option(min=1, max=64, help="The most drafts a step.")] = 12,
    json_file: Json = None,
) -> None:
    """Compute what drafts would gain, from acceptance, cost, batch and card."""
    from inference_opt.lab.bench.gamma import bench_gamma

    out = console()
    figures = bench_gamma(shape, card, dtype.value, alpha or [0.8], cost, batch or [1, 8, 64, 256], context, most)
    write_json(json_file, figures)
    shown = sorted({1, 2, 3, 4, 6, 8, most} & {*range(1, most + 1)})
    title = f"{shape}, {dtype.value}, {card}, texts of {context:,} tokens, a draft costs {cost:g} steps:\n"
    title += "how many times faster, by drafts a step"
    table = Table(title=title, title_style="bold", box=SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False)
    for heading in ("α", "batch", "step, ms", *map(str, shown), "best", "tokens", "gain"):
        table.add_column(heading, justify="right")
    for row in figures["results"]:
        gains = (f"{row['speedups'][each]:.2f}" for each in shown)
        cells = f"{row['alpha']:g}", f"{row['batch']}", f"{1e3 * row['step_seconds'][0]:.3f}", *gains
        table.add_row(*cells, f"{row['best']}", f"{row['tokens_a_step']:.2f}", f"{row['speedups'][row['best']]:.2f}×")
    out.print(table)
    out.print(f"{card}: {figures['source']}")
    out.print(figures["command"], style="dim")


@bench_app.command()
def load(
    model: Model = "smollm2-135m",
    dtype: DType = Dtype.float32,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    share: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01, max=10, help="Rate, in shares of the capacity; several times.", show_default="0.4, 0.8, 1.2"
        ),
    ] = None,
    variation: Annotated[
        list[str] | None,
        typer.Option(help="Besides the plain engine; may be given several times.", show_default="all of them"),
    ] = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Tokens of a step, besides 512; several times.", show_default="64, 2048"),
    ] = None,
    drafter: Annotated[
        DrafterName, typer.Option(help="Of the variation with speculation.")
    ] = DrafterName.prompt_lookup,
    requests: Annotated[int, typer.Option(min=4, help="Requests of each run.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=2, help="New tokens a request, on average.")] = 24,
    ttft: Annotated[float, typer.Option(min=0, help="Limit for goodput, in seconds.")] = 1.0,
    tpot: Annotated[float, typer.Option(min=0, help="Limit for goodput, in seconds.")] = 0.1,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats, each with requests of its own.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the requests and of their times.")] = 0,
    figure: Figure = None,
    json_file: Json = None,
) -> None:
    """Requests that arrive at random times: TTFT, TPOT and goodput against the rate. Ctrl-C keeps what was measured."""
    from inference_opt.lab.bench.load import bench_load, load_figure

    out = console()
    cases = share or [0.4, 0.8, 1.2], variation, budget or [64, 2048], drafter.value
    with Progress(console=console(stderr=True)) as progress:
        figures = bench_load(
            model, dtype.value, device, *cases, requests, new_tokens, (ttft, tpot), repeats, seed, progress
        )
    write_json(json_file, figures)
    save_figure(load_figure(figures), figure)
    title = f"capacity {figures['capacity']:.2f} requests/s; seconds, median / 99th percentile (its 95% interval)"
    table = Table(title=title, title_style="bold")
    for heading in ("engine", "rate", "TTFT", "TPOT", "between tokens", "good"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    for row in figures["results"]:
        latencies = [_latency(row[key]) for key in ("ttft", "tpot", "itl")]
        table.add_row(row["variation"], f"{row['share']:.0%}", *latencies, f"{row['goodput_share']:.0%}")
    out.print(table)
    counts = {row["ttft"]["count"] for row in figures["results"]}
    out.print(f"{min(counts)} requests a row; good: TTFT within {ttft:g} s and TPOT within {tpot:g} s")
    out.print(figures["command"], style="dim")
    if figures["interrupted"]:
        raise KeyboardInterrupt


def _latency(found: dict[str, Any]) -> str:
    low, high = found["p99_interval"]
    return f"{found['p50']:.3f} / {found['p99']:.3f} ({low:.3f} to {high:.3f})"


def _rates(case: dict[str, Any]) -> str:
    low, high = case["spread"]
    return f"{case['decode']:.1f} ({low:.1f} to {high:.1f})"
