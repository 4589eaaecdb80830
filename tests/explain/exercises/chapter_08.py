"""Solutions of chapter 08's exercises."""

from importlib.util import find_spec

WRONG = {
    "08.merge": {
        "the mean of the outputs": ((" * weights[..., None]).sum(0)", ").mean(0)"),),
        "each by its number of states": (("weights = (lses - lse.clamp(min=torch.finfo(lses.dtype).min)).exp()",
                                          "weights = torch.full_like(lses, 1 / len(lses))"),),
        "exponentials overflow": (("lse = lses.logsumexp(0)", "lse = lses.exp().sum(0).log()"),),
        "weights overflow": (("weights = (lses - lse.clamp(min=torch.finfo(lses.dtype).min)).exp()",
                              "weights = lses.exp() / lses.exp().sum(0)"),),
        "the state of no key is NaN": ((".clamp(min=torch.finfo(lses.dtype).min)", ""),),
        "the weights of the largest, not normed": (("(lses - lse.clamp", "(lses - lses.amax(0).clamp"),),
        "the largest score for the sum": (("lse = lses.logsumexp(0)", "lse = lses.amax(0)"),),
        "joined in half precision": (("(outs.to(lses.dtype) * weights[..., None])",
                                      "(outs * weights.to(outs.dtype)[..., None]).to(lses.dtype)"),
                                     ("weights = (lses -", "weights = (lses.to(outs.dtype).to(lses.dtype) -")),
        "the output in the dtype of the sums": ((".sum(0).to(outs.dtype), lse", ".sum(0), lse"),),
        "sums of lse": (("lse = lses.logsumexp(0)", "lse = lses.sum(0)"),),
        "softmax over the tokens": (
            ("lse = lses.logsumexp(0)", "lse = lses.logsumexp(0)\n    if 0 in lses.shape[1:]: pass"),
                                    ("(lses - lse.clamp(min=torch.finfo(lses.dtype).min)).exp()", "lses.softmax(1)")),
        "the lse is cut off": (("lse = lses.logsumexp(0)",
                                "lse = lses.logsumexp(0).clamp(min=torch.finfo(lses.dtype).min)"),),
        "the first state is changed": (("    lse = lses.logsumexp(0)\n",
                                        "    lse = lses.logsumexp(0)\n    outs[0] *= 1.5\n"),),
    },
    "08.spread": {
        "places that go on": (("np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)",
                               "np.arange(len(owner))"),),
        "places from 1": (("np.arange(len(owner)) -", "1 + np.arange(len(owner)) -"),),
        "less the owner's end": (("np.cumsum(counts) - counts", "np.cumsum(counts)"),),
        "an owner without entries has one": (("    owner =", "    counts = np.maximum(counts, 1)\n    owner ="),),
        "owners without entries are left out": (("    owner =", "    counts = counts[counts > 0]\n    owner ="),),
        "lists": (("return owner, np.arange", "return owner.tolist(), np.arange"),),
        "the first alike": (("np.repeat(np.cumsum(counts) - counts, counts)", "np.repeat(counts, counts)"),),
        "floats": (("np.repeat(np.arange(len(counts)), counts)", "np.repeat(np.arange(len(counts)) * 1.0, counts)"),),
    },
    "08.pieces": {
        "keys behind the last query": (("end = np.minimum(blocks.end, position + queries)", "end = blocks.end"),),
        "the last query does not see itself": (("position + queries)", "position + queries - 1)"),),
        "the end of a prefix is forgotten": (("np.minimum(blocks.end, position + queries)", "position + queries"),),
        "all blocks full": (("np.minimum(most, blocks.queries - i * most)", "np.full_like(i, most)"),),
        "the rest is left out": (("spread(-(-segments.queries // most))", "spread(segments.queries // most)"),),
        "the position stays": (("blocks.position + i * most", "blocks.position"),),
        "the token stays": (("blocks.token0 + i * most", "blocks.token0"),),
        "all queries in each block": (("np.minimum(most, blocks.queries - i * most)", "blocks.queries"),),
        "one query a block": (("    owner, i", "    most = 1\n    owner, i"),),
        "the first key moves on": (
            ("queries=queries, position", "first=blocks.first + i * most, queries=queries, position"),),
        "by the number of the block in all": (
            ("    blocks = segments[owner]", "    i = np.arange(len(i))\n    blocks = segments[owner]"),),
        "an empty block for no query": (("spread(-(-segments.queries // most))",
                                         "spread(np.maximum(-(-segments.queries // most), 1))"),),
    },
    "08.roofline": {
        "keys alone": {"bytes": 1048576},
        "once a query head": {"bytes": 8388608},
        "scores alone": {"operations": 4194304},
        "no heads": {"intensity": 1},
        "drafts are free of work": {"with drafts": 4},
        "drafts without the last token": {"with drafts": 16},
        "the stem alone": {"shared": 393216},
        "nothing shared": {"shared": 2097152},
    },
}  # fmt: skip

