"""What surrounds a drafter's network in captured steps. The network itself is made of the kernels of any layer.

tap_row      notes the target's states behind some layers, from which the network's features are made
enter_slot   the input of a slot: the norms of the next token's embedding and of the feature, side by side; and its
             place. A slot that does not count (rejected, or behind the end of the text) writes nowhere
take_row     the row of each text's last slot that counts
few_of_block, place_few
             drafts: the few best tokens behind each draft that was read

The target takes the token with the largest z + T · G: z are its logits, G is the Gumbel noise that the text's seed
gives at this place (`sampling/noise.py`). So the network takes those with the largest z + T · G of its own z. A draft
may be any token: float32 is good enough for its noise.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor, nn

from inference_opt.kernels.draft_steps import DraftSteps
from inference_opt.kernels.pdl import launch_options
from inference_opt.kernels.philox import word
from inference_opt.kernels.race import SEED, TEMPERATURE, number
from inference_opt.kernels.steps import Kind, Steps, keep_least


@triton.jit
def tap_row(
    states,  # of each tap [rows, DIM]
    step,  # [max_rows]: how many steps each row has made
    noted,  # [steps, max_rows, taps, DIM]
    max_rows,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,  # DIM, as a power of two
    PDL: tl.constexpr,
):
    """Note one row under its step."""
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    at = (tl.load(step + row) * max_rows + row) * len(states)
    for tap in tl.static_range(len(states)):
        h = tl.load(states[tap] + row * DIM + d, mask=d < DIM)
        tl.store(noted + (at + tap) * DIM + d, h, mask=d < DIM)


@triton.jit
def unit(x, norm, d, eps, DIM: tl.constexpr):
    """x / rms(x) · norm, in float32."""
    x = x.to(tl.float32)
    return x / tl.sqrt(tl.sum(x * x, 0) / DIM + eps) * tl.load(norm + d, mask=d < DIM, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["depth", "before", "slots", "up", "gamma"])
def enter_slot(
    # The texts (`draft_steps.py`).
    text,  # [max_rows, width]
    known,  # [max_rows]
    limit,  # [max_rows]
    queries,  # [max_rows]
    fed,  # [places]: positions of the rows that the target has read
    path,  # [max_rows, longest]: which of these were kept, with depth 0
    draft,  # [max_rows, gamma]
    table,  # [max_rows, pages]
    # What the input is made of.
    read,  # [2, slots]: of each slot its draft and its parent's state, with another depth
    embed,  # [vocab, DIM]
    features,  # [rows · up, DIM]
    embed_norm,  # [DIM]
    feature_norm,  # [DIM]
    # What is written.
    joined,  # [rows · slots, 2 DIM]
    place,  # [2, places]: position and slot
    follow,  # [3, max_rows]: slots that count; where the first of those that attend stands, plus 1; how many attend
    depth,  # of the drafts that are read; 0: the tokens that were kept
    before,  # drafts that were read earlier
    slots,  # a text
    up,  # features a text
    gamma,
    width,
    longest,
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
    """One slot of a text: of those behind the tokens that were kept, or behind a draft."""
    program = tl.program_id(0).to(tl.int64)
    row, j = program // slots, program % slots
    d = tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    length = tl.load(known + row)
    if depth == 0:
        first = tl.load(fed + row * up)
        count = tl.where(tl.load(queries + row) > 0, length - 1 - first, 0)
        attend, end = tl.minimum(count, 1), first + count
        position = first + j
        token = tl.load(text + row * width + position + 1, mask=j < count, other=0).to(tl.int64)
        feature = tl.load(path + row * longest + j, mask=j < count, other=0).to(tl.int64)
    else:
        # Pages are there for all but the last token that may be known in the end.
        first = length - 1 + before
        count = tl.minimum(tl.maximum(tl.load(limit + row) - 1 - first, 0), slots)
        attend, end = count, first + 1
        position = length - 2 + depth
        token = tl.load(draft + row * gamma + tl.load(read + j)).to(tl.int64)
        feature = tl.load(read + slots + j).to(tl.int64)
    real, slot = j < count, first + j
    page = tl.load(table + row * pages + slot // PAGE, mask=real, other=0).to(tl.int64)
    tl.store(place + program, tl.where(real, position, 0))
    tl.store(place + places + program, tl.where(real, page * PAGE + slot % PAGE, -1))
    if j == 0:
        tl.store(follow + row, count)
        tl.store(follow + max_rows + row, tl.where(count > 0, end, 1))
        tl.store(follow + 2 * max_rows + row, attend)
    e = tl.load(embed + token * DIM + d, mask=d < DIM, other=0.0)
    f = tl.load(features + (row * up + feature) * DIM + d, mask=d < DIM, other=0.0)
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


@triton.jit
def gumbel(bits):
    """−log E of random bits, where E = −log(1 − u) is `philox.exponential`, in float32."""
    u = ((bits >> 32).to(tl.uint32).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    return -tl.log(tl.where(u < 1e-4, u + 0.5 * u * u, -tl.log(1.0 - u)))


@triton.jit(do_not_specialize=["depth", "slots"])
def few_of_block(
    scores,  # [rows · slots, N]
    token_ids,  # [N]
    how,  # [6, max_rows]: how each text samples (`race.py`)
    known,  # [max_rows]
    least,  # [rows · slots], with FILTERED: as in `race.py`
    last,  # [rows · slots], likewise
    values,  # [rows · slots, blocks, FEW]
    columns,  # [rows · slots, blocks, FEW]
    N,
    max_rows,
    depth,  # drafts in front of the token that is drawn
    slots,
    FEW: tl.constexpr,
    BLOCK: tl.constexpr,
    SAMPLED: tl.constexpr,
    FILTERED: tl.constexpr,
    PDL: tl.constexpr,
):
    """The best of BLOCK scores of one row, from the largest on; of equal ones the first."""
    row = tl.program_id(0).to(tl.int64)
    block, blocks, n = tl.program_id(1), tl.num_programs(1), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(token_ids + n, mask=n < N, other=0)  # a weight, as it were: nobody writes it
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    text = row // slots
    x = tl.load(scores + row * N + n, mask=n < N, other=float("-inf")).to(tl.float32)
    if SAMPLED:
        temperature = number(how, TEMPERATURE, text, max_rows).to(tl.float32)
        if FILTERED:
            lowest, final = tl.load(least + row), tl.load(last + row)
            x = tl.where((x > lowest) | ((x == lowest) & (n <= final)), x, float("-inf"))
        if temperature > 0:
            noise = gumbel(word(tl.load(how + SEED * max_rows + text), tl.load(known + text) + depth, token))
            x = tl.where(x > float("-inf"), x + temperature * noise, float("-inf"))
    x = tl.where(x == x, x, float("-inf"))
    out = (row * blocks + block) * FEW
    for k in tl.static_range(FEW):
        value, i = tl.max(x, 0, return_indices=True)
        tl.store(values + out + k, value)
        tl.store(columns + out + k, block * BLOCK + i)
        x = tl.where(n == block * BLOCK + i, float("-inf"), x)


@triton.jit(do_not_specialize=["slots", "gamma"])
def place_few(
    values,  # [rows · slots, blocks, FEW]
    columns,  # [rows · slots, blocks, FEW]
    token_ids,  # [N]
    children,  # [slots, FEW]: which draft is each slot's k-th best; −1: none
    draft,  # [max_rows, gamma]
    listed,  # blocks · FEW
    slots,
    gamma,
    FEW: tl.constexpr,
    LISTED: tl.constexpr,  # listed, as a power of two
    PDL: tl.constexpr,
):
    """The best of all blocks of one row, as drafts of its text."""
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, LISTED)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x = tl.load(values + row * listed + i, mask=i < listed, other=float("-inf"))
    for k in tl.static_range(FEW):
        _, where = tl.max(x, 0, return_indices=True)
        column = tl.load(columns + row * listed + where)
        place = tl.load(children + (row % slots) * FEW + k)
        tl.store(draft + (row // slots) * gamma + place, tl.load(token_ids + column).to(tl.int32), mask=place >= 0)
        x = tl.where(i == where, float("-inf"), x)


def tap(
    step: Int[Tensor, "max_rows"],
    noted: Float[Tensor, "steps max_rows taps dim"],
    states: Sequence[Float[Tensor, "rows dim"]],
) -> None:
    """Note the states of a step, one for each tap."""
    _, max_rows, _, dim = noted.shape
    options: Any = launch_options(pdl=True)
    tap_row[(len(states[0]),)](tuple(states), step, noted, max_rows, dim, triton.next_power_of_2(dim), **options)


def enter(
    steps: DraftSteps,
    table: Int[Tensor, "max_rows pages"],
    page_size: int,
    embed: nn.Embedding,
    features: Float[Tensor, "features dim"],
    norms: tuple[nn.RMSNorm, nn.RMSNorm],
    place: Int[Tensor, "2 places"],
    follow: Int[Tensor, "3 max_rows"],
    gamma: int,
    rows: int,
    read: Int[Tensor, "2 slots"] | None = None,
    depth: int = 0,
    before: int = 0,
) -> Float[Tensor, "slots two_dim"]:
    """The inputs of each text's slots, in the dtype of the features. `place` and `follow` are written.

    `read`: the drafts of this `depth` that are read, and whose states they follow; None: the tokens that were kept.
    """
    dim, up = features.shape[1], len(features) // rows
    slots = up if read is None else read.shape[1]
    joined = features.new_empty(rows * slots, 2 * dim)
    enter_slot[(rows * slots,)](
        steps.text, steps.known, steps.limit, steps.queries, steps.rows.place, steps.path, steps.draft, table,
        steps.path if read is None else read, embed.weight, features, *(norm.weight for norm in norms),
        joined, place, follow, depth, before, slots, up, gamma,
        steps.text.shape[1], steps.path.shape[1], table.shape[1], place.shape[1], len(steps.known),
        *(norm.eps for norm in norms), dim, triton.next_power_of_2(dim), page_size, **launch_options(pdl=True),
    )  # fmt: skip
    return joined


def take(rows: Float[Tensor, "rows *width"], counts: Int[Tensor, "max_rows"], slots: int, out: Tensor) -> Tensor:
    """Of each text's `slots` rows the last that counts, in `out`; where none counts, what was there."""
    width = rows[0].numel()
    options: Any = launch_options(pdl=True)
    take_row[(len(out),)](rows, counts, out, slots, width, triton.next_power_of_2(width), **options)
    return out


