"""Chapter 05: latent attention."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

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
from inference_opt.explain.views.attention import WatchedForms
from inference_opt.model import rope
from inference_opt.model.config import LatentShape, ModelConfig
from inference_opt.model.mla import LatentAttention, multiplications
from inference_opt.trace import Trace, recording

DTYPES = {"float64": torch.float64, "float32": torch.float32}


class Layer(NamedTuple):
    """A small layer, queries, and what is kept of some tokens: small whole numbers, so that rounding decides nothing.

    Key head k has `w_uk[k]`, [d_h, d_c], and `w_uv[k]`, [d_v, d_c].
    """

    attention: LatentAttention
    q: Tensor
    kept: Tensor
    w_uk: np.ndarray
    w_uv: np.ndarray


def config_of(
    kv_heads: int, group: int, key: int, rotated: int, value: int, latent: int, depth: int = 1
) -> ModelConfig:
    """A model's shape. `group`: query heads of each key head."""
    return ModelConfig(
        vocab_size=8, dim=8, depth=depth, heads=kv_heads * group, kv_heads=kv_heads, head_dim=key + rotated, ffn_dim=8,
        max_context=256, latent=LatentShape(latent, qk_rope_head_dim=rotated, qk_nope_head_dim=key, v_head_dim=value),
    )  # fmt: skip


def layer(config: ModelConfig, queries: int, keys: int, seed: int, dtype: str = "float64") -> Layer:
    """A layer of this shape, filled by the seed."""
    rng = np.random.default_rng(seed)
    shape = config.latent
    assert shape is not None
    attention = LatentAttention(config).to(DTYPES[dtype])
    weight = rng.integers(-2, 3, attention.kv_up.weight.shape)
    attention.kv_up.weight.data = torch.tensor(weight, dtype=DTYPES[dtype])
    by_head = weight.reshape(config.kv_heads, shape.qk_nope_head_dim + shape.v_head_dim, shape.kv_lora_rank)
    q, kept = (
        torch.tensor(rng.integers(-2, 3, size), dtype=DTYPES[dtype])
        for size in (
            (queries, config.heads, config.head_dim),
            (keys, 1, shape.kv_lora_rank + shape.qk_rope_head_dim),
        )
    )
    return Layer(attention, q, kept, by_head[:, : shape.qk_nope_head_dim], by_head[:, shape.qk_nope_head_dim :])


