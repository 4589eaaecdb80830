"""The tables of the study, of rooflines and of load, head and rows: chapters 01, 04 and 09."""

from textwrap import fill
from typing import Any

Table = tuple[list[str], list[list[str]]]
CHUNKS = ("plain", "budget 64", "budget 2048")  # variations of `bench load`: chapter 04's, then 09's
TECHNIQUES = ("plain", "in order of arrival", "small pool", "prompt-lookup")
COUNTS = {"preemptions": "preempted", "overtaken": "overtaken", "acceptance": "drafts accepted"}


def _workloads(study: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """{workload: {combination: row}}, in the order of the study."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in study["rows"]:
        found.setdefault(row["workload"], {})[row["combination"]] = row
    return found


def speed(study: dict[str, Any]) -> Table:
    """Tokens a second, and times the plain baseline, by combination and workload."""
    by = _workloads(study)
    none = [row["none"]["tokens_per_second"] / row["none"]["over_naive"] for row in by.values()]
    rates = [none[i] / row["none"]["tokens_per_second"] for i, row in enumerate(by.values())]
    rows = [["naive", *(f"{rate:.1f} ({over:.2f}×)" for rate, over in zip(none, rates))]]
    for name in next(iter(by.values())):
        each = [workload[name] for workload in by.values()]
        rows.append([name, *(f"{row['tokens_per_second']:.1f} ({row['over_baseline']:.2f}×)" for row in each)])
    return ["", *(f"{name}, {row['none']['max_new_tokens']} new" for name, row in by.items())], rows


def effects(study: dict[str, Any]) -> Table:
    """Each technique's factor, and that of each pair, by workload."""
    found = study["effects"]
    names = next(iter(found.values()))
    return ["", *found], [[name, *(f"{each[name]:.2f}" for each in found.values())] for name in names]


def kept(study: dict[str, Any]) -> Table:
    """Memory and quality, by workload: what the tree and the latent do to them."""
    head = [
        "",
        "KV in use: batching, MB",
        "+ radix",
        "+ radix + MLA",
        "perplexity",
        "with MLA",
        "top-1 agreement",
        "exact",
    ]
    rows = []
    for workload, by in _workloads(study).items():
        names = ("batching", "batching + radix", "batching + radix + MLA")
        used = [f"{by[name]['kv_bytes_in_use'] / 1e6:.1f}" for name in names]
        plain, latent = by["none"], by["MLA"]
        total = sum(row["requests"] for row in by.values())
        same = sum(row["identical"] for row in by.values())
        ties = sum(len(row["reasons"]) for row in by.values() if row["exact"])
        verdict = f"{same} of {total}" + (f", {ties} {'tie' if ties == 1 else 'ties'}" if ties else "")
        perplexity = [f"{plain['perplexity']:.2f}", f"{latent['perplexity']:.2f}"]
        rows.append([workload, *used, *perplexity, f"{latent['favourites']:.0%}", verdict])
    return head, rows


def run(study: dict[str, Any]) -> str:
    """What made them, and where."""
    machine, repeats = study["machines"][0], max(row["repeats"] for row in study["rows"])
    return (
        f"`{study['command']}` on a {machine['cores']}-core {machine['processor']}, {machine['threads']} threads,\n"
        f"torch {machine['torch'].split('+')[0]}, {study['model']} in {study['dtype']}, runs of each, "
        f"interleaved: {repeats},\n{machine['date']} "
        "([figures](../docs/results/ablation.json), [report](../docs/results/ablation.html))."
    )


def roofline(run: dict[str, Any]) -> Table:
    """Each step here: what it reads and computes, and its time, predicted and taken."""
    head = ["step", "read, MB", "operations, G", "operations a byte", "bound by", "least, ms", "taken, ms", "ratio"]
    rows = []
    for row in run["results"]:
        tokens = f"{row['context']:,} tokens"
        step = f"prefill, {tokens}" if row["phase"] == "prefill" else f"decode, {row['batch']} × {tokens}"
        cells = [
            f"{row['bytes'] / 1e6:,.0f}",
            f"{row['operations'] / 1e9:,.1f}",
            f"{row['intensity']:,.1f}",
            row["bound"],
        ]
        times = [f"{1e3 * row[key]:,.1f}" for key in ("predicted", "measured")]
        rows.append([step, *cells, *times, f"{row['ratio']:.1f}×"])
    return head, rows


def roofline_run(run: dict[str, Any]) -> str:
    """What made it, on which machine, and that machine's limits."""
    row = run["results"][0]
    free = row["free_rows"]
    return _lines(
        f"`{run['command']}` on {_machine(run)}, medians of {run['repeats']} repeats "
        "([figures](../docs/results/bench_roofline.json)). "
        f"The machine gave {row['read_bandwidth'] / 1e9:.0f} GB/s and {row['product_flops'] / 1e9:,.0f} GFLOP/s, "
        f"a ridge of {row['ridge']:.1f} operations a byte. For {row['shape']}, the two points are "
        f"{free['arithmetic']} rows, by arithmetic, and {free['caches']} requests, by their caches."
    )


def cards(run: dict[str, Any], shape: str = "Llama-3.1-8B") -> Table:
    """One shape on each card, by data sheet."""
    head = ["card", "GB/s", "TFLOP/s", "ridge"]
    by: dict[str, list[dict[str, Any]]] = {}
    for row in run["results"]:
        if row["shape"] == shape:
            by.setdefault(row["card"], []).append(row)
    for row in next(iter(by.values())):
        tokens = f"{row['context']:,}"
        what = f"TTFT, {tokens} tokens" if row["phase"] == "prefill" else f"TPOT, {row['batch']} × {tokens}"
        head.append(f"{what}, ms")
    rows = []
    for card, found in by.items():
        sheet, free = run["data_sheets"][card], found[0]["free_rows"]
        limits = f"{sheet['bandwidth'] / 1e9:,.0f}", f"{sheet['rates'][run['dtype']] / 1e12:,.0f}"
        cells = [f"{found[0]['ridge']:.0f}", *(f"{1e3 * row['predicted']:.1f}" for row in found)]
        rows.append([card, *limits, *cells, str(free["arithmetic"]), str(free["caches"])])
    return [*head, "rows, by arithmetic", "rows, by caches"], rows


def cards_run(run: dict[str, Any]) -> str:
    """What made it, and the data sheets."""
    sheets = "; ".join(sheet["source"] for sheet in run["data_sheets"].values())
    return _lines(
        f"`{run['command']}` ([figures](../docs/results/bench_roofline_cards.json)), here for Llama-3.1-8B in "
        f"{run['dtype']}. Rates are dense, without structured sparsity. Sources: {sheets}."
    )


def load(run: dict[str, Any], counts: dict[str, str], *names: str) -> Table:
    """Latencies in seconds by engine and rate, and some of the engine's counts: {key: heading}."""
    head = ["engine", "rate / capacity", "TTFT, median", "TTFT, 99%", "TPOT, median", "TPOT, 99%", "gap, 99%", "good"]
    rows = []
    for row in run["results"]:
        if names and row["variation"] not in names:
            continue
        cells = [row["variation"], f"{row['share']:g}"]
        for key in ("ttft", "tpot"):
            cells += [f"{row[key]['p50']:.2f}", _interval(row[key])]
        told = [f"{row[key]:.0%}" if key == "acceptance" else f"{row[key]:.0f}" for key in counts]
        rows.append([*cells, _interval(row["itl"]), f"{row['goodput_share']:.0%}", *told])
    rows.sort(key=lambda cells: float(cells[1]))
    return [*head, *counts.values()], rows


def load_run(run: dict[str, Any]) -> str:
    """What made it, on which machine, and of how many requests a row is."""
    row, limits, tokens = run["results"][0], run["limits"], run["prompt_tokens"]
    return _lines(
        f"`{run['command']}` on {_machine(run)}, {run['model']} in {run['dtype']} "
        f"([figures](../docs/results/bench_load.json)). Prompts have {tokens['mean']:.0f} tokens on average and "
        f"{tokens['longest']} at most, answers {run['new_tokens']} on average. Capacity: {run['capacity']:.2f} "
        f"requests a second. Each row is of {row['ttft']['count']} requests, its times are in seconds. *Good*: "
        f"TTFT within {limits['ttft']:g} s and TPOT within {limits['tpot']:g} s. In brackets: the 95% interval."
    )


def _lines(text: str) -> str:
    return fill(text, 125, break_long_words=False, break_on_hyphens=False)


def _interval(found: dict[str, Any]) -> str:
    low, high = found["p99_interval"]
    return f"{found['p99']:.2f} ({low:.2f} to {high:.2f})"


def _machine(run: dict[str, Any]) -> str:
    machine = run["machine"]
    return (
        f"{machine['cores']} cores, {machine['processor']}, torch {machine['torch'].split('+')[0]}, {machine['date']}"
    )
