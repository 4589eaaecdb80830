"""The kernels against the reference in float64: on CUDA where there is one, under Triton's interpreter elsewhere.

Pages are shuffled, some are shared, what no sequence reads holds NaN, and so does every output before it is written.
"""

import difflib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jaxtyping import config

from inference_opt import kernels
from inference_opt.kernels import SharedPrefix, reference, stepwise
from inference_opt.kernels import batch as planning
from inference_opt.kernels.tree import CHAIN, sees, tree_rows

ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
# Of rounding a weight before it meets its value, and the result, to the dtype; in float32 it is the scores that count,
# sums of `dim` products each rounded: 4 · 2⁻²⁴ · √dim.
ROUNDING = {torch.float32: 4 * 2**-24, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def constants(values, compiled):
    """One of these values. On CUDA one of the few `compiled`: there a kernel is compiled anew for each, in seconds."""
    return st.sampled_from(compiled if DEVICE == "cuda" else values)


def rounding(dtype, dim):
    return ROUNDING[dtype] * (dim**0.5 if dtype == torch.float32 else 1)


@pytest.fixture(autouse=True)
def poisoned():
    """What is allocated holds NaN until it is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@st.composite
def batches(draw):
    page = draw(st.sampled_from([1, 3, 16, 64]))
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 16), (1, 20), (2, 4), (3, 3), (8, 1), (1, 65)]))
    dim = draw(st.sampled_from([64, 80, 96, 192, 576] if kv_heads == 1 else [64, 80, 128]))
    latent = draw(st.booleans())
    value_dim = draw(st.sampled_from([dim - 16, dim - 32, dim] if latent else [dim, 64]))
    lengths = draw(st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, 130]), min_size=1, max_size=4))
    counts = [draw(st.integers(0, 5)) if length else 1 for length in lengths]  # a query of an empty sequence, too
    lengths = [max(length, count) if length else 0 for length, count in zip(lengths, counts)]
    prefix = draw(st.sampled_from([0, 1, 40, 64]))  # keys that all sequences share
    return {
        "page": page, "kv_heads": kv_heads, "heads": kv_heads * group, "dim": dim, "value_dim": value_dim,
        "latent": latent, "lengths": [n + prefix for n in lengths] if all(lengths) else lengths, "counts": counts,
        "prefix": prefix // page * page if all(lengths) else 0, "dtype": draw(DTYPES), "seed": draw(st.integers(0, 99)),
        "processors": draw(st.sampled_from([1, 8, 100])),  # few make long pieces, many make splits
    }  # fmt: skip


def build(s):
    """q, k_pages, v_pages, page_table."""
    g = torch.Generator().manual_seed(s["seed"])
    page, whole = s["page"], s["prefix"] // s["page"]
    used = [-(-length // page) for length in s["lengths"]]
    total = whole + sum(max(n - whole, 0) for n in used) + 3
    free = torch.randperm(total, generator=g).tolist()
    common = [free.pop() for _ in range(whole)]
    table = torch.full((len(used), max(used) + 1), -7, dtype=torch.int32)  # beyond its end a table may hold anything
    widths = [s["dim"]] if s["latent"] else [s["dim"], s["value_dim"]]
    pages = [torch.full((total, page, s["kv_heads"], width), float("nan")) for width in widths]
    for i, (n, length) in enumerate(zip(used, s["lengths"])):
        mine = common[:n] + [free.pop() for _ in range(n - whole)]
        table[i, :n] = torch.tensor(mine, dtype=torch.int32)
        for x in pages:
            for j in range(length):
                if x[mine[j // page], j % page].isnan().any():
                    x[mine[j // page], j % page] = torch.randn(x.shape[2:], generator=g)
    q = torch.randn(sum(s["counts"]), s["heads"], s["dim"], generator=g)
    q, k, *v = (x.to(DEVICE, s["dtype"]) for x in (q, *pages))
    return q, k, v[0] if v else None, table.to(DEVICE)


def oracle(s, q, k, v, table):
    q, k, v = (x if x is None else x.double() for x in (q, k, v))
    values = k[..., : s["value_dim"]] if v is None else v
    return reference.attend(q, k, values, table, s["lengths"], s["counts"], s["dim"] ** -0.5)


def check(s, got, want):
    (out, lse), (right, right_lse) = got, want
    assert (out.dtype, lse.dtype) == (s["dtype"], torch.float32)
    close = rounding(s["dtype"], s["dim"])
    torch.testing.assert_close(out.double(), right, rtol=close, atol=close)
    torch.testing.assert_close(lse.double(), right_lse, rtol=1e-5, atol=1e-5)  # −∞ included


def planned(s, k, v, table, prefixes=(), seen=None):
    """For a machine of the drawn size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "processors_of", lambda device: s["processors"])
        inner = s["value_dim"] if v is None else None
        own = None if v is None else v.shape[-1]
        return kernels.plan_batch(table, s["lengths"], s["counts"], k, s["heads"], inner, prefixes, own, seen)


