"""`inference-opt bench gamma`: a calculator of what drafts would gain, from acceptance, cost, batch and machine.

A step of n texts with γ drafts each reads the weights once, whatever γ is, and multiplies n (γ + 1) rows. Its least
time t(γ) follows from bytes and operations (`work.py`). With drafts that cost c plain steps each and are accepted with
probability α,

    speed-up(γ) = (1 + α + … + α^γ) · t(0) / (t(γ) + γ c t(0))

This is Theorem 3.8 of Leviathan et al. (2211.17192; `speculative/cost.py`), but for the rows, which are not free: where
arithmetic binds, t(γ) grows with γ. Starting kernels is left out, and so are drafts of a length that is chosen text by
text: `bench drafts` measures.
"""

from collections.abc import Sequence
from typing import Any

from inference_opt.environment import command_line
from inference_opt.lab.bench.roofline import CARDS
from inference_opt.lab.bench.shapes import SHAPES
from inference_opt.lab.bench.work import Limits, work
from inference_opt.loading.load import parse_dtype
from inference_opt.model.config import ModelConfig
from inference_opt.speculative.cost import expected_tokens


def step_seconds(config: ModelConfig, itemsize: int, limits: Limits, batch: int, gamma: int, context: int) -> float:
    """The least time of a step of so many texts with so many drafts each, behind `context` tokens."""
    return work(config, itemsize, batch, gamma + 1, context + gamma, logits=gamma + 1).seconds(limits)


def bench_gamma(
    shape: str,
    card: str,
    dtype: str,
    alphas: Sequence[float],
    cost: float,
    batches: Sequence[int],
    context: int,
    most: int,
) -> dict[str, Any]:
    """A row for each α and batch: the speed-up of every γ from 0 to `most`, and the best.

    ValueError for an unknown shape or card, a dtype that a card's data sheet does not have, and a context that the
    model does not hold.
    """
    for what, given, known in (("shape", shape, SHAPES), ("card", card, CARDS)):
        if given not in known:
            raise ValueError(f"unknown {what} {given!r}: expected one of {', '.join(known)}")
    if dtype not in CARDS[card].rates:
        raise ValueError(f"no rate in {dtype} is known for {card}: take {' or '.join(CARDS[card].rates)}")
    config = SHAPES[shape]
    if context + most > config.max_context:
        raise ValueError(
            f"{context:,} tokens and {most} drafts exceed the context of {shape}, which holds {config.max_context:,}"
        )
    limits, itemsize = Limits(CARDS[card].bandwidth, CARDS[card].rates[dtype]), parse_dtype(dtype).itemsize
    rows = []
    for alpha in alphas:
        for batch in batches:
            seconds = [step_seconds(config, itemsize, limits, batch, gamma, context) for gamma in range(most + 1)]
            gains = [
                expected_tokens(alpha, gamma) * seconds[0] / (each + gamma * cost * seconds[0])
                for gamma, each in enumerate(seconds)
            ]
            best = max(range(most + 1), key=gains.__getitem__)
            rows.append(
                {"alpha": alpha, "batch": batch, "step_seconds": seconds, "speedups": gains, "best": best}
                | {"tokens_a_step": expected_tokens(alpha, best)}
            )
    head = {"command": command_line(), "shape": shape, "card": card, "source": CARDS[card].source, "dtype": dtype}
    return head | {"context": context, "cost": cost, "results": rows}
