"""A plan done piece by piece in plain PyTorch is attention over all keys at once, and what it tells of itself is so."""

import heapq

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.explain.record import record
from inference_opt.explain.scenarios import play
from inference_opt.kernels import batch as planning
from inference_opt.kernels import reference, shared_prefixes
from inference_opt.kernels.plan import MERGE_TIME, PIECE_TIME, STATE_TIME, TURN_TIME, Tile, chunk_size


@st.composite
def planned(draw):
    """Arguments of `attend_pieces`, lengths and counts. Some sequences begin with the same pages."""
    page, (kv_heads, group) = draw(st.sampled_from([3, 16])), draw(st.sampled_from([(1, 1), (2, 4), (3, 3), (1, 20)]))
    lengths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=4))
    counts = [draw(st.integers(0, min(n, 40))) for n in lengths]
    shared = draw(st.integers(0, 12))  # pages
    used = [-(-n // page) for n in lengths]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    order = torch.randperm(sum(used), generator=generator).tolist()
    tables = [[order.pop() for _ in range(n)] for n in used]
    for table in tables[1:]:
        most = min(shared, len(table), len(tables[0]))
        table[:most] = tables[0][:most]
    k, v = torch.randn(2, sum(used), page, kv_heads, 4, dtype=torch.float64, generator=generator)
    q = 3 * torch.randn(sum(counts), kv_heads * group, 4, dtype=torch.float64, generator=generator)
    prefixes = shared_prefixes(tables, [n - c for n, c in zip(lengths, counts)], page, min_keys=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "processors_of", lambda device: draw(st.sampled_from([1, 4, 100])))
        plan = planning.cut(lengths, counts, prefixes, k, kv_heads * group)
    table = torch.tensor([t + [0] * (max(used) - len(t)) for t in tables], dtype=torch.int32)
    return (q, k, v, table, plan, 0.5), lengths, counts


@given(planned())
def test_pieces_give_what_attention_at_once_gives(batch):
    (q, k, v, table, plan, scale), lengths, counts = batch
    got = reference.attend_pieces(q, k, v, table, plan, scale)
    for mine, whole in zip(got, reference.attend(q, k, v, table, lengths, counts, scale)):
        torch.testing.assert_close(mine, whole, rtol=1e-11, atol=1e-11)


@given(planned())
def test_a_block_tells_the_softmax_of_all_its_piece_has_read(batch):
    (q, k, v, table, plan, scale), _, _ = batch
    with record() as trace:
        recorded = reference.attend_pieces(q, k, v, table, plan, scale)
    for mine, unrecorded in zip(recorded, reference.attend_pieces(q, k, v, table, plan, scale)):
        assert torch.equal(mine, unrecorded)
    assert all(held for one in trace.steps for held in one["invariants"].values())
    pieces = [piece for launch in plan.launches for piece in launch.rows]
    group = q.shape[1] // k.shape[2]
    for one in trace.steps:
        state = one["state"]["pieces"]
        assert [[p["token0"], p["queries"], p["first"], p["end"], p["state"]] for p in state["pieces"]] == [
            [p.token0, p.queries, p.first, p.end, p.state] for p in pieces
        ]
        for r, (m, l, _) in enumerate(state["rows"]):  # noqa: E741
            piece = pieces[state["piece"]]
            query, head = divmod(piece.row0 + r, group)
            keys = torch.arange(
                piece.first, max(piece.first, min(state["read"], piece.position + query + 1))
            )  # none behind its own
            rows = k[table[piece.sequence, keys // k.shape[1]].long(), keys % k.shape[1], 0]
            scores = rows @ q[piece.token0 + query, head] * scale
            assert (m is None) == (len(keys) == 0)
            if m is not None:
                assert m == pytest.approx(float(scores.max()), abs=1e-4)
                assert l == pytest.approx(float((scores - scores.max()).exp().sum()), abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"lengths": "12 x"}, "got '12 x'"), ({"lengths": ""}, "from 1 to 2,000"), ({"heads": 3}, "even number of heads")],
)
def test_bad_input_of_the_scenario_is_named(changes, says):
    with pytest.raises(ValueError, match=says):
        play("pieces-of-attention", **changes)


def ends_at(keys, rows, merged, size, heads, processors, tile):
    """When the merge ends, if each program takes the longest piece that is left (in keys)."""
    pieces, states, most = [], 0, 0
    for n, its_rows, anyway in zip(keys, rows, merged):
        each = [min(size, n - i) + PIECE_TIME for i in range(0, max(n, 1), size)]
        pieces += each * heads
        states += its_rows * len(each) * heads if len(each) > 1 or anyway else 0
        most = max(most, len(each))
    ends = [0] * (processors * tile.resident)
    for piece in sorted(pieces, reverse=True):
        heapq.heapreplace(ends, ends[0] + piece)
    return max(ends) + (MERGE_TIME + TURN_TIME * most + STATE_TIME * states / processors if states else 0)


@given(
    tiles=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 16), st.booleans()), min_size=1, max_size=40),
    alike=st.booleans(),
    heads=st.sampled_from([1, 2, 8]),
    processors=st.sampled_from([4, 8, 132]),
    tile=st.builds(Tile, st.just(16), st.sampled_from([32, 64, 128]), st.just(4), st.just(3), st.sampled_from([1, 2])),
)
def test_the_length_of_pieces_is_near_the_best(tiles, alike, heads, processors, tile):
    """Against the end that is worked out piece by piece, for every length that comes into question."""
    keys, rows, merged = map(np.array, zip(*([tiles[0]] * len(tiles) if alike else tiles)))
    chosen = chunk_size(keys, rows, merged, heads, processors, tile)
    sizes = {tile.block * -(-keys.max() // (n * tile.block)) for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)}
    given_sizes = (keys.tolist(), rows.tolist(), merged.tolist())
    best = min(ends_at(*given_sizes, int(size), heads, processors, tile) for size in sizes | {keys.max()})
    assert ends_at(*given_sizes, chosen, heads, processors, tile) <= 1.6 * best


@given(queries=st.integers(1000, 9000), cached=st.sampled_from([0, 2048]))
def test_a_prompt_that_fills_the_machine_is_not_cut_by_keys(queries, cached):
    """Its tiles have different lengths. They begin with the longest, and none leaves a state to be merged."""
    pages = torch.empty(1, 16, 8, 128, dtype=torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "hopper_kernel", lambda *_: "gqa")
        patch.setattr(planning, "processors_of", lambda device: 8)
        plan = planning.cut([queries + cached], [queries], [], pages, 32)
    (launch,) = plan.launches
    assert plan.num_states == 0
    lengths = launch.columns.end - launch.columns.first
    assert (lengths.diff() <= lengths.max() / 16 + 1).all()
    assert int(lengths[0]) >= int(lengths.max() * 15 / 16)