def keys_and_values(of: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Of every key head, [keys, kv_heads, …], one token and head at a time."""
    width = of.attention.shape.kv_lora_rank
    kept = of.kept[:, 0].double().numpy()
    k = np.array([[[*(w @ row[:width]), *row[width:]] for w in of.w_uk] for row in kept])
    v = np.array([[w @ row[:width] for w in of.w_uv] for row in kept])
    return k, v


def attended(of: Layer) -> np.ndarray:
    """The layer's attention, [queries, heads, d_v], one query and head at a time."""
    k, v = keys_and_values(of)
    config = of.attention.config
    q = of.q.double().numpy()
    out = np.zeros((len(q), config.heads, v.shape[-1]))
    for i in range(len(q)):
        seen = len(k) - len(q) + i + 1
        for head in range(config.heads):
            group = head // (config.heads // config.kv_heads)
            scores = k[:seen, group] @ q[i, head] / math.sqrt(config.head_dim)
            weights = np.exp(scores - scores.max())
            out[i, head] = weights @ v[:seen, group] / weights.sum()
    return out


SIZES = {
    "kv_heads": st.integers(1, 3), "group": st.integers(1, 2), "key": st.integers(1, 3),
    "rotated": st.sampled_from([2, 4]), "value": st.integers(1, 3), "latent": st.integers(1, 4),
}  # fmt: skip
INPUT = {"seed": st.integers(0, 99), "dtype": st.sampled_from(list(DTYPES))}


def same(came: Any, right: np.ndarray, like: Tensor, sentence: str, of: Layer, form: str) -> None:
    """A learner's tensor is right. Where it is not, a recording shows the form in which it is used."""
    wanted = torch.tensor(right, dtype=like.dtype)
    fits = isinstance(came, Tensor) and came.shape == wanted.shape and came.dtype == wanted.dtype
    if recording() and fits and not torch.allclose(came, wanted, rtol=1e-5, atol=1e-5):
        of.attention.form = form
        WatchedForms(of.attention).over(of.q, of.kept)
    expect_close(came, wanted, sentence, rtol=1e-5, atol=1e-5)


def unchanged(of: Layer, seed: int, dtype: str) -> None:
    """What was handed in is as it was made."""
    again = layer(of.attention.config, len(of.q), len(of.kept), seed, dtype)
    pairs = (("q", of.q, again.q), ("kept", of.kept, again.kept),
             ("the weights", of.attention.kv_up.weight, again.attention.kv_up.weight))  # fmt: skip
    for name, came, right in pairs:
        if not torch.equal(came, right):
            raise Broken(f"{name} must stay as it was", came, right)


@torch.inference_mode()
def absorbs(queries: int, seed: int, dtype: str, **sizes: int) -> None:
    """A query at the width of what is kept."""
    of = layer(config_of(**sizes), queries, queries + 1, seed, dtype)
    group, key = sizes["group"], sizes["key"]
    q = of.q.double().numpy()
    right = np.array([
        [[*(of.w_uk[head // group].T @ row[:key]), *row[key:]] for head, row in enumerate(rows)] for rows in q
    ])  # fmt: skip
    sentence = "each head's query is [W_UKᵀ q_C; q_R], with the W_UK of its own key head"
    same(of.attention.absorb(of.q), right, of.q, sentence, of, "absorbed")
    same(of.attention.absorb(of.q), right, of.q, f"asked again: {sentence}", of, "absorbed")
    unchanged(of, seed, dtype)


@torch.inference_mode()
def expands(keys: int, seed: int, dtype: str, **sizes: int) -> None:
    """Keys and values of every head."""
    of = layer(config_of(**sizes), 1, keys, seed, dtype)
    k, v = keys_and_values(of)
    came = of.attention.expand(of.kept)
    if not isinstance(came, tuple) or len(came) != 2:
        raise Broken("two tensors are returned: keys and values", came)
    same(came[0], k, of.q, "each key head's key is [W_UK c; k_R]", of, "explicit")
    same(came[1], v, of.q, "each key head's value is W_UV c", of, "explicit")
    unchanged(of, seed, dtype)


@torch.inference_mode()
def makes_values(queries: int, seed: int, dtype: str, **sizes: int) -> None:
    """Values of mixtures of latents."""
    of = layer(config_of(**sizes), queries, queries + 1, seed, dtype)
    mixed = np.random.default_rng(seed).integers(-2, 3, (queries, of.attention.heads, sizes["latent"]))
    right = np.array([[of.w_uv[head // sizes["group"]] @ row for head, row in enumerate(rows)] for rows in mixed])
    given = torch.tensor(mixed, dtype=of.q.dtype)
    came = of.attention.values(given)
    same(
        came,
        right,
        of.q,
        "each head's value is W_UV times its mixture, with the W_UV of its own key head",
        of,
        "absorbed",
    )
    expect(given.tolist(), mixed.astype(float).tolist(), "the mixtures must stay as they were")
    unchanged(of, seed, dtype)


ONE = {"kv_heads": 1, "group": 1, "key": 1, "rotated": 2, "value": 1, "latent": 1, "seed": 1, "dtype": "float64"}
TWO_HEADS = ONE | {"kv_heads": 2, "latent": 2, "key": 3, "value": 2}
GROUPED = TWO_HEADS | {"group": 2}


def forms(name: str, sentence: str, holds: Any) -> Property:
    """A property of one of the three functions. `name`: of the number of rows."""
    corners = tuple(sizes | {name: 1} for sizes in (ONE, TWO_HEADS, GROUPED))
    return Property(sentence, st.fixed_dictionaries(SIZES | {name: st.integers(1, 3)} | INPUT), holds, corners)


# The scale


def counting(function: Any, calls: list[str], says: str) -> Any:
    """The function, each call of which is written down."""

    def called(given: Tensor) -> Any:
        calls.append(says)
        return function(given)

    return called


@torch.inference_mode()
def attends(queries: int, keys: int, form: str | None, seed: int) -> None:
    """Attention in a form, against every key and value made, and the form that was taken."""
    if not 1 <= queries <= keys:
        raise ValueError(f"queries are the last of the keys: 1 ≤ {queries} ≤ {keys} does not hold")
    of = layer(config_of(2, 1, 2, 2, 2, 3), queries, keys, seed)
    attention, taken = of.attention, list[str]()
    attention.form = form
    costs = {each: multiplications(attention.config, each, queries, keys) for each in ("absorbed", "explicit")}
    wanted = form or min(costs, key=lambda each: costs[each])
    for name, says in (("absorb", "absorbed"), ("expand", "explicit")):
        vars(attention)[name] = counting(getattr(attention, name), taken, says)
    came = (WatchedForms(attention) if recording() else attention).over(of.q, of.kept)
    sentence = f"in the {wanted} form, the values are those of softmax(q · k / √(d_h + d_R))"
    expect_close(came, torch.tensor(attended(of)), sentence, rtol=1e-6, atol=1e-6)
    if not recording():
        prices = f"absorbed takes {costs['absorbed']} multiplications, explicit {costs['explicit']}"
        expect(taken, [wanted], f"self.form is {form!r}, so the {wanted} form must be taken ({prices})")


ATTENDS = Property(
    "both forms give the attention of the whole keys and values",
    st.integers(1, 4).flatmap(
        lambda queries: st.fixed_dictionaries({
            "queries": st.just(queries), "keys": st.integers(queries, 6),
            "form": st.sampled_from([None, "absorbed", "explicit"]), "seed": st.integers(0, 99),
        })
    ),
    attends,
    (
        {"queries": 1, "keys": 3, "form": "absorbed", "seed": 1},
        {"queries": 1, "keys": 3, "form": "explicit", "seed": 1},
        {"queries": 1, "keys": 3, "form": None, "seed": 1},
        {"queries": 4, "keys": 4, "form": None, "seed": 1},
    ),
)  # fmt: skip

# Rotation


def rotates(x: list[list[list[int]]], twelfths: list[list[int]], factor: float, dtype: str) -> None:
    """Against complex numbers: pair i is x_i + j x_{i + d/2}, and is multiplied by e^{jφ}."""
    numbers, angle = np.array(x), np.array(twelfths)[:, None] * math.pi / 6
    half = angle.shape[-1]
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    made = [
        torch.tensor(each, dtype=DTYPES[dtype])
        for each in (numbers, np.concatenate((cos, cos), axis=-1), np.concatenate((-sin, sin), axis=-1))
    ]
    before = [each.clone() for each in made]
    turned = (numbers[..., :half] + 1j * numbers[..., half:]) * np.exp(1j * angle) * factor
    right = torch.tensor(np.concatenate((turned.real, turned.imag), axis=-1), dtype=DTYPES[dtype])
    came = rope.rotate(*made)
    sentence = "x_i and x_{i + d/2} are a pair, and are turned together by the angle of pair i"
    expect_close(came, right, sentence, rtol=1e-5, atol=1e-5)
    for name, each, was in zip(("x", "cos", "sin"), made, before):
        if not torch.equal(each, was):
            raise Broken(f"{name} must stay as it was", each, was)


@st.composite
def rotations(draw: Any) -> dict[str, Any]:
    """Numbers, angles, and YaRN's factor."""
    tokens, heads, half = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))

    def row(of: st.SearchStrategy[Any], length: int) -> st.SearchStrategy[Any]:
        return st.lists(of, min_size=length, max_size=length)

    return {
        "x": draw(row(row(row(st.integers(-3, 3), 2 * half), heads), tokens)),
        "twelfths": draw(row(row(st.integers(0, 11), half), tokens)),
        "factor": draw(st.sampled_from([1.0, 1.25])),
        "dtype": draw(st.sampled_from(list(DTYPES))),
    }


PLAIN = {"factor": 1.0, "dtype": "float64"}
ROTATES = Property(
    "each pair is turned by its angle",
    rotations(),
    rotates,
    (
        PLAIN | {"x": [[[1, 0]]], "twelfths": [[1]]},
        PLAIN | {"x": [[[1, 2, 3, 4]]], "twelfths": [[3, 3]]},
        PLAIN | {"x": [[[1, 2], [0, 1]]], "twelfths": [[3]]},
    ),
)

# Counting

COUNTED = config_of(kv_heads=8, group=1, key=32, rotated=16, value=32, latent=96, depth=4)


@torch.inference_mode()
def counted() -> tuple[dict[str, float], Trace]:
    """What is kept and what is multiplied; one new token over 100 is attended in both forms."""
    s = COUNTED.latent
    assert s is not None
    of = layer(COUNTED, 1, 100, seed=0)
    with record("one new token over a hundred", only="mla.") as trace:
        for of.attention.form in ("explicit", "absorbed"):
            WatchedForms(of.attention).over(of.q, of.kept)
    k, v = of.attention.expand(of.kept)
    return {
        "kept": float(COUNTED.kv_elements_per_token),
        "made": float(COUNTED.depth * (k[0].numel() + v[0].numel())),
        "explicit": float(multiplications(COUNTED, "explicit", 1, 100)),
        "absorbed": float(multiplications(COUNTED, "absorbed", 1, 100)),
        "switch": float(next(m for m in range(1, 101) if not of.attention.absorbs(m, 100))),
    }, trace


SHAPES = """
        The layer is `self`. `self.heads` query heads share `self.kv_heads` key heads: of 4 query heads on 2 key heads,
        the first two use key head 0. `self.up` gives W_UK, of shape [kv_heads, d_h, d_c], and W_UV, [kv_heads, d_v,
        d_c]. In `self.shape`, d_h is `qk_nope_head_dim`, d_R `qk_rope_head_dim`, d_v `v_head_dim`, d_c `kv_lora_rank`.
        (A counterexample calls these four `key`, `rotated`, `value` and `latent`; `group` is heads / kv_heads.)
"""

EXERCISES: tuple[Any, ...] = (
    Write(
        "05.rope",
        "turn each pair by its angle",
        """
        A rotary embedding cuts each head into d/2 pairs. Here x_i and x_{i + d/2} are a pair. At every token, pair i is
        turned by an angle of its own.

        `x` has shape [tokens, heads, d]. `cos` and `sin` have shape [tokens, 1, d]. Both halves of `cos` hold the
        cosines of the d/2 angles. The second half of `sin` holds their sines, the first half the same with a minus.
        Return a tensor of the shape and dtype of `x`. Change no argument.

        A counterexample gives the angles as twelfths of a full turn: 3 is a right angle. cos and sin are multiplied by
        `factor` (YaRN does so).
        """,
        (
            "Write down the result for one pair: [x1 cos − x2 sin, x2 cos + x1 sin]. Which is next to which?",
            "x · cos is right for both halves. What is multiplied by `sin` is x with its two halves exchanged. The "
            "minus is in `sin` already.",
            "x.roll(d // 2, dims=-1) exchanges the halves. The result is x * cos + that * sin.",
        ),
        10,
        rope,
        "rotate",
        (ROTATES,),
    ),
    Write(
        "05.expand",
        "make keys and values of what is kept",
        f"""
        Of a token only its latent c and one rotated key k_R are kept, side by side: `kept` has shape [tokens, 1, d_c +
        d_R]. Return the keys, [tokens, kv_heads, d_h + d_R], and the values, [tokens, kv_heads, d_v], of all key heads.
        All heads share k_R. It is rotated already.
        {SHAPES}
        """,
        (
            "Cut `kept` into c and k_R. Each key head has a W_UK and a W_UV of its own; both read the same c.",
            "`self.kv_up` is a linear layer that computes all of W_UK c and W_UV c at once. Its result holds, for one "
            "head after the other, the d_h numbers of the key and then the d_v numbers of the value.",
            "View the result as [tokens, kv_heads, d_h + d_v] and split the last axis. Expand k_R to all key heads and "
            "put it after the key's own part with torch.cat.",
        ),
        10,
        LatentAttention,
        "expand",
        (forms("keys", "keys and values are made of the latents", expands),),
    ),
    Write(
        "05.absorb",
        "bring the query to the latent",
        f"""
        A head's score is q_C · (W_UK c) + q_R · k_R. It can be computed without making a key, if the query is changed
        once. `q` has shape [queries, heads, d_h + d_R]: first q_C, then q_R, which is rotated already. Return a tensor
        [queries, heads, d_c + d_R] whose product with [c; k_R] is that score, for every c.
        {SHAPES}
        """,
        (
            "Matrix products are associative: q_C · (W_UK c) = (W_UKᵀ q_C) · c. Nothing happens to q_R.",
            "Each query head needs the W_UK of its key head. Give `q_C` an axis of key heads and one of the heads in a "
            "group: q_C.unflatten(1, (self.kv_heads, -1)).",
            'torch.einsum("qkgd,kdc->qkgc", grouped, self.up[0]), then flatten the axes of key heads and groups to '
            "one, and put q_R after it with torch.cat.",
        ),
        15,
        LatentAttention,
        "absorb",
        (forms("queries", "the absorbed query meets what is kept as the query meets the key", absorbs),),
    ),
    Write(
        "05.values",
        "make a value of a mixture",
        f"""
        In the absorbed form attention mixes latents, not values: each head has Σ_j a_j c_j. `mixed` has shape [queries,
        heads, d_c]. Return each head's value, [queries, heads, d_v].
        {SHAPES}
        """,
        (
            "W_UV is linear: Σ_j a_j (W_UV c_j) = W_UV Σ_j a_j c_j.",
            "As in `absorb`, each query head needs the matrix of its key head. This time it is W_UV, and the sum runs "
            "over d_c.",
            "Unflatten the heads of `mixed` to [queries, kv_heads, group, d_c], multiply with self.up[1] over d_c, and "
            "flatten the heads again.",
        ),
        5,
        LatentAttention,
        "values",
        (forms("queries", "values are made of mixtures of latents", makes_values),),
    ),
    Repair(
        "05.scale",
        "right for prompts, wrong in decoding",
        """
        A model with this `over` passed its test: the attention of whole prompts agreed with that of another
        implementation to the last digit. But the texts that it wrote token by token were worse than those of the other.

        `self.form` says which form is wanted. None is for the one that needs fewer multiplications. A witness has the
        numbers of queries and of keys, the form, and a seed for the tensors, such as {"queries": 2, "keys": 3, "form":
        None, "seed": 0}. The queries are those of the last tokens.
        """,
        (
            "Which form does a whole prompt take, and which does a single new token?",
            "Both forms must compute the same scores before the softmax. By what are they multiplied in each?",
            "The absorbed query is d_c + d_R wide, but its product with what is kept is the old score, q · k. So the "
            "factor is the old one, `self.scale`. A witness needs at least two keys: the softmax over one key is 1 "
            "whatever the scale.",
        ),
        15,
        LatentAttention,
        "over",
        (ATTENDS,),
        (
            (
                "kept[..., : self.shape.kv_lora_rank], self.scale)",
                "kept[..., : self.shape.kv_lora_rank], absorbed.shape[-1] ** -0.5)",
            ),
        ),
        {"queries": 1, "keys": 2, "form": "absorbed", "seed": 0},
    ),
    Predict(
        "05.bytes",
        "what a latent saves, and what it costs",
        """
        A model has 4 layers of latent attention with 8 heads, each with its own keys and values. A latent has 96
        numbers. Of a query or key, 32 numbers are not rotated (d_h) and 16 are (d_R); a value has 32. Multiplications
        are counted as in the chapter: of one layer, without the projections that both forms share, and without the
        softmax.
        """,
        (
            "Only [c; k_R] is kept. The rotated key is one for all heads.",
            "Explicit: 8 · (32 + 32) · 96 multiplications for each kept token, then 32 + 16 + 32 a head and pair. "
            "Absorbed: 8 · (32 + 32) · 96 for each new token, then 2 · 96 + 16 a head and pair.",
            "The switch: the smallest m with 100 · 49,152 + m · 100 · 8 · 80 < m · 49,152 + m · 100 · 8 · 208.",
        ),
        10,
        {
            "kept": Question(
                "How many numbers does the cache keep of a token, in all layers?",
                (
                    (112, "that is one layer"),
                    (384, "the rotated key is kept, too"),
                    (896, "the rotated key is one for all heads"),
                ),
            ),
            "made": Question(
                "How many numbers would it keep if it kept the keys and values of all heads?",
                (
                    (2048, "a key has d_h + d_R numbers"),
                    (640, "that is one layer"),
                    (3072, "a value is not as wide as a key"),
                ),
            ),
            "explicit": Question(
                "One new token attends to 100, itself included. How many multiplications does the explicit form take?",
                (
                    (64000, "the keys and values of all 100 tokens are made first"),
                    (113152, "keys and values are made of all 100 latents, not of the new one alone"),
                ),
            ),
            "absorbed": Question(
                "And in the absorbed form?",
                (
                    (166400, "the query is brought to the latent, and the mixture made a value"),
                    (125952, "the mixture of latents is as wide as a latent: 96 more a head and pair"),
                    (4979200, "no key is made"),
                ),
            ),
            "switch": Question(
                "100 are kept, the new ones included. From how many new tokens on is the explicit form cheaper?",
                (
                    (1, "with one new token it makes 100 keys to use each of them once"),
                    (100, "well before: each pair costs the absorbed form 208, the explicit one 80"),
                    (32, "at 32 the absorbed form is still a little cheaper"),
                ),
            ),
        },
        counted,
    ),
)
