"""The tables of what ran on CUDA cards, head and rows, from what the benches wrote: chapters 04 and 08."""

from typing import Any

from study_tables import Table

HOW = ("captured", "step by step")
WORDS = {"identical": "identical", "tie": "at a tie"}  # a verdict's first word, and how it is told


def steps(run: dict[str, Any]) -> Table:
    """The versions of the kernel that were timed (`kernels/stepwise.py`); the last is ours."""
    names = {
        "step 1: one program a head": "1: one program a head",
        "step 2: split": "2: split over keys",
        "step 3: page table": "3: page table",
        "inference-opt": "5: ours, heads as rows",
    }
    runs = [each for each in run["results"] if names.keys() <= each["times"].keys()]
    head = [""]
    for each in runs:
        batch, length = each["case"]["batch"], each["case"]["length"]
        head.append(f"{'one sequence' if batch == 1 else f'{batch} sequences'} of {length:,}")
    rows = []
    for name, shown in names.items():
        times = [each["times"][name] for each in runs]
        rows.append([shown, *(f"{1e6 * t['seconds']:,.0f} µs, {t['bytes_per_second'] / 1e9:,.0f} GB/s" for t in times)])
    return head, rows


def kernels(run: dict[str, Any]) -> Table:
    """The kernel beside others', on the same tensors."""
    rows = []
    for result in run["results"]:
        case, times = result["case"], result["times"]
        kind = f"MLA {case['heads']} heads" if case["shared"] else f"GQA {case['heads']}/{case['kv_heads']}"
        many = f"{case['batch']} × {case['length']:,}" if case["batch"] else f"{len(case['others'])} ragged"
        label = f"{kind}, {many}"
        label += f", width {case['dim']}" if case["dim"] < 128 else ""
        label += f", page {case['page']}" if case["page"] != 64 else ""
        label += f", {case['queries']:,} queries" if case["queries"] > 1 else ""
        label += f", and a chunk of {case['others'][0][0]}" if case["batch"] and case["others"] else ""
        label += f", shared prefix of {case['stem']:,}" if case["stem"] else ""
        rows.append([label, *_pace(times["inference-opt"]), f"{1e6 * times['FlashInfer']['seconds']:,.1f}"])
        if each := times.get("inference-opt, no cascade"):
            rows.append([f"{label}, read by each", *_pace(each), ""])
    return ["", "ours, µs", "ours, GB/s", "ours, TFLOP/s", "FlashInfer 0.6.14, µs"], rows


def _pace(time: dict[str, float]) -> list[str]:
    """Microseconds, and what was read and computed a second."""
    read, done = time["bytes_per_second"] / 1e9, time["operations_per_second"] / 1e12
    return [f"{1e6 * time['seconds']:,.1f}", f"{read:,.0f}", f"{done:,.0f}"]


def engine(*runs: dict[str, Any]) -> Table:
    """Whole steps of the engine on an H100, greedy."""
    peers = {
        "vllm": "vLLM",
        "transformers": "`generate`",
        "continuous batching": "`generate_batch`",
        "gpt-fast": "gpt-fast",
    }
    rows = (
        [f"{row['shape']}, batch {row['batch']}", f"{row['inference-opt']['decode']:,.0f}", f"{row['limit']:,.0f}",
         f"{row['of_limit']:.0%}"]
        + [f"{row[peer]['decode']:,.0f}" if peer in row else "–" for peer in peers]
        for run in runs
        for row in run["results"]
    )  # fmt: skip
    return ["", "tokens/s", "limit", "of the limit", *peers.values()], list(rows)


def contexts(run: dict[str, Any]) -> Table:
    """Decoding from long contexts: what is kept, what fits, and the rate."""
    rows = []
    for row in run["results"]:
        cells = [row["shape"], f"{row['context']:,}"]
        if row["batch"]:
            cells += [f"{row['bytes_per_token']:,}", f"{row['fits']:,}", str(row["batch"])]
            cells += [f"{row['decode']:,.0f}", f"{row['limit']:,.0f}", f"{row['of_limit']:.0%}"]
        else:
            cells += ["–", "0", "0", "–", "–", "–"]
        rows.append(cells)
    return ["", "context", "bytes a token", "requests that fit", "batch", "tokens/s", "limit", "of the limit"], rows


