"""`inference-opt bench roofline`: the least time of a prefill and of a decoding step, and the time taken here.

A row is one step of a shape on a card: what it reads and computes (`work.py`), which of the two limits binds, and the
seconds that follow. For a prefill of n tokens these are the time to the first token (TTFT) of a request that waits for
no other; for a step in decode, the time per output token (TPOT).

For a card, the limits are those of its data sheet. For `here`, they are measured before each repeat, and the engine
then runs the same steps, on random weights: a step's time does not depend on their values.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.progress import Progress

from inference_opt.environment import command_line, describe
from inference_opt.lab.bench.engine import engine_decoder
from inference_opt.lab.bench.machine import measured
from inference_opt.lab.bench.shapes import SHAPES, random_model
from inference_opt.lab.bench.work import Limits, Work, free_rows, work
from inference_opt.loading.load import parse_device, parse_dtype
from inference_opt.model.config import ModelConfig
from inference_opt.model.transformer import Transformer, check_fits

HERE = "here"
NEW = 16  # tokens that are decoded to time a step
DECODE_STEPS = 16  # in a row, where steps are captured


@dataclass(frozen=True)
class Card:
    """A card by its data sheet: dense rates, without structured sparsity; float32 without tensor cores, as in torch."""

    bandwidth: float
    rates: dict[str, float]  # by dtype
    source: str


def _card(bandwidth: int | float, bfloat16: int | float, float32: int | float, source: str) -> Card:
    return Card(bandwidth * 1e9, {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12}, source)


# GB a second, and TFLOP a second in bfloat16 and in float32. Data sheets give rates with sparsity: twice these.
CARDS = {
    "A100": _card(2_039, 312, 19.5, "NVIDIA A100 80GB SXM, data sheet of June 2021"),
    "H100": _card(3_350, 989, 67, "NVIDIA H100 80GB SXM, data sheet of 2023"),
    "H200": _card(4_800, 989, 67, "NVIDIA H200 141GB SXM, data sheet of November 2023"),
    "L4": _card(300, 121, 30.3, "NVIDIA L4 24GB, data sheet of March 2023"),
    "RTX4090": _card(1_008, 165, 82.6, "NVIDIA GeForce RTX 4090 24GB, Ada architecture whitepaper of 2022"),
}


@dataclass(frozen=True)
class Phase:
    """A prefill of one prompt of `context` tokens, or a step in decode of `batch` requests with `context` keys each."""

    name: str
    batch: int
    context: int

    def work(self, config: ModelConfig, itemsize: int) -> Work:
        """What its step reads and computes."""
        return work(config, itemsize, self.batch, self.context if self.name == "prefill" else 1, self.context)


def phases(prompt: int, batches: list[int], context: int) -> list[Phase]:
    """The rows of a shape on a card."""
    return [Phase("prefill", 1, prompt), *(Phase("decode", batch, context) for batch in batches)]


@dataclass(frozen=True)
class Model:
    """A shape in a precision."""

    shape: str
    dtype: str

    @property
    def config(self) -> ModelConfig:
        """The shape's numbers."""
        return SHAPES[self.shape]

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return parse_dtype(self.dtype).itemsize


def predicted(model: Model, phase: Phase, limits: Limits) -> dict[str, Any]:
    """A row: what the step is, and the least time it takes within these limits."""
    step = phase.work(model.config, model.itemsize)
    row: dict[str, Any] = asdict(model) | {"phase": phase.name, "batch": phase.batch, "context": phase.context}
    row |= {"bytes": step.moved, "operations": step.operations, "intensity": step.intensity, "ridge": limits.ridge}
    return row | {"bound": step.bound(limits), "predicted": step.seconds(limits)}


