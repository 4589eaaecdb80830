"""Mixtures of experts by kernels against the plain module in float64: on CUDA, or under Triton's interpreter.

What is allocated holds NaN until it is written.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference_opt import Engine, SamplingParams, naive
from inference_opt.cache.fused_forward import can_fuse, fused_states
from inference_opt.cache.paged_kernel import PagedKernelCache
from inference_opt.engine.graph_runner import GraphRunner
from inference_opt.kernels import experts as kernels
from inference_opt.model.config import ExpertsShape, ModelConfig
from inference_opt.model.experts import MixtureOfExperts
from inference_opt.model.transformer import Transformer
from tests.kernels.test_kernels import DEVICE, ROUNDING, constants, poisoned, rounding
from tests.toys import latent_toy, toy

__all__ = ["poisoned"]
TOKENS = st.sampled_from([0, 1, 2, 3, 5, 17])
DTYPES = constants(tuple(ROUNDING), compiled=[torch.float32, torch.bfloat16])


@st.composite
def drawn(draw):
    groups, size = draw(st.sampled_from([(1, 1), (1, 2), (1, 6), (3, 4), (4, 3), (8, 2)]))
    corrected = draw(st.booleans()) and size > 1
    kept = draw(st.integers(1, groups))
    return ExpertsShape(
        n_routed_experts=groups * size,
        num_experts_per_tok=draw(st.integers(1, min(8, kept * size))),
        moe_intermediate_size=draw(st.sampled_from([1, 12, 33])),
        n_shared_experts=draw(st.integers(0, 2)),
        n_group=groups,
        topk_group=kept,
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])),
        norm_topk_prob=draw(st.booleans()),
        corrected=corrected,
    )


V2 = ExpertsShape(64, 6, 24, 2)
V3 = ExpertsShape(32, 8, 16, 1, n_group=8, topk_group=4, routed_scaling_factor=2.5, norm_topk_prob=True, corrected=True)
QWEN3 = ExpertsShape(12, 4, 16, 0, norm_topk_prob=True)
ODD = ExpertsShape(12, 5, 33, 2, n_group=3, topk_group=2, routed_scaling_factor=2.5)
SHAPES = st.sampled_from([V3, ODD]) if DEVICE == "cuda" else drawn()
SMALL = [
    ExpertsShape(6, 2, 8, 1, first_k_dense_replace=1),
    ExpertsShape(6, 3, 8, 2, n_group=3, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True, corrected=True),
]


def mixture(shape, dim, seed=0):
    """A mixture with random weights in float64, and the norm in front of it."""
    config = ModelConfig(9, dim, 1, 2, 2, 4, 8, 8, experts=shape)
    module, norm = MixtureOfExperts(config).double(), torch.nn.RMSNorm(dim, eps=1e-5).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in (*module.named_parameters(), ("norm", norm.weight)):
            spread = (2.0 if "router" in name else 1.0) * p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * spread)
    return module.to(DEVICE), norm.to(DEVICE)


def how(shape):
    return kernels.Routing(
        shape.num_experts_per_tok, shape.n_group, shape.topk_group, shape.norm_topk_prob, shape.routed_scaling_factor
    )


def weights_of(module):
    shared = module.shared
    return kernels.Weights(*module.stacked(), *((shared.gate_up.weight, shared.down.weight) if shared else ()))


def inputs(tokens, width, dtype, seed=0):
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    return x.to(DEVICE, dtype)


@torch.inference_mode()
def by_pairs(module, h, x, chosen, weights):
    """h + Σ weight · expert(x), one pair after the other."""
    out = h + (module.shared(x) if module.shared else 0)
    for token, (experts, theirs) in enumerate(zip(chosen.tolist(), weights)):
        for expert, weight in zip(experts, theirs):
            out[token] += weight * module.experts[expert](x[token, None])[0]
    return out


@example(shape=V2, tokens=3, seed=0)
@example(shape=V3, tokens=3, seed=0)
@example(shape=QWEN3, tokens=3, seed=0)
@given(shape=SHAPES, tokens=st.integers(1, 9), seed=st.integers(0, 99))
def test_routing_is_the_router_s(shape, tokens, seed):
    module, _ = mixture(shape, 16, seed)
    x = inputs(tokens, 16, torch.float64, seed)
    logits = torch.nn.functional.linear(x, module.router.weight).float()
    with torch.inference_mode():
        want, listed = module.router(x)
        correction = module.router.correction
        weights, chosen = reversed(
            kernels.route(logits, None if correction is None else correction.float(), how(shape))
        )
    # In float32, experts that are nearly equal may change places.
    by_expert = [
        torch.zeros(tokens, shape.n_routed_experts, device=DEVICE, dtype=torch.float64).scatter_(
            1, i.long(), w.double()
        )
        for i, w in ((chosen, weights), (listed, want))
    ]
    torch.testing.assert_close(*by_expert, rtol=1e-5, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in chosen.tolist())


@given(shape=SHAPES, tokens=st.sampled_from([1, 2, 17, 65]), dtype=DTYPES, width=constants([16, 130], compiled=[130]))
def test_scores_are_products_in_float32(shape, tokens, dtype, width):
    x, weight = inputs(tokens, width, dtype), inputs(shape.n_routed_experts, width, dtype, 1)
    got = kernels.score(x, weight)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-5)


@given(
    pairs=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    more=st.integers(0, 2),
    block=st.sampled_from([4, 64]),
)
def test_sorting_lists_each_expert_s_pairs_in_order(pairs, more, block):
    """Also where an expert has none, and where one has all."""
    number = max(pairs) + 1 + more
    chosen = torch.tensor(pairs, dtype=torch.int32, device=DEVICE)
    order, first = torch.full_like(chosen, -1), torch.full((number + 1,), -1, dtype=torch.int32, device=DEVICE)
    kernels.sort_expert[(number,)](chosen, order, first, len(pairs), number, block, PDL=False)
    assert order.tolist() == sorted(range(len(pairs)), key=lambda i: pairs[i])
    assert first.tolist() == [sum(x < e for x in pairs) for e in range(number + 1)]


@example(shape=V2, tokens=5, width=40, dtype=torch.bfloat16, one=False, seed=0)
@example(shape=V2, tokens=17, width=8, dtype=torch.float32, one=True, seed=0)  # more pairs than a tile has rows
@example(shape=ExpertsShape(2, 1, 4, 0), tokens=32, width=8, dtype=torch.float32, one=False, seed=0)  # tiles > experts
@given(shape=SHAPES, tokens=TOKENS, width=constants([8, 40], compiled=[40]), dtype=DTYPES, one=st.booleans(),
       seed=st.integers(0, 99))  # fmt: skip
def test_products_of_any_routing_are_the_plain_ones(shape, tokens, width, dtype, one, seed):
    """Any experts for any token, or the same for all."""
    module, _ = mixture(shape, width, seed)
    module = module.to(dtype)
    h, x = inputs(tokens, width, dtype, 1), inputs(tokens, width, dtype, 2)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(1 if one else tokens, shape.n_routed_experts, generator=generator)
    chosen = scores.argsort(-1)[:, : shape.num_experts_per_tok].expand(tokens, -1).int().contiguous().to(DEVICE)
    weights = torch.rand(chosen.shape, generator=generator).to(DEVICE)
    if tokens:
        with torch.inference_mode():
            got = kernels.mix(h.clone(), x, chosen, weights, weights_of(module))
        want = by_pairs(module.double(), h.double(), x.double(), chosen, weights.double())
        close = rounding(dtype, width) * (1 + shape.num_experts_per_tok)
        torch.testing.assert_close(got.double(), want, rtol=close, atol=close)


@settings(max_examples=10)
@given(shape=SHAPES, tokens=TOKENS, dim=constants([16, 40], compiled=[40]), seed=st.integers(0, 99))
def test_a_mixture_is_the_module_behind_its_norm(shape, tokens, dim, seed):
    module, norm = mixture(shape, dim, seed)
    h = inputs(tokens, dim, torch.float64, seed)
    with torch.inference_mode():
        want = h + module(norm(h)) if tokens else h
        low, norm = module.float(), norm.float()
        got = kernels.mixture(h.float(), norm, low.router.weight, low.router.correction, how(shape), weights_of(low))
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [2, 5])
@pytest.mark.parametrize("shape", SMALL, ids=["V2", "V3"])
def test_a_token_that_breaks_the_router_breaks_alone(shape, tokens):
    module, norm = (each.float() for each in mixture(shape, 16))
    h = inputs(tokens, 16, torch.float32)
    how_, weights = how(shape), weights_of(module)
    logits = kernels.score(norm(h).detach(), module.router.weight.detach())
    whole = kernels.route(logits, module.router.correction, how_)
    logits[1, -1] = torch.nan  # of an expert that would not be chosen
    chosen, theirs = kernels.route(logits, module.router.correction, how_)
    assert theirs[1].isnan().all()
    assert ((chosen >= 0) & (chosen < shape.n_routed_experts)).all()
    x = norm(h).detach()
    got = kernels.mix(h.clone(), x, chosen, theirs, weights)
    assert got[1].isnan().all()
    others = torch.arange(tokens) != 1
    want = kernels.mix(h.clone(), x, *whole, weights)
    assert torch.equal(got[others], want[others])


def test_the_same_bits_each_time_and_in_any_company():
    """A token's sum has a fixed order: the rows beside it do not change it, as long as the tile is the same."""
    module, norm = (each.float() for each in mixture(SMALL[1], 16))
    h = inputs(5, 16, torch.float32)
    given_ = (norm, module.router.weight, module.router.correction, how(SMALL[1]), weights_of(module))
    with torch.inference_mode():
        first = kernels.mixture(h.clone(), *given_)
        assert torch.equal(kernels.mixture(h.clone(), *given_), first)
        assert torch.equal(kernels.mixture(h.flip(0).clone(), *given_).flip(0), first)


