"""Chapter 08: kernels."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from inference_opt.explain.exercises.exercise import Broken, Predict, Property, Question, Write, expect, expect_close
from inference_opt.explain.record import record
from inference_opt.kernels import plan as planning
from inference_opt.kernels import reference
from inference_opt.kernels.batch import SharedPrefix, cut
from inference_opt.kernels.plan import Launch, Segments, Tile, TilePlan
from inference_opt.trace import recording
from inference_opt.trace.trace import Trace

SEEDS = st.integers(0, 1000)
TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}

# Merging: an oracle that has all keys at once, in float64.


def softmax_mean(scores: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over keys [keys, …] with values [keys, …, dim] in float64, and the log of the sum of exponentials."""
    if not len(scores):
        return torch.zeros(values.shape[1:], dtype=torch.float64), torch.full(scores.shape[1:], -torch.inf).double()
    largest = scores.max(0).values
    weights = (scores - largest).exp()
    return (weights[..., None] * values).sum(0) / weights.sum(0)[..., None], largest + weights.sum(0).log()


def same_as_all_keys(states: list[list[int]], size: int, tokens: int, heads: int, dtype: str, seed: int) -> None:
    """The states of some sets of keys, merged; against attention over all keys at once."""
    generator = torch.Generator().manual_seed(seed)
    kind, exact = TYPES[dtype], TYPES["float64" if dtype == "float64" else "float32"]
    rtol, atol = {"float64": (1e-9, 1e-9), "float32": (1e-4, 1e-4), "bfloat16": (2e-2, 2e-2)}[dtype]
    scores, values = [], []
    for keys in states:
        jitter = torch.randint(-1, 2, (len(keys), tokens, heads), generator=generator)
        jitter[:, 0, 0] = 0
        scores.append(size * (torch.tensor(keys, dtype=torch.float64).reshape(-1, 1, 1) + jitter))
        values.append(torch.randn(len(keys), tokens, heads, 2, generator=generator, dtype=torch.float64))
    if recording():
        with suppress(Exception):  # only to be seen: the values are judged below
            at_work([each[:, 0, 0] for each in scores], [each[:, 0, 0] for each in values])
    parts = [softmax_mean(*each) for each in zip(scores, values)]
    outs, lses = torch.stack([out for out, _ in parts]).to(kind), torch.stack([lse for _, lse in parts]).to(exact)
    kept = outs.clone(), lses.clone()
    out, lse = softmax_mean(torch.cat(scores), torch.cat(values))
    right = out.to(kind), lse.to(exact)
    check_state(reference.merge_states(outs, lses), right, "all states at once", rtol, atol)
    for came, before in zip((outs, lses), kept):
        expect_close(came, before, "the arguments are left alone", 0.0, 0.0)
    order = torch.randperm(len(states), generator=generator)
    check_state(reference.merge_states(outs[order], lses[order]), right, "in another order", rtol, atol)
    joined = outs[0], lses[0]
    for each in zip(outs[1:], lses[1:]):
        joined = reference.merge_states(*(torch.stack(pair) for pair in zip(joined, each)))
    check_state(joined, right, "one after the other", 2 * rtol, 2 * atol)


def check_state(came: Any, right: tuple[torch.Tensor, torch.Tensor], how: str, rtol: float, atol: float) -> None:
    """Two tensors, as they should be."""
    if not isinstance(came, tuple) or len(came) != 2 or not all(isinstance(each, torch.Tensor) for each in came):
        raise Broken("two tensors are returned: the outputs, and their log-sum-exp", came)
    for what, one, other in zip(("the output", "the log-sum-exp"), came, right):
        if one.dtype.is_floating_point and one.isnan().any() and not other.isnan().any():
            raise Broken(f"{what}, {how}, holds NaN", one, other)
        expect_close(one, other, f"{what}, {how}", rtol, atol)


def tile(rows: int) -> Tile:
    """One for tiny inputs."""
    return Tile(rows, block=2, warps=1, stages=1, resident=1)


