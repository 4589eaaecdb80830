"""Speculative steps one after another on the device: a draft is guessed, read, judged and committed without the host.

    look_up      guess: what followed the latest earlier occurrence of the text's end (`lookup.py`)
    feed         the rows of the step: each text's last token and its draft, with their positions and slots
    move_pieces  the plan of attention follows the texts, which grow by different numbers of tokens
    …            the model, and a token for each row: the target's own, as plain decoding would draw it (`steps.py`)
    commit       of each text, the tokens up to the first that no draft foresaw (`rules.coupled`, `coupled_tree`)
    keep_path    of a tree, the keys and values of the drafts that were kept move to consecutive slots

A row that is not judged (its text has ended, its draft is shorter than others) writes nowhere, and no query reads what
lies at its position: memory that was never written may hold NaN, and 0 · NaN is NaN.

The number of drafts is an ordinary number for these kernels, so they are compiled once for all.
"""

import math
from array import array
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels.letter import Letter
from inference_opt.kernels.lookup import REVIEWED, look_up, match, walk
from inference_opt.kernels.pdl import launch_options
from inference_opt.kernels.plan import Piece
from inference_opt.kernels.shape import Shape
from inference_opt.kernels.steps import Kind, Steps
from inference_opt.sampling import SamplingParams

FIELDS = tl.constexpr(len(Piece._fields))
SEQUENCE, QUERIES, POSITION, FIRST, END = (
    tl.constexpr(Piece._fields.index(name)) for name in ("sequence", "queries", "position", "first", "end")
)