def test_experts_are_stacked_once_and_stay_parameters():
    module, _ = mixture(V2, 16)
    before = [expert.gate_up.weight.detach().clone() for expert in module.experts]
    parameters = [expert.gate_up.weight for expert in module.experts]
    gate_up, down = module.stacked()
    assert torch.equal(gate_up, torch.stack(before))
    assert module.stacked()[0].data_ptr() == gate_up.data_ptr()
    assert all(expert.gate_up.weight is p for expert, p in zip(module.experts, parameters))
    with torch.no_grad():
        parameters[5].fill_(3.0)  # as an optimiser or a checkpoint writes: in place
    assert (module.stacked()[0][5] == 3).all()
    module.experts[1].down.weight = torch.nn.Parameter(torch.ones_like(down[1]))  # replaced
    assert (module.stacked()[1][1] == 1).all()
    module.float()
    assert module.stacked()[0].dtype == torch.float32
    assert torch.equal(module.stacked()[0][0], before[0].float())


def settled(model):
    """Logits so far apart that rounding in float32 does not change which is the largest."""
    with torch.no_grad():
        model.head.weight.mul_(3)
    return model.to(DEVICE)


@pytest.mark.parametrize(
    ("shape", "make"),
    [(SMALL[0], latent_toy), (SMALL[1], toy), (QWEN3, toy)],
    ids=["V2-latent", "V3-grouped", "Qwen3-grouped"],
)
def test_captured_steps_of_experts_give_the_oracle_s_tokens(monkeypatch, shape, make):
    monkeypatch.setattr("inference_opt.engine.engine.cache_class", lambda device: PagedKernelCache)
    monkeypatch.setattr(MixtureOfExperts, "forward", lambda *_: pytest.fail("the plain one asks the host"))
    model = settled(make(3, dtype=torch.float32, experts=shape))
    if DEVICE == "cpu":  # prompts are read eagerly, and there without kernels
        monkeypatch.setattr("inference_opt.engine.eager_runner.EagerRunner._states", fused_prompts)
    engine = Engine(model, page_size=4, decode_steps=3)
    assert isinstance(engine.runner, GraphRunner)
    params = [SamplingParams(max_new_tokens=4, ignore_eos=True, temperature=0.7 * (i % 2), seed=i) for i in range(3)]
    prompts = [[1, 2, 3], [1, 2, 4, 5], [7]]
    requests = [engine.add(prompt, own) for prompt, own in zip(prompts, params)]
    while engine.requests:
        engine.step()
    monkeypatch.undo()
    exact = model.double()
    for request, own in zip(requests, params):
        assert request.output == naive.generate(exact, request.prompt, own)


