"""`inference-opt bench speculative`: drafters by task, beside plain decoding, the peer, and the cost model.

Every decoder decodes every prompt in turn, several times over, in one process, on the same weights. All make the same
number of tokens: as many as plain decoding makes until it ends its text, so that no text after the end is measured.
Only decoding is timed: from the first token, which the prefill gives, to the last.

    α    accepted / (accepted + rejected), of the drafts that were judged; those after a rejection were not judged
    c    seconds of a drafted token / seconds of a plain step: the cost of a drafter in Theorem 3.8 (2211.17192)
    r    the cost of one more row for the target, in plain steps; Theorem 3.8 takes it to be 0
    expected speed-up = Σ E[tokens of a step] / Σ (1 + γ c), over the steps that were made, each with its own γ

These are chains. With `--tree` each drafter of trees drafts them, too: as the engine does by itself, or with `--gamma`
of as many rows as the chains have. There γ is the number of rows, and α that of a level of the tree.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from rich.progress import Progress

from inference_opt.engine.engine import Engine
from inference_opt.engine.speculation import Rule
from inference_opt.environment import command_line, describe, elapsed
from inference_opt.lab.agreement import compare
from inference_opt.lab.bench.machine import read_bandwidth
from inference_opt.lab.bench.peers import Clock, transformers_model
from inference_opt.lab.bench.work import Limits, work
from inference_opt.loading.load import load_model
from inference_opt.loading.prompts import load_prompts
from inference_opt.loading.tokenizer import needed
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams
from inference_opt.speculative import DRAFTERS, Drafter, Eagle, rules
from inference_opt.speculative.cost import expected_tokens
from inference_opt.speculative.head import DraftHead

TASKS = ("editing", "summarising", "humaneval", "chat")
PLAIN = "plain"
TREE = ", tree"  # behind a drafter's name
PEER = "transformers"
PEER_LOOKUP = "transformers, lookup"
PEER_DRAFTS = 10  # in a step, as in its documentation; on editing it is the fastest of 3, 5 and 10


@dataclass
class Timed:
    """One text, decoded once. The prefill's token and time are not counted."""

    text: list[int]
    tokens: int
    seconds: float
    drafted: list[int] = field(default_factory=list)  # in each step
    accepted: list[int] = field(default_factory=list)
    draft_seconds: float = 0.0
    run_seconds: float = 0.0


Decoder = Callable[[list[int], int, int], Timed]  # prompt, new tokens, seed


def engine_decoder(
    model: Transformer, drafter: Drafter | None, gamma: int | None, temperature: float, rule: Rule | None = None
) -> Decoder:
    """One engine, with one request at a time. As in a server, it keeps what it has learned of prices and acceptance."""
    engine = Engine(model, drafter=drafter, gamma=gamma, rule=rule, radix=False)

    def decode(prompt: list[int], new: int, seed: int) -> Timed:
        params = SamplingParams(max_new_tokens=new, temperature=temperature, seed=seed, ignore_eos=True)
        request = engine.add(prompt, params)
        while not request.output:
            engine.step()
        before = engine.stats
        outputs = []
        start = time.perf_counter()
        while not request.finished:
            outputs += engine.step()
        seconds = elapsed(start)
        after = engine.stats
        return Timed(
            request.output,
            tokens=sum(len(out.tokens) for out in outputs),
            seconds=seconds,
            drafted=[len(out.drafted) for out in outputs],
            accepted=[len(out.tokens) - 1 for out in outputs],
            draft_seconds=after.draft_seconds - before.draft_seconds,
            run_seconds=elapsed(before.run_seconds, after.run_seconds),
        )

    return decode


def peer_decoder(peer: Any, lookup: bool, temperature: float) -> Decoder:
    """`generate` of `transformers`, plain or with its prompt lookup."""
    options: dict[str, Any] = {"prompt_lookup_num_tokens": PEER_DRAFTS} if lookup else {}
    options |= {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}

    def decode(prompt: list[int], new: int, seed: int) -> Timed:
        ids = torch.tensor([prompt])
        clock = Clock()
        torch.manual_seed(seed)
        out = peer.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, pad_token_id=0, streamer=clock, **options
        )
        return Timed(out[0, len(prompt) :].tolist(), sum(clock.counts[2:]), elapsed(clock.times[1], clock.times[-1]))

    return decode


def our_drafters(
    model: Transformer, names: Sequence[str] | None, whole: bool = False
) -> tuple[dict[str, Drafter], dict[str, str]]:
    """Drafters by name (None: all that work), and why others are left out. ValueError for a named one that fails.

    `whole`: drafts are as long as asked for, so the trained drafter's do not end after a doubtful token.
    """
    sure = {"confidence": 0.0} if whole else {}
    drafters: dict[str, Drafter] = {}
    left_out: dict[str, str] = {}
    for name in names or DRAFTERS:
        try:
            # The trained one is read from its file once, not for every engine.
            drafters[name] = Eagle(DraftHead.load(model), **sure) if name == "trained" else DRAFTERS[name]()
            Engine(model, drafter=drafters[name], num_pages=1)
        except ValueError as error:
            if names:
                raise
            drafters.pop(name, None)
            left_out[name] = str(error)
    return drafters, left_out


