"""The tables of chapter 09, head and rows, from what `inference-opt ablate --json` wrote."""

from typing import Any

Table = tuple[list[str], list[list[str]]]


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
