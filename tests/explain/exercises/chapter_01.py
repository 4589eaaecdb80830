"""Solutions of chapter 01's exercises."""

LAST = "cumsum(0)[sorted(running)] - 1"
ROWS = "keys[: new.stop], values[: new.stop]"
REPEATED = """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
"""
BY_HAND = f"""
def causal_attention(q, k, v, scale: float):{REPEATED}    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    places = torch.arange(len(k) - len(q), len(k))
    scores = scores.masked_fill(torch.arange(len(k)) > places[:, None], -torch.inf)
    weights = scores.softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)
"""


def by_hand(right, wrong):
    assert BY_HAND.count(right) == 1
    return BY_HAND.replace(right, wrong)


WRONG = {
    "01.bytes": {
        "the last token has a row": {"rows": 32},
        "keys only": {"token": 512},
        "query heads": {"token": 4096},
        "one layer": {"token": 256},
        "the whole with the last token": {"all": 32768},
        "bfloat16 is no smaller": {"bfloat16": 1024},
        "more heads cost nothing": {"multi_head": 1024},
    },
    "01.attention": {
        "the mask at the upper left": by_hand("torch.arange(len(k) - len(q), len(k))", "torch.arange(len(q))"),
        "no mask": by_hand("> places[:, None]", "> len(k)"),
        "not even itself": by_hand("> places[:, None]", ">= places[:, None]"),
        "one token ahead": by_hand("> places[:, None]", "> places[:, None] + 1"),
        "no scale": by_hand("q, k) * scale", "q, k)"),
        "a scale of its own": by_hand("q, k) * scale", "q, k) * q.shape[2] ** -0.5"),
        "heads in turns": BY_HAND.replace("repeat_interleave(group, 1)", "repeat(1, group, 1)"),
        "a softmax over the queries": by_hand("softmax(-1)", "softmax(-2)"),
        "exp overflows": by_hand("scores.softmax(-1)", "scores.exp() / scores.exp().sum(-1, keepdim=True)"),
        "masked by zero": by_hand("-torch.inf", "0.0"),
        "always float64": by_hand("qhd,khd->hqk\", q, k", "qhd,khd->hqk\", q.double(), k.double()").replace(
            "weights, v)", "weights, v.double())"),
        "heads first": by_hand("->qhd\", weights", "->hqd\", weights"),
        "it changes the queries": by_hand("\", q, k) * scale", "\", q.mul_(scale), k)"),
        "torch's own mask": """
            def causal_attention(q, k, v, scale: float):
                group = q.shape[1] // k.shape[1]
                k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
                out = nn.functional.scaled_dot_product_attention(
                    q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), is_causal=True, scale=scale)
                return out.transpose(0, 1)
        """,
    },
    "01.attend": {
        "all that is reserved": ((ROWS, "keys, values"),),
        "nothing is written": (("keys[new], values[new] = own", "pass"),),
        "at the beginning": (("keys[new], values[new] = own", "keys[: len(queries)], values[: len(queries)] = own"),),
        "the old ones only": ((ROWS, "keys[: max(new.start, 1)], values[: max(new.start, 1)]"),),
        "the new ones only": ((ROWS, "keys[new], values[new]"),),
        "one row too many": ((ROWS, "keys[: new.stop + 1], values[: new.stop + 1]"),),
        "always the first layer": (("[i][layer]", "[i][0]"),),
        "always the first text": (("[i][layer]", "[0][layer]"),),
        "keys and values exchanged": (("keys[new], values[new] = own", "values[new], keys[new] = own"),),
        "the first text alone": (("return torch.cat(outputs)", "return outputs[0]"),),
        "it has no scale": (("values[: new.stop], scale)", "values[: new.stop], 1.0)"),),
        "only the last": (("keys[new], values[new] = own", "keys[new][-1], values[new][-1] = (x[-1] for x in own)"),),
    },
    "01.rows": {
        "still the first ones": ((LAST, "cumsum(0)[: len(running)] - 1"),),
        "the last ones": ((LAST, "cumsum(0)[-len(running) :] - 1"),),
        "the first row of each": ((LAST, "cumsum(0)[sorted(running)] - torch.tensor(counts)[sorted(running)]"),),
        "everybody's": ((LAST, "cumsum(0) - 1"),),
        "one too far": ((LAST, "cumsum(0)[sorted(running)]"),),
        "as if each had one new token": ((LAST, "clamp(max=1).cumsum(0)[sorted(running)] - 1"),),
        "the first text's seed": (("each[i], position=", "each[0], position="),),
        "in the other order": (("enumerate(sorted(running))", "enumerate(sorted(running)[::-1])"),),
        "the position of the token before": (("position=len(texts[i])", "position=len(texts[i]) - 1"),),
        "nobody goes on behind broken logits": (("continue\n", "break\n"),),
        "broken logits are not told": (("for i, why in broken.items():", "for i, why in ():"),),
        "who has ended goes on": (("ids[n:] if i in running else []", "ids[n:]"),),
    },
}  # fmt: skip

RIGHT = {
    "01.attention": {
        "one product": BY_HAND,
        "query by query": """
            def causal_attention(q, k, v, scale: float):
                out = q.new_empty(*q.shape[:2], v.shape[2])
                group = q.shape[1] // k.shape[1]
                for i in range(len(q)):
                    seen = len(k) - len(q) + i + 1
                    for head in range(q.shape[1]):
                        weights = torch.softmax(k[:seen, head // group] @ q[i, head] * scale, 0)
                        out[i, head] = weights @ v[:seen, head // group]
                return out
        """,
        "torch's own, with a mask": """
            def causal_attention(q, k, v, scale: float):
                mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
                heads = (x.transpose(0, 1) for x in (q, k, v))
                out = nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale, enable_gqa=True)
                return out.transpose(0, 1)
        """,
    },
    "01.attend": {
        "all are written first": """
            def attend(self, layer: int, q, k, v, scale: float):
                store = self.cache
                first, parts = 0, []
                for (i, new), count in zip(self.rows, self.counts):
                    mine = slice(first, first := first + count)
                    store.keys[i][layer][new] = k[mine]
                    store.values[i][layer][new] = v[mine]
                    parts.append((i, new.stop, mine))
                out = q.new_empty(*q.shape[:2], v.shape[2])
                for i, end, mine in parts:
                    keys, values = store.keys[i][layer][:end], store.values[i][layer][:end]
                    out[mine] = causal_attention(q[mine], keys, values, scale)
                return out
        """,
    },
    "01.rows": {
        "in a loop": ((LAST, "cumsum(0)[[i for i in range(len(texts)) if i in running]] - 1"),),
        "by those that run": (("torch.tensor(counts, device=model.device)", "torch.tensor([n for n in counts if n])"),
                              (LAST, "cumsum(0) - 1")),
    },
}  # fmt: skip