# The heads and widths of DeepSeek-V2: their tile has a way of its own to look up pages.
DEEPSEEK = {
    "page": 16, "kv_heads": 1, "heads": 128, "dim": 576, "value_dim": 512, "latent": True, "lengths": [130, 65],
    "counts": [1, 2], "prefix": 0, "dtype": torch.bfloat16, "seed": 0, "processors": 8,
}  # fmt: skip


@example(s=DEEPSEEK)
@given(s=batches())
def test_attention_equals_the_reference(s):
    q, k, v, table = build(s)
    got = kernels.paged_attention(q, k, v, planned(s, k, v, table), s["dim"] ** -0.5, s["value_dim"])
    check(s, got, oracle(s, q, k, v, table))


@st.composite
def trees(draw):
    """A batch in which some sequences feed a tree of drafts: their parents, or none."""
    s = draw(batches())
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 5, 9]), min_size=len(s["lengths"]), max_size=len(s["lengths"])))
    parents = [[draw(st.integers(-1, i - 1)) for i in range(size)] for size in sizes]
    grows = [bool(own) and length > 0 for own, length in zip(parents, s["lengths"])]
    s["parents"] = [own if grown else None for own, grown in zip(parents, grows)]
    s["lengths"] = [length + len(own or []) for length, own in zip(s["lengths"], s["parents"])]
    s["counts"] = [count if own is None else 1 + len(own) for count, own in zip(s["counts"], s["parents"])]
    cached = [max(length - count, 0) for length, count in zip(s["lengths"], s["counts"])]
    s["prefix"] = min(s["prefix"], *cached) // s["page"] * s["page"]
    return s


def bits_of(s):
    """Of all queries."""
    parts = zip(s["lengths"], s["counts"], s["parents"])
    return [
        each
        for length, count, parents in parts
        for each in ([CHAIN] * count if parents is None else [CHAIN, *tree_rows(parents, length - count + 1).seen])
    ]


@given(st.lists(st.integers(-1, 62), max_size=63), st.integers(0, 70))
def test_a_row_of_a_tree_sees_the_context_and_its_ancestors(drawn, context):
    parents = [min(parent, i - 1) for i, parent in enumerate(drawn)]
    rows = tree_rows(parents, context)
    end = context + len(parents)
    visible = sees(torch.tensor(rows.seen).long(), torch.arange(context, end), torch.arange(end))
    for i, row in enumerate(visible):
        own, node = [], i
        while node >= 0:
            own.append(context + node)
            node = parents[node]
        assert row.nonzero().flatten().tolist() == [*range(context), *own[::-1]]
        assert rows.positions[i] == context + len(own) - 1