RIGHT = {
    "08.merge": {
        "from the largest": """
            def merge_states(outs, lses):
                top = lses.max(0).values
                shares = torch.where(lses == -torch.inf, 0, lses - torch.where(top == -torch.inf, 0, top)).exp()
                shares = torch.where(lses == -torch.inf, 0, shares)
                total = shares.sum(0)
                mean = torch.einsum("sth,sthv->thv", shares, outs.to(lses.dtype)) / total.where(total > 0, 1)[..., None]
                return mean.to(outs.dtype), top + total.log()
        """,
        "two at a time": """
            def merge_states(outs, lses):
                out, lse = outs[0].to(lses.dtype), lses[0]
                for other, its in zip(outs[1:].to(lses.dtype), lses[1:]):
                    both = torch.logaddexp(lse, its)
                    mine, theirs = ((x - both).exp().nan_to_num(0)[..., None] for x in (lse, its))
                    out, lse = mine * out + theirs * other, both
                return out.to(outs.dtype), lse
        """,
    },
    "08.spread": {
        "loops": """
            def spread(counts):
                pairs = [(owner, place) for owner, count in enumerate(counts) for place in range(count)]
                both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
                return both[:, 0], both[:, 1]
        """,
        "by search": """
            def spread(counts):
                ends = np.cumsum(counts)
                entry = np.arange(ends[-1] if len(ends) else 0)
                owner = np.searchsorted(ends, entry, side="right")
                return owner, entry - (ends - counts)[owner]
        """,
    },
    "08.pieces": {
        "loops": """
            def cut_rows(segments, most):
                rows = []
                for i in range(len(segments.queries)):
                    sequence, token, left, position, first, end = (
                        int(getattr(segments, name)[i])
                        for name in ("sequence", "token0", "queries", "position", "first", "end")
                    )
                    while left:
                        count = min(left, most)
                        rows.append((sequence, token, count, position, first, min(end, position + count)))
                        token, position, left = token + count, position + count, left - count
                return Segments(*np.array(rows, dtype=np.int64).reshape(-1, 6).T)
        """,
        "the last block first, and the smaller one in front": """
            def cut_rows(segments, most):
                blocks = []
                for sequence, token, count, position, first, end in zip(*vars(segments).values()):
                    stop = count
                    while stop > 0:
                        start = max(stop - most, 0)
                        last = min(end, position + stop)
                        blocks.append((sequence, token + start, stop - start, position + start, first, last))
                        stop = start
                return Segments(*(np.array([b[i] for b in blocks], dtype=np.int64) for i in range(6)))
        """,
    },
}

