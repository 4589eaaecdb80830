"""Decode steps one after another on the device: what each row reads, how it samples, and what it has chosen so far."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels.filters import filter_row
from inference_opt.kernels.greedy import best_of_block, end_of_step
from inference_opt.kernels.letter import Letter
from inference_opt.kernels.pdl import launch_options
from inference_opt.kernels.philox import EXACT
from inference_opt.kernels.race import end_of_race, race_of_block
from inference_opt.sampling import SamplingParams

Kind = Literal["greedy", "sampled", "filtered"]
COLD = 1e-30
BLOCK = 2048  # tokens of one program of a race
SHIFT = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}  # bits of float32 that a type does not have


def kind_of(params: Sequence[SamplingParams], vocab: int) -> Kind:
    """The least that serves all rows: of "filtered" ones too, "sampled" ones and those with log-probabilities too."""

    def filtered(each: SamplingParams) -> bool:
        return each.temperature > 0 and (0 < each.top_k < vocab or each.top_p < 1 or each.min_p > 0)

    if any(map(filtered, params)):
        return "filtered"
    return "sampled" if any(each.temperature > 0 or each.logprobs for each in params) else "greedy"


class Steps:
    """Up to `steps` decode steps one after another, of up to `max_rows` rows: buffers at fixed places on the device.

    `tokens` [max_rows] is the input of the current step, `place` [2, max_rows] the position and the slot of each row.
    `chosen`, `tops` and `scores` [steps, max_rows] are the tokens that the steps so far have chosen, each row's largest
    logit, and the tokens' log-probabilities where asked for.
    """

    def __init__(self, steps: int, max_rows: int, device: torch.device) -> None:
        def buffer(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.step = buffer(max_rows)
        self.tokens = buffer(max_rows)
        self.place = buffer(2, max_rows)
        self.places = buffer(steps, 2, max_rows)
        self.how = buffer(6, max_rows)  # as `race.py` reads it
        self.least = buffer(max_rows, dtype=torch.float32)
        self.last = buffer(max_rows)
        self.chosen = buffer(steps, max_rows)
        self.tops = buffer(steps, max_rows, dtype=torch.float32)
        self.scores = buffer(steps, max_rows, dtype=torch.float32)

    def begin(
        self,
        letter: Letter,
        tokens: Int[np.ndarray, "rows"] | None,
        places: Int[np.ndarray, "steps 2 rows"],
        params: Sequence[SamplingParams],
    ) -> None:
        """Set the input of the first step, the places of all steps, and how each row samples (all have seeds).

        None: its input is what `tokens` holds. The other rows write nowhere (slot −1), and are greedy.
        """
        all_places = np.zeros(self.places.shape, dtype=np.int64)
        all_places[:, 1] = -1
        all_places[:, :, : places.shape[2]] = places
        letter.put(self.step, 0)
        if tokens is not None:
            letter.put(self.tokens[: len(tokens)], tokens)
        letter.put(self.places, all_places)
        letter.put(self.place, all_places[0])
        self.sample(letter, params)

    def sample(self, letter: Letter, params: Sequence[SamplingParams], times: int = 1) -> None:
        """Set how rows sample: `times` rows as each of `params` says, and the others greedily."""
        how = np.zeros(self.how.shape, dtype=np.uint64)
        # So low a temperature chooses among the largest logits, as any below it. Its inverse is finite in float32.
        floats = np.array(
            [(max(each.temperature, COLD * (each.temperature > 0)), each.top_p, each.min_p) for each in params]
        ).reshape(-1, 3)
        own = np.zeros((len(how), len(params)), dtype=np.uint64)
        own[[0, 2, 3]] = floats.T.copy().view(np.uint64)
        own[1] = [each.top_k for each in params]
        own[5] = [each.logprobs for each in params]
        own[4] = np.array([each.seed or 0 for each in params], dtype=np.uint64)
        how[:, : times * len(params)] = own.repeat(times, axis=1)
        letter.put(self.how, how.view(np.int64))

    def end(self, logits: Float[Tensor, "rows vocab"], kind: Kind) -> None:
        """Give each row its token: that of its largest logit, where ties go to the lowest id, or one drawn.

        It is drawn as `sampling.sample` draws it at the row's position + 1. Where a row holds NaN or infinity, its
        noted top is NaN or infinite, and its token means nothing. The caller calls it at most `steps` times after
        `begin`, with a `kind` that serves all rows.
        """
        rows, vocab = logits.shape
        steps, max_rows = self.chosen.shape
        block = min(BLOCK, max(16, triton.next_power_of_2(vocab)))
        blocks = triton.cdiv(vocab, block)

        def each(dtype: torch.dtype) -> Tensor:
            return logits.new_empty(rows, blocks, dtype=dtype)

        tops, tokens = each(torch.float32), each(torch.int64)
        grid, options, up = (rows, blocks), launch_options(pdl=True), triton.next_power_of_2(blocks)
        noted = (self.step, self.tops, self.chosen)
        moved = (self.tokens, self.places, self.place, max_rows, blocks, steps, up)
        if kind == "greedy":
            best_of_block[grid](logits, tops, tokens, vocab, block, **options)
            end_of_step[(rows,)](tops, tokens, *noted, *moved, **options)
            return
        if kind == "filtered":
            keep_least(logits, self.how, self.least, self.last, 1, options)
        found = (tops, tokens, each(torch.float32), each(torch.float32))
        race_of_block[grid](
            logits, self.how, self.place, self.least, self.last, *found,
            vocab, max_rows, block, kind == "filtered", num_warps=4, maxnreg=96, **EXACT, **options,
        )  # fmt: skip
        end_of_race[(rows,)](self.how, *found, *noted, self.scores, *moved, **EXACT, **options)


def keep_least(
    logits: Float[Tensor, "rows vocab"],
    how: Int[Tensor, "6 max_rows"],
    least: Float[Tensor, "some_rows"],
    last: Int[Tensor, "some_rows"],
    times: int,
    options: Any,
) -> None:
    """Filter rows: `times` rows one after another as each of `how` says (`filters.py`)."""
    rows, vocab = logits.shape
    wide = min(8192, max(16, triton.next_power_of_2(vocab)))
    filter_row[(rows,)](
        logits, how, least, last, vocab, how.shape[1], times, SHIFT[logits.dtype], wide,
        num_warps=max(1, min(32, wide // 256)), **options,
    )  # fmt: skip


def draw_rows(
    logits: Float[Tensor, "rows vocab"], params: Sequence[SamplingParams], positions: Sequence[int]
) -> list[int]:
    """Each row's token at its position: `sampling.sample` of all rows at once. Rows of NaN mean nothing."""
    rows, vocab = logits.shape
    steps = Steps(1, rows, logits.device)
    places = np.array([[[position - 1 for position in positions], [-1] * rows]])
    with Letter(logits.device) as letter:
        steps.begin(letter, np.zeros(rows, dtype=np.int64), places, params)
    steps.end(logits, kind_of(params, vocab))
    tokens: list[int] = steps.chosen[0].tolist()
    return tokens