def bench_speculative(
    source: str,
    dtype: str,
    tasks: Sequence[str],
    names: Sequence[str] | None,
    gamma: int | None,
    prompts: int,
    new: int,
    repeats: int,
    peer: bool,
    temperature: float,
    seed: int,
    progress: Progress,
    tree: bool = False,
) -> dict[str, Any]:
    """Tokens a second in decode by task and decoder, with the figures that explain them.

    `prompts`: how many of each task, at most. `tree`: each drafter that can draft trees does it, too. ValueError for a
    named drafter that does not fit the model.
    """
    model, tokenizer = load_model(source, dtype=dtype)
    drafters, left_out = our_drafters(model, names, tree and gamma is not None)
    decoders = {PLAIN: engine_decoder(model, None, None, temperature)}
    chains, trees = rules.coupled, None if gamma is None else rules.tree
    decoders |= {name: engine_decoder(model, each, gamma, temperature, chains) for name, each in drafters.items()}
    if tree:
        decoders |= {
            name + TREE: engine_decoder(model, each, gamma, temperature, trees)
            for name, each in drafters.items()
            if each.trees
        }
    if peer:
        other = transformers_model(source, model.dtype)
        decoders[PEER] = peer_decoder(other, False, temperature)
        decoders[PEER_LOOKUP] = peer_decoder(other, True, temperature)
    texts = {
        task: [p for p in load_prompts("speculative") if p.name.startswith(f"{task}: ")][:prompts] for task in tasks
    }
    total = sum(map(len, texts.values())) * (1 + repeats * len(decoders))
    bar = progress.add_task("bench speculative", total=total)

    workloads = {}
    results = []
    limits: list[float] = []
    for task, chosen in texts.items():
        ids = [prompt.ids(needed(tokenizer)) for prompt in chosen]
        lengths = _plain_lengths(model, ids, new, temperature, seed, partial(progress.advance, bar))
        runs, plain_limits = _run_in_turn(model, decoders, ids, lengths, repeats, seed, partial(progress.advance, bar))
        limits += plain_limits
        rows = [summarise(task, name, runs) for name in decoders]
        for row in rows:
            if not temperature:
                row |= _agreement(model, ids, runs[PLAIN][0], runs[row["name"]][0])
        workloads[task] = {
            "prompts": [{"name": p.name, "source": p.source, "licence": p.licence} for p in chosen],
            "prompt_tokens": list(map(len, ids)),
            "new_tokens": lengths,
        }
        results += rows
    head = {"command": command_line(), "machine": describe(), "model": source, "dtype": dtype, "repeats": repeats}
    head |= {"gamma": gamma, "temperature": temperature, "seed": seed, "plain_limit": median(limits)}
    ours = [row for row in results if not row["name"].startswith(PEER)]
    exact = {} if temperature else {"exact": all(row["exact"] for row in ours)}
    return head | exact | {"left_out": left_out, "workloads": workloads, "results": results}


def _plain_lengths(
    model: Transformer, prompts: list[list[int]], new: int, temperature: float, seed: int, advance: Callable[[], None]
) -> list[int]:
    """The number of tokens of each prompt's plain text, `new` at most, and 2 at least (there is a rate from 2 on)."""
    lengths = []
    for i, prompt in enumerate(prompts):
        params = SamplingParams(max_new_tokens=new, temperature=temperature, seed=seed + i)
        lengths.append(max(len(Engine(model).generate(prompt, params).tokens), 2))
        advance()
    return lengths


def _run_in_turn(
    model: Transformer,
    decoders: Mapping[str, Decoder],
    prompts: list[list[int]],
    lengths: list[int],
    repeats: int,
    seed: int,
    advance: Callable[[], None],
) -> tuple[dict[str, list[list[Timed]]], list[float]]:
    """Run every decoder on every prompt, `repeats` times.

    Returns each decoder's texts by repeat and prompt, and the limit of plain decoding (tokens a second) by repeat.
    """
    for decode in decoders.values():
        decode(prompts[0], 4, seed)  # warm up
    runs: dict[str, list[list[Timed]]] = {name: [[] for _ in range(repeats)] for name in decoders}
    limits = []
    context = mean(len(prompt) + length / 2 for prompt, length in zip(prompts, lengths))
    for repeat in range(repeats):
        step = work(model.config, model.dtype.itemsize, 1, 1, context)
        limits.append(1 / step.seconds(Limits(read_bandwidth(repeats=3))))
        for i, (prompt, length) in enumerate(zip(prompts, lengths)):
            for name, decode in decoders.items():
                runs[name][repeat].append(decode(prompt, length, seed + i))
                advance()
    return runs, limits