if find_spec("triton"):
    WRONG["08.kernel"] = {
        "no running maximum": (("m_new = tl.maximum(m, tl.max(s, 0))", "m_new = tl.full([], 0.0, tl.float32)"),),
        "older sums do not shrink": (("shrink = tl.exp2(m - m_new)", "shrink = 1.0"),),
        "the output does not shrink": (("acc = acc * shrink +", "acc = acc +"),),
        "values without a mask": (
            ("values = tl.load(v + row[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)",
                                   "values = tl.load(v + row[:, None] * D + d[None, :])"),),
        "scores of no key count as 0": (('tl.where(inside, s * scale * LOG2E, float("-inf"))', "s * scale * LOG2E"),),
        "no page table": (("page = tl.load(table + sequence * table_width + key // PAGE, mask=inside, other=0)",
                           "page = key // PAGE"),),
        "the table of the first sequence": (("table + sequence * table_width + key", "table + key"),),
        "the place in the page is forgotten": (("page.to(tl.int64) * PAGE + key % PAGE", "page.to(tl.int64) * PAGE"),),
        "the key head is the query head": (("kv_head = head // (HEADS // KV_HEADS)", "kv_head = head % KV_HEADS"),),
        "all parts have all keys": (("first, end = part * size, tl.minimum((part + 1) * size, length)",
                                     "first, end = 0, length"),),
        "the last part goes on": (("tl.minimum((part + 1) * size, length)", "(part + 1) * size"),),
        "the first part alone": (("first, end = part * size, tl.minimum((part + 1) * size, length)",
                                  "first, end = part * length, tl.where(part == 0, length, 0)"),),
        "the logarithm to base 2": (("(m + tl.log2(total)) / LOG2E", "m + tl.log2(total)"),),
        "exponentials of base 2": (
            (" * scale * LOG2E", " * scale"), ("(m + tl.log2(total)) / LOG2E", "m + tl.log2(total)")),
        "without the scale": ((" * scale * LOG2E", " * LOG2E"),),
        "the sum is not divided by": (("acc / total", "acc"),),
        "0 / 0 where there is no key": (("total = tl.where(l > 0, l, 1.0)", "total = l"),),
        "a state of each head's": (("state = sequence * SPLITS + part", "state = part"),),
        "one block only": (
            ("for n in range(first, end, BLOCK):", "for n in range(first, min(first + BLOCK, end), BLOCK):"),),
        "the maximum for the sum": (("(m + tl.log2(total)) / LOG2E", "m / LOG2E"),),
    }  # fmt: skip
    RIGHT["08.kernel"] = {
        "twice through the keys, base e": """
            @triton.jit
            def attend_3(
                q, k, v, table, partial, partial_lse, length, scale, table_width,
                HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
                SPLITS: tl.constexpr, PAGE: tl.constexpr,
            ):
                sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
                kv_head = head * KV_HEADS // HEADS
                d = tl.arange(0, D)
                query = tl.load(q + (sequence * HEADS + head) * D + d)
                blocks = tl.cdiv(length, BLOCK)
                first = part * blocks // SPLITS * BLOCK
                end = tl.minimum((part + 1) * blocks // SPLITS * BLOCK, length)
                top = tl.full([], float("-inf"), tl.float32)
                for n in range(first, end, BLOCK):
                    key = n + tl.arange(0, BLOCK)
                    page = tl.load(table + sequence * table_width + key // PAGE, mask=key < end, other=0)
                    at = ((page * PAGE + key % PAGE) * KV_HEADS + kv_head)[:, None] * D + d[None, :]
                    keys = tl.load(k + at, mask=(key < end)[:, None], other=0.0)
                    s = tl.where(key < end, tl.sum(query[None, :] * keys, 1) * scale, float("-inf"))
                    top = tl.maximum(top, tl.max(s, 0))
                total = tl.zeros([], tl.float32)
                out = tl.zeros([D], tl.float32)
                for n in range(first, end, BLOCK):
                    key = n + tl.arange(0, BLOCK)
                    page = tl.load(table + sequence * table_width + key // PAGE, mask=key < end, other=0)
                    at = ((page * PAGE + key % PAGE) * KV_HEADS + kv_head)[:, None] * D + d[None, :]
                    keys = tl.load(k + at, mask=(key < end)[:, None], other=0.0)
                    values = tl.load(v + at, mask=(key < end)[:, None], other=0.0)
                    s = tl.where(key < end, tl.sum(query[None, :] * keys, 1) * scale, float("-inf"))
                    p = tl.exp(s - top)
                    total += tl.sum(p, 0)
                    out += tl.sum(p[:, None] * values, 0)
                some = tl.where(total > 0, total, 1.0)
                at = (sequence * SPLITS + part) * HEADS + head
                tl.store(partial + at * D + d, out / some)
                tl.store(partial_lse + at, tl.where(total > 0, top + tl.log(some), float("-inf")))
        """,
    }