@given(s=trees(), shared=st.booleans())
def test_attention_of_trees_equals_the_reference(s, shared):
    q, k, v, table = build(s)
    bits = bits_of(s)
    prefix = [SharedPrefix(0, len(s["lengths"]), s["prefix"])] if shared and s["prefix"] > 0 else []
    got = kernels.paged_attention(q, k, v, planned(s, k, v, table, prefix, bits), s["dim"] ** -0.5, s["value_dim"])
    wide = [x if x is None else x.double() for x in (q, k, v)]
    values = wide[1][..., : s["value_dim"]] if v is None else wide[2]
    seen = torch.tensor(bits, device=DEVICE).long()
    right = reference.attend(*wide[:2], values, table, s["lengths"], s["counts"], s["dim"] ** -0.5, seen)
    check(s, got, right)


@settings(max_examples=5)
@given(s=batches())
def test_a_chain_as_a_tree_gives_the_same_bits(s):
    q, k, v, table = build(s)
    scale, bits = s["dim"] ** -0.5, [CHAIN] * sum(s["counts"])
    plain = kernels.paged_attention(q, k, v, planned(s, k, v, table), scale, s["value_dim"])
    tree = kernels.paged_attention(q, k, v, planned(s, k, v, table, (), bits), scale, s["value_dim"])
    assert all(torch.equal(mine, other) for mine, other in zip(plain, tree))


@given(s=batches())
def test_a_shared_prefix_read_once_changes_nothing(s):
    q, k, v, table = build(s)
    cached = [length - count for length, count in zip(s["lengths"], s["counts"])]
    prefix = min([s["prefix"], *cached])
    prefixes = [SharedPrefix(0, len(cached), prefix)] if prefix > 0 else []
    got = kernels.paged_prefill(
        q, k, v, table, torch.tensor(s["lengths"]), s["counts"], s["dim"] ** -0.5,
        value_dim=s["value_dim"], return_lse=True, prefixes=prefixes,
    )  # fmt: skip
    check(s, got, oracle(s, q, k, v, table))


@given(s=batches(), queries=st.integers(1, 4), one=st.booleans())
def test_decode_is_the_last_tokens_of_each(s, queries, one):
    s["counts"] = [1 if one else queries] * len(s["lengths"])
    q, k, v, table = build(s)
    shape = (len(s["lengths"]), *([] if one else [queries]), s["heads"])
    lens = torch.tensor(s["lengths"], device=DEVICE)
    given_q = q.view(*shape, s["dim"])
    out, lse = kernels.paged_decode(
        given_q, k, v, table, lens, s["dim"] ** -0.5, value_dim=s["value_dim"], return_lse=True
    )
    assert (out.shape, lse.shape) == ((*shape, s["value_dim"]), shape)
    check(s, (out.flatten(0, -3), lse.flatten(0, -2)), oracle(s, q, k, v, table))
    alone = kernels.paged_decode(given_q, k, v, table, lens, s["dim"] ** -0.5, value_dim=s["value_dim"])
    assert torch.equal(alone, out)


@given(s=batches())
def test_every_key_is_read_once_a_row(s):
    """The plan against counting: the pieces of a token cover the keys that it sees, each once, for every head."""
    _, k, v, table = build(s)
    prefix = min([s["prefix"], *np.subtract(s["lengths"], s["counts"]).tolist()])
    batch = planned(s, k, v, table, [SharedPrefix(0, len(s["lengths"]), prefix)] if prefix > 0 else [])
    group, tokens = s["heads"] // s["kv_heads"], sum(s["counts"])
    seen = np.zeros((tokens, group, max([*s["lengths"], 1])), dtype=int)
    direct, states = np.zeros((tokens, group), dtype=int), {}
    for launch in batch.plan.launches:
        for piece in launch.rows:
            for r in range(piece.row0, min(piece.row0 + launch.tile.rows, piece.queries * group)):
                query, head = divmod(r, group)
                token = piece.token0 + query
                seen[token, head, piece.first : min(piece.end, piece.position + query + 1)] += 1
                if piece.state < 0:
                    direct[token, head] += 1
                else:
                    states.setdefault((piece.state + query, head), []).append(token)
    token = 0
    for length, count in zip(s["lengths"], s["counts"]):
        for position in range(length - count, length):
            assert (seen[token, :, : position + 1] == 1).all()
            assert (seen[token, :, position + 1 :] == 0).all()
            token += 1
    offsets, listed = batch.plan.offsets.tolist(), batch.plan.states.tolist()
    assert sorted(listed) == list(range(batch.plan.num_states))
    for t in range(tokens):
        mine = listed[offsets[t] : offsets[t + 1]]
        assert (direct[t] == (not mine)).all()  # written where it belongs, or merged
        assert all(states[i, head] == [t] for i in mine for head in range(group))


