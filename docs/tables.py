"""Writes the tables of the README and the chapters from the benchmarks' figures: python docs/tables.py (`make tables`).

A text says where a table stands, `<!-- TOUR -->` … `<!-- /TOUR -->`, and a function here says what stands there. The
functions read docs/results and nothing else, so a table changes where its figures do, and nowhere else. (One counts
lines of the package.)
"""

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import card_tables
import sizes
import study_tables
import survivors

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "docs" / name for name in ("architecture.md", "exercises.md", "samplers.md")]
PAGES = [ROOT / "README.md", *DOCS, *sorted((ROOT / "chapters").glob("*.md"))]
WRITERS: dict[str, Callable[[], str]] = {}  # by the marker's name


def writes(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """The decorated function writes what stands between the markers of this name."""

    def register(writer: Callable[[], str]) -> Callable[[], str]:
        WRITERS[name] = writer
        return writer

    return register


def fill(text: str) -> str:
    """The text with its tables written anew. ValueError for a marker that is not closed, or that nobody writes."""
    whole = re.compile(r"<!-- ([A-Z0-9_]+) -->\n(.*?)<!-- /\1 -->", flags=re.DOTALL)
    names = [match[1] for match in whole.finditer(text)]
    if alone := set(re.findall(r"<!-- /?([A-Z0-9_]+) -->", whole.sub("", text))):
        raise ValueError(f"opened and not closed, or closed and not opened: {', '.join(sorted(alone))}")
    if unknown := set(names) - WRITERS.keys():
        raise ValueError(f"no function of docs/tables.py writes {', '.join(sorted(unknown))}")
    return whole.sub(lambda match: f"<!-- {match[1]} -->\n{WRITERS[match[1]]()}\n<!-- /{match[1]} -->", text)


def figures(name: str) -> Any:
    """What docs/results/NAME.json holds."""
    return json.loads((ROOT / "docs/results" / f"{name}.json").read_text(encoding="utf-8"))


def grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, *map(list, rows)]
    assert all(len(line) == len(head) for line in lines), "a row is longer or shorter than the head"
    text = ["|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(head), *text[1:]])


STAGE = ["stage", "tokens/s", "KV bytes a token", "speed-up over naive", "identical to naive"]


@writes("TOUR")
def tour() -> str:
    """README: every technique on the tour's prompts."""
    run = figures("tour")
    total = sum(prompt["tokens"] for prompt in run["prompts"])
    rows = ((stage(row), f"{row['prompt_tokens_reused']} of {total}") for row in run["stages"])
    return grid(
        [*STAGE[:3], "prompt tokens reused", *STAGE[3:]],
        ([*cells[:3], reused, *cells[3:]] for cells, reused in rows),
    )


@writes("TOUR_MLA")
def converted() -> str:
    """README: that the MLA stage runs another model, and what it loses."""
    run = next(run for run in figures("mla")["runs"] if run["kv_bytes_per_token"]["converted"] == 7_680)
    texts = [run["quality"][text] for text in ("sampled", "written")]
    was, now = ([f"{text[stage]['perplexity']:.2f}" for text in texts] for stage in ("original", "healed"))
    return (
        "The MLA stage runs another model: SmolLM2 with converted attention, which writes other texts. So it is\n"
        "compared with a naive run of the converted model. Its cache is a third as large, but its quality is\n"
        f"lower: perplexity {now[0]} instead of {was[0]} on text that SmolLM2 wrote, "
        f"{now[1]} instead of {was[1]} on text that people wrote\n"
        "([chapter 05](chapters/05_latent_attention.md))."
    )


def stage(row: dict[str, Any]) -> list[str]:
    """The cells of a stage of the tour."""
    rate, kept, ratio = f"{row['tokens_per_second']:.1f}", row["kv_bytes_per_token"], row["speedup_over_naive"]
    return [row["stage"], rate, f"{kept:,}", f"{ratio:.1f}×", row["identical_to_naive"]]


@writes("NAIVE")
def naive() -> str:
    """Chapter 00: the oracle's time for a token, at two lengths of the text (medians over lengths within 5)."""
    run = figures("tour")
    timed = [
        (prompt["tokens"] + i, seconds)
        for prompt, text in zip(run["prompts"], run["runs"]["naive"])
        for i, seconds in enumerate(text["seconds"])
    ]
    at = {n: 1e3 * median(s for length, s in timed if abs(length - n) <= 5) for n in (50, 370)}
    grows = f"grows with the text: {at[50]:.0f} ms at 50 tokens, {at[370]:.0f} at 370"
    rate = run["stages"][0]["tokens_per_second"]
    return grid(["stage", "tokens/s", "time for the next token"], [["naive", f"{rate:.1f}", grows]])


@writes("DECODE")
def decode() -> str:
    """Chapter 01: plain decoding beside transformers and beside the limit of the memory."""
    cases = figures("bench_decode")["results"]
    many = {1: "one request", 8: "eight"}
    ours, peer = "inference-opt", "transformers"
    return grid(
        ["", *(f"{many[case['batch']]}, {case['dtype']}" for case in cases)],
        [
            [f"{ours}, tokens/s", *(f"{case[ours]['decode']:.1f}" for case in cases)],
            [f"`{peer}` 5.23 `generate`, tokens/s", *(f"{case[peer]['decode']:.1f}" for case in cases)],
            ["ratio, paired in the same run", *(f"{case['over_transformers']:.2f}×" for case in cases)],
            ["memory at that time, GB/s", *(f"{case['bandwidth'] / 1e9:.0f}" for case in cases)],
            ["limit from memory, tokens/s", *(f"{case['limit']:,.0f}" for case in cases)],
            ["of the limit", *(f"{case['of_limit']:.0%}" for case in cases)],
        ],
    )


@writes("BUSY")
def busy() -> str:
    """Chapter 01: decoding alone and beside busy processes, as threads wait by default and as they wait here."""
    run = figures("bench_busy")
    return grid(
        ["how threads wait", "alone, tokens/s", f"beside {run['busy']} busy processes, tokens/s", "kept"],
        (
            [row["setting"], *(f"{row[where]['decode']:.1f}" for where in ("alone", "busy")), f"{row['kept']:.0%}"]
            for row in run["results"]
        ),
    )


@writes("CACHED")
def cached() -> str:
    """Chapter 01: with a cache and without, out of the tour."""
    return grid(STAGE, (stage(row) for row in figures("tour")["stages"] if row["stage"] in ("naive", "KV cache")))


@writes("PAGES")
def pages() -> str:
    """Chapter 02: what pages cost in the tour."""
    rate = {row["stage"]: row["tokens_per_second"] for row in figures("tour")["stages"]}
    row, paged = rate["KV cache"], rate["paged"]
    return f"{row:.1f} tokens/s with a contiguous cache, {paged:.1f} with pages."


@writes("PREFIX")
def prefix() -> str:
    """Chapter 03: sixteen requests with a common stem."""
    rows = (
        [row["name"], f"{row['seconds']:.2f}", f"{row['tokens_per_second']:.1f}", f"{row['prefill_tokens']:,}",
         f"{row['ratio']:.1f}×"]
        for row in figures("bench_prefix")["results"]
    )  # fmt: skip
    return grid(["", "seconds", "new tokens/s", "prompt tokens computed", "time / time with reuse"], rows)


@writes("TRACE")
def trace() -> str:
    """Chapter 03: hit rates of every policy on the published trace."""
    run = figures("bench_radix")
    return grid(["policy", *capacities(run)], map(rates, run["hit_rates"]["trace"]))


@writes("TRAFFIC")
def traffic() -> str:
    """Chapter 03: hit rates on generated traffic, of LRU, of what learns, of the bound."""
    run = figures("bench_radix")
    shown = ("LRU", "fading frequency", "odds", "Belady")
    rows = (
        [name, *rates(row)]
        for name, policies in run["hit_rates"].items()
        if name != "trace"
        for row in policies
        if row["policy"] in shown
    )
    return grid(["traffic", "policy", *capacities(run)], rows)


def capacities(run: dict[str, Any]) -> list[str]:
    """The heads of the columns of a table of hit rates."""
    return [f"{capacity:,}" for capacity in run["capacities"]]


def rates(row: dict[str, Any]) -> list[str]:
    """A policy and its hit rates."""
    return [row["policy"], *(f"{rate:.3f}" for rate in row["hit_rate"])]


@writes("TREES")
def trees() -> str:
    """Chapter 03: operations a second of the tree and its peers."""
    speed = figures("bench_radix")["speed"]
    rows = (
        [name, f"{speed[name]['match']:,.0f}", f"{speed[name]['insert']:,.0f}",
         f"{speed[name]['ours_over_match']:.1f}×", f"{speed[name]['ours_over_insert']:.1f}×"]
        for name in ("inference-opt", "dictionary", "SGLang")
    )  # fmt: skip
    return grid(["tree", "match", "insert", "ours / its match", "ours / its insert"], rows)


def forms(name: str, unit: str, scale: float, digits: int) -> str:
    """Chapter 05: both forms of latent attention, by shape and context."""
    head = ["", "tokens kept", f"explicit, {unit}", f"absorbed, {unit}", "absorbed faster by", "predicted"]
    rows = (
        [row["shape"], f"{row['context']:,}"]
        + [f"{scale * row[form]['seconds'][0]:,.{digits}f}" for form in ("explicit", "absorbed")]
        + [f"{row[key]:.1f}×" for key in ("decode_speedup", "predicted_decode_speedup")]
        + [f"{row[key]:.0f}" if row[key] else "–" for key in ("crossing", "predicted_crossing")]
        for row in figures(name)["results"]
    )
    return grid([*head, "cross at, new tokens", "predicted"], rows)


WRITERS["FORMS_TABLE"] = partial(forms, "bench_mla_cpu", "ms", 1e3, 2)
WRITERS["H100_TABLE"] = partial(forms, "bench_mla_h100", "µs", 1e6, 0)


@writes("H100_SAYS")
def h100_says() -> str:
    """Chapter 05: what came of the predictions on the card."""
    run = figures("bench_mla_h100")["results"]
    most = max(row["context"] for row in run)
    met = [
        f"{row['decode_speedup']:.1f} instead of {row['predicted_decode_speedup']:.1f} in {row['shape']}"
        for row in run
        if row["context"] == most
    ]
    earlier = sum((row["crossing"] or 1e9) < row["predicted_crossing"] for row in run)
    crossed = sum(row["crossing"] is not None for row in run)
    assert earlier == crossed, "the text says that all cross earlier"
    return (
        f"The advantage of the absorbed form grows with the number of stored tokens, as predicted, but is smaller than "
        f"predicted.\nAt {most:,} tokens it is\n{', '.join(met)}.\n"
        f"In {crossed} of the {len(run)} rows the explicit form becomes faster at fewer new tokens than predicted.\n"
        f"In the other {len(run) - crossed} it is slower up to 1,024 new tokens."
    )


@writes("QUALITY_TABLE")
def quality() -> str:
    """Chapter 05: what conversion loses, and what healing wins back, by rank."""
    runs = figures("mla")["runs"]
    head = ["rank + rotated", "bytes a token, bfloat16"]
    for text in ("its own text", "people's text"):
        head += [f"{text}: converted", "healed", "top-1 agreement"]
    whole, kept = runs[0]["quality"], runs[0]["kv_bytes_per_token"]["original"]
    rows = [["original", f"{kept:,}"]]
    for text in ("sampled", "written"):
        rows[0] += [f"{whole[text]['original']['perplexity']:.2f}", "", ""]
    for run in runs:
        row = [f"{run['kv_lora_rank']} + {run['qk_rope_head_dim']}", f"{run['kv_bytes_per_token']['converted']:,}"]
        for text in ("sampled", "written"):
            part = run["quality"][text]
            row += [f"{part[stage]['perplexity']:.2f}" for stage in ("converted", "healed")]
            row.append(f"{part['healed']['agreement']:.0%}")
        rows.append(row)
    return grid(head, rows)


@writes("CONTROL_TABLE")
def control() -> str:
    """Chapter 05: layouts of equal parameters, trained from scratch."""
    rows = (
        [row["layout"], f"{row['kv_bytes_per_token']:,}", f"{row['ffn_dim']:,}",
         f"{row['loss']:.3f} ± {row['spread']:.3f}", ", ".join(f"{run['loss']:.2f}" for run in row["runs"])]
        for row in figures("mla_control")["layouts"]
    )  # fmt: skip
    return grid(
        ["layout", "bytes a token, bfloat16", "feed-forward", "held-out loss, mean ± spread", "each seed"], rows
    )


@writes("SPEED_TABLE")
def speed() -> str:
    """Chapter 06: tokens a second by drafter and task."""
    lines: dict[str, list[str]] = {}
    tasks = dict.fromkeys(row["task"] for row in figures("bench_speculative")["results"])
    for row in figures("bench_speculative")["results"]:
        cell = f"{row['tokens_per_second']:.1f} ({row['over_plain']:.2f}×)"
        lines.setdefault(row["name"], [row["name"]]).append(cell)
    return grid(["", *tasks], lines.values())


def drafters() -> list[dict[str, Any]]:
    """The runs of chapter 06 that drafted, as the cost model sees them."""
    return [row for row in figures("bench_speculative")["results"] if "alpha" in row]


def fitted() -> dict[str, Any]:
    """The one run that a row's price is taken from: that of the longest drafts. The others are predicted with it."""
    return max(drafters(), key=lambda row: row["gamma"])


def predicted(row: dict[str, Any]) -> float:
    """Theorem 3.8 with the price of a row, as one run has it, added to c."""
    gamma, c = row["gamma"], row["c"]
    return row["expected"] * (1 + gamma * c) / (1 + gamma * (c + fitted()["r"]))


@writes("WHY_TABLE")
def why() -> str:
    """Chapter 06: what the cost model expected, and what came."""
    head = ["task", "drafter", "tokens a step", "accepted", "α", "γ", "c", "Theorem 3.8", "rows at one price"]
    rows = (
        [row["task"], row["name"], f"{row['tokens_per_step']:.2f}", f"{row['acceptance']:.0%}", f"{row['alpha']:.2f}",
         f"{row['gamma']:.1f}", f"{row['c']:.3f}"]
        + [f"{speedup:.2f}×" for speedup in (row["expected"], predicted(row), row["over_plain"])]
        for row in drafters()
    )  # fmt: skip
    return grid([*head, "measured"], rows)


@writes("ROWS")
def price_of_a_row() -> str:
    """Chapter 06: what a row of a step costs, and how well the other runs are predicted with it."""
    one = fitted()
    others = [row for row in drafters() if row != one]
    free, priced = (
        f"{min(errors):+.0%} to {max(errors):+.0%}".replace("-", "−")
        for expect in (lambda row: row["expected"], predicted)
        for errors in [[expect(row) / row["over_plain"] - 1 for row in others]]
    )
    return (
        f"The price of a row is taken from one line, that of the longest drafts ({one['name']}, {one['task']}): "
        f"{one['r']:.1%} of a step.\nThe predictions for the {len(others)} other lines, with this price added to $c$, "
        f"have errors of {priced}.\nThose of Theorem 3.8 alone have errors of {free}."
    )


@writes("SLOWER")
def slower() -> str:
    """Chapter 06: where speculation loses, and why."""
    lines = [f"- {r['name']}, {r['task']} ({r['over_plain']:.2f}×): {r['reason']}." for r in drafters() if r["reason"]]
    return "\n".join(["", *lines, ""])


def made(table: Callable[..., study_tables.Table], *names: str) -> str:
    """A table of `card_tables.py` or `study_tables.py`, of the runs of these names."""
    return grid(*table(*map(figures, names)))


@writes("PARALLEL_SHARES")
def shares() -> str:
    """Chapter 04: how much of the weights each of two cards holds."""
    runs = map(figures, ("parallel_h100", "parallel_8b_h100"))
    held = ((run["model"].removeprefix("random, "), run["weight_bytes"]) for run in runs)
    parts = (f"{each['ranks'][0] / each['one']:.0%} of {name}'s weights" for name, each in held)
    return ", ".join(parts) + " in the table below."


# Exercises


def exercises(number: str) -> str:
    """A chapter's exercises."""
    mine = [each for each in figures("exercises")["exercises"] if each["id"].startswith(number)]
    rows = ([f"`{each['id']}`", each["kind"], each["title"], str(each["minutes"])] for each in mine)
    begin = f"inference-opt exercise start {mine[0]['id']}"
    return (
        grid(["exercise", "kind", "what to do", "minutes"], rows)
        + f"\n\n`{begin}` writes the file to start from. The exercises are also at the end of the notebook."
    )


for chapter in range(10):
    WRITERS[f"EXERCISES_{chapter:02}"] = partial(exercises, f"{chapter:02}")


@writes("EXERCISES_JUDGED")
def judged() -> str:
    """The page of exercises: how many solutions of each were judged, and how."""
    rows = []
    for each in figures("exercises")["exercises"]:
        wrong, right = ([s for s in each["solutions"] if s["side"] == side] for side in ("wrong", "right"))
        refused, accepted = sum(not s["accepted"] for s in wrong), sum(s["accepted"] for s in right)
        slowest = max(s["seconds"] for s in each["solutions"])
        counts = f"{refused} of {len(wrong)}", f"{accepted} of {len(right)}", f"{slowest:.1f}"
        rows.append([f"`{each['id']}`", each["title"], *counts])
    return grid(["exercise", "what to do", "wrong ones refused", "right ones accepted", "slowest verdict, s"], rows)


@writes("EXERCISES_WRONG")
def wrong_solutions() -> str:
    """The page of exercises: each wrong solution, and what is said of it."""
    parts = []
    for each in figures("exercises")["exercises"]:
        wrong = [s for s in each["solutions"] if s["side"] == "wrong" and s["name"] != "the starter"]
        rows = ([s["name"], s["said"].replace("|", "\\|")] for s in wrong)
        parts.append(f"### {each['id']}\n\n" + grid(["what is wrong with it", "what the judge says"], rows))
    return "\n\n".join(parts)


@writes("MUTANTS")
def mutants() -> str:
    """The page of exercises: mutants of the references, and those that survive."""
    run = figures("mutants")["mutants"]
    refused = sum(each["refused"] for each in run)
    reasons: dict[tuple[str, str], int] = {}
    for each in run:
        if not each["refused"]:
            key = each["id"], survivors.reason(each["id"], each["line"])
            reasons[key] = reasons.get(key, 0) + 1
    head = ["exercise", "mutants", "why they are no wrong solutions"]
    table = grid(head, ([f"`{id}`", str(count), why] for (id, why), count in reasons.items()))
    return f"Of {len(run):,} mutants the judge refuses {refused:,}. Those that it accepts:\n\n{table}"


@writes("FOREIGN")
def foreign() -> str:
    """Docs: the samplers of other projects."""
    run = figures("foreign")
    head = ["sampler", "mode", "verdict", "total variation", "enumerated as", "thread"]
    rows = []
    for each in run["findings"]:
        bias = "below 1e-5" if each["verdict"].endswith("exact") else f"{each['bias']:.4f}"
        if each["method"] == "samples":
            bias = f"{each['samples']:,} texts: p = {each['p_of_target']:.1g}"
        threads = ", ".join(f"[{t}]({THREADS[t]})" for t in each.get("thread", "").split(", ") if t)
        sampler = f"{each['sampler'].rpartition('/')[2]} {each['version']}"
        rows.append([sampler, each["mode"], each["verdict"], bias, each["enumerated_as"], threads])
    skipped = " ".join(f"*{each}*: {why}." for each, why in run["skipped"].items())
    return f"{grid(head, rows)}\n\nJudged on {run['date']}. Not judged: {skipped}"


THREADS = {
    "transformers#47932": "https://github.com/huggingface/transformers/issues/47932",
    "DeepSpec#31": "https://github.com/deepseek-ai/DeepSpec/issues/31",
    "dflash#169": "https://github.com/z-lab/dflash/pull/169",
    "vllm#40149": "https://github.com/vllm-project/vllm/issues/40149",
    "vllm#47386": "https://github.com/vllm-project/vllm/pull/47386",
    "vllm#48202": "https://github.com/vllm-project/vllm/issues/48202",
    "vllm#54282": "https://github.com/vllm-project/vllm/pull/54282",
}


def quoted(what: str, first: str) -> str:
    """A table that a run of a notebook printed."""
    printed = figures("notebook_times")[what]
    return grid([first, *printed["columns"]], ([name, *map(str, row)] for name, row in printed["rows"].items()))


@writes("TREES_TABLE")
def trees_table() -> str:
    """Tokens a step, of chains and of trees with as many rows."""
    rows = []
    for drafts in (8, 12, 24):
        found = {(each["task"], each["name"]): each for each in figures(f"bench_trees_{drafts}")["results"]}
        for task in ("humaneval", "chat"):
            chain, tree = (found[task, name]["tokens_per_step"] for name in ("trained", "trained, tree"))
            rows.append([task, str(drafts), f"{chain:.2f}", f"{tree:.2f}", f"{tree / chain - 1:+.0%}"])
    return grid(["", "drafts", "chain", "tree", "more"], rows)


@writes("TREE_SPEEDS_TABLE")
def tree_speeds_table() -> str:
    """Times plain, of chains and of trees as the engine makes them on a CPU."""
    found = {(each["task"], each["name"]): each["over_plain"] for each in figures("bench_trees")["results"]}
    tasks = dict.fromkeys(task for task, _ in found)
    names = [name for name in dict.fromkeys(name for _, name in found) if name != "plain"]
    return grid(["", *tasks], ([name, *(f"{found[task, name]:.2f}×" for task in tasks)] for name in sorted(names)))


WRITERS["PACKED_TABLE"] = partial(quoted, "head_milliseconds", "rows")
WRITERS["GATHER_TABLE"] = partial(quoted, "gather_microseconds", "")
WRITERS["STEPS_TABLE"] = partial(made, card_tables.steps, "bench_kernels")
WRITERS["KERNELS_TABLE"] = partial(made, card_tables.kernels, "bench_kernels")
WRITERS["ENGINE_TABLE"] = partial(made, card_tables.engine, "bench_engine_1b", "bench_engine_smollm2")
DEEPSEEK = "bench_engine_v2_lite", "bench_engine_v2_lite_dense", "bench_engine_v3"
WRITERS["V2_LITE_TABLE"] = partial(made, card_tables.engine, *DEEPSEEK)
WRITERS["CONTEXTS_TABLE"] = partial(made, card_tables.contexts, "bench_contexts")
WRITERS["PROMPTS_TABLE"] = partial(made, card_tables.forms, "bench_mla_prompts_h100")
WRITERS["PROMPTS_SAYS"] = lambda: card_tables.forms_say(figures("bench_mla_prompts_h100"))
WRITERS["DRAFTS_TABLE"] = partial(made, card_tables.drafts, "bench_drafts_lookup", "bench_drafts_trained")
WRITERS["BATCHES_TABLE"] = partial(made, card_tables.drafts_by_batch, "bench_drafts_lookup", "bench_drafts_trained")
WRITERS["TOGETHER_TABLE"] = partial(made, card_tables.together, "bench_together")
WRITERS["PEER_DRAFTS_TABLE"] = partial(made, card_tables.beside_vllm, "bench_drafts_vllm")
WRITERS["KNOWN_TABLE"] = partial(made, card_tables.known, "bench_drafts_8b")
WRITERS["MODES_TABLE"] = partial(made, card_tables.modes, "bench_engine_1b")
WRITERS["PARALLEL_TABLE"] = partial(made, card_tables.parallel, "parallel_h100", "parallel_8b_h100")
WRITERS["ABLATION_TABLE"] = partial(made, study_tables.speed, "ablation")
WRITERS["EFFECTS_TABLE"] = partial(made, study_tables.effects, "ablation")
WRITERS["KEPT_TABLE"] = partial(made, study_tables.kept, "ablation")
WRITERS["ROOFLINE_TABLE"] = partial(made, study_tables.roofline, "bench_roofline")
WRITERS["ROOFLINE_RUN"] = lambda: study_tables.roofline_run(figures("bench_roofline"))
WRITERS["CARDS_TABLE"] = partial(made, study_tables.cards, "bench_roofline_cards")
WRITERS["CARDS_RUN"] = lambda: study_tables.cards_run(figures("bench_roofline_cards"))
WRITERS["LOAD_TABLE"] = lambda: grid(*study_tables.load(figures("bench_load"), {}, *study_tables.CHUNKS))
WRITERS["LOAD_RUN"] = lambda: study_tables.load_run(figures("bench_load"))
WRITERS["LOAD_TECHNIQUES"] = lambda: grid(
    *study_tables.load(figures("bench_load"), study_tables.COUNTS, *study_tables.TECHNIQUES)
)
WRITERS["SIZES"] = lambda: grid(["", "files", "lines", "of them code"], sizes.rows())
WRITERS["ABLATION_RUN"] = lambda: study_tables.run(figures("ablation"))


if __name__ == "__main__":
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(fill(text), encoding="utf-8")
