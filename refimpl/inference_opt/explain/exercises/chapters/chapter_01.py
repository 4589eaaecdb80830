"""Chapter 01: the KV cache."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from inference_opt import naive
from inference_opt.cache import generate as cached
from inference_opt.cache.contiguous import ContiguousBatch, ContiguousCache
from inference_opt.explain.exercises.exercise import (
    Broken,
    Predict,
    Property,
    Question,
    Repair,
    Write,
    expect,
    expect_close,
)
from inference_opt.explain.record import record
from inference_opt.explain.scenarios.toys import LETTERS, new, spell, toy
from inference_opt.model import attention
from inference_opt.model.attention import QUERY_BLOCK, causal_attention
from inference_opt.model.config import ModelConfig
from inference_opt.model.transformer import Transformer
from inference_opt.trace import Trace, recording, watched

SEEDS = st.integers(0, 2**32 - 1)
SCALE = 0.6

# What is there to judge by: attention by its definition, query by query and head by head.


def by_definition(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q kᵀ · scale) v of a text's last tokens, each over the keys up to itself. In float64."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.empty(len(q), q.shape[1], v.shape[2], dtype=torch.float64)
    for i in range(len(q)):
        seen = len(k) - len(q) + i + 1
        for head in range(q.shape[1]):
            shared = head // (q.shape[1] // k.shape[1])
            scores = k[:seen, shared] @ q[i, head] * scale
            weights = (scores - scores.max()).exp()
            out[i, head] = weights @ v[:seen, shared] / weights.sum()
    return out


def random(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def attends_by_definition(
    past: int, queries: int, kv_heads: int, group: int, size: int, single: bool, seed: int
) -> None:
    """Some queries behind some older keys. `size`: of the queries, in powers of ten. `single`: in float32."""
    generator, dtype = torch.Generator().manual_seed(seed), torch.float32 if single else torch.float64
    q = random(generator, queries, kv_heads * group, 4, dtype=dtype) * 10.0**size
    k = random(generator, past + queries, kv_heads, 4, dtype=dtype)
    v = random(generator, past + queries, kv_heads, 3, dtype=dtype)
    given = [x.clone() for x in (q, k, v)]
    came = causal_attention(given[0], given[1], given[2], SCALE)
    right = by_definition(q, k, v, SCALE).to(dtype)
    if not isinstance(came, Tensor) or came.shape != right.shape or came.dtype != right.dtype:
        expect_close(came, right, "what comes out")
    for name, mine, its in zip("qkv", given, (q, k, v)):
        expect_close(mine, its, f"{name} is the caller's: it stays as it is")
    for i in range(queries):
        for head in range(kv_heads * group):
            what = f"query {i}, which sees {past + i + 1} of the {past + queries} keys, in head {head}"
            expect_close(came[i, head], right[i, head], what, *((1e-3, 1e-3) if single else (1e-5, 1e-8)))


ATTENDS = Property(
    "each query attends to the keys up to its own token",
    st.fixed_dictionaries({
        "past": st.integers(0, 4), "queries": st.integers(1, 4), "kv_heads": st.integers(1, 2),
        "group": st.integers(1, 3), "size": st.integers(0, 4), "single": st.just(False), "seed": SEEDS,
    }),
    attends_by_definition,
    (
        {"past": 0, "queries": 2, "kv_heads": 1, "group": 1, "size": 0, "single": False, "seed": 0},
        {"past": 2, "queries": 1, "kv_heads": 1, "group": 1, "size": 0, "single": False, "seed": 0},
        {"past": 1, "queries": 2, "kv_heads": 1, "group": 1, "size": 0, "single": False, "seed": 0},
        {"past": 0, "queries": 1, "kv_heads": 2, "group": 2, "size": 0, "single": False, "seed": 0},
        {"past": 1, "queries": 2, "kv_heads": 2, "group": 2, "size": 0, "single": False, "seed": 0},
        {"past": 1, "queries": 1, "kv_heads": 1, "group": 1, "size": 4, "single": False, "seed": 0},
        {"past": 1, "queries": 2, "kv_heads": 1, "group": 1, "size": 0, "single": True, "seed": 0},
        {"past": 0, "queries": QUERY_BLOCK, "kv_heads": 1, "group": 1, "size": 0, "single": False, "seed": 0},
        {"past": 2, "queries": 2 * QUERY_BLOCK + 3, "kv_heads": 1, "group": 2, "size": 0, "single": False, "seed": 0},
    ),
)  # fmt: skip


class Text:
    """A text's queries, keys and values in one layer, and how many of its tokens are in the cache."""

    def __init__(self, name: str, generator: torch.Generator, tokens: int, heads: int, kv_heads: int) -> None:
        self.name, self.done = name, 0
        self.q = random(generator, tokens, heads, 2)
        self.k, self.v = random(generator, tokens, kv_heads, 2), random(generator, tokens, kv_heads, 2)