def forms(run: dict[str, Any]) -> Table:
    """Both forms of latent attention by our kernels, for the new tokens of a prompt."""
    rows = [
        [row["shape"], f"{row['prefix']:,}", f"{row['new_tokens']:,}"]
        + [f"{1e6 * row[form]:,.0f}" for form in ("explicit", "absorbed")]
        + [row["chosen"]]
        for row in run["results"]
    ]
    return ["", "cached prefix", "new tokens", "explicit, µs", "absorbed, µs", "the engine takes"], rows


def forms_say(run: dict[str, Any]) -> str:
    """How often the engine takes the form that was faster, and what the other choices cost."""
    losses = []
    for row in run["results"]:
        other = {"explicit": "absorbed", "absorbed": "explicit"}[row["chosen"]]
        losses.append(row[row["chosen"]] / row[other] - 1)
    wrong = sorted(loss for loss in losses if loss > 0)
    return (
        f"In {len(losses) - len(wrong)} of the {len(losses)} rows the engine takes the form that was faster here."
        f"\nIn the other {len(wrong)} it takes longer than the other form would, by {wrong[len(wrong) // 2]:.0%} "
        f"in the median and by {wrong[-1]:.0%} at most."
    )


SHOWN = (1, 8, 64)  # requests


def drafts(*runs: dict[str, Any]) -> Table:
    """What drafts give on tasks, times plain decoding: as many as the engine chooses, and fixed numbers.

    Of the cases that were run these are the ones in SHOWN.
    """
    head, columns = ["", "batch", "plain, tokens/s"], []
    for run in runs:
        for row in run["results"][0]["rows"][1:]:
            head.append(f"{run['drafter'].replace('-', ' ')}, {row['name']}")
            columns.append((run["drafter"], row["name"]))
    cases: dict[tuple[str, float, int], dict[tuple[str, str], Any]] = {}
    for run in runs:
        for each in run["results"]:
            own = cases.setdefault((each["task"], each["temperature"], each["batch"]), {})
            own |= {(run["drafter"], name): row for name, row in _by_name(each).items()}
    rows = []
    for (task, temperature, batch), own in cases.items():
        if batch not in SHOWN or temperature not in (0, 0.8):
            continue
        plain = own[runs[0]["drafter"], "plain"]["tokens_per_second"]
        cells = [f"{own[column]['over_plain']:.2f}×" if column in own else "–" for column in columns]
        rows.append([f"{task}, T = {temperature:g}", str(batch), f"{plain:,.0f}", *cells])
    return head, rows


def drafts_by_batch(*runs: dict[str, Any]) -> Table:
    """The least and the most that the engine's choice gives at a batch on any task, times plain decoding."""
    head, columns = ["batch"], []
    for run in runs:
        for temperature in dict.fromkeys(each["temperature"] for each in run["results"]):
            head.append(f"{run['drafter'].replace('-', ' ')}, T = {temperature:g}")
            columns.append([each for each in run["results"] if each["temperature"] == temperature])
    rows = []
    for batch in dict.fromkeys(each["batch"] for each in columns[0]):
        cells = []
        for column in columns:
            found = [_by_name(each)["chosen"]["over_plain"] for each in column if each["batch"] == batch]
            cells.append(f"{min(found):.2f} to {max(found):.2f}×")
        rows.append([str(batch), *cells])
    return head, rows


