"""What surrounds a drafter's network in captured steps. The network itself is made of the kernels of any layer.

tap_row      notes the target's state behind a layer, from which the network's features are made
enter_slot   the input of a slot: the norms of the next token's embedding and of the feature, side by side; and its
             place. A slot that does not count (rejected, or behind the end of the text) writes nowhere
take_row     the row of each text's last slot that counts
spread_row   the scores of the tokens that the network knows, at their places among all tokens, as a row of logits
             from which a token can be drawn (`steps.py`)
"""

from typing import Any

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor, nn

from inference_opt.kernels.draft_steps import DraftSteps
from inference_opt.kernels.pdl import launch_options
from inference_opt.kernels.steps import Steps


@triton.jit
def tap_row(
    h,  # [rows, DIM]
    step,  # [max_rows]: how many steps each row has made
    noted,  # [steps, max_rows, TAPS, DIM]
    tap,
    max_rows,
    TAPS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,  # DIM, as a power of two
    PDL: tl.constexpr,
):
    """Note one row under its step."""
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x = tl.load(h + row * DIM + d, mask=d < DIM)
    at = (tl.load(step + row) * max_rows + row) * TAPS + tap
    tl.store(noted + at * DIM + d, x, mask=d < DIM)


@triton.jit
def unit(x, norm, d, eps, DIM: tl.constexpr):
    """x / rms(x) · norm, in float32."""
    x = x.to(tl.float32)
    return x / tl.sqrt(tl.sum(x * x, 0) / DIM + eps) * tl.load(norm + d, mask=d < DIM, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["ahead", "slots", "gamma"])