def check_batch(
    batch: Any, layer: int, texts: Sequence[Text], counts: Sequence[int], kept: Callable[[int], tuple[Tensor, Tensor]]
) -> None:
    """One batch of one layer, `counts[i]` new tokens of text i: what comes out and what is kept.

    `kept(i)`: the cache's keys and values of text i, as far as it goes.
    """
    spans = [slice(text.done, text.done + count) for text, count in zip(texts, counts)]
    fed = [torch.cat([getattr(text, x)[span] for text, span in zip(texts, spans)]) for x in "qkv"]
    q, k, v = (x.clone() for x in fed)
    came = batch.attend(layer, q, k, v, SCALE)
    for text, span in zip(texts, spans):
        text.done = span.stop
    right = torch.cat([by_definition(t.q[s], t.k[: s.stop], t.v[: s.stop], SCALE) for t, s in zip(texts, spans)])
    if not isinstance(came, Tensor) or came.shape != right.shape:
        expect_close(came, right, "what comes out for the new tokens of all texts")
    if recording():
        watched(batch).attend(layer, q, k, v, SCALE)
    for i, text in enumerate(texts):
        for kind, mine, its in zip(("key", "value"), kept(i), (text.k, text.v)):
            if not torch.equal(mine, its[: text.done]):
                t = next(t for t in range(text.done) if not torch.equal(mine[t], its[t]))
                raise Broken(f"the {kind} of token {t} of text {text.name} is kept in its place", mine[t], its[t])
    for name, mine, its in zip("qkv", (q, k, v), fed):
        expect_close(mine, its, f"{name} is the caller's: it stays as it is")
    tokens = [(text.name, t) for text, span in zip(texts, spans) for t in range(span.start, span.stop)]
    for (name, t), mine, its in zip(tokens, came, right, strict=True):
        expect_close(mine, its, f"what comes out for token {t} of text {name}", 1e-5, 1e-8)


def keeps_and_attends(batches: list[list[int]], spare: int, layer: int, seed: int) -> None:
    """Several texts, some new tokens of each in every batch; `spare` rows of each are never used."""
    generator = torch.Generator().manual_seed(seed)
    totals = [sum(batch[i] for batch in batches) for i in range(len(batches[0]))]
    texts = [Text(name, generator, total, 2, 1) for name, total in zip("ABC", totals)]
    capacity = [max(total + spare, 1) for total in totals]
    store = ContiguousCache(2, 1, 2, capacity, torch.float64, torch.device("cpu"))
    assert store.values is not None
    both = store.keys, store.values
    for rows in (row for part in both for layers in part for row in layers):
        rows.fill_(torch.nan)  # whoever reads what was not written will see it

    def kept(i: int) -> tuple[Tensor, Tensor]:
        return both[0][i][layer][: texts[i].done], both[1][i][layer][: texts[i].done]

    for counts in batches:
        check_batch(store.batch(counts), layer, texts, counts, kept)
    for i, text in enumerate(texts):
        for part in both:
            if not part[i][layer][text.done :].isnan().all():
                raise Broken(
                    f"nothing is written after the last token of text {text.name}", part[i][layer][text.done :]
                )
            if not part[i][1 - layer].isnan().all():
                raise Broken(f"layer {layer} was asked: what the other layer keeps is as it was", part[i][1 - layer])