def beside_vllm(run: dict[str, Any]) -> Table:
    """Prompt lookup and vLLM's n-grams: tokens a second, and times plain decoding of the same engine."""
    names = ("plain", "chosen", "γ = 3", "vLLM", "vLLM, γ = 3")
    rows = []
    for each in run["results"]:
        assert each["temperature"] == 0
        found = [_by_name(each)[name] for name in names]
        speeds = [f"{row['tokens_per_second']:,.0f}" for row in found]
        times = ["", *(f" ({row['over_plain']:.2f}×)" for row in found[1:3]), "", f" ({found[4]['over_plain']:.2f}×)"]
        rows.append([each["task"], str(each["batch"]), *map("".join, zip(speeds, times))])
    return ["T = 0", "batch", "ours, plain", "ours, chosen", "ours, γ = 3", "vLLM, plain", "vLLM, γ = 3"], rows


def together(run: dict[str, Any]) -> Table:
    """Three techniques, each on and off, for the same requests."""
    rows = []
    for row in run["results"]:
        named = {"radix": row["radix"], "MLA": row["mla"], "speculation": row["speculation"]}
        rows.append(
            [
                " + ".join(name for name, on in named.items() if on) or "none",
                f"{row['first_token_seconds']:.2f}",
                f"{row['decode_tokens_per_second']:,.0f}",
                f"{row['seconds']:.2f}",
                f"{row['over_plain']:.2f}×",
                f"{row['bytes'] / 2**30:.2f}",
            ]
        )
    return ["", "first tokens, s", "decoding, tokens/s", "all, s", "times none", "KV cache, GiB"], rows


def known(run: dict[str, Any]) -> Table:
    """Drafts of known acceptance: predicted from plain steps, and measured."""
    rows = []
    for each in run["results"]:
        by_name = _by_name(each)
        cells = [f"{by_name['plain']['tokens_per_second']:,.0f}"]
        for row in each["rows"]:
            if "predicted" in row:
                cells += [f"{row['predicted']:.2f}×", f"{row['over_plain']:.2f}×"]
        rows.append([str(each["batch"]), *cells])
    lengths = [row["name"] for row in run["results"][0]["rows"] if "predicted" in row]
    return [
        "batch",
        "plain, tokens/s",
        *(f"{name}, {what}" for name in lengths for what in ("predicted", "measured")),
    ], rows


def _by_name(result: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in result["rows"]}


def modes(run: dict[str, Any]) -> Table:
    """How requests sample, ours with its share of the greedy rate, and vLLM's rate in the same run."""
    names = list(run["results"][0]["modes"])
    rows = []
    for row in run["results"]:
        cells = [f"{row['inference-opt']['decode']:,.0f} / {row['vllm']['decode']:,.0f}"]
        for name in names:
            mode = row["modes"][name]
            cells.append(f"{mode['decode']:,.0f} ({mode['of_greedy']:.0%}) / {mode['vllm']['decode']:,.0f}")
        rows.append([f"batch {row['batch']}", *cells])
    return ["ours / vLLM, tokens/s", "greedy", *names], rows


def parallel(*runs: dict[str, Any]) -> Table:
    """A model on one card / cut over two: bytes, tokens a second, and whether the tokens are the same."""
    rows = []
    for run in runs:
        weights, kept = ((run[key]["one"], run[key]["ranks"][0]) for key in ("weight_bytes", "kv_bytes_per_token"))
        rates = [[run["tokens_per_second"][f"{who}, {how}"]["median"] for who in ("one", "all")] for how in HOW]
        verdicts = [verdict for how in HOW for verdict in run["greedy"][f"all, {how}"]]
        counts = {told: sum(v.startswith(word) for v in verdicts) for word, told in WORDS.items()}
        assert sum(counts.values()) == len(verdicts)
        cells = [" / ".join(f"{n / 1e9:.2f}" for n in weights), " / ".join(f"{n:,}" for n in kept)]
        cells += [" / ".join(f"{rate:,.0f}" for rate in pair) for pair in rates]
        told = ", ".join(f"{n} {told}" for told, n in counts.items() if n)
        rows.append([f"{run['model'].removeprefix('random, ')}, {run['dtype']}", *cells, told])
    head = ["one card / two", "weights a card, GB", "KV bytes a token and card"]
    return [*head, *(f"tokens/s, {how}" for how in HOW), "greedy texts, both ways"], rows