def fused_prompts(self, tokens, batch):
    plan = batch.plan(self.model.config.heads)
    return fused_states(self.model, tokens, batch.positions, batch.slots, batch.cache, plan)


def test_a_request_that_breaks_its_router_fails_alone(monkeypatch):
    monkeypatch.setattr("inference_opt.engine.engine.cache_class", lambda device: PagedKernelCache)
    model = settled(toy(3, dtype=torch.float32, experts=SMALL[1]))
    engine = Engine(model, radix=False, page_size=4, decode_steps=2)
    requests = [engine.add([1, i], SamplingParams(max_new_tokens=3, ignore_eos=True)) for i in range(3)]
    engine.step()
    bad = requests[1]
    for keys in engine.cache.keys:
        keys[bad.table[0]] = torch.nan
    while engine.requests:
        engine.step()
    assert [request.finish_reason for request in requests] == ["length", "error", "length"]
    assert "NaN" in bad.error
    exact = model.double()
    for request in (requests[0], requests[2]):
        assert request.output == naive.generate(exact, request.prompt, SamplingParams(3, ignore_eos=True))


def test_a_model_whose_experts_have_biases_is_not_captured(monkeypatch):
    monkeypatch.setattr("inference_opt.engine.engine.cache_class", lambda device: PagedKernelCache)
    model = toy(dtype=torch.float32, experts=SMALL[0], mlp_bias=True)
    assert not can_fuse(model)
    assert not isinstance(Engine(model).runner, GraphRunner)