@given(
    shape=st.tuples(st.integers(1, 20), st.integers(0, 5), st.integers(1, 4), st.sampled_from([16, 72])),
    dtype=DTYPES,
    seed=st.integers(0, 9),
)
def test_states_merge_as_in_the_reference(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    outs = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    lses = torch.randn(shape[:3], generator=generator).mul(20).to(DEVICE)
    lses[torch.rand(shape[:3], generator=generator).to(DEVICE) < 0.3] = float("-inf")  # states of no key
    outs[lses.isinf()] = 0
    out, lse = kernels.merge_states(outs, lses)
    right, right_lse = reference.merge_states(outs.double(), lses.double())
    close = rounding(dtype, shape[-1])
    torch.testing.assert_close(out.double(), right, rtol=close, atol=close)
    torch.testing.assert_close(lse.double(), right_lse, rtol=1e-5, atol=1e-5)


@given(
    tokens=st.integers(1, 9),
    page=st.sampled_from([1, 3, 16]),
    kv_heads=st.integers(1, 3),
    dims=st.sampled_from([(64, 64), (80, 48), (576, None)]),
    dtype=DTYPES,
    seed=st.integers(0, 9),
)
def test_writing_puts_each_token_in_its_slot_and_touches_no_other(tokens, page, kv_heads, dims, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(12 * page, generator=generator)[:tokens]
    slots[torch.rand(len(slots), generator=generator) < 0.2] = -1
    new, mine, theirs = [], [], []
    for width in dims:
        wide = torch.randn(len(slots), kv_heads + 2, width or 1, generator=generator).to(DEVICE, dtype)
        new.append(wide[:, 1:-1] if width else None)  # a view, as a split of one projection gives
        for pages in (mine, theirs):
            pages.append(torch.full((12, page, kv_heads, width), 7.0, device=DEVICE, dtype=dtype) if width else None)
    kernels.write_kv(*new, *mine, slots.to(DEVICE))
    reference.write_kv(*new, *theirs, slots.to(DEVICE))
    for a, b in zip(mine, theirs):
        assert a is b is None or torch.equal(a, b)


@given(
    tables=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=5),
    page=st.integers(1, 3),
    data=st.data(),
)
def test_prefixes_are_shared_by_all_their_members(tables, page, data):
    cached = [data.draw(st.integers(0, len(table) * page)) for table in tables]
    min_keys = data.draw(st.integers(1, 4))
    after = 0
    for first, members, keys in kernels.shared_prefixes(tables, cached, page, min_keys):
        assert first >= after
        assert members > 1
        assert keys >= min_keys
        assert keys % page == 0
        for i in range(first, first + members):
            assert keys <= cached[i]
            assert tables[i][: keys // page] == tables[first][: keys // page]
        after = first + members


def test_prefixes_are_found():
    tables = [[5, 6, 7], [5, 6, 8], [5, 6], [1, 2], [1, 2], [9]]
    assert kernels.shared_prefixes(tables, [12, 11, 8, 8, 8, 4], 4, min_keys=4) == [(0, 3, 8), (3, 2, 8)]
    assert kernels.shared_prefixes(tables, [12, 11, 7, 8, 8, 4], 4, min_keys=8) == [(0, 2, 8), (3, 2, 8)]


@pytest.fixture
def unchecked():
    """As a user calls: without the check of shapes that the tests run under."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def usual(**changes):
    s = {"q": torch.zeros(2, 4, 64), "k": torch.zeros(5, 4, 2, 64), "v": torch.zeros(5, 4, 2, 64)}
    s |= {"table": torch.tensor([[0, 1], [2, 3]], dtype=torch.int32), "lens": torch.tensor([5, 8])}
    s = {name: x.to(DEVICE) for name, x in s.items()} | changes
    more = {name: s[name] for name in s.keys() - {"q", "k", "v", "table", "lens"}}
    return kernels.paged_decode(s["q"], s["k"], s["v"], s["table"], s["lens"], 0.1, **more)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lens": torch.tensor([5, 9])}, "sequence 1: 1 queries on 9 keys, but its table holds 2 pages of 4"),
        ({"lens": torch.tensor([-1, 8])}, "sequence 0"),
        ({"lens": torch.tensor([5])}, "2 page tables for 1 lengths and 2 counts"),
        ({"table": torch.tensor([[0, 1], [2, 5]], dtype=torch.int32)}, r"pages \[2, 5\] are not all in \[0, 5\)"),
        ({"table": torch.tensor([[0, -1], [2, 3]], dtype=torch.int32)}, r"pages \[0, -1\] are not all in \[0, 5\)"),
        ({"table": torch.tensor([[0, 1], [2, 3]])}, "page tables are int32, got torch.int64"),
        ({"q": torch.zeros(2, 4, 64, dtype=torch.float16)}, "q and pages must agree"),
        ({"q": torch.zeros(2, 4, 32)}, r"expected queries \[2, heads, 64\]"),
        ({"q": torch.zeros(2, 3, 64)}, "3 query heads cannot share 2 key heads"),
        ({"q": torch.zeros(2, 1, 1, 4, 64)}, "q must be"),
        ({"v": torch.zeros(5, 8, 2, 64)}, "different pages"),
        ({"v": None}, "without v_pages, value_dim must lie in"),
        ({"v": None, "value_dim": 65}, r"value_dim must lie in \[1, 64\], got 65"),
        ({"value_dim": 32}, "different pages"),
        ({"k": torch.zeros(5, 4, 64, 2).transpose(2, 3)}, "pages must be contiguous"),
        ({"prefixes": [SharedPrefix(0, 2, 4)]}, "sequences 0 to 1 do not share 4 cached keys"),
        ({"prefixes": [SharedPrefix(0, 3, 4)]}, "sequences 0 to 2 do not share"),
        ({"prefixes": [SharedPrefix(0, 1, 5)]}, "sequences 0 to 0 do not share 5 cached keys"),
    ],
)
def test_bad_input_is_named_before_anything_is_launched(unchecked, changes, says):
    usual()
    with pytest.raises(ValueError, match=says):
        usual(**{name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in changes.items()})


def test_bad_writes_are_named(unchecked):
    k, pages = torch.zeros(2, 3, 8), torch.zeros(4, 2, 3, 8)
    for call, says in [
        ((k, None, pages, pages, torch.tensor([0, 1])), "values: given exactly where"),
        ((k, None, torch.zeros(4, 2, 3, 4), None, torch.tensor([0, 1])), "keys .* for 2 slots of pages"),
        ((k, None, pages, None, torch.tensor([0])), "for 1 slots"),
        ((k.half(), None, pages, None, torch.tensor([0, 1])), "cannot go to pages"),
    ]:
        with pytest.raises(ValueError, match=says):
            kernels.write_kv(*call)
    with pytest.raises(ValueError, match="expected outputs"):
        kernels.merge_states(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 5))


# More sequences than a tile has rows; more parts than blocks of keys, so that some parts have no key.
@example(batch=17, length=1, heads=(2, 2), splits=1, page=16, prefix=64, dtype=torch.float32, seed=0)
@example(batch=1, length=65, heads=(2, 2), splits=8, page=16, prefix=64, dtype=torch.float32, seed=0)
@given(
    batch=st.integers(1, 3),
    length=st.sampled_from([1, 63, 64, 65, 130]),
    heads=st.sampled_from([(4, 1), (6, 3), (2, 2)]),
    splits=st.sampled_from([1, 3]),
    page=st.sampled_from([1, 16, 64]),
    prefix=st.sampled_from([0, 64]),
    dtype=DTYPES,
    seed=st.integers(0, 9),
)
def test_every_version_equals_the_reference(batch, length, heads, splits, page, prefix, dtype, seed):
    s = {"page": page, "heads": heads[0], "kv_heads": heads[1], "dim": 64, "value_dim": 64, "latent": False}
    s |= {"lengths": [length + prefix] * batch, "counts": [1] * batch, "prefix": prefix, "dtype": dtype, "seed": seed}
    q, k, v, table = build(s)
    right, _ = oracle(s, q, k, v, table)
    whole = -(-(length + prefix) // page)  # pages of a sequence
    gathered = [x[table[:, :whole].long()].flatten(1, 2)[:, : length + prefix].contiguous() for x in (k, v)]
    close = rounding(dtype, 64)
    exact = stepwise.decode_0(q.double(), *(x.double() for x in gathered), 0.125)
    torch.testing.assert_close(exact, right, rtol=1e-12, atol=1e-12)
    paged = (k, v, 0.125, splits, table, length + prefix)
    for got in (
        stepwise.decode_1(q, *gathered, 0.125),
        stepwise.decode_2(q, *gathered, 0.125, splits),
        stepwise.decode_3(q, *paged),
        stepwise.decode_4(q, *paged, prefix),
        stepwise.decode_5(q, *paged, prefix),
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), right, rtol=close, atol=close)


def test_the_chapter_shows_what_changes_from_version_to_version():
    """Each line that chapter 08 marks as new or gone is one of the difference of two neighbours."""
    source = (ROOT / "refimpl/inference_opt/kernels/stepwise.py").read_text(encoding="utf-8")
    versions = [source.split(f"# [{n}]\n")[1].split(f"# [/{n}]")[0].splitlines() for n in (1, 2, 3, 4)]
    chapter = (ROOT / "chapters/08_kernels.md").read_text(encoding="utf-8")
    _, *shown = [block.split("```")[0].splitlines() for block in chapter.split("```diff\n")[1:]]  # first: chapter 02's
    assert len(shown) == 3
    for lines, older, newer in zip(shown, versions, versions[1:]):
        assert set(lines) <= set(difflib.unified_diff(older, newer, lineterm=""))


def test_every_width_compiles_into_the_shared_memory_of_an_h100():
    """Widths that no model has, too. Compiled, not run: it takes no card."""
    cases = [(rows, group, dim, value_dim, latent, dtype)
             for rows, group, dim, value_dim, latent in ((4, 4, 128, 128, False), (128, 128, 576, 512, True),
                                                         (2048, 1, 192, 128, False),
                                                         (65, 65, 576, 544, True), (20, 20, 576, 576, False))
             for dtype in ("bf16", "fp32")]  # fmt: skip
    cases += [(16, 3, 64, 64, False, "bf16", True), (128, 128, 576, 512, True, "bf16", True)]  # with trees
    cases += [(kernel, dim, dtype) for kernel, dim in (("mla", 576), ("gqa", 64), ("gqa", 128), ("gqa", 192))
              for dtype in ("bf16", "fp16")]  # fmt: skip
    cases += [(kernel, block, dtype) for kernel, block in (("race", 4096), ("race", 16), ("filters", 8192))
              for dtype in ("bf16", "fp32")]  # fmt: skip
    cases += [("experts", 16, "bf16"), ("experts", 128, "bf16"), ("experts", 32, "fp32"), ("routing", 256, "bf16")]
    cases += [("latents", 64, "bf16"), ("latents", 16, "fp32"), ("few", 8, "bf16"), ("few", 16, "bf16")]
    cases += [("drafts", 12, "bf16")]
    script = Path(__file__).parent / "compiled.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = [sys.executable, str(script), json.dumps(cases)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    taken = dict(zip(cases, json.loads(done.stdout)))
    assert {case: n for case, n in taken.items() if n > 227 * 1024} == {}