def at_work(scores: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """One query, whose keys lie in these states: the pieces that find them, and the merge."""
    ends = np.cumsum([0, *map(len, scores)]).tolist()
    count = len(scores)
    rows = [[0, 0, 1, ends[-1] - 1, 0, *span, i] for i, span in enumerate(pairwise(ends))]
    pieces = torch.tensor(rows, dtype=torch.int32)
    plan = TilePlan((Launch(pieces, tile(1)),), torch.tensor([0, count]), torch.arange(count), count)
    keys, numbers = torch.cat(list(scores)), torch.cat(list(values))
    table = torch.arange(max(len(keys), 1), dtype=torch.int32)[None]
    query = torch.ones(1, 1, 1, dtype=torch.float64)
    reference.attend_pieces(query, keys[:, None, None, None], numbers[:, None, None], table, plan, 1.0)


MERGES = Property(
    "states over disjoint keys join into the state over all of these keys",
    st.fixed_dictionaries({
        "states": st.lists(st.lists(st.integers(-2, 2), max_size=2), min_size=1, max_size=3),
        "size": st.sampled_from([1, 500]), "tokens": st.integers(1, 2), "heads": st.integers(1, 2),
        "dtype": st.sampled_from(list(TYPES)), "seed": SEEDS,
    }),
    same_as_all_keys,
    tuple(
        {"states": states, "size": size, "tokens": 1, "heads": heads, "dtype": dtype, "seed": 0}
        for states, size, heads, dtype in (
            ([[0], [1]], 1, 1, "float64"), ([[0, 0], [0]], 1, 1, "float64"), ([[0], []], 1, 1, "float64"),
            ([[], []], 1, 1, "float64"), ([[2], [1]], 500, 1, "float64"), ([[-2], [-1]], 500, 1, "float64"),
            ([[0], [1]], 1, 1, "bfloat16"), ([[0], [2]], 500, 2, "bfloat16"),
        )
    ),
)  # fmt: skip

# Plans: an oracle that lists who sees which key.


def owners_and_places(counts: list[int]) -> None:
    """Against two loops."""
    array = np.array(counts, dtype=np.int64)
    came = planning.spread(array)
    if not isinstance(came, tuple) or len(came) != 2 or not all(isinstance(each, np.ndarray) for each in came):
        raise Broken("two arrays are returned: owners, and places", came)
    for what, one, right in (
        ("the owners", came[0], [owner for owner, count in enumerate(counts) for _ in range(count)]),
        ("the places", came[1], [place for count in counts for place in range(count)]),
    ):
        if one.dtype.kind != "i" and one.size:
            raise Broken(f"{what} are integers, since they are used as indices", one)
        expect(one.tolist(), right, what)
    expect(array.tolist(), counts, "the argument is left alone")


SPREADS = Property(
    "each owner has as many entries as its count says, numbered from 0",
    st.fixed_dictionaries({"counts": st.lists(st.integers(0, 3), max_size=6)}),
    owners_and_places,
    ({"counts": [2, 0, 3]}, {"counts": []}, {"counts": [0]}),
)


def seen(segments: Any, what: str) -> dict[int, tuple[int, int, list[int]]]:
    """{token: (row of the page table, its position, the keys that it sees)}, one segment after the other."""
    found: dict[int, tuple[int, int, list[int]]] = {}
    columns = (segments.sequence, segments.token0, segments.queries, segments.position, segments.first, segments.end)
    for sequence, token0, queries, position, first, end in zip(*(np.asarray(each).tolist() for each in columns)):
        for i in range(queries):
            if token0 + i in found:
                raise Broken(f"token {token0 + i} is in several {what}s")
            keys = list(range(first, min(end, position + i + 1)))
            found[token0 + i] = sequence, position + i, keys
    return found


def every_query_meets_its_keys(segments: list[dict[str, int]], most: int) -> None:
    """Segments of sequences 0, 1, …, whose tokens follow one another."""
    rows: list[tuple[int, ...]] = []
    token = 0
    for sequence, each in enumerate(segments):
        rows.append((sequence, token, each["queries"], each["position"], each["first"], each["end"]))
        token += each["queries"]
    given = Segments(*np.array(rows, dtype=np.int64).reshape(-1, 6).T.copy())
    right, kept = seen(given, "segment"), [row[:] for row in rows]
    if recording():
        with suppress(Exception):
            plan_at_work(given, most)
    blocks = planning.cut_rows(given, most)
    if not isinstance(blocks, Segments):
        raise Broken("blocks are segments", blocks)
    lengths = {len(each) for each in vars(blocks).values()}
    if len(lengths) > 1:
        raise Broken("each block has an entry in every field", {name: len(each) for name, each in vars(blocks).items()})
    queries, position, end = (each.tolist() for each in (blocks.queries, blocks.position, blocks.end))
    if any(not 1 <= count <= most for count in queries):
        raise Broken(f"a block has 1 to {most} queries", queries)
    expect(
        len(queries),
        sum(ceil(each["queries"] / most) for each in segments),
        "the number of blocks: no more than needed",
    )
    came = seen(blocks, "block")
    expect(sorted(came), sorted(right), "every token is in a block, and no others are")
    for token in right:
        expect(came[token], right[token], f"token {token}: its row of the page table, its position, the keys it sees")
    for i in range(len(queries)):
        last = position[i] + queries[i] - 1
        if end[i] > last + 1:
            raise Broken(
                f"block {i} has no key after its last query, which is at position {last}", f"{end[i]} is its end"
            )
    expect(
        [tuple(row) for row in zip(*(each.tolist() for each in vars(given).values()))],
        kept,
        "the argument is left alone",
    )


def plan_at_work(segments: Segments, most: int) -> None:
    """Attention by the plan that is made of the segments, one head, a key a page."""
    tokens, keys = int(segments.queries.sum()), max(int(segments.end.max(initial=1)), 1)
    plan = planning.plan([(segments, tile(most))], 1, 1, tokens, 1)
    numbers = torch.arange(keys, dtype=torch.float64)[:, None, None, None]
    table = torch.arange(keys, dtype=torch.int32).expand(len(segments.queries), keys)
    reference.attend_pieces(torch.ones(tokens, 1, 1).double(), -numbers, numbers, table, plan, 1.0)


def segment(first: int, before: int, queries: int, own: bool) -> dict[str, int]:
    """Queries behind so many keys: these keys alone (a shared prefix), or the queries' own keys, too."""
    position = first + before
    return {"queries": queries, "position": position, "first": first, "end": position + queries * own}


CUTS = Property(
    "every query meets each of its keys once",
    st.fixed_dictionaries({
        "segments": st.lists(st.builds(segment, *(st.integers(0, n) for n in (3, 3, 5)), st.booleans()), max_size=3),
        "most": st.integers(1, 4),
    }),
    every_query_meets_its_keys,
    (
        {"segments": [segment(0, 0, 3, True)], "most": 2}, {"segments": [segment(0, 2, 2, False)], "most": 1},
        {"segments": [segment(1, 1, 4, True), segment(0, 0, 1, True)], "most": 2},
        {"segments": [segment(0, 1, 0, True)], "most": 1},
    ),
)  # fmt: skip

# What a decode step reads and computes.

HEADS, KV_HEADS, DIM, KEYS, BATCH, STEM = 8, 2, 64, 1024, 4, 768


class Products(TorchFunctionMode):
    """Counts the operations of the block's products: a multiplication and an addition for each choice of indices."""

    operations = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.einsum:
            indices = args[0].split("->")[0].split(",")
            sizes = {letter: n for letters, x in zip(indices, args[1:]) for letter, n in zip(letters, x.shape)}
            self.operations += 2 * prod(sizes.values())
        return func(*args, **(kwargs or {}))


def decode_step() -> tuple[dict[str, Any], Trace]:
    """The plan of a step and the operations of attention, counted; then the step itself, recorded."""
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, BATCH * KEYS // 16, 16, KV_HEADS, DIM, generator=generator).bfloat16()
    table = torch.arange(BATCH * KEYS // 16, dtype=torch.int32).reshape(BATCH, -1)
    shared = table.clone()
    shared[:, : STEM // 16] = table[0, : STEM // 16]
    a_key = (k.element_size() * k.shape[-1] + v.element_size() * v.shape[-1]) * KV_HEADS

    def read(queries: int, prefixes: Sequence[SharedPrefix] = ()) -> int:
        plan = cut([KEYS] * BATCH, [queries] * BATCH, prefixes, k, HEADS)
        return sum(piece.end - piece.first for launch in plan.launches for piece in launch.rows) * a_key

    def computed(queries: int) -> int:
        q = torch.randn(BATCH * queries, HEADS, DIM, generator=generator)
        with Products() as products:
            reference.attend(q, k, v, table, [KEYS] * BATCH, [queries] * BATCH, DIM**-0.5)
        return products.operations

    stem = [SharedPrefix(0, BATCH, STEM)]
    numbers = {
        "bytes": read(1), "operations": computed(1), "intensity": computed(1) // read(1),
        "with drafts": computed(5) // read(5), "shared": read(1, stem),
    }  # fmt: skip
    with record("08.roofline", only="kernel.") as trace:
        plan = cut([KEYS] * BATCH, [1] * BATCH, stem, k, HEADS)
        q = torch.randn(BATCH, HEADS, DIM, generator=generator)
        reference.attend_pieces(q, k, v, shared, plan, DIM**-0.5)
    return numbers, trace


EXERCISES: tuple[Any, ...] = (
    Write(
        "08.merge",
        "join states",
        """
        Attention over many keys is split among several programs. Each has some of the keys and gives a state: the
        output over its keys, and the logarithm of the sum of its exponentials (`lse`). `merge_states` joins the
        states of each token and head into one state over all keys.

        The example of the chapter: the states (7, ln 4) and (3, ln 12) join into (4, ln 16), because 4/16 · 7 +
        12/16 · 3 = 4.

        `outs` may be in half precision; `lses` are float32 or float64. The output has the dtype of `outs`, its `lse`
        the dtype of `lses`, and sums are made in the dtype of `lses`.

        What must hold: the order of the states does not matter, and it does not matter how many are joined at a time.
        The state of no key at all has output 0 and lse −∞, and joining it changes nothing. Scores may be ±1,000:
        `exp` of them is infinite, or 0.
        """,
        (
            "An output is a mean, so outputs cannot be added. How much does each state count?",
            "The state i has the share exp(lse_i) / Σ exp(lse_j) of the whole sum of exponentials. With the lse of "
            "the whole, that is exp(lse_i − lse), which is never above 1. `logsumexp` makes the whole without an "
            "overflow.",
            "`lse = lses.logsumexp(0)`, weights `(lses - lse).exp()`, the output is Σ weights · outs. Where all "
            "states are empty, lse is −∞ and −∞ − (−∞) is NaN: subtract "
            "`lse.clamp(min=torch.finfo(lses.dtype).min)` instead.",
        ),
        15,
        reference,
        "merge_states",
        (MERGES,),
    ),
    Write(
        "08.spread",
        "who owns the entry",
        """
        A plan cuts each segment into several parts. In NumPy, without a loop, the parts of all segments stand in one
        array, one after the other. `spread` says for each entry of that array which segment it belongs to, and its
        number within that segment.

        `counts` says how many parts each segment has. It may hold 0, and it may be empty. The result is a pair of
        integer arrays, each of length sum(counts).
        """,
        (
            "`np.repeat` repeats each element of an array as often as a second array says.",
            "The owners are `np.repeat(np.arange(len(counts)), counts)`. Entry e of the whole has the place e minus"
            " the first entry of its owner.",
            "The first entries of the owners are `np.cumsum(counts) - counts`. Repeat these, too, and subtract them"
            " from `np.arange(len(owner))`.",
        ),
        5,
        planning,
        "spread",
        (SPREADS,),
    ),
    Write(
        "08.pieces",
        "cut queries into blocks",
        """
        A program holds a few queries at a time, so a prompt's queries are cut into blocks. `segments` is a set of
        arrays with an entry for each segment: the row of the page table (`sequence`), the number of its first token
        in the batch (`token0`), how many queries it has, the `position` of the first of them in its sequence, its
        `first` key, and its `end`, the key after the last. A query at position p sees the keys from `first` up to p,
        as far as `end`.

        Return such a set of arrays with an entry for each block. A block has `most` queries; the last block of a
        segment may have fewer. A segment without queries has no block.

        What must hold: every query is in one block and sees the same keys as before. No block has a key after its last
        query: such keys would be read for nothing. There are no more blocks than needed.
        """,
        (
            "How many blocks has a segment of 5 queries, if a block has 2? Which queries are in block number i?",
            "`owner, i = spread(-(-segments.queries // most))` gives for each block its segment, and its number there. "
            "`segments[owner]` repeats the segments' entries. Then token0 and position move on by i · most.",
            "A block has `min(most, queries - i * most)` queries. Its end is the smaller one of the segment's end "
            "and of the block's position + its queries. `replace(blocks, token0=…, queries=…, position=…, end=…)` "
            "makes the result.",
        ),
        15,
        planning,
        "cut_rows",
        (CUTS,),
    ),
    Predict(
        "08.roofline",
        "bytes and operations of a step",
        f"""
        One layer's attention in one decode step: {BATCH} requests, each with {KEYS:,} keys in the cache and 1 query.
        There are {HEADS} query heads, which share {KV_HEADS} key heads. A key and a value have {DIM} numbers each, in
        bfloat16 (2 bytes).

        Count only keys and values, not queries and outputs. Count a multiplication and an addition as two operations,
        and only those of the two products: query times key, and weight times value.
        """,
        (
            "Each key and each value is read once for all query heads that share it. Each query head computes with it.",
            f"Bytes: {BATCH} · {KEYS:,} keys, times {KV_HEADS} heads, times {DIM} numbers, times 2 for the values, "
            "times 2 bytes.",
            f"Operations: {BATCH} · {KEYS:,} · {HEADS} · {DIM}, times 2 for the addition, times 2 for the values. More "
            "queries on the same keys are more operations on the same bytes. What several requests share is read once.",
        ),
        15,
        {
            "bytes": Question(
                "How many bytes of keys and values does the step read?",
                ((1048576.0, "the values are read, too"),
                 (8388608.0, f"a key head is read once for the {HEADS // KV_HEADS} query heads that share it")),
            ),
            "operations": Question(
                "How many operations are that?",
                ((4194304.0, "the weighted sum of values takes as many operations as the scores"),
                 (2097152.0, "every query head computes, not every key head")),
            ),
            "intensity": Question(
                "How many operations for each byte?",
                ((1.0, f"{HEADS // KV_HEADS} query heads compute with each key that is read"),
                 (2.0, "two for each number of a key, which has two bytes; then there are the heads that share it")),
            ),
            "with drafts": Question(
                f"Each request has 5 queries instead of 1 (4 drafts), and {KEYS:,} keys as before. How many operations "
                "for each byte now?",
                ((4.0, "the bytes stay, the operations do not"), (16.0, "4 drafts and the last token: 5 queries")),
            ),
            "shared": Question(
                f"Back to 1 query. The first {STEM} keys are in the same pages for all {BATCH} requests, and the plan "
                "reads them once. How many bytes does the step read?",
                ((393216.0, "each request has keys of its own, too"),
                 (524288.0, "the shared keys must be read once"),
                 (2097152.0, "the pages that are shared are read once for all requests")),
            ),
        },
        decode_step,
    ),
)  # fmt: skip

if find_spec("triton"):
    from inference_opt.kernels import stepwise

    def through_the_page_table(
        length: int, splits: int, page: int, block: int, batch: int, heads: int, group: int, size: int, seed: int
    ) -> None:
        """The kernel's states, merged in float64, against attention in float64; slots that nobody uses hold NaN."""
        generator = torch.Generator().manual_seed(seed)
        width, dim = -(-length // page) + 1, 2
        q = size * torch.randn(batch, heads * group, dim, generator=generator)
        k, v = torch.randn(2, batch, length, heads, dim, generator=generator)
        pages = torch.full((2, batch * width + 1, page, heads, dim), torch.nan)
        order = torch.randperm(batch * width + 1, generator=generator)[: batch * width]
        table = order.reshape(batch, width).to(torch.int32)
        for i in range(batch):
            for n in range(length):
                pages[0, table[i, n // page], n % page], pages[1, table[i, n // page], n % page] = k[i, n], v[i, n]
        table[:, -1] = 1_000_000  # no page: an entry behind the last page of a sequence may hold anything
        partial = torch.full((batch * splits, heads * group, dim), torch.nan)
        lse = torch.full((batch * splits, heads * group), torch.nan)
        scale = dim**-0.5
        with warnings.catch_warnings():  # NumPy's, of the interpreter
            warnings.simplefilter("ignore")
            stepwise.attend_3[batch, heads * group, splits](
                q, pages[0], pages[1], table, partial, lse, length, scale, table.stride(0), heads * group, heads, dim,
                block, splits, page,
            )  # fmt: skip
        for what, each in (("outputs", partial), ("log-sum-exps", lse)):
            if each.isnan().any():
                raise Broken(f"one of the {what} is not written, or is NaN, as are all slots without a key", each)
        scores = torch.einsum("bhd,bnhd->nbh", q.double(), k.double().repeat_interleave(group, 2)) * scale
        out, whole = softmax_mean(scores, v.double().repeat_interleave(group, 2).transpose(0, 1))
        empty = lse == -torch.inf
        if (partial[empty] != 0).any():
            raise Broken("the output of a part without keys is 0", partial[empty], 0)
        states = lse.double().unflatten(0, (batch, splits))
        joined = states.logsumexp(1)
        expect_close(joined, whole, "the log-sum-exp of all parts together", 1e-4, 1e-4)
        weights = (states - joined[:, None]).exp()[..., None]
        came = (weights * partial.double().unflatten(0, (batch, splits))).sum(1)
        expect_close(came, out, "the output of all parts together", 1e-3, 1e-3)
        used = -(
            -length // block
        )  # blocks: so many parts have keys, where parts are whole blocks and as equal as may be
        least = min(splits, used) if splits == 1 or used == 1 else 2
        if int((~empty).unflatten(0, (batch, splits)).any(2).sum(1).min()) < least:
            raise Broken("the keys are split: no part has all of them", lse)

    KERNEL = Property(
        "the parts’ states, joined, are attention over the keys that the page table names",
        st.fixed_dictionaries({
            "length": st.integers(1, 7), "splits": st.integers(1, 3), "page": st.integers(1, 3),
            "block": st.sampled_from([2, 4]), "batch": st.integers(1, 2), "heads": st.integers(1, 3),
            "group": st.integers(1, 2), "size": st.sampled_from([1, 300]), "seed": SEEDS,
        }),
        through_the_page_table,
        tuple(
            dict(zip(("length", "splits", "page", "block", "batch", "heads", "group", "size", "seed"), each))
            for each in (
                (1, 1, 1, 2, 1, 1, 1, 1, 0), (5, 1, 2, 2, 1, 1, 1, 1, 0), (5, 2, 3, 2, 1, 1, 1, 300, 0),
                (3, 2, 1, 4, 2, 1, 1, 1, 0), (3, 1, 2, 4, 2, 3, 2, 1, 0),
            )
        ),
    )  # fmt: skip

    EXERCISES += (
        Write(
            "08.kernel",
            "a kernel that reads pages",
            """
            Write a Triton kernel. It is run by Triton's interpreter, so it needs no GPU; a program is then one call
            of your function. One program has one sequence, one query head, and one part of the keys:
            `tl.program_id(0)`, `(1)` and `(2)`.

            Key n of a sequence lies in page `table[sequence, n // PAGE]`, at place n % PAGE in it. All tensors are
            contiguous, so the number of an element follows from the shapes that stand next to the parameters. The
            query heads h · group … h · group + group − 1 share key head h, where group is HEADS // KV_HEADS. All
            sequences have `length` keys, and the query sees all of them.

            Go through the part's keys in blocks of BLOCK, with a running softmax. Each of the SPLITS parts of a
            sequence has ⌈blocks / SPLITS⌉ of its blocks; the last parts may have fewer, or none. At the end store the
            state: into `partial` the output over the part's keys, into `partial_lse` the natural logarithm of the sum
            of exp(score). The state of sequence s and part p has the number s · SPLITS + p. A part without keys stores
            0 and −∞.

            Slots that belong to no key may hold anything, NaN included, and so may entries of the table after the
            last page.
            """,
            (
                "Begin with pages of one key and one part: a loop over blocks, `key = n + tl.arange(0, BLOCK)`, a mask "
                "`key < end`, three running values: the largest score m, the sum l, the weighted sum acc of values.",
                "Where a key lies: load its page with `tl.load(table + sequence * table_width + key // PAGE, "
                "mask=…, other=0)`, then its row is (page · PAGE + key % PAGE) · KV_HEADS + kv_head, and number d "
                "of it is at row · D + d. Give every load a mask and `other=0.0`; give masked scores −∞.",
                "In each block: m_new = max(m, largest score), p = exp(s − m_new), shrink = exp(m − m_new), l = l ·"
                " shrink + Σ p, acc = acc · shrink + Σ p · value. Part p has the keys from p · size to min((p + 1) "
                "· size, length), where size is cdiv(cdiv(length, SPLITS), BLOCK) · BLOCK. Store acc / l and m + "
                "log(l); where l is 0, divide by 1.",
            ),
            45,
            stepwise,
            "attend_3",
            (KERNEL,),
        ),
    )