@torch.no_grad()
def real_mixture(shape, dim):
    """`mixture` in bfloat16, made on the card: on the host these weights would take gigabytes."""
    config = ModelConfig(9, dim, 1, 2, 2, 4, 8, 8, experts=shape)
    with torch.device(DEVICE):
        module = MixtureOfExperts(config).bfloat16()
        norm = torch.nn.RMSNorm(dim, eps=1e-5, dtype=torch.bfloat16)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for name, p in (*module.named_parameters(), ("norm", norm.weight)):
        p.normal_(0, (2.0 if "router" in name else 1.0) * p.shape[-1] ** -0.5, generator=generator)
    return module, norm


@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
@pytest.mark.parametrize(
    "shape", [ExpertsShape(64, 6, 1408, 2), ExpertsShape(256, 8, 256, 1, 0, 8, 4, 2.5, True, True)]
)
@pytest.mark.parametrize("tokens", [1, 2, 8, 64, 300, 2000])
def test_a_captured_mixture_of_a_real_width_follows_its_input(shape, tokens):
    """One graph, replayed on other tokens, which choose other experts."""
    from inference_opt.kernels.graph import capture

    dim = 2048
    module, norm = real_mixture(shape, dim)
    h, out = inputs(tokens, dim, torch.bfloat16), torch.empty(tokens, dim, device=DEVICE, dtype=torch.bfloat16)
    weights, router = weights_of(module), module.router
    correction = None if router.correction is None else router.correction.float()

    @torch.inference_mode()
    def run():
        out.copy_(h)
        kernels.mixture(out, norm, router.weight, correction, how(shape), weights)

    graph = capture(run)
    for seed in range(3):
        h.copy_(inputs(tokens, dim, torch.bfloat16, seed + 1))
        graph.replay()
        with torch.inference_mode():
            x = kernels.normed(h, norm)
            logits = kernels.score(h, router.weight, norm) if tokens == 1 else kernels.score(x, router.weight)
            chosen, theirs = kernels.route(logits, correction, how(shape))
            few = slice(0, 64)  # the plain loop is slow
            want = by_pairs(module, h[few].float(), x[few], chosen[few], theirs[few])
        error = (out[few].float() - want).norm() / want.norm()
        assert error < 2e-2


@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
def test_a_step_of_experts_waits_for_no_host():
    """Any look from the host at numbers on the card is an error here."""
    config = ModelConfig(99, 64, 2, 4, 2, 16, 64, 64, experts=ExpertsShape(16, 4, 32, 1))
    with torch.device(DEVICE):
        model = Transformer(config).bfloat16().init_weights()
    cache = PagedKernelCache(**config.kv_shape, num_pages=8, page_size=16, dtype=model.dtype, device=model.device)
    batch = cache.batch([[1], [2], [3]], [0, 0, 0], [5, 6, 7])
    plan, tokens = batch.plan(config.heads), torch.arange(18, device=DEVICE)
    with torch.inference_mode():
        fused_states(model, tokens, batch.positions, batch.slots, cache, plan)
        torch.cuda.set_sync_debug_mode("error")
        try:
            fused_states(model, tokens, batch.positions, batch.slots, cache, plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")
