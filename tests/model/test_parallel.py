"""Tensor parallelism: processes on gloo, each with its part of the heads, generate the whole model's tokens."""

from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh

from inference_opt import Engine, SamplingParams, load_model, naive
from inference_opt.loading.prompts import load_prompts
from inference_opt.model.parallel import local_config, parallelize
from inference_opt.speculative.lookup import PromptLookup
from inference_opt.speculative.rules import coupled
from tests.toys import LATENT_SHAPES, PARAMS, PROMPTS, SHAPES, latent_toy, tokens_of, toy


def on_ranks(ranks, function, folder, *arguments):
    """Run function(mesh, *arguments) in so many processes; what fails in one fails here."""
    given = (ranks, function, str(folder / "meeting"), arguments)
    mp.start_processes(_rank, given, nprocs=ranks, start_method="forkserver")


def _rank(rank, ranks, function, meeting, arguments):
    torch.set_num_threads(1)
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=wait)
    function(init_device_mesh("cpu", (ranks,)), *arguments)
    dist.barrier()  # none leaves while another still listens
    dist.destroy_process_group()


def same_tokens(mesh, make):
    # Derandomised, so that every rank draws the same examples.
    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(
        SHAPES if make is toy else LATENT_SHAPES,
        st.sampled_from([13, 14]),  # a head that divides by the ranks, and one that does not
        st.lists(PROMPTS, min_size=1, max_size=3),
        PARAMS,
        st.booleans(),
    )
    def check(shape, vocab, prompts, params, drafts):
        shape = shape | {"heads": 8, "kv_heads": 2 * shape["kv_heads"], "vocab_size": vocab, "mlp_bias": True}
        if experts := shape.get("experts"):
            shape["experts"] = replace(experts, moe_intermediate_size=2 * experts.moe_intermediate_size)
        model = make(**shape)
        kept = model.config.kv_elements_per_token
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(0.3 * name.endswith("bias"))  # a bias counted twice must show
                p.mul_(-2 if mesh.get_rank() else 1)  # the weights of other ranks than the first must not count
        each = zip(prompts, params.split(len(prompts)))
        expected = [] if mesh.get_rank() else [naive.generate(model, prompt, own) for prompt, own in each]
        part = parallelize(model, mesh)
        if not part.config.latent:
            assert part.config.kv_elements_per_token * mesh.size() == kept
        drafter = PromptLookup() if drafts else None
        engine = Engine(part, drafter=drafter, page_size=2, rule=coupled)  # the rule that keeps sampled tokens, too
        found = tokens_of(engine.generate(prompts, params))
        everyones = [None] * mesh.size()
        dist.all_gather_object(everyones, (found, expected))
        assert all(texts == everyones[0][1] for texts, _ in everyones)

    check()


def real_model(mesh, source):
    model, tokenizer = load_model(source)
    prompts = [prompt.ids(tokenizer) for prompt in load_prompts()[:2]]
    params = SamplingParams(max_new_tokens=12)
    expected = [None if mesh.get_rank() else tokens_of(Engine(model).generate(prompts, params))]
    bytes_whole = sum(p.numel() for p in model.parameters())
    part = parallelize(model, mesh)
    assert (part.config.heads, part.config.kv_heads) == (3, 1)
    assert sum(p.numel() for p in part.parameters()) < bytes_whole
    found = tokens_of(Engine(part).generate(prompts, params))
    dist.broadcast_object_list(expected)
    assert [found] == expected


def refusals(mesh):
    model = toy(heads=4, kv_heads=1)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="kv_heads = 1 cannot be divided by 2"):
        parallelize(model, mesh)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    with pytest.raises(ValueError, match="one dimension"):
        parallelize(model, init_device_mesh("cpu", (1, 2)))
    part = parallelize(toy(), mesh)
    with pytest.raises(ValueError, match="already"):
        parallelize(part, mesh)


@pytest.mark.parametrize("make", [toy, latent_toy])
def test_two_ranks_generate_the_whole_models_tokens(make, tmp_path, forkserver):
    on_ranks(2, same_tokens, tmp_path, make)


def test_three_ranks_share_smollm2s_nine_heads(smollm2_path, tmp_path, forkserver):
    on_ranks(3, real_model, tmp_path, smollm2_path)


def test_what_cannot_be_cut_is_refused_and_left_as_it_was(tmp_path, forkserver):
    on_ranks(2, refusals, tmp_path)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6))
def test_a_part_is_a_model_of_its_own_or_what_does_not_divide_is_named(ranks, kv, group, ffn, cut):
    config = toy().config
    shape = {"heads": kv * group * ranks, "kv_heads": kv * ranks, "ffn_dim": ffn * ranks}
    whole = type(config)(**(vars(config) | shape))
    assert local_config(whole, ranks).heads == kv * group
    if uneven := [name for name, n in shape.items() if n % cut]:
        with pytest.raises(ValueError, match=uneven[0]):
            local_config(whole, cut)