KEEPS = Property(
    "every new token attends to its own text, up to itself",
    st.fixed_dictionaries({
        "batches": st.integers(1, 3).flatmap(
            lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(any), min_size=1, max_size=3)
        ),
        "spare": st.integers(0, 2), "layer": st.integers(0, 1), "seed": SEEDS,
    }),
    keeps_and_attends,
    (
        {"batches": [[1]], "spare": 0, "layer": 1, "seed": 0},
        {"batches": [[2]], "spare": 0, "layer": 0, "seed": 0},
        {"batches": [[1]], "spare": 1, "layer": 0, "seed": 0},
        {"batches": [[1], [1]], "spare": 0, "layer": 0, "seed": 0},
        {"batches": [[1, 2]], "spare": 0, "layer": 0, "seed": 0},
        {"batches": [[1, 1], [0, 1]], "spare": 0, "layer": 0, "seed": 0},
    ),
)  # fmt: skip


@cache
def small_model() -> Transformer:
    """One model for all inputs: it takes longer to make than to run."""
    return toy(depth=1)


def is_the_oracles(texts: list[tuple[list[int], int]]) -> None:
    """[(prompt, new tokens)], all in one batch, and each by the naive way."""
    model = small_model()
    prompts, each = [prompt for prompt, _ in texts], [new(n, temperature=1.0, seed=i) for i, (_, n) in enumerate(texts)]
    right = [naive.generate(model, *one) for one in zip(prompts, each)]
    came = cached.generate(model, prompts, each)
    expect(len(came), len(right), "there is one text for each prompt")
    for name, mine, its in zip("ABCDEFGH", came, right):
        expect(mine, its, f"the new tokens of text {name} are those of the naive way")


class Spoilt:
    """A model whose logits hold NaN behind one token."""

    def __init__(self, model: Transformer, token: int) -> None:
        self.model, self.token = model, token

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, tokens: Tensor, positions: Tensor, kv: Any, rows: Tensor) -> Tensor:
        """The logits of these rows."""
        logits = self.model(tokens, positions, kv, rows=rows).clone()
        logits[tokens[rows] == self.token] = torch.nan
        return logits


def ends_alone(texts: list[tuple[list[int], int]], token: int) -> None:
    """The same, where the logits behind one token are broken: that text ends, and the others go on."""
    model: Any = Spoilt(small_model(), token)
    prompts, each = [prompt for prompt, _ in texts], [new(n, temperature=1.0, seed=i) for i, (_, n) in enumerate(texts)]

    def until_broken(steps: Any) -> tuple[list[Any], bool]:
        seen = []
        try:
            for step in steps:
                seen.append(step)
        except ValueError:
            return seen, True
        return seen, False

    right = [until_broken(naive.stream(model, *one)) for one in zip(prompts, each)]
    steps, raised = until_broken(cached.stream(model, prompts, each))
    for i, (name, (its, _)) in enumerate(zip("ABCDEFGH", right)):
        mine = [step[i] for step in steps if i in step]
        expect(mine, its, f"text {name} has all tokens that come before broken logits")
    said = "at the end, when the others are done, ValueError tells that a text was broken"
    expect(raised, any(broken for _, broken in right), said)


PROMPTS = st.lists(st.integers(0, len(LETTERS) - 1), min_size=1, max_size=3)
ORACLES = Property(
    "the batch gives the same texts as the naive way",
    st.fixed_dictionaries({"texts": st.lists(st.tuples(PROMPTS, st.integers(1, 4)), min_size=1, max_size=4)}),
    is_the_oracles,
    ({"texts": [([4, 5], 3)]}, {"texts": [([0], 1), ([7], 3), ([9], 3)]}),
)

