"""A plan done piece by piece in plain PyTorch is attention over all keys at once, and what it tells of itself is so."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.explain.scenarios import play
from inference_opt.kernels import batch as planning
from inference_opt.kernels import common_stems, reference
from inference_opt.trace import record


@st.composite
def planned(draw):
    """Arguments of `attend_pieces`, lengths and counts; some sequences begin with the same pages."""
    page, (kv_heads, group) = draw(st.sampled_from([3, 16])), draw(st.sampled_from([(1, 1), (2, 4), (3, 3), (1, 20)]))
    lengths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=4))
    counts = [draw(st.integers(0, min(n, 40))) for n in lengths]
    stem = draw(st.integers(0, 12))  # pages
    used = [-(-n // page) for n in lengths]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    order = torch.randperm(sum(used), generator=generator).tolist()
    tables = [[order.pop() for _ in range(n)] for n in used]
    for table in tables[1:]:
        most = min(stem, len(table), len(tables[0]))
        table[:most] = tables[0][:most]
    k, v = torch.randn(2, sum(used), page, kv_heads, 4, dtype=torch.float64, generator=generator)
    q = 3 * torch.randn(sum(counts), kv_heads * group, 4, dtype=torch.float64, generator=generator)
    stems = common_stems(tables, [n - c for n, c in zip(lengths, counts)], page, least=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "processors_of", lambda device: draw(st.sampled_from([1, 4, 100])))
        work = planning.cut(lengths, counts, stems, k, kv_heads * group)
    table = torch.tensor([t + [0] * (max(used) - len(t)) for t in tables], dtype=torch.int32)
    return (q, k, v, table, work, 0.5), lengths, counts


@given(planned())
def test_pieces_give_what_attention_at_once_gives(batch):
    (q, k, v, table, work, scale), lengths, counts = batch
    got = reference.attend_pieces(q, k, v, table, work, scale)
    for mine, whole in zip(got, reference.attend(q, k, v, table, lengths, counts, scale)):
        torch.testing.assert_close(mine, whole, rtol=1e-11, atol=1e-11)


@given(planned())
def test_a_block_tells_the_softmax_of_all_its_piece_has_read(batch):
    (q, k, v, table, work, scale), _, _ = batch
    with record() as trace:
        recorded = reference.attend_pieces(q, k, v, table, work, scale)
    for mine, unrecorded in zip(recorded, reference.attend_pieces(q, k, v, table, work, scale)):
        assert torch.equal(mine, unrecorded)
    assert all(held for one in trace.steps for held in one["invariants"].values())
    pieces = [piece for launch in work.launches for piece in launch.pieces.tolist()]
    group = q.shape[1] // k.shape[2]
    for one in trace.steps:
        state = one["state"]["pieces"]
        assert [[p["token0"], p["queries"], p["first"], p["end"], p["state"]] for p in state["pieces"]] == [
            [*p[1:3], *p[5:]] for p in pieces
        ]
        for r, (m, l, _) in enumerate(state["rows"]):  # noqa: E741
            sequence, token0, _, position, row0, first, _, _ = pieces[state["piece"]]
            query, head = divmod(row0 + r, group)
            keys = torch.arange(first, max(first, min(state["read"], position + query + 1)))  # none behind its own
            rows = k[table[sequence, keys // k.shape[1]].long(), keys % k.shape[1], 0]
            scores = rows @ q[token0 + query, head] * scale
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
