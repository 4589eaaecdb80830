"""Replayed steps are steps: the same tokens, however many in a row, whatever the pages and who else is there.

Under Triton's interpreter the steps are run; on CUDA the same tests capture and replay them.
"""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_opt import Engine, SamplingParams, naive
from inference_opt.cache.fused_forward import fused_logits, fused_states
from inference_opt.cache.paged_kernel import PagedKernelCache
from inference_opt.engine import captured_steps, graph_runner
from inference_opt.engine.captured_steps import CapturedSteps
from inference_opt.engine.clock import Clock
from inference_opt.engine.eager_runner import EagerRunner
from inference_opt.engine.graph_runner import GraphRunner
from inference_opt.explain.views.schedule import sound_ownership
from inference_opt.kernels import fused, paged, shared_prefixes
from inference_opt.kernels.letter import Letter
from inference_opt.kernels.steps import Steps
from inference_opt.model.attention import NoCache
from inference_opt.model.rope import rotate
from inference_opt.speculative.choice import Choice
from inference_opt.speculative.lookup import PromptLookup
from inference_opt.speculative.rules import point_mass
from tests.toys import SHAPES, latent_toy, toy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEXT = st.lists(st.integers(0, 12), min_size=1, max_size=12)
MIXED = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(1, 9),
    temperature=st.sampled_from([0.0, 0.0, 0.7, 3.0]),
    top_k=st.sampled_from([0, 0, 3]),
    top_p=st.sampled_from([1.0, 1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.0, 0.1]),
    seed=st.integers(0, 2**63),
    logprobs=st.booleans(),
)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def in_place(monkeypatch):
    """Kernels answer on every machine, and toys' prefixes are short."""
    monkeypatch.setattr("inference_opt.engine.engine.cache_class", lambda device: PagedKernelCache)
    monkeypatch.setattr(
        captured_steps,
        "shared_prefixes",
        lambda tables, cached, page: shared_prefixes(tables, cached, page, min_keys=1),
    )