def enter_slot(
    # The texts (`draft_steps.py`).
    text,  # [max_rows, width]
    known,  # [max_rows]
    limit,  # [max_rows]
    queries,  # [max_rows]
    fed,  # [places]: positions of the rows that the target has read
    draft,  # [max_rows, gamma]
    table,  # [max_rows, pages]
    # What the input is made of.
    drawn,  # [max_rows]: the draft's last token
    embed,  # [vocab, DIM]
    features,  # [rows · slots, DIM]
    embed_norm,  # [DIM]
    feature_norm,  # [DIM]
    # What is written.
    joined,  # [rows · slots, 2 DIM]
    place,  # [2, places]: position and slot
    follow,  # [3, max_rows]: slots that count; the position after the last of them; 1 if there is any
    ahead,  # which token of the draft this is, from 1 on; 0: the tokens that were kept
    slots,  # a text
    gamma,
    width,
    pages,
    places,
    max_rows,
    embed_eps,
    feature_eps,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,  # DIM, as a power of two
    PAGE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One slot of a text: of those behind the tokens that were kept, or the one behind the draft's last token."""
    program = tl.program_id(0).to(tl.int64)
    row, j = program // slots, program % slots
    d = tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    length = tl.load(known + row)
    if ahead == 0:
        first = tl.load(fed + row * slots)
        count = tl.where(tl.load(queries + row) > 0, length - 1 - first, 0)
        token = tl.load(text + row * width + first + j + 1, mask=j < count, other=0).to(tl.int64)
    else:
        # Pages are there for all but the last token that may be known in the end.
        first = length - 2 + ahead
        count = (first < tl.load(limit + row) - 1).to(tl.int64)
        token = tl.load(drawn + row)
        tl.store(draft + row * gamma + ahead - 1, token.to(tl.int32))
    real, position = j < count, first + j
    page = tl.load(table + row * pages + position // PAGE, mask=real, other=0).to(tl.int64)
    tl.store(place + program, tl.where(real, position, 0))
    tl.store(place + places + program, tl.where(real, page * PAGE + position % PAGE, -1))
    if j == 0:
        tl.store(follow + row, count)
        tl.store(follow + max_rows + row, tl.where(count > 0, first + count, 1))
        tl.store(follow + 2 * max_rows + row, (count > 0).to(tl.int64))
    e = tl.load(embed + token * DIM + d, mask=d < DIM, other=0.0)
    f = tl.load(features + program * DIM + d, mask=d < DIM, other=0.0)
    out = joined + program * 2 * DIM + d
    tl.store(out, unit(e, embed_norm, d, embed_eps, DIM), mask=d < DIM)
    tl.store(out + DIM, unit(f, feature_norm, d, feature_eps, DIM), mask=d < DIM)


@triton.jit(do_not_specialize=["slots"])
def take_row(
    rows,  # [texts · slots, WIDTH]
    counts,  # [max_rows]
    out,  # [texts, WIDTH]
    slots,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,  # WIDTH, as a power of two
    PDL: tl.constexpr,
):
    """The last of a text's rows that counts. If none does, what was there stays."""
    text, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    count = tl.load(counts + text)
    taken = i < tl.where(count > 0, WIDTH, 0)
    x = tl.load(rows + (text * slots + count - 1) * WIDTH + i, mask=taken)
    tl.store(out + text * WIDTH + i, x, mask=taken)


@triton.jit(do_not_specialize=["ahead"])
def spread_row(
    scores,  # [rows, N]
    token_ids,  # [N]
    logits,  # [max_rows, vocab]: −∞ at all other tokens
    known,  # [max_rows]
    place,  # [2, max_rows]: the draw of the token at place + 1 follows
    step,  # [max_rows]: rows that count their draws, which begin anew
    ahead,  # tokens drafted so far
    N,
    vocab,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK scores of one text."""
    row, n = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x = tl.load(scores + row * N + n, mask=n < N)
    tl.store(logits + row * vocab + tl.load(token_ids + n, mask=n < N, other=0), x, mask=n < N)
    if tl.program_id(1) == 0:
        tl.store(place + row, tl.load(known + row) + ahead - 1)
        tl.store(step + row, 0)


def tap(
    step: Int[Tensor, "max_rows"],
    noted: Float[Tensor, "steps max_rows taps dim"],
    h: Float[Tensor, "rows dim"],
    index: int,
) -> Tensor:
    """Note the states of a step as those of tap `index`, and return them."""
    _, max_rows, taps, dim = noted.shape
    tap_row[(len(h),)](
        h, step, noted, index, max_rows, taps, dim, triton.next_power_of_2(dim), **launch_options(pdl=True)
    )
    return h


def enter(
    steps: DraftSteps,
    table: Int[Tensor, "max_rows pages"],
    page_size: int,
    drawn: Int[Tensor, "max_rows"],
    embed: nn.Embedding,
    features: Float[Tensor, "slots dim"],
    norms: tuple[nn.RMSNorm, nn.RMSNorm],
    place: Int[Tensor, "2 places"],
    follow: Int[Tensor, "3 max_rows"],
    ahead: int,
    slots: int,
    gamma: int,
) -> Float[Tensor, "slots two_dim"]:
    """The inputs of `slots` slots of each text, in the dtype of the features. `place` and `follow` are written."""
    dim = features.shape[1]
    joined = features.new_empty(len(features), 2 * dim)
    enter_slot[(len(features),)](
        steps.text, steps.known, steps.limit, steps.queries, steps.rows.place, steps.draft, table,
        drawn, embed.weight, features, *(norm.weight for norm in norms), joined, place, follow,
        ahead, slots, gamma, steps.text.shape[1], table.shape[1], place.shape[1], len(steps.known),
        *(norm.eps for norm in norms), dim, triton.next_power_of_2(dim), page_size, **launch_options(pdl=True),
    )  # fmt: skip
    return joined


def take(rows: Float[Tensor, "rows *width"], counts: Int[Tensor, "max_rows"], slots: int, out: Tensor) -> Tensor:
    """Of each text's `slots` rows the last that counts, in `out`; where none counts, what was there."""
    width = rows[0].numel()
    options: Any = launch_options(pdl=True)
    take_row[(len(out),)](rows, counts, out, slots, width, triton.next_power_of_2(width), **options)
    return out


def spread(
    scores: Float[Tensor, "rows scored"],
    token_ids: Int[Tensor, "scored"],
    logits: Float[Tensor, "max_rows vocab"],
    steps: DraftSteps,
    draws: Steps,
    ahead: int,
) -> Float[Tensor, "rows vocab"]:
    """The scores among all tokens, ready to be drawn from with the noise of the token after `ahead` drafts."""
    rows, n = scores.shape
    grid = (rows, triton.cdiv(n, 1024))
    spread_row[grid](
        scores, token_ids, logits, steps.known, draws.place, draws.step, ahead, n, logits.shape[1],
        1024, **launch_options(pdl=True),
    )  # fmt: skip
    return logits[:rows]
