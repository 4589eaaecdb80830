"""The contiguous cache against recomputation, and its contract under bad input."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_opt.cache.contiguous import ContiguousCache
from inference_opt.model.attention import QUERY_BLOCK, NoCache, causal_attention
from tests.toys import SHAPES, run, toy


def cache_for(model, capacity):
    c = model.config
    return ContiguousCache(c.depth, c.kv_heads, c.head_dim, capacity, model.dtype, model.device)


@settings(suppress_health_check=[HealthCheck.large_base_example])  # a drawn chunking is never small
@given(SHAPES, st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=1, max_size=2), st.data())
@torch.inference_mode()
def test_any_chunking_gives_the_logits_of_one_piece(shape, texts, data):
    model = toy(**shape)
    cache = cache_for(model, [len(t) for t in texts])
    for capacity_row in (*cache.keys, *cache.values):  # what was never written must not be read
        for layer in capacity_row:
            layer.fill_(torch.nan)
    fed, logits = [0] * len(texts), [[] for _ in texts]
    while any(n < len(t) for n, t in zip(fed, texts)):
        counts = [data.draw(st.integers(0, len(t) - n)) for n, t in zip(fed, texts)]
        if not any(counts):
            continue
        tokens = [t for text, n, c in zip(texts, fed, counts) for t in text[n : n + c]]
        out = run(model, torch.tensor(tokens), cache.batch(counts))
        for rows, part in zip(logits, out.split(counts)):
            rows.append(part)
        fed = [n + c for n, c in zip(fed, counts)]
    for text, rows in zip(texts, logits):
        whole = model(torch.tensor(text), torch.arange(len(text)), NoCache([len(text)]))
        torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-11, atol=1e-11)


@given(st.integers(1, 3), st.integers(0, 2 * QUERY_BLOCK + 3), st.sampled_from([(4, 4), (6, 2), (3, 1)]))
def test_attention_is_the_textbook_s(queries_blocks, past, heads):
    (n_h, n_g), d = heads, 4
    queries = min(queries_blocks * QUERY_BLOCK - 1, 2 * QUERY_BLOCK + 1) if queries_blocks > 1 else 1 + past % 7
    generator = torch.Generator().manual_seed(past)
    keys = past + queries
    q = torch.randn(queries, n_h, d, dtype=torch.float64, generator=generator)
    k, v = torch.randn(2, keys, n_g, d, dtype=torch.float64, generator=generator)
    k_all, v_all = k.repeat_interleave(n_h // n_g, 1), v.repeat_interleave(n_h // n_g, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k_all) * 0.3
    hidden = torch.arange(keys) > torch.arange(past, keys)[:, None]
    expected = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v_all)
    torch.testing.assert_close(causal_attention(q, k, v, 0.3), expected, rtol=1e-12, atol=1e-12)


def test_bytes_per_token_are_the_formula_s():
    model = toy(dtype=torch.float32)
    assert cache_for(model, [3]).bytes_per_token() == 4 * model.config.kv_elements_per_token


@pytest.mark.parametrize("counts", [[4, 0], [0, 3], [1], [-1, 1]])
def test_counts_that_do_not_fit_change_nothing(counts):
    cache = cache_for(toy(), [3, 2])
    cache.batch([1, 1])
    with pytest.raises(ValueError, match="tokens"):
        cache.batch(counts)
    assert cache.lengths == [1, 1]


def test_a_cache_holds_something():
    for capacity in ([], [0], [2, -1]):
        with pytest.raises(ValueError, match="room"):
            cache_for(toy(), capacity)


@pytest.mark.usefixtures("untyped")
def test_what_is_no_whole_number_is_refused():
    for capacity in ([2.5], [True], ["4"]):
        with pytest.raises(ValueError, match="a capacity must be an integer"):
            cache_for(toy(), capacity)
    cache = cache_for(toy(), [4, 4])
    cache.batch([2, 1])
    for counts in ([1.0, 0], [True, 0], ["1", 0]):
        with pytest.raises(ValueError, match="a count must be an integer"):
            cache.batch(counts)
    assert cache.lengths == [2, 1]
