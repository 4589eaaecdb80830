"""The kernels around latent attention against the module's own operations: on CUDA, or under Triton's interpreter."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference_opt.cache import explicit
from inference_opt.cache.fused_forward import fused_states
from inference_opt.cache.paged import PagedCache
from inference_opt.cache.paged_kernel import PagedKernelCache
from inference_opt.kernels import latents
from inference_opt.lab.bench.shapes import SHAPES as SHAPES_BY_NAME
from inference_opt.model.config import LatentShape, ModelConfig
from inference_opt.model.mla import LatentAttention
from inference_opt.model.rope import RopeTable, rotate
from tests.kernels.test_kernels import DEVICE, ROUNDING, constants, poisoned, rounding
from tests.toys import latent_toy

__all__ = ["poisoned"]


@st.composite
def drawn(draw):
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
    latent = LatentShape(
        kv_lora_rank=draw(st.sampled_from([1, 16, 70, 200])),
        qk_rope_head_dim=draw(st.sampled_from([2, 6, 64])),
        qk_nope_head_dim=draw(st.sampled_from([1, 16, 40])),
        v_head_dim=draw(st.sampled_from([1, 16, 24])),
        normed=draw(st.booleans()),
    )
    return kv_heads * group, kv_heads, latent


DEEPSEEK = (2, 2, LatentShape(512, 64, 128, 128))
ODD = (4, 2, LatentShape(70, 6, 40, 24, normed=False))
SHAPES = st.sampled_from([DEEPSEEK, ODD]) if DEVICE == "cuda" else drawn()


@example(shape=DEEPSEEK, tokens=2, page=16, dtype=torch.bfloat16, seed=0)
@given(
    shape=SHAPES, tokens=st.sampled_from([1, 3, 18]), page=st.sampled_from([1, 16]),
    dtype=constants(tuple(ROUNDING), compiled=[torch.float32, torch.bfloat16]), seed=st.integers(0, 99),
)  # fmt: skip
def test_absorption_and_values_are_the_module_s(shape, tokens, page, dtype, seed):
    """And norm, rotation and writing, into slots of any order, of which one may be nowhere."""
    heads, kv_heads, latent = shape
    head_dim = latent.qk_nope_head_dim + latent.qk_rope_head_dim
    config = ModelConfig(9, 8, 1, heads, kv_heads, head_dim, 8, 32, latent=latent)
    g = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(size, generator=g).to(DEVICE, dtype)

    module = LatentAttention(config).to(DEVICE, dtype)
    with torch.no_grad():
        module.kv_up.weight.copy_(random(*module.kv_up.weight.shape) * latent.kv_lora_rank**-0.5)
        if module.kv_latent_norm is not None:
            module.kv_latent_norm.weight.copy_(random(latent.kv_lora_rank))
    width = latent.kv_lora_rank + latent.qk_rope_head_dim
    q, kept = random(tokens, heads, head_dim) * latent.qk_nope_head_dim**-0.5, random(tokens, width)
    mixed, buffer = random(tokens, heads, latent.kv_lora_rank), torch.full((25, page, 1, width), 7.0)
    slots = torch.randperm(24 * page, generator=g)[:tokens].to(DEVICE)
    if seed % 2:
        slots[seed % tokens] = -1
    positions = torch.randint(32, (tokens,), generator=g).to(DEVICE)
    rope = RopeTable(config, dtype, torch.device(DEVICE))
    up = module.kv_up.weight.detach().unflatten(0, (kv_heads, -1))
    buffer = buffer.to(DEVICE, dtype)
    pages = buffer[1:]  # what is written to slot −1 would lie before them
    given_ = (q, kept, module.kv_latent_norm, up, rope.cos, rope.sin, positions, slots, pages)
    with torch.inference_mode():
        absorbed, valued = latents.absorb(*given_), latents.values(mixed, up, latent.qk_nope_head_dim)
        exact = module.double()
        plain, turned = q.double().split((latent.qk_nope_head_dim, latent.qk_rope_head_dim), dim=-1)
        at = [each.double()[positions, None] for each in (rope.cos, rope.sin)]
        want = exact.absorb(torch.cat((plain, rotate(turned, *at)), dim=-1))
        new, key = kept.double().unsqueeze(1).split((latent.kv_lora_rank, latent.qk_rope_head_dim), dim=-1)
        new = new if exact.kv_latent_norm is None else exact.kv_latent_norm(new)
        right = torch.full_like(pages, 7.0).double()
        there = slots >= 0
        right.flatten(0, 1)[slots[there]] = torch.cat((new, rotate(key, *at)), dim=-1)[there]
        value = exact.values(mixed.double()).flatten(1)
    close = {key: 4 * rounding(dtype, max(latent.kv_lora_rank, 16)) for key in ("rtol", "atol")}
    torch.testing.assert_close(absorbed.double(), want, **close)
    torch.testing.assert_close(pages.double(), right, **close)
    assert (buffer[0] == 7).all()
    torch.testing.assert_close(valued.double(), value, **close)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 9),
    rank=constants([None, 5], compiled=[5]),
    normed=constants([False, True], compiled=[True]),
    kv_heads=constants([1, 4], compiled=[4]),
    biases=constants([(), (), ("qkv_bias",), ("out_bias", "mlp_bias")], compiled=[(), ("out_bias", "mlp_bias")]),
)
def test_fused_latent_layers_give_the_model_s_states(seed, rank, normed, kv_heads, biases):
    """Prompts, several rows, and one row, with taps; halves without kernels are the module's."""
    more = {"q_lora_rank": rank, "normed": normed, "kv_heads": kv_heads} | dict.fromkeys(biases, True)
    model = latent_toy(seed, dtype=torch.float32, **more).to(DEVICE)
    theirs, mine = (
        PagedKernelCache(**model.config.kv_shape, num_pages=8, page_size=4, dtype=model.dtype, device=model.device)
        for _ in range(2)
    )
    taps = tuple(range(model.config.depth))
    steps = [([0, 0], [5, 3], [1, 2, 3, 4, 5, 6, 7, 8]), ([5, 3], [1, 2], [3, 4, 5]), ([6], [1], [9])]
    with torch.inference_mode():
        for starts, counts, ids in steps:
            tables, tokens = [[3, 1], [5, 2]][: len(starts)], torch.tensor(ids, device=DEVICE)
            a, b = (cache.batch(tables, starts, counts) for cache in (theirs, mine))
            expected = model.hidden_states(tokens, a.positions, a, taps=taps)
            plan = b.plan(model.config.heads)
            got = fused_states(model, tokens, b.positions, b.slots, mine, plan, taps)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@example(seed=1, kv_heads=2, rank=None, page=4, chunks=[(0, 3), (0, 4), (0, 2)], front=1, stem="now")
