"""A tree of drafts in the paged cache: each row gives what its path gives as a text of its own, and so does the rest.

Where the kernels do not run (float64 on a CPU), their cache answers by the kernels' reference.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.cache.paged import PagedBatch, PagedCache
from inference_opt.cache.paged_kernel import PagedKernelCache
from inference_opt.kernels.tree import tree_rows
from inference_opt.model.attention import NoCache
from tests.toys import latent_toy, run, toy

MODELS = {"keys and values": toy(kv_heads=2), "latents": latent_toy()}
TEXT = st.lists(st.integers(0, 12), min_size=2, max_size=6)
PARENTS = st.lists(st.integers(-1, 8), max_size=9).map(lambda drawn: [min(p, i - 1) for i, p in enumerate(drawn)])
TREE = PARENTS.flatmap(
    lambda parents: st.tuples(
        st.just(parents), st.lists(st.integers(0, 12), min_size=len(parents), max_size=len(parents))
    )
)


def path_to(parents, node):
    """The nodes from the root to this one."""
    return [] if node < 0 else [*path_to(parents, parents[node]), node]


def last_logits(model, text):
    return model(torch.tensor(text), torch.arange(len(text)), NoCache([len(text)]))[-1]


@pytest.mark.parametrize("kind", [PagedCache, PagedKernelCache])
@pytest.mark.parametrize("name", MODELS)
@given(st.lists(st.tuples(TEXT, TREE), min_size=1, max_size=3), st.integers(1, 4), st.data())
@torch.inference_mode()
def test_each_row_of_a_tree_gives_what_its_path_gives(kind, name, texts, page_size, data):
    model = MODELS[name]
    needs = [-(-(len(text) + len(parents) + 1) // page_size) for text, (parents, _) in texts]
    order = data.draw(st.permutations(range(sum(needs))))
    tables = [[order.pop() for _ in range(n)] for n in needs]
    shape = model.config.kv_shape
    cache = kind(**shape, num_pages=sum(needs), page_size=page_size, dtype=model.dtype, device=model.device)
    for pages in (*cache.keys, *(cache.values or ())):
        pages.fill_(torch.nan)
    # All tokens but the last of each text, then the last with its tree of drafts. A text without drafts is a chain.
    starts, counts = [len(text) - 1 for text, _ in texts], [1 + len(parents) for _, (parents, _) in texts]
    run(model, torch.tensor([x for text, _ in texts for x in text[:-1]]), cache.batch(tables, [0] * len(texts), starts))
    trees = [
        tree_rows(parents, len(text)).behind(range(len(text) - 1, len(text))) if parents else None
        for text, (parents, _) in texts
    ]
    fed = torch.tensor([x for text, (_, tokens) in texts for x in (text[-1], *tokens)])
    logits = run(model, fed, cache.batch(tables, starts, counts, trees)).split(counts)
    for (text, (parents, tokens)), own in zip(texts, logits):
        for node in range(-1, len(parents)):
            whole = text + [tokens[each] for each in path_to(parents, node)]
            torch.testing.assert_close(own[node + 1], last_logits(model, whole), rtol=1e-9, atol=1e-9)

    # A path is kept. Its rows are then those of an ordinary text, which goes on.
    nodes = [data.draw(st.integers(-1, len(parents) - 1)) for _, (parents, _) in texts]
    paths = [path_to(parents, node) for (_, (parents, _)), node in zip(texts, nodes)]
    cache.keep_paths(tables, starts, [[0, *(each + 1 for each in path)] for path in paths])
    whole = [text + [tokens[each] for each in path] + [5] for (text, (_, tokens)), path in zip(texts, paths)]
    batch = cache.batch(tables, [len(each) - 1 for each in whole], [1] * len(texts))
    for text, own in zip(whole, run(model, torch.full((len(texts),), 5), batch)):
        torch.testing.assert_close(own, last_logits(model, text), rtol=1e-9, atol=1e-9)


def test_a_batch_without_trees_is_an_ordinary_one():
    cache = PagedCache(1, 1, 2, num_pages=4, page_size=2, dtype=torch.float64, device=torch.device("cpu"))
    assert type(cache.batch([[1, 0]], [1], [2], [None])) is PagedBatch


@pytest.mark.parametrize(
    ("parents", "message"), [([0], "parent of draft 0 .* got 0"), ([-1, -2], "got -2"), ([-1] * 64, "at most 63")]
)
def test_what_is_no_tree_is_refused(parents, message):
    with pytest.raises(ValueError, match=message):
        tree_rows(parents, 0)