def place_best(
    scores: Float[Tensor, "read scored"],
    token_ids: Int[Tensor, "scored"],
    children: Int[Tensor, "slots few"],
    steps: DraftSteps,
    sampling: Steps,
    kind: Kind,
    gamma: int,
    depth: int,
) -> None:
    """Draft the best tokens behind each text's `slots` drafts of this depth. `sampling` tells how texts sample."""
    (read, n), (slots, few), block = scores.shape, children.shape, 2048
    blocks, max_rows = triton.cdiv(n, block), sampling.how.shape[1]
    values, columns = scores.new_empty(read, blocks, few, dtype=torch.float32), children.new_empty(read, blocks, few)
    least, last = scores.new_empty(read, dtype=torch.float32), children.new_empty(read, dtype=torch.int64)
    options: Any = launch_options(pdl=True)
    if kind == "filtered":
        keep_least(scores, sampling.how, least, last, slots, options)
    few_of_block[(read, blocks)](
        scores, token_ids, sampling.how, steps.known, least, last, values, columns,
        n, max_rows, depth, slots, few, block, kind != "greedy", kind == "filtered", **options,
    )  # fmt: skip
    place_few[(read,)](
        values, columns, token_ids, children, steps.draft, blocks * few, slots, gamma,
        few, triton.next_power_of_2(blocks * few), **options,
    )  # fmt: skip