def decisive(model):
    """Logits so far apart that rounding in float32 does not change which is the largest."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(3)
    return model


@settings(max_examples=12)
@given(
    SHAPES,
    st.lists(TEXT, min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(1, 7),
    st.lists(MIXED, min_size=5, max_size=5),
    st.booleans(),
    st.one_of(st.none(), st.builds(PromptLookup, st.integers(1, 3), st.just(1))),
    st.sampled_from([None, 1, 3, 13]),
)
def test_the_engine_gives_the_oracle_s_tokens(shape, prompts, page_size, steps, mixed, latent, drafter, gamma):
    """Texts of different lengths, on shared stems, greedy and sampled, drafted or not, in a pool too small for all."""
    model = latent_toy(shape["seed"], dtype=torch.float32) if latent else toy(**shape, dtype=torch.float32)
    model = decisive(model).to(DEVICE)
    prompts = prompts + [prompts[0] + prompt[:4] for prompt in prompts]
    params = [replace(own, seed=own.seed + i) for i, (own, _) in enumerate(zip(mixed * 2, prompts))]
    num_pages = 2 * max(-(-(len(p) + each.max_new_tokens) // page_size) for p, each in zip(prompts, params)) + 2
    engine = Engine(model, page_size=page_size, num_pages=num_pages, decode_steps=steps, drafter=drafter, gamma=gamma)
    assert isinstance(engine.runner, GraphRunner)
    for pages in (*engine.cache.keys, *(engine.cache.values or ())):
        pages.fill_(torch.nan)  # what was never written must not be read
    requests = [engine.add(prompt, each) for prompt, each in zip(prompts, params)]
    while not all(request.finished for request in requests):
        engine.step()
        assert all(sound_ownership(engine.scheduler).values())
    exact = model.double()
    for request, prompt, each in zip(requests, prompts, params):
        assert request.output == naive.generate(exact, prompt, each)
        text, own = request.tokens.tolist(), len(prompt) - 1
        tokens, positions = (torch.tensor(x, device=DEVICE) for x in (text[:-1], range(len(text) - 1)))
        with torch.inference_mode():
            scores = exact(tokens, positions, NoCache([len(tokens)])).log_softmax(dim=-1)[own:]
        right = [float(row[x]) for row, x in zip(scores, request.output)] if each.logprobs else []
        assert request.logprobs == pytest.approx(right, rel=1e-4, abs=1e-4)


def test_capturing_runs_a_step_of_nobody(monkeypatch):
    """It writes nowhere, and merges no states: those that are listed are of an earlier, perhaps larger, batch."""
    model = toy(dtype=torch.float32).to(DEVICE)
    engine = Engine(model, page_size=2, decode_steps=2, max_running=4)
    runner, listed = engine.runner, []

    def warmed(run, pool):
        assert (runner.steps.place[1] == -1).all()
        assert (runner.captured.plans[0].offsets.diff() == 0).all()
        run()
        return SimpleNamespace(replay=run)

    monkeypatch.setattr(captured_steps, "capture", warmed)
    runner.captured.pool = "any"
    for temperature, top_k in [(0.0, 0), (1.0, 0), (1.0, 3)]:
        stem = [1, 2, 3, 4, 5, 6, 7, 8]
        params = SamplingParams(4, temperature, top_k, seed=1, ignore_eos=True)
        engine.generate([[*stem, 9], [*stem, 10], [*stem, 11]], params)
        listed.append(int(runner.captured.plans[0].offsets[-1]))
    assert all(listed), "there were states to merge"
    assert len({kind for kind, *_ in runner.captured.graphs}) == 3


def test_of_the_graphs_that_can_hold_a_plan_the_smallest_is_replayed(monkeypatch):
    """A long text needs longer lists. Programs of nobody, and merges of nothing, then stay with texts like it."""
    model = toy(max_context=512, dtype=torch.float32).to(DEVICE)
    engine, taken = Engine(model, radix=False, page_size=4, decode_steps=2, max_running=2), []
    inner = CapturedSteps._graph
    monkeypatch.setattr(CapturedSteps, "_graph", lambda self, *args: taken.append(inner(self, *args)) or taken[-1])
    params, sizes, exact = SamplingParams(max_new_tokens=4, ignore_eos=True), [], deepcopy(model).double()
    for prompt in ([1, 2], [1, 2] * 100, [1, 2], [1, 2] * 100):
        taken.clear()
        assert engine.generate([prompt], params)[0].tokens == naive.generate(exact, prompt, params)
        sizes.append([each.sizes for each in taken])
    assert sizes[0] == sizes[2]
    assert sizes[1] == sizes[3]
    assert sizes[0][0] < sizes[1][0]
    assert engine.runner.captures == 2, "nothing was captured twice"


def test_many_tokens_a_step_and_fewer_where_a_text_ends(monkeypatch):
    model = toy(dtype=torch.float32).to(DEVICE)
    engine = Engine(model, page_size=4, decode_steps=8)
    long, short = (engine.add([1, 2, 3], SamplingParams(max_new_tokens=n, ignore_eos=True)) for n in (8, 3))
    engine.step()  # the prompts: two chunks, and a token each
    outputs = {output.request: output.tokens for output in engine.step()}
    assert [len(outputs[each]) for each in (long, short)] == [4, 2]
    assert len(engine.step()[0].tokens) == 3
    assert long.output[:3] == short.output


def test_a_run_with_drafts_has_no_more_steps_than_were_chosen(monkeypatch):
    """Few are risked where drafts may lose: not more because each might give many tokens."""
    monkeypatch.setattr(Choice, "best", lambda self, texts, wanted, *rest: (min(3, *wanted), 2))
    model, runs = toy(dtype=torch.float32).to(DEVICE), []
    engine = Engine(model, page_size=4, decode_steps=8, drafter=PromptLookup(1, 1))
    time = engine.runner.clock.time
    monkeypatch.setattr(captured_steps, "IDLE", 2)  # steps of nobody, which show what a step costs
    monkeypatch.setattr(engine.runner.clock, "time", lambda step, times: runs.append(times) or time(step, times))
    engine.generate([[1, 2, 3, 1, 2], [3, 4, 5]], SamplingParams(max_new_tokens=20, ignore_eos=True))
    assert max(runs) == 2


def test_a_look_is_what_a_run_takes_besides_its_steps(monkeypatch):
    now = iter([10.0, 13.0, 20.0, 30.0])
    monkeypatch.setattr("inference_opt.engine.clock.perf_counter", lambda: next(now))
    clock = Clock(torch.device("cpu"), shared=False)
    assert [clock.look(spent) for spent in (1.0, 2.5, 8.0)] == [None, 0.5, 0.0]
    clock.forget()
    assert clock.look(1.0) is None, "something else came before it"


def test_a_plan_serves_several_runs_of_the_same_texts(monkeypatch):
    model, cuts, cut = toy(dtype=torch.float32).to(DEVICE), [], captured_steps.cut
    monkeypatch.setattr(
        captured_steps, "cut", lambda ends, *rest, **more: cuts.append(ends) or cut(ends, *rest, **more)
    )
    engine = Engine(model, page_size=4, decode_steps=2, radix=False)
    first = engine.add([1, 2, 3], SamplingParams(max_new_tokens=15, ignore_eos=True))
    while not first.finished:
        engine.step()
    assert cuts == [[3 + 2 + 8], [3 + 12 + 8]], "seven runs: five, and two"
    second = engine.add([1, 2], SamplingParams(max_new_tokens=5, ignore_eos=True))
    while not second.finished:
        engine.step()
    assert cuts[2:] == [[2 + 2 + 8]], "a plan that reaches too far for a text is made anew"
    for request in (first, second):
        assert request.output == naive.generate(model.double(), request.prompt, request.params)


def test_every_request_is_decoded_several_steps_in_a_row_unless_each_is_recorded(monkeypatch):
    model = toy(dtype=torch.float32).to(DEVICE)
    engine = Engine(model, page_size=4, decode_steps=3)
    for i, more in enumerate(({}, {"logprobs": True}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5})):
        engine.add([1, 2], SamplingParams(max_new_tokens=9, ignore_eos=True, seed=i, **more))
    engine.step()
    assert [len(output.tokens) for output in engine.step()] == [3] * 4
    with monkeypatch.context() as patch:
        patch.setattr(graph_runner, "recording", lambda: True)
        assert [len(output.tokens) for output in engine.step()] == [1] * 4
    assert len(engine.requests) == 4
    engine.generate([[1, 2]], SamplingParams(max_new_tokens=5))
    assert {kind for kind, *_ in engine.runner.captured.graphs} == {"filtered"}, "one graph serves the whole mix"
    other = Engine(model, drafter=PromptLookup(), rule=point_mass)  # greedily, all rules emit the same
    for temperature in (0.0, 1.0):
        other.add([1, 2, 1], SamplingParams(max_new_tokens=9, temperature=temperature, ignore_eos=True, seed=1))
        other.step()
        assert (len(other.step()[0].tokens) > 4) == (temperature == 0)
        while other.requests:
            other.step()
    model.is_sharded = True  # as `parallelize` leaves it: its hooks sum what fused products would not
    assert isinstance(Engine(model).runner, EagerRunner)


def test_a_part_that_sums_by_launches_is_captured_and_its_hooks_are_asked(monkeypatch):
    model, params = toy(dtype=torch.float32).to(DEVICE), SamplingParams(max_new_tokens=6, ignore_eos=True)
    asked = []
    model.is_sharded = True
    model.head.register_forward_hook(lambda *_: asked.append(1))
    oracle = naive.generate(model, [1, 2], params)
    monkeypatch.setattr(graph_runner.dist, "is_initialized", lambda: True)
    for backend in ("gloo", "nccl"):
        monkeypatch.setattr(graph_runner.dist, "get_backend", lambda backend=backend: backend)
        engine = Engine(model, page_size=4, decode_steps=5)
        assert isinstance(engine.runner, GraphRunner) == (backend == "nccl")
        request = engine.add([1, 2], params)
        engine.step()
        asked.clear()
        while not request.finished:
            engine.step()
        assert request.output == oracle
        assert asked, "fused products pass hooks by"


def test_a_request_of_broken_logits_ends_with_an_error():
    model = toy(dtype=torch.float32).to(DEVICE)
    engine = Engine(model, page_size=4, decode_steps=3)
    params = SamplingParams(max_new_tokens=9, ignore_eos=True)
    whole = model.embed.weight.detach().clone()
    right = naive.generate(model, [1, 2], params)
    bad = next(x for x in range(3, 50) if x not in right)
    first = engine.add([1, 2], params)
    second = engine.add([1, bad], params)
    engine.step()
    with torch.no_grad():
        model.embed.weight[second.output[0]] = torch.nan
    while engine.requests:
        engine.step()
    assert second.finish_reason == "error"
    assert "NaN" in second.error
    with torch.no_grad():
        model.embed.weight.copy_(whole)
    assert second.output == naive.generate(model, [1, bad], params)[: len(second.output)]
    if second.output[0] not in right:
        assert first.output == naive.generate(model.double(), [1, 2], params)
    with pytest.raises(ValueError, match="decode_steps must be at least 1"):
        Engine(model, decode_steps=0)


@pytest.mark.parametrize("rows", [64 if DEVICE == "cuda" else 8])
def test_of_many_requests_the_one_of_broken_logits_fails_alone(rows):
    model = toy(dtype=torch.float32).to(DEVICE)
    limits = {"num_pages": 3 * rows, "token_budget": 2 * rows, "max_running": rows}
    engine = Engine(model, radix=False, page_size=4, decode_steps=4, **limits)
    kinds = [{}, {"temperature": 1.0}, {"temperature": 2.0, "top_p": 0.9}, {"temperature": 1.0, "logprobs": True}]
    params = [SamplingParams(max_new_tokens=7, ignore_eos=True, seed=i, **kinds[i % 4]) for i in range(rows)]
    requests = [engine.add([1, i % 13], own, id=i) for i, own in enumerate(params)]
    engine.step()
    engine.step()
    bad = requests[rows // 2 + 1]
    known = len(bad.output)
    for keys in engine.cache.keys:
        keys[bad.table[0]] = torch.nan
    while engine.requests:
        engine.step()
    assert [request.id for request in requests if request.error] == [bad.id]
    assert bad.finish_reason == "error"
    assert "NaN" in bad.error
    assert len(bad.output) == known
    assert engine.pool.free == engine.pool.num_pages, "nothing leaks"
    exact = model.double()
    for request, own in zip(requests, params):
        right = naive.generate(exact, request.prompt, own)
        assert request.output == right[: known if request is bad else None]
        assert len(request.logprobs) == len(request.output) * own.logprobs


@pytest.mark.parametrize("after", ["none", "residual", "apart", "gated"])
@given(st.integers(1, 3), st.sampled_from([24, 64, 576, 2100]), st.sampled_from([1, 7, 40]), st.booleans())
def test_a_projection_is_its_operations(after, rows, width, out, normed):
    g = torch.Generator().manual_seed(rows * width + out)
    x, residual = torch.randn(rows, width, generator=g), torch.randn(rows, out, generator=g)
    weight = torch.randn(out * (1 + (after == "gated")), width, generator=g) / width**0.5
    norm = torch.nn.RMSNorm(width, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    x, residual, weight, norm = (each.to(DEVICE) for each in (x, residual, weight, norm))
    with torch.no_grad():
        expected = torch.nn.functional.linear(norm(x) if normed else x, weight)
        if after == "gated":
            gate, up = expected.chunk(2, dim=-1)
            expected = torch.nn.functional.silu(gate) * up
        elif after != "none":
            expected = expected + residual
        into, before = residual if after in ("residual", "apart") else None, residual.clone()
        out = torch.full_like(residual, torch.nan) if after == "apart" else None
        got = fused.project(x, weight, norm if normed else None, into, after == "gated", out)
    torch.testing.assert_close(got, expected, **CLOSE)
    assert after == "residual" or residual.equal(before), "it is changed only in place"


@given(st.integers(1, 3), st.integers(0, 2), st.integers(1, 3), st.sampled_from([1, 5, 4096, 9000]), st.integers(0, 99))
def test_each_step_notes_the_first_of_the_largest_and_moves_on(rows, more, steps, vocab, seed):
    g = torch.Generator().manual_seed(seed)
    greedy = Steps(steps, rows + more, torch.device(DEVICE))
    tokens, places = torch.randint(99, (rows,), generator=g), torch.randint(99, (steps, 2, rows), generator=g)
    idle = torch.tensor([[0], [-1]]).expand(2, more)
    for _ in range(2):  # begun again, it counts from the first
        with Letter(torch.device(DEVICE)) as letter:
            greedy.begin(letter, tokens.numpy(), places.numpy(), [])
        assert torch.equal(greedy.tokens[:rows].cpu(), tokens)
        for step in range(steps):
            assert torch.equal(greedy.place.cpu(), torch.cat((places[step], idle), dim=1))
            logits = torch.randint(4, (rows + more, vocab), generator=g).float().to(DEVICE)
            if seed % 2:
                logits[-1, seed % vocab] = torch.nan
            greedy.end(logits, "greedy")
            tops, chosen = greedy.tops[step], greedy.chosen[step]
            assert torch.equal(tops.isnan(), logits.isnan().any(1))
            whole = ~tops.isnan()
            best = logits.max(dim=1)
            assert torch.equal(tops[whole], best.values[whole])
            assert torch.equal(chosen[whole], best.indices[whole])
            assert torch.equal(greedy.tokens, chosen)


@given(st.integers(1, 4), st.sampled_from([(1, 1, 8), (9, 3, 16), (4, 2, 20)]), st.sampled_from([1, 3]))
def test_rotating_and_writing_is_rotate_and_write_kv(tokens, shape, page):
    heads, kv_heads, dim = shape
    g = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=g)
    angle = torch.randn(9, dim // 2, generator=g)
    cos, sin = torch.cat((angle.cos(), angle.cos()), 1), torch.cat((-angle.sin(), angle.sin()), 1)
    positions = torch.randint(9, (tokens,), generator=g)
    slots = torch.randperm(6 * page, generator=g)[:tokens] - 1  # one may be −1: nowhere
    qkv, cos, sin, positions, slots = (each.to(DEVICE) for each in (qkv, cos, sin, positions, slots))
    pages = [torch.full((6, page, kv_heads, dim), 7.0, device=DEVICE) for _ in range(4)]
    q = fused.rotate_write(qkv.flatten(1), cos, sin, positions, slots, *pages[:2])
    turned = rotate(qkv[:, : heads + kv_heads], cos[positions, None], sin[positions, None])
    paged.write_kv(turned[:, heads:].contiguous(), qkv[:, heads + kv_heads :].contiguous(), *pages[2:], slots)
    torch.testing.assert_close(q, turned[:, :heads], **CLOSE)
    for ours, theirs in zip(pages[:2], pages[2:]):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_fused_layers_give_the_model_s_logits():
    model = toy(dtype=torch.float32).to(DEVICE)
    caches = [
        PagedKernelCache(**model.config.kv_shape, num_pages=8, page_size=4, dtype=model.dtype, device=model.device)
        for _ in range(2)
    ]
    prompt = torch.tensor([1, 2, 3, 4, 5], device=DEVICE)
    tables = [[3, 1], [5, 2]]
    with torch.inference_mode():
        for cache in caches:
            batch = cache.batch(tables, [0, 0], [5, 5])
            model(prompt.repeat(2), batch.positions, batch)
        tokens = torch.tensor([6, 7], device=DEVICE)
        for rows in (2, 1):  # matrix products, and one row's own kernel
            theirs, mine = (cache.batch(tables[:rows], [5] * rows, [1] * rows) for cache in caches)
            expected = model(tokens[:rows], theirs.positions, theirs)
            plan = mine.plan(model.config.heads)
            got, _ = fused_logits(model, tokens[:rows], mine.positions, mine.slots, caches[1], plan)
            torch.testing.assert_close(got, expected, **CLOSE)


def test_fused_layers_read_prompts_and_tap_states_as_the_model_does():
    model = toy(dtype=torch.float32).to(DEVICE)
    caches = [
        PagedKernelCache(**model.config.kv_shape, num_pages=8, page_size=4, dtype=model.dtype, device=model.device)
        for _ in range(2)
    ]
    tokens = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8], device=DEVICE)
    tables, taps = [[3, 1], [5, 2]], tuple(range(model.config.depth))
    with torch.inference_mode():
        for starts, counts, part in (([0, 0], [5, 3], slice(0, 8)), ([5, 3], [1, 2], slice(2, 5))):
            theirs, mine = (cache.batch(tables, starts, counts) for cache in caches)
            expected = model.hidden_states(tokens[part], theirs.positions, theirs, taps=taps)
            plan = mine.plan(model.config.heads)
            got = fused_states(model, tokens[part], mine.positions, mine.slots, caches[1], plan, taps)
            torch.testing.assert_close(got, expected, **CLOSE)