ALONE = Property(
    "a text whose logits hold NaN ends alone",
    st.fixed_dictionaries({
        "texts": st.lists(st.tuples(PROMPTS, st.integers(1, 3)), min_size=1, max_size=3),
        "token": st.integers(0, len(LETTERS) - 1),
    }),
    ends_alone,
    ({"texts": [([3], 2)], "token": 3}, {"texts": [([0], 2), ([3], 2), ([1], 2)], "token": 3}),
)  # fmt: skip

LAYERS, HEADS, KV_HEADS, HEAD_DIM, PROMPT, NEW = 4, 8, 2, 16, 20, 12


def measure_bytes() -> tuple[dict[str, Any], Trace]:
    """Caches as a model's own decoding makes them, and the bytes of their tensors."""

    def held(kv_heads: int, dtype: torch.dtype) -> int:
        shape = {"depth": LAYERS, "kv_heads": kv_heads, "head_dim": HEAD_DIM}
        store = ContiguousCache(**shape, capacity=[PROMPT + NEW - 1], dtype=dtype, device=torch.device("cpu"))
        tensors = [*store.keys[0], *(store.values[0] if store.values else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    config = ModelConfig(
        vocab_size=len(LETTERS), dim=HEADS * HEAD_DIM, depth=LAYERS, heads=HEADS, kv_heads=KV_HEADS,
        head_dim=HEAD_DIM, ffn_dim=32, max_context=64,
    )  # fmt: skip
    model = Transformer(config).init_weights(0).to(torch.float32).eval()
    with record("01.bytes", label=spell, only="cache.") as trace:
        cached.generate(model, [list(range(PROMPT))], new(NEW))
    rows = trace.steps[-1]["state"]["decode"]["room"]  # what the decoding itself reserved
    whole = held(KV_HEADS, torch.float32)
    return {
        "rows": rows, "token": whole // rows, "all": whole, "bfloat16": held(KV_HEADS, torch.bfloat16) // rows,
        "multi_head": held(HEADS, torch.float32) // rows,
    }, trace  # fmt: skip


EXERCISES: tuple[Any, ...] = (
    Predict(
        "01.bytes",
        "how large is a KV cache",
        """
        A model has 4 layers, 8 query heads and 2 KV heads (four query heads share one key head and its values). Each
        head is 16 numbers wide. Keys and values are float32, four bytes each.

        A prompt of 20 tokens gets 12 new tokens. The contiguous cache reserves exactly the rows that this text needs,
        one row for each token that is fed. The numbers are measured on the tensors of real caches.
        """,
        (
            "What is kept of a token? In which layers? For how many heads?",
            "A key and a value, in every layer, for every KV head. Query heads keep nothing. And which token of the "
            "text is never fed?",
            "A token takes 2 · 2 · 16 · 4 numbers of 4 bytes. The text has 20 + 12 tokens, and its last one is never "
            "fed.",
        ),
        5,
        {
            "rows": Question(
                "rows that the cache reserves for this text",
                ((32, "the last new token is sampled and never fed: it has no key"),
                 (20, "new tokens are fed as well: the next ones attend to them"),
                 (12, "the prompt's keys and values are kept as well")),
            ),
            "token": Question(
                "bytes that one token takes",
                ((512, "keys and values are both kept"),
                 (4096, "keys and values are kept for the KV heads, not for the query heads"),
                 (256, "every layer has keys and values of its own"),
                 (2048, "keys and values are kept for the KV heads, not for the query heads; and both of them"),
                 (128, "every layer has keys and values of its own, and both are kept")),
            ),
            "all": Question(
                "bytes of the whole cache of this text",
                ((32768, "the last new token is sampled and never fed"),
                 (20480, "new tokens are fed as well")),
            ),
            "bfloat16": Question(
                "bytes that one token would take in bfloat16",
                ((1024, "a number in bfloat16 has two bytes, half of float32's four"),),
            ),
            "multi_head": Question(
                "bytes that one token would take in float32 with 8 KV heads (multi-head attention)",
                ((1024, "the cache grows with the KV heads"),
                 (8192, "there would be four times as many KV heads: 8 in place of 2")),
            ),
        },
        measure_bytes,
    ),
    Write(
        "01.attention",
        "attention of a text's last tokens",
        """
        Attention of one text. The keys and values are those of the whole text. The queries are those of its last
        tokens: all of them in a prefill, one in decoding, any number in between. No token may see a key that is later
        than itself.

        Several query heads may share one key head: with 4 query heads and 2 key heads, query heads 0 and 1 use key
        head 0, and query heads 2 and 3 use key head 1. `scale` is what every score is multiplied by. (`QUERY_BLOCK`
        is there to save memory; you need not use it.)

        What comes out has the type of the queries. The numbers may be large: exp of a score may overflow.
        """,
        (
            "With 5 keys and 2 queries, which keys may the first query see?",
            "Query i stands at position keys − queries + i. A mask compares that with the keys' positions: it is a "
            "strip aligned at its lower right corner. repeat_interleave gives each query head its key head.",
            "k and v: repeat_interleave(heads // kv_heads, dim=1). scores = einsum('qhd,khd->hqk', q, k) · scale. "
            "Where the key's position is larger than the query's: −inf. softmax over the last dimension, then "
            "einsum('hqk,khd->qhd', weights, v).",
        ),
        20,
        attention,
        "causal_attention",
        (ATTENDS,),
    ),
    Write(
        "01.attend",
        "keep keys and values, and attend to them",
        """
        A batch has some new tokens of each of several texts, laid end to end. `q`, `k` and `v` are the queries, keys
        and values of these new tokens, of all texts together.

        The batch knows `self.counts`, how many of them belong to each text that takes part, and `self.rows`: for each
        of these texts the pair (i, new), where i is the text's number in the cache and `new` is the slice of its rows
        that the new tokens get. `self.cache.keys[i][layer]` and `self.cache.values[i][layer]` are the text's rows,
        more than it has tokens so far.

        Keep the new keys and values, then let every new token attend to its own text, up to itself.
        `causal_attention(q, k, v, scale)` does it for one text. What lies after the new rows was never written.
        """,
        (
            "Which rows of the text are its keys, once the new ones are written?",
            "q, k and v can be split by self.counts into one part for each entry of self.rows. Write the part of k "
            "into keys[new], and read keys[: new.stop].",
            "For (i, new), queries, own_k, own_v in zip(self.rows, q.split(self.counts), k.split(…), v.split(…)): "
            "write both, then causal_attention(queries, keys[: new.stop], values[: new.stop], scale). torch.cat joins "
            "the results.",
        ),
        10,
        ContiguousBatch,
        "attend",
        (KEEPS,),
    ),
    Repair(
        "01.rows",
        "texts that go wrong when a neighbour ends",
        """
        This is the loop of static batching: all texts take part in every step until they end. A text that was alone
        in its batch was always right. So were two together. But in larger batches some texts became wrong, each from
        some token on, and only when another text had ended before.

        The witness is a batch: a list of pairs (prompt, how many new tokens), with token ids from 0 to 31.
        """,
        (
            "Let the first of three texts end after one token, and print what the loop reads in the second step.",
            "The model returns logits for the rows named in `last`: one row for each text that still runs. `counts` "
            "has an entry for every text, also for those that have ended.",
            "counts.cumsum(0) − 1 is the last row of each text, by its number in the batch. Only the numbers in "
            "`running` are wanted: index with sorted(running).",
        ),
        15,
        cached,
        "_continue",
        (ORACLES, ALONE),
        (("cumsum(0)[sorted(running)] - 1", "cumsum(0)[: len(running)] - 1"),),
        {"texts": [([0], 1), ([1], 3), ([2], 3)]},
    ),
)  # fmt: skip
