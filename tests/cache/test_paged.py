"""The paged cache is the contiguous one, whatever pages the tokens lie in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.cache.contiguous import ContiguousCache
from inference_opt.cache.paged import PagedCache
from inference_opt.model.attention import NoCache, causal_attention
from tests.toys import SHAPES, run, toy

F64, CPU = torch.float64, torch.device("cpu")
TEXT = st.lists(st.integers(0, 12), min_size=1, max_size=12)


def cache_for(model, num_pages, page_size):
    """Filled with NaN: what was never written must not be read."""
    c = model.config
    cache = PagedCache(c.depth, c.kv_heads, c.head_dim, num_pages, page_size, model.dtype, model.device)
    for pages in (*cache.keys, *cache.values):
        pages.fill_(torch.nan)
    return cache


def tables_for(texts, page_size, data, spare=3):
    """A page table a text, of pages in no order."""
    counts = [-(-len(text) // page_size) for text in texts]
    pages = data.draw(st.permutations(range(sum(counts) + spare)))
    return [[pages.pop() for _ in range(count)] for count in counts], sum(counts) + spare


@given(SHAPES, st.lists(TEXT, min_size=1, max_size=4), st.integers(1, 7), st.data())
@torch.inference_mode()
def test_any_chunking_over_any_pages_gives_the_logits_of_one_piece(shape, texts, page_size, data):
    model = toy(**shape)
    c = model.config
    tables, num_pages = tables_for(texts, page_size, data)
    cache = cache_for(model, num_pages, page_size)
    contiguous = ContiguousCache(c.depth, c.kv_heads, c.head_dim, [len(t) for t in texts], model.dtype, model.device)
    fed, logits = [0] * len(texts), [[] for _ in texts]
    while any(n < len(t) for n, t in zip(fed, texts)):
        counts = [data.draw(st.integers(0, len(t) - n)) for n, t in zip(fed, texts)]
        if not any(counts):
            counts = [len(t) - n for n, t in zip(fed, texts)]
        part = [i for i, count in enumerate(counts) if count]
        tokens = torch.tensor([t for text, n, count in zip(texts, fed, counts) for t in text[n : n + count]])
        out = run(
            model, tokens, cache.batch([tables[i] for i in part], [fed[i] for i in part], [counts[i] for i in part])
        )
        assert torch.equal(out, run(model, tokens, contiguous.batch(counts)))
        for i, rows in zip(part, out.split([counts[i] for i in part])):
            logits[i].append(rows)
        fed = [n + count for n, count in zip(fed, counts)]
    for text, rows in zip(texts, logits):
        whole = model(torch.tensor(text), torch.arange(len(text)), NoCache([len(text)]))
        torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-11, atol=1e-11)


@given(SHAPES, TEXT, TEXT, TEXT, st.integers(1, 4), st.booleans(), st.data())
@torch.inference_mode()
def test_a_page_written_in_a_batch_is_read_in_the_same_batch(shape, stem, a, b, page_size, reader_first, data):
    # The writer computes the whole text; the reader lists the writer's pages of the stem, and computes what follows.
    model = toy(**shape)
    stem = (stem * page_size)[: -(-len(stem) // page_size) * page_size][: 12 // page_size * page_size]
    writer, reader = stem + a, stem + b
    (mine, its), num_pages = tables_for([writer, reader], page_size, data)
    shared = len(stem) // page_size
    its[:shared] = mine[:shared]
    parts = [(mine, 0, writer), (its, len(stem), b)]
    if reader_first:
        parts.reverse()
    tables, starts, fed = zip(*parts)
    cache = cache_for(model, num_pages, page_size)
    counts = [len(tokens) for tokens in fed]
    everything = torch.tensor([t for tokens in fed for t in tokens])
    outs = run(model, everything, cache.batch(tables, starts, counts)).split(counts)
    for text, out in zip((reader, writer) if reader_first else (writer, reader), outs):
        whole = model(torch.tensor(text), torch.arange(len(text)), NoCache([len(text)]))
        torch.testing.assert_close(out, whole[-len(out) :], rtol=1e-11, atol=1e-11)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 6), st.data())
@torch.inference_mode()
def test_a_latent_layout_is_one_whose_values_are_columns_of_its_keys(lengths, page_size, latent_dim, data):
    tables, num_pages = tables_for([[0] * n for n in lengths], page_size, data)
    generator = torch.Generator().manual_seed(sum(lengths))
    q = torch.randn(sum(lengths), 4, 6, dtype=F64, generator=generator)
    k = torch.randn(sum(lengths), 1, 6, dtype=F64, generator=generator)
    latent = PagedCache(1, 1, 6, num_pages, page_size, F64, CPU, latent_dim)
    both = PagedCache(1, 1, 6, num_pages, page_size, F64, CPU)
    args = tables, [0] * len(lengths), lengths
    v = torch.nn.functional.pad(k[..., :latent_dim], (0, 6 - latent_dim))
    torch.testing.assert_close(
        latent.batch(*args).attend_latents(0, q, k, Columns(latent_dim)),
        both.batch(*args).attend(0, q, k, v, 0.4)[..., :latent_dim],
        rtol=1e-12,
        atol=1e-12,
    )
    assert latent.bytes_per_token() * 2 == both.bytes_per_token() == 2 * 6 * 8
    with pytest.raises(ValueError, match="no place for values"):
        latent.batch(*args).attend(0, q, k, k, 0.4)
    with pytest.raises(ValueError, match="latent_dim for latents"):
        both.batch(*args).attend_latents(0, q, k, Columns(latent_dim))


class Columns:
    """Latents whose first columns are the values."""

    scale = 0.4

    def __init__(self, latent_dim):
        self.latent_dim = latent_dim

    def expand(self, kept):  # kernels and training ask for these
        raise NotImplementedError

    absorb = values = expand

    def over(self, q, kept):
        return causal_attention(q, kept, kept[..., : self.latent_dim], self.scale)


@pytest.mark.parametrize(
    ("tables", "lengths", "counts", "message"),
    [
        ([[0], [4]], [0, 0], [1, 1], "sequence 1 .*not all in"),
        ([[-1]], [0], [1], "not all in"),
        ([[0]], [0], [3], "do not fit"),
        ([[0]], [2], [1], "do not fit"),
        ([[]], [0], [1], "do not fit"),
        ([[0]], [0], [0], "0 new tokens"),
        ([[0]], [1], [-1], "-1 new tokens"),
        ([[0]], [0, 0], [1], "shorter|longer|argument"),
        ([[0], [1]], [0], [1], "shorter|longer|argument"),
    ],
)
def test_batches_that_do_not_fit_change_nothing(tables, lengths, counts, message):
    cache = cache_for(toy(), 4, 2)
    grows = PagedCache(1, 1, 2, 4, 2, F64, CPU, grows=True)
    for each in (cache, grows):
        with pytest.raises(ValueError, match=message):
            each.batch(tables, lengths, counts)
    assert len(grows.keys[0]) == 0


def test_an_empty_batch_is_no_error():
    assert cache_for(toy(), 1, 1).batch([], [], []).positions.tolist() == []


def test_a_batch_knows_where_its_tokens_go():
    batch = cache_for(toy(), 4, 2).batch([[3], [0, 2]], [1, 0], [1, 3])
    assert batch.slots.tolist() == [7, 0, 1, 4]
    assert batch.positions.tolist() == [1, 0, 1, 2]


@torch.inference_mode()
def test_batches_made_side_by_side_do_not_know_of_each_other():
    """A cache remembers no batch: the second one changes nothing for the first."""
    model = toy()
    cache = cache_for(model, 4, 2)
    first, second = cache.batch([[0, 1]], [0], [3]), cache.batch([[2, 3]], [0], [4])
    texts = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6, 7])
    for text, batch in zip(texts, (first, second)):
        whole = model(text, torch.arange(len(text)), NoCache([len(text)]))
        torch.testing.assert_close(run(model, text, batch), whole, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, 1)])
def test_a_cache_has_pages_and_pages_have_tokens(sizes):
    with pytest.raises(ValueError, match="at least one page"):
        PagedCache(1, 1, 2, *sizes, F64, CPU)


@pytest.mark.parametrize("latent_dim", [0, -1, 3])
def test_a_value_is_a_part_of_its_key(latent_dim):
    with pytest.raises(ValueError, match="latent_dim"):
        PagedCache(1, 1, 2, 1, 1, F64, CPU, latent_dim)


def test_bytes_per_token_are_the_formula_s():
    model = toy(dtype=torch.float32)
    assert cache_for(model, 3, 2).bytes_per_token() == 4 * model.config.kv_elements_per_token