def bench_roofline(
    shapes: list[str],
    cards: list[str],
    dtype: str,
    prompt: int,
    batches: list[int],
    context: int,
    device_name: str,
    repeats: int,
    progress: Progress,
) -> dict[str, Any]:
    """Predict every phase on every card, and run it where the card is `here`.

    ValueError for an unknown shape or card, a dtype that a card's data sheet does not have, tokens that the model's
    context does not hold, and a model that does not fit here.
    """
    for what, given, known in (("shape", shapes, list(SHAPES)), ("card", cards, [HERE, *CARDS])):
        if unknown := [each for each in given if each not in known]:
            raise ValueError(f"unknown {what} {unknown[0]!r}: expected one of {', '.join(known)}")
    for card in set(cards) - {HERE}:
        if dtype not in CARDS[card].rates:
            raise ValueError(f"no rate in {dtype} is known for {card}: take {' or '.join(CARDS[card].rates)}")
    models = [Model(shape, dtype) for shape in shapes]
    rows = phases(prompt, batches, context)
    for model in models:
        if (longest := max(prompt, context + NEW)) > model.config.max_context:
            most = model.config.max_context
            raise ValueError(
                f"{longest:,} tokens exceed the context of {model.shape}, which holds {most:,}: take fewer"
            )
    device = parse_device(device_name)
    if HERE in cards:
        for model in models:
            check_fits(model.config, parse_dtype(dtype), device)
    task = progress.add_task("bench roofline", total=len(models) * len(rows) * repeats * cards.count(HERE))
    results: list[dict[str, Any]] = []
    for model in models:
        for card in cards:
            if card == HERE:
                results += _here(model, rows, device, repeats, partial(progress.advance, task))
                continue
            limits = Limits(CARDS[card].bandwidth, CARDS[card].rates[dtype])
            free = free_rows(model.config, model.itemsize, context, limits)
            results += [{"card": card, "free_rows": free} | predicted(model, phase, limits) for phase in rows]
    sheets = {card: asdict(CARDS[card]) for card in cards if card != HERE}
    gpu = {"device": torch.cuda.get_device_name()} if device.type == "cuda" else {}
    head = {"command": command_line(), "machine": describe() | gpu, "dtype": dtype, "repeats": repeats}
    return head | {"data_sheets": sheets, "results": results}


def _here(
    model: Model, rows: list[Phase], device: torch.device, repeats: int, advance: Any
) -> Iterator[dict[str, Any]]:
    """Every phase, predicted and run in turn. Limits drift on a shared machine, so each run has its own."""
    dtype = parse_dtype(model.dtype)
    transformer = random_model(model.config, dtype, device)
    runs = [_run(transformer, phase) for phase in rows]
    for run in runs:
        run()  # warm up
    found: list[list[tuple[Limits, float]]] = [[] for _ in rows]
    for _ in range(repeats):
        for run, times in zip(runs, found):
            times.append((measured(dtype, device, repeats=3), run()))
            advance()
    every = [limits for times in found for limits, _ in times]
    usual = Limits(median(each.bandwidth for each in every), median(each.rate for each in every))
    free = free_rows(model.config, model.itemsize, rows[-1].context, usual)
    for phase, times in zip(rows, found):
        step = phase.work(model.config, model.itemsize)
        taken = [seconds for _, seconds in times]
        row = {"card": HERE, "free_rows": free} | predicted(model, phase, usual)
        row |= {"predicted": median(step.seconds(limits) for limits, _ in times)}
        row |= {"measured": median(taken), "spread": [min(taken), max(taken)]}
        row |= {"read_bandwidth": usual.bandwidth, "product_flops": usual.rate}
        yield row | {"ratio": median(seconds / step.seconds(limits) for limits, seconds in times)}


def _run(model: Transformer, phase: Phase) -> Callable[[], float]:
    """How to time a phase's step in the engine, in seconds: a prefill, or the mean of some steps in decode."""
    new = 1 if phase.name == "prefill" else NEW
    length = phase.context if new == 1 else max(phase.context - new // 2, 1)  # on average it has half of the new ones
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(model.config.vocab_size, (phase.batch, length), generator=generator).tolist()
    decode = engine_decoder(model, phase.batch, length + new, DECODE_STEPS, phase.batch * length)({})

    def run() -> float:
        first, rate = decode(prompts, new)
        return phase.batch / rate if rate else first

    return run