def _agreement(
    model: Transformer, prompts: Sequence[list[int]], plain: Sequence[Timed], other: Sequence[Timed]
) -> dict[str, Any]:
    """Greedy tokens, compared with those of plain decoding."""
    verdicts = [compare(model, prompt, a.text, b.text) for prompt, a, b in zip(prompts, plain, other)]
    same = sum(verdict.identical for verdict in verdicts)
    text = f"{same} of {len(verdicts)}" + "".join(f"; {v}" for v in verdicts if not v.identical)
    return {"exact": all(verdict.exact for verdict in verdicts), "identical": same, "agreement": text}


def summarise(task: str, name: str, runs: Mapping[str, Sequence[Sequence[Timed]]]) -> dict[str, Any]:
    """One row: rates and ratios, taken repeat by repeat and then their medians, and the figures that explain them."""

    def per_repeat(figure: Callable[[Sequence[Timed]], float], of: str = name) -> list[float]:
        return [figure(repeat) for repeat in runs[of]]

    rates = per_repeat(_rate)
    row: dict[str, Any] = {
        "task": task,
        "name": name,
        "tokens": sum(timed.tokens for timed in runs[name][0]),
        "tokens_per_second": median(rates),
        "spread": [min(rates), max(rates)],
    }
    for key, base in (("over_plain", PLAIN), ("over_peer_lookup", PEER_LOOKUP)):
        if base in runs:
            ratios = [rate / base_rate for rate, base_rate in zip(rates, per_repeat(_rate, base))]
            row |= {key: median(ratios), f"{key}_spread": [min(ratios), max(ratios)]}
    if name.startswith(PEER):
        return row
    drafted = [count for timed in runs[name][-1] for count in timed.drafted]
    accepted = [count for timed in runs[name][-1] for count in timed.accepted]
    row |= {"steps": len(drafted), "tokens_per_step": row["tokens"] / len(drafted)}
    if name == PLAIN:
        return row

    # Seconds, repeat by repeat: a plain step, a drafted token, and the target's run in a plain step and in this one.
    plain_steps = per_repeat(lambda each: sum(t.seconds for t in each) / sum(len(t.drafted) for t in each), PLAIN)
    guessing = per_repeat(lambda each: sum(t.draft_seconds for t in each) / max(sum(sum(t.drafted) for t in each), 1))
    plain_runs = per_repeat(lambda each: sum(t.run_seconds for t in each) / sum(len(t.drafted) for t in each), PLAIN)
    running = per_repeat(lambda each: sum(t.run_seconds for t in each) / sum(len(t.drafted) for t in each))
    row |= {
        "drafted": sum(drafted),
        "accepted": sum(accepted),
        "acceptance": sum(accepted) / max(sum(drafted), 1),
        "alpha": estimate_alpha(drafted, accepted),
        "gamma": sum(drafted) / len(drafted),
        "c": median(guess / step for guess, step in zip(guessing, plain_steps)),
        "step_cost": median(run / plain_run for run, plain_run in zip(running, plain_runs)),
        "draft_share": median(
            per_repeat(lambda each: sum(t.draft_seconds for t in each) / sum(t.seconds for t in each))
        ),
    }
    row["r"] = (row["step_cost"] - 1) / row["gamma"] if row["gamma"] else 0.0
    if not name.endswith(TREE):  # the theorem is about chains
        row["expected"] = expected_speedup(row["alpha"], drafted, row["c"])
        row["expected_with_rows"] = expected_speedup(row["alpha"], drafted, row["c"] + row["r"])
    row["reason"] = why_slower(row)
    return row


def _rate(repeat: Sequence[Timed]) -> float:
    return sum(timed.tokens for timed in repeat) / sum(timed.seconds for timed in repeat)


def estimate_alpha(drafted: Sequence[int], accepted: Sequence[int]) -> float:
    """The share of accepted drafts among those that were judged. A step's first rejection ends its judging."""
    rejections = sum(passed < count for count, passed in zip(drafted, accepted))
    return sum(accepted) / max(sum(accepted) + rejections, 1)


def expected_speedup(alpha: float, drafted: Sequence[int], c: float) -> float:
    """The speed-up of Theorem 3.8, for steps of unequal draft lengths."""
    return sum(expected_tokens(alpha, gamma) for gamma in drafted) / sum(1 + gamma * c for gamma in drafted)


def why_slower(row: Mapping[str, Any]) -> str:
    """The reason, in words, if speculation does not pay; empty if it does."""
    if row["over_plain"] >= 1:
        return ""
    if not row["drafted"]:
        return "nothing was drafted, and looking for drafts took the time that is lost"
    if row["alpha"] <= row["c"]:
        return f"α = {row['alpha']:.2f} ≤ c = {row['c']:.2f}: no γ can pay (Corollary 3.9)"
    if row["alpha"] <= row["c"] + row["r"]:
        return f"α = {row['alpha']:.2f} ≤ c + r = {row['c'] + row['r']:.2f}: with the price of its row, no draft pays"
    return (
        f"a step costs {row['step_cost']:.2f} plain steps to verify and {row['c'] * row['gamma']:.2f} to draft, "
        f"and gives {row['tokens_per_step']:.2f} tokens"
    )