@example(seed=2, kv_heads=2, rank=None, page=1, chunks=[(0, 1), (0, 9), (0, 2)], front=1, stem="before")
@settings(max_examples=6)
@given(
    seed=st.integers(0, 9),
    kv_heads=constants([1, 2, 4], compiled=[2]),
    rank=constants([None, 5], compiled=[None]),
    page=st.sampled_from([1, 4, 16]),
    chunks=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 10)), min_size=1, max_size=4),
    front=st.integers(0, 4),
    stem=st.sampled_from(["none", "before", "now"]),
)
def test_the_explicit_form_gives_the_model_s_states(seed, kv_heads, rank, page, chunks, front, stem):
    """Prompts with and without a cached prefix, behind sequences in the absorbed form.

    A shared prefix was computed before, or the first sequence computes it now.
    """
    model = latent_toy(seed, dtype=torch.float32, kv_heads=kv_heads, q_lora_rank=rank).to(DEVICE)
    exact = latent_toy(seed, kv_heads=kv_heads, q_lora_rank=rank).to(DEVICE)
    if stem != "none":
        chunks = [(12, count) for _, count in chunks]
    if stem == "now":
        chunks[0] = (0, 12 + chunks[0][1])
    starts, counts = map(list, zip(*chunks))
    used = [-(-(start + count) // page) for start, count in chunks]
    shared = 12 // page if stem != "none" else 0
    order = torch.randperm(sum(used) + 1, generator=torch.Generator().manual_seed(seed)).tolist()
    common = [order.pop() for _ in range(shared)]
    tables = [common + [order.pop() for _ in range(n - shared)] for n in used]
    sizes = {**model.config.kv_shape, "num_pages": sum(used) + 1, "page_size": page, "device": torch.device(DEVICE)}
    mine, theirs = PagedKernelCache(**sizes, dtype=torch.float32), PagedCache(**sizes, dtype=torch.float64)
    # What is known before: of a prefix that is computed now, what does not fill a page.
    known = 12 // page * page if stem == "now" else 0
    prefixes = [(table, start) for table, start in zip(tables, starts) if start > known]
    ids = torch.arange(sum(starts) + sum(counts), device=DEVICE) % 13
    with torch.inference_mode():
        if prefixes:
            tokens = torch.cat([torch.arange(start, device=DEVICE) % 13 for _, start in prefixes])
            before = ([table for table, _ in prefixes], [0] * len(prefixes), [start for _, start in prefixes])
            a, b = theirs.batch(*before), mine.batch(*before)
            exact.hidden_states(tokens, a.positions, a)
            fused_states(model, tokens, b.positions, b.slots, mine, b.plan(4))
        a, b = (cache.batch(tables, starts, counts) for cache in (theirs, mine))
        tokens = ids[: sum(counts)]
        expected, _ = exact.hidden_states(tokens, a.positions, a, taps=())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(explicit, "first_explicit", lambda config, starts, counts: min(front, len(counts)))
            plan, prompts = explicit.plan_forms(model.config, b)
        assert (prompts is None) == (front >= len(chunks))
        got, _ = fused_states(model, tokens, b.positions, b.slots, mine, plan, (), prompts)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def pairs_of(new, keys):
    return sum(keys - new + i + 1 for i in range(new))


@given(
    st.sampled_from([c for c in SHAPES_BY_NAME.values() if c.latent]),
    st.lists(st.tuples(st.sampled_from([0, 64, 1000, 20_000]), st.sampled_from([1, 4, 300, 2_000, 8_000])), max_size=6),
)
def test_the_explicit_form_is_for_the_prompts_at_the_end_that_it_is_cheaper_for(config, chunks):
    starts, counts = [start for start, _ in chunks], [count for _, count in chunks]
    s, first = config.latent, explicit.first_explicit(config, starts, counts)
    made = (s.qk_nope_head_dim + s.v_head_dim) * s.kv_lora_rank
    gains = []
    for start, new in chunks:
        pairs = pairs_of(new, start + new) * config.heads
        asked = (start + new) * config.kv_heads * made + explicit.SLOWER * pairs * (config.head_dim + s.v_head_dim)
        assert explicit.multiplications(config, new, start + new)[0] == asked
        gains.append(new * config.heads * made + pairs * (2 * s.kv_lora_rank + s.qk_rope_head_dim) - asked)
    assert all(gain > 0 for gain in gains[first:])
    assert first == len(chunks) or sum(gains[first:]) > explicit.LAUNCHES
    keys = sum(start + new for start, new in chunks[first:])
    assert keys * config.kv_heads * (config.head_dim + s.v_head_dim) <= explicit.MOST


def test_a_long_prompt_is_explicit_and_a_decoding_step_is_not():
    config = SHAPES_BY_NAME["DeepSeek-V2-Lite"]
    assert explicit.first_explicit(config, [0] * 8, [2_048] * 8) == 0
    assert explicit.first_explicit(config, [4_000, 4_000, 0], [1, 1, 8_000]) == 2
    assert explicit.first_explicit(config, [0], [128]) == 1
    assert explicit.first_explicit(config, [16_384] * 8, [64] * 8) == 8
    assert explicit.first_explicit(config, [4_000] * 64, [1] * 64) == 64


@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
@pytest.mark.parametrize("tokens", [1, 8, 64, 65, 1000])
def test_kernels_of_a_real_width_are_the_module_s(tokens):
    test_absorption_and_values_are_the_module_s.hypothesis.inner_test(
        (16, 16, LatentShape(512, 64, 128, 128)), min(tokens, 24 * 64), 64, torch.bfloat16, tokens
    )