@triton.jit(do_not_specialize=["gamma"])
def feed(
    text,  # [max_rows, WIDTH]
    known,  # [max_rows]
    limit,  # [max_rows]: how many tokens may be known in the end; pages are there for all but the last
    most,  # [max_rows]: drafts that each text wants
    draft,  # [max_rows, gamma]
    drafted,  # [max_rows]
    depths,  # [gamma + 1]: of each row in the tree of drafts
    table,  # [max_rows, pages]
    queries,  # [max_rows]: rows of each text that count
    tokens,  # [max_rows (gamma + 1)]: what is read
    place,  # [2, places]: position and slot
    pages,
    places,
    gamma,
    WIDTH: tl.constexpr,
    SPAN: tl.constexpr,  # a power of two > gamma
    PAGE: tl.constexpr,
    PDL: tl.constexpr,
):
    """The rows of one text: its last known token, then its draft."""
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    length, j = tl.load(known + row), tl.arange(0, SPAN)
    left = tl.load(limit + row) - length  # the last token of a text needs no draft
    judged = tl.minimum(tl.minimum(tl.load(drafted + row), tl.load(most + row)), left - 1)
    counted = tl.where(left > 0, judged + 1, 0)
    real = j < counted
    last = tl.load(text + row * WIDTH + tl.maximum(length - 1, 0)).to(tl.int64)
    guess = tl.load(draft + row * gamma + j - 1, mask=real & (j > 0), other=0).to(tl.int64)
    position, slot = length - 1 + tl.load(depths + j, mask=j <= gamma, other=0), length - 1 + j
    page = tl.load(table + row * pages + slot // PAGE, mask=real, other=0).to(tl.int64)
    out = row * (gamma + 1) + j
    tl.store(queries + row, counted)
    tl.store(tokens + out, tl.where(real, tl.where(j == 0, last, guess), 0), mask=j <= gamma)
    tl.store(place + out, tl.where(real, position, 0), mask=j <= gamma)
    tl.store(place + places + out, tl.where(real, page * PAGE + slot % PAGE, -1), mask=j <= gamma)


@triton.jit(do_not_specialize=["count"])
def move_pieces(
    pieces,  # [count, FIELDS]
    known,  # [max_rows]
    queries,  # [max_rows]
    count,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Set the pieces of a launch to where the texts are, and to the rows that count. A piece of no keys is nobody's."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    piece, inside = pieces + i * FIELDS, i < count
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    sequence = tl.load(piece + SEQUENCE, mask=inside, other=0)
    real = inside & (tl.load(piece + END, mask=inside, other=0) > tl.load(piece + FIRST, mask=inside, other=0))
    tl.store(piece + POSITION, (tl.load(known + sequence, mask=real, other=1) - 1).to(tl.int32), mask=real)
    tl.store(piece + QUERIES, tl.load(queries + sequence, mask=real, other=0).to(tl.int32), mask=real)


@triton.jit(do_not_specialize=["gamma", "depth"])
def commit(
    text,  # [max_rows, WIDTH]
    known,  # [max_rows]
    limit,  # [max_rows]
    draft,  # [max_rows, gamma]
    parents,  # [gamma + 1]: the row in front of each row; −1: none
    queries,  # [max_rows]
    chosen,  # [rows]: each row's token,
    tops,  # [rows]: its largest logit,
    scores,  # [rows]: and the token's log-probability
    drawn,  # [rows]: how often each row has drawn, which begins anew
    began,  # [max_rows]: how many tokens were known before the first step
    step,  # [max_rows]
    path,  # [max_rows, longest]: the rows that were kept
    emitted,  # [max_rows, most]
    scored,  # [max_rows, most]
    notes,  # [steps, 4, max_rows]: drafts judged, drafts accepted, tokens emitted; a bit for each draft accepted
    max_rows,
    most,
    longest,
    gamma,
    depth,  # of the deepest draft
    WIDTH: tl.constexpr,
    SPAN: tl.constexpr,  # a power of two > gamma
    PDL: tl.constexpr,
):
    """Emit the tokens of one text. A text whose first row is broken goes no further."""
    row, j = tl.program_id(0).to(tl.int64), tl.arange(0, SPAN)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    length, counted, now = tl.load(known + row), tl.load(queries + row), tl.load(step + row)
    out = row * most + length - tl.load(began + row)
    judged = (j > 0) & (j < counted)
    guess = tl.load(draft + row * gamma + j - 1, mask=judged, other=-1).to(tl.int64)
    parent = tl.load(parents + j, mask=judged, other=-1)
    tl.store(drawn + row * (gamma + 1) + j, 0, mask=j <= gamma)
    going, node, accepted, kept, bits = counted > 0, counted * 0, counted * 0, counted * 0, counted * 0
    for at in range(depth + 1):
        r = row * (gamma + 1) + node
        token, top = tl.load(chosen + r), tl.load(tops + r)
        going &= tl.abs(top) < float("inf")  # false for NaN
        tl.store(text + row * WIDTH + length + at, token.to(tl.int32), mask=going)
        tl.store(emitted + out + at, token.to(tl.int32), mask=going)
        tl.store(scored + out + at, tl.load(scores + r), mask=going)
        tl.store(path + row * longest + at, node.to(tl.int32), mask=going)
        kept += going.to(tl.int64)
        # Of the drafts behind this row, the one that foresaw the token.
        found = tl.max(tl.where(judged & (parent == node) & (guess == token), j, 0), 0).to(tl.int64)
        going &= found > 0
        accepted += going.to(tl.int64)
        bits |= tl.where(going, (counted * 0 + 1) << tl.maximum(found - 1, 0), 0)
        node = tl.where(going, found, node)
    note = notes + now * 4 * max_rows + row
    tl.store(note, tl.maximum(counted - 1, 0))
    tl.store(note + max_rows, accepted)
    tl.store(note + 2 * max_rows, kept)
    tl.store(note + 3 * max_rows, bits)
    tl.store(known + row, length + kept)
    tl.store(limit + row, length, mask=(counted > 0) & (kept == 0))
    tl.store(step + row, now + 1)


@triton.jit
def keep_path(
    pages,  # [pages, PAGE, WIDTH]: of the first layer
    offsets,  # [layers]: where each layer's pages are, behind the first's
    table,  # [max_rows, table_width]
    known,  # [max_rows]
    path,  # [max_rows, longest]
    notes,  # [steps, 4, max_rows]
    step,  # [max_rows]: one more than that of the note
    table_width,
    longest,
    max_rows,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,  # WIDTH, as a power of two
    PAGE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Move what one layer keeps of one text's accepted drafts to the slots behind the token that was fed."""
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    pages += tl.load(offsets + tl.program_id(1))
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    kept = tl.load(notes + ((tl.load(step + row) - 1) * 4 + 2) * max_rows + row)
    first, listed = tl.load(known + row) - kept - 1, table + row * table_width
    # A draft is never in front of its place, so its slot was not written yet.
    for at in range(1, kept):
        source, target = first + tl.load(path + row * longest + at), first + at
        from_ = tl.load(listed + source // PAGE).to(tl.int64) * PAGE + source % PAGE
        to = tl.load(listed + target // PAGE).to(tl.int64) * PAGE + target % PAGE
        tl.store(pages + to * WIDTH + d, tl.load(pages + from_ * WIDTH + d, mask=d < WIDTH), mask=d < WIDTH)


class DraftSteps:
    """Up to `steps` speculative steps, of up to `max_rows` texts with up to `max_gamma` drafts each.

    Buffers at fixed places on the device. `rows` holds what the flat rows of a step read and how they sample: rows
    (gamma + 1) · i … of text i. `lengths`: those that `review` compares.
    """

    def __init__(
        self,
        steps: int,
        max_rows: int,
        max_gamma: int,
        context: int,
        device: torch.device,
        lengths: Sequence[int] = (0,),
    ) -> None:
        def buffer(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.rows = Steps(1, max_rows * (max_gamma + 1), device)
        self.span = triton.next_power_of_2(max_gamma + 1)
        self.text = buffer(max_rows, context + 1, dtype=torch.int32)
        self.held: list[array] = []  # the tokens that are known to lie in rows of `text`
        self.draft = buffer(max_rows, max_gamma, dtype=torch.int32)
        # How many tokens are known, may be known in the end, were known before; drafts wanted and found; rows that
        # count; and how many steps were made.
        self.numbers = buffer(7, max_rows)
        self.known, self.limit, self.began, self.most, self.drafted, self.queries, self.step = self.numbers
        self.emitted = buffer(max_rows, steps * (max_gamma + 1), dtype=torch.int32)
        self.scored = buffer(max_rows, steps * (max_gamma + 1), dtype=torch.float32)
        self.notes = buffer(steps, 4, max_rows)
        self.path = buffer(max_rows, max_gamma + 1, dtype=torch.int32)
        self.shapes: dict[Shape, tuple[Tensor, Tensor]] = {}  # parents and depths of rows
        # What a review finds: right drafts behind each beginning of a text, and steps by length of draft.
        self.matched = buffer(max_rows, REVIEWED, dtype=torch.int32)
        self.longest, self.lengths = max(lengths), buffer(triton.next_power_of_2(len(lengths)), dtype=torch.int32)
        self.lengths[: len(lengths)] = torch.tensor(lengths)
        self.taken = buffer(max_rows, len(self.lengths), dtype=torch.float32)

    def begin(
        self,
        letter: Letter,
        texts: Sequence[array],
        limits: Sequence[int],
        most: Sequence[int],
        params: Sequence[SamplingParams],
        gamma: int,
    ) -> None:
        """Set the texts, how long they may become, how many drafts each wants, and how each samples.

        Each has `gamma` drafts, unless a step says otherwise. Texts that are not begun have no rows that count.
        """
        self.rows.sample(letter, params, gamma + 1)
        lengths = [len(text) for text in texts]
        self._set(letter, texts, lengths, limits, lengths, most, [gamma] * len(texts))

    def go_on(
        self,
        letter: Letter,
        rows: Int[Tensor, "texts"] | None,
        limits: Sequence[int],
        most: Sequence[int],
        params: Sequence[SamplingParams],
        gamma: int,
    ) -> None:
        """As `begin`, for texts that are in these rows (None: in the first ones), wherever the last steps left them."""
        self.held = []  # as of `_set`
        if rows is not None:
            self.text[: len(rows)], self.known[: len(rows)] = self.text[rows], self.known[rows]
        self.began.copy_(self.known)
        self.rows.sample(letter, params, gamma + 1)
        numbers = np.zeros(self.numbers.shape, dtype=np.int64)  # but for those that the device knows
        numbers[[1, 3, 4], : len(limits)] = limits, most, [gamma] * len(limits)
        letter.put(self.limit, numbers[1])
        letter.put(self.numbers[3:], numbers[3:])

    def append(self, texts: Sequence[array], counts: Sequence[int], chosen: Int[Tensor, "steps rows"]) -> None:
        """Set texts that were decoded without drafts, and what was chosen behind them: so they can be reviewed."""
        lengths, steps, rows = [len(text) for text in texts], len(chosen), len(texts)
        ends = [length + count for length, count in zip(lengths, counts)]
        with Letter(self.text.device) as letter:
            self._set(letter, texts, ends, ends, lengths)
        places = self.began[:rows, None] + torch.arange(steps, device=chosen.device)
        places = places.clamp_max(self.text.shape[1] - 1)  # what is behind the ends is not read
        self.text[:rows].scatter_(1, places, chosen[:, :rows].T.int())

    def _set(self, letter: Letter, texts: Sequence[array], *numbers: Sequence[int]) -> None:
        """Write what rows do not hold of the texts, and the first of `numbers`.

        The others are zero, and so are those of rows without a text.
        """
        for row, (text, held) in enumerate(zip_longest(texts, self.held[: len(texts)], fillvalue=array("i"))):
            first = len(held) if text[: len(held)] == held else 0
            if first < len(text):
                letter.put(self.text[row, first : len(text)], text[first:])
        self.held = []  # until the letter has arrived, and the run has ended
        all_numbers = np.zeros(self.numbers.shape, dtype=np.int64)
        all_numbers[: len(numbers), : len(texts)] = numbers
        letter.put(self.numbers, all_numbers)

    def keep(self, texts: Sequence[array], emitted: Sequence[Sequence[int]]) -> None:
        """A run has ended: rows hold these texts, and behind each what was emitted. That is not sent again."""
        self.held = [text + array("i", tokens) for text, tokens in zip(texts, emitted)]

    def look_up(self, rows: int, gamma: int, min_ngram: int, max_ngram: int) -> None:
        """Draft by prompt lookup."""
        block = min(1024, triton.next_power_of_2(self.text.shape[1]))
        look_up[(rows,)](
            self.text, self.known, self.draft, self.drafted, gamma, self.text.shape[1], self.span,
            min_ngram, max_ngram, block, **launch_options(pdl=True),
        )  # fmt: skip

    def review(self, rows: int, min_ngram: int, max_ngram: int) -> Float[Tensor, "rows lengths"]:
        """How many steps the latest tokens of each text, at most `REVIEWED`, would take with each of the lengths."""
        width = self.text.shape[1]
        block = min(1024, triton.next_power_of_2(width))
        match[(rows, REVIEWED)](
            self.text, self.known, self.began, self.matched, width, self.matched.shape[1],
            triton.next_power_of_2(self.longest + 1), self.longest, min_ngram, max_ngram, block,
        )  # fmt: skip
        walk[(rows,)](
            self.known, self.began, self.matched, self.lengths, self.taken, self.matched.shape[1], len(self.lengths)
        )
        return self.taken[:rows]

    def _rows_of(self, shape: Shape) -> tuple[Int[Tensor, "fed"], Int[Tensor, "fed"]]:
        """The parent and the depth of each row."""
        if shape not in self.shapes:
            parents = [-1, *(parent + 1 for parent in shape.parents)]
            device = self.text.device
            self.shapes[shape] = torch.tensor(parents, device=device), torch.tensor(shape.depths, device=device)
        return self.shapes[shape]

    def feed(
        self, rows: int, shape: Shape, table: Int[Tensor, "max_rows pages"], page_size: int
    ) -> tuple[Int[Tensor, "fed"], Int[Tensor, "fed"], Int[Tensor, "fed"]]:
        """Tokens, positions and slots of the step's rows."""
        fed, place, (_, depths) = rows * (shape.gamma + 1), self.rows.place, self._rows_of(shape)
        feed[(rows,)](
            self.text, self.known, self.limit, self.most, self.draft, self.drafted, depths, table, self.queries,
            self.rows.tokens, place, table.shape[1], place.shape[1], shape.gamma, self.text.shape[1],
            self.span, page_size, **launch_options(pdl=True),
        )  # fmt: skip
        return self.rows.tokens[:fed], place[0, :fed], place[1, :fed]

    def move(self, pieces: Int[Tensor, "pieces 8"]) -> None:
        """Let the pieces of a launch follow the texts."""
        if len(pieces):
            grid = (triton.cdiv(len(pieces), 256),)
            move_pieces[grid](pieces, self.known, self.queries, len(pieces), 256, **launch_options(pdl=True))

    def end(self, logits: Float[Tensor, "fed vocab"], kind: Kind, shape: Shape) -> None:
        """Draw each row's token, and commit those that the target and the drafts agree on, and one more.

        As of `Steps.end`: at most `steps` times after `begin`, with a `kind` that serves all texts.
        """
        self.rows.end(logits, kind)
        parents, _ = self._rows_of(shape)
        commit[(len(logits) // (shape.gamma + 1),)](
            self.text, self.known, self.limit, self.draft, parents, self.queries,
            self.rows.chosen, self.rows.tops, self.rows.scores, self.rows.step,
            self.began, self.step, self.path, self.emitted, self.scored, self.notes,
            len(self.known), self.emitted.shape[1], self.path.shape[1], shape.gamma, shape.depth,
            self.text.shape[1], self.span, **launch_options(pdl=True),
        )  # fmt: skip

    def keep_paths(self, rows: int, pages: Sequence[Tensor], offsets: Int[Tensor, "layers"], table: Tensor) -> None:
        """After a tree: what all layers keep of the drafts that were accepted, in consecutive slots."""
        page, *rest = pages[0].shape[1:]
        width = math.prod(rest)
        keep_path[(rows, len(pages))](
            pages[0], offsets, table, self.known, self.path, self.notes, self.step,
            table.shape[1], self.path.shape[1], len(self.known),
            width, triton.next_power_of_2(width), page, **launch_options(pdl=True),
        )  # fmt: skip
