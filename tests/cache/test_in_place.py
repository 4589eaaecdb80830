"""The cache that kernels answer for is the gathering one: the plain functions in float64, Triton's in float32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_opt import Engine, SamplingParams, kernels, naive
from inference_opt.cache import paged_kernel
from inference_opt.cache.paged import PagedCache
from inference_opt.cache.paged_kernel import PagedKernelCache
from inference_opt.explain.record import record
from inference_opt.speculative.lookup import PromptLookup
from tests.toys import SHAPES, latent_toy, run, tokens_of, toy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEXT = st.lists(st.integers(0, 12), min_size=1, max_size=12)


def short_stems(tables, cached, page_size):
    """Toys' stems are short."""
    return kernels.shared_prefixes(tables, cached, page_size, min_keys=1)


@given(
    SHAPES,
    st.lists(TEXT, min_size=1, max_size=4),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([torch.float64, torch.float32]),
    st.data(),
)
@torch.inference_mode()
def test_logits_are_the_gathering_cache_s(shape, texts, page_size, latent, dtype, data):
    model = (latent_toy(shape["seed"], dtype=dtype) if latent else toy(**shape, dtype=dtype)).to(DEVICE)
    stem = data.draw(st.integers(0, 2))  # pages that all texts begin with
    if stem:
        texts = [texts[0][:1] * (stem * page_size) + text for text in texts]
    counts = [-(-len(text) // page_size) for text in texts]
    pages = data.draw(st.permutations(range(sum(counts) + 3)))
    tables = [[pages.pop() for _ in range(count)] for count in counts]
    tables = [tables[0][:stem] + table[stem:] for table in tables]
    shape = {"num_pages": sum(counts) + 3, "page_size": page_size, "dtype": dtype, "device": model.device}
    ours, theirs = (kind(**model.config.kv_shape, **shape) for kind in (PagedKernelCache, PagedCache))
    for cache in (ours, theirs):
        for each in (*cache.keys, *(cache.values or ())):
            each.fill_(torch.nan)  # what was never written must not be read
    fed = [0] * len(texts)
    patch = pytest.MonkeyPatch()
    patch.setattr(paged_kernel, "shared_prefixes", short_stems)
    while any(n < len(t) for n, t in zip(fed, texts)):
        # The stem in the first step whole, so that it is cached for all in the next.
        most = [len(t) - n for n, t in zip(fed, texts)]
        counts = [stem * page_size if stem and not any(fed) else data.draw(st.integers(min(1, m), m)) for m in most]
        part = [i for i, count in enumerate(counts) if count]
        tokens = torch.tensor([t for i in part for t in texts[i][fed[i] : fed[i] + counts[i]]], device=DEVICE)
        args = [tables[i] for i in part], [fed[i] for i in part], [counts[i] for i in part]
        mine, its = ours.batch(*args), theirs.batch(*args)
        assert torch.equal(mine.positions, its.positions)
        close = {"rtol": 1e-11, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-3}
        torch.testing.assert_close(run(model, tokens, mine), run(model, tokens, its), **close)
        fed = [n + count for n, count in zip(fed, counts)]
    patch.undo()


@given(SHAPES, st.lists(TEXT, min_size=1, max_size=4), st.integers(1, 4), st.booleans())
def test_the_engine_on_it_gives_the_oracle_s_tokens(shape, prompts, page_size, latent):
    """With the tree, stems read once, drafts and rollback."""
    model = (latent_toy(shape["seed"]) if latent else toy(**shape)).to(DEVICE)
    params = SamplingParams(max_new_tokens=8)
    prompts = prompts + [prompts[0] + prompt[:4] for prompt in prompts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference_opt.engine.engine.cache_class", lambda device: PagedKernelCache)
        patch.setattr(paged_kernel, "shared_prefixes", short_stems)
        engine = Engine(model, drafter=PromptLookup(), page_size=page_size)
        assert isinstance(engine.cache, PagedKernelCache)
        got = tokens_of(engine.generate(prompts, params))
    assert got == [naive.generate(model, prompt, params) for prompt in prompts]


@settings(max_examples=20)
@given(SHAPES, st.lists(TEXT, min_size=1, max_size=3), st.integers(1, 4), st.booleans(), st.booleans())
def test_its_recorded_attention_is_the_gathering_cache_s(shape, prompts, page_size, latent, single):
    dtype = torch.float32 if single else torch.float64
    model = (latent_toy(shape["seed"], dtype=dtype) if latent else toy(**shape, dtype=dtype)).to(DEVICE)
    told = []
    for kind in (PagedKernelCache, PagedCache):
        with pytest.MonkeyPatch.context() as patch, record(only="paged.") as trace:
            patch.setattr("inference_opt.engine.engine.cache_class", lambda device, kind=kind: kind)
            Engine(model, page_size=page_size).generate(prompts, SamplingParams(max_new_tokens=4))
        told.append(trace)
    ours, theirs = ([(s["event"], s["state"]["attention"]) for s in trace.steps] for trace in told)
    assert len(ours) == len(theirs) > 0
    for (event, mine), (its_event, its) in zip(ours, theirs):
        assert event == its_event
        assert torch.allclose(torch.tensor(mine.pop("weights")), torch.tensor(its.pop("weights")), atol=2e-3)
        assert mine == its
    assert all(all(s["invariants"].values()) for trace in told for s in trace.steps)
    assert "read in pages" in told[0].steps[0]["text"]
    assert "gathered from pages" in told[1].steps[0]["text"]


def test_an_engine_reads_pages_in_place_on_cuda_and_gathers_elsewhere():
    on_device = PagedKernelCache if DEVICE == "cuda" else PagedCache
    for device, kind in (("cpu", PagedCache), (DEVICE, on_device)):
        assert type(Engine(toy().to(device)).cache) is kind
