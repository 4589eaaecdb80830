"""Which launches start early: none unless the caller promises that what they read before they wait was there before.

The card is pretended, and kernels are not run: what is looked at are the launches, their order and their options.
"""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction

from inference_opt import kernels
from inference_opt.cache.fused_forward import can_fuse, fused_logits
from inference_opt.cache.paged_kernel import PagedKernelCache
from inference_opt.kernels import attention, experts, fused, latents, pdl, plan_batch, steps, stepwise, write
from inference_opt.kernels.plan import Tile
from inference_opt.model.config import ExpertsShape
from tests.toys import latent_toy, toy

# What is given is on the CPU: on a card without the interpreter it would be answered by the reference.
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="pretends a card")

PROMISED = {"PDL": True, "launch_pdl": True}
ORDINARY = {"PDL": False}


class Spy:
    """In the place of a kernel: notes each launch, and launches nothing."""

    def __init__(self, name, kernel, launches):
        self.name, self.arguments, self.launches = name, kernel.arg_names, launches

    def __getitem__(self, grid):
        def launch(*positional, **named):
            named = dict(zip(self.arguments, positional)) | named
            self.launches.append((self.name, {key: named[key] for key in named if key in PROMISED}))

        return launch


@pytest.fixture
def launches(monkeypatch):
    """The launches so far, as (kernel, its options that say whether it starts early), on a card that can."""
    seen = []
    monkeypatch.setattr(pdl, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    for module in (attention, experts, fused, latents, steps, stepwise, write):
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, JITFunction | InterpretedFunction):
                monkeypatch.setattr(module, name, Spy(name, kernel, seen))
    return seen


def inputs(batch=1):
    """q, pages of keys and of values, page table and lengths. A single sequence is split, so there is a merge."""
    q, k = torch.zeros(batch, 4, 64), torch.zeros(100, 16, 2, 64)
    table = torch.arange(batch * 30, dtype=torch.int32).view(batch, 30)
    return q, k, torch.zeros_like(k), table, [480] * batch


def test_a_call_that_plans_and_attends_at_once_starts_nothing_early(launches):
    q, k, v, table, lengths = inputs()
    kernels.paged_decode(q, k, v, table, torch.tensor(lengths), 0.1)
    assert launches == [("attend_piece", ORDINARY), ("merge_token", ORDINARY)]


def test_a_plan_made_before_the_launch_in_front_lets_attention_start_early(launches):
    q, k, v, table, lengths = inputs()
    batch = plan_batch(table, lengths, [1], k, 4)
    kernels.paged_attention(q, k, v, batch, 0.1)
    assert launches == [("attend_piece", ORDINARY), ("merge_token", ORDINARY)]
    launches.clear()
    kernels.paged_attention(q, k, v, batch, 0.1, pdl=True)
    assert launches == [("attend_piece", PROMISED), ("merge_token", PROMISED)]


def test_lists_made_right_before_a_merge_keep_it_from_starting_early(launches):
    kernels.merge_states(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4))
    assert launches == [("merge_token", ORDINARY)]
    launches.clear()
    q, k, v, table, _ = inputs()
    gathered = [x[table.long()].flatten(1, 2) for x in (k, v)]
    stepwise.decode_2(q, *gathered, 0.1, 2)
    stepwise.decode_3(q, k, v, 0.1, 2, table, 480)
    stepwise.decode_4(q, k, v, 0.1, 2, table, 480, 64)
    merged = [options for name, options in launches if name == "merge_token"]
    assert merged == [ORDINARY] * 3


def test_the_cache_plans_then_writes_then_attends(launches, monkeypatch):
    """The write is an ordinary launch, and stands between the plan and the kernels that read it early."""
    planned = kernels.plan_batch
    monkeypatch.setattr(
        "inference_opt.cache.paged_kernel.plan_batch",
        lambda *arguments, **more: launches.append(("plan", {})) or planned(*arguments, **more),
    )
    cache = PagedKernelCache(1, 2, 64, num_pages=4, page_size=16, dtype=torch.float32, device=torch.device("cpu"))
    batch = cache.batch([[1, 2]], [17], [2])
    q, k = torch.zeros(2, 4, 64), torch.zeros(2, 2, 64)
    for _ in range(2):  # two layers share the plan
        batch.attend(0, q, k, k, 0.1)
    layer = [("write_token", {}), ("attend_piece", PROMISED)]
    merge = [("merge_token", PROMISED)] if batch.plan(4).plan.num_states else []
    assert launches == [("plan", {}), *layer, *merge, *layer, *merge]


def test_a_fused_forward_starts_every_launch_early(launches):
    model = toy(dtype=torch.float32)
    assert can_fuse(model)
    cache = PagedKernelCache(**model.config.kv_shape, num_pages=8, page_size=4, dtype=model.dtype, device=model.device)
    batch = plan_batch(torch.tensor([[1, 2]], dtype=torch.int32), [6], [1], cache.keys[0], model.config.heads)
    places = torch.tensor([5]), torch.tensor([9])
    with torch.inference_mode():
        fused_logits(model, torch.tensor([3]), *places, cache, batch)
    merge = ["merge_token"] if batch.plan.num_states else []
    layer = ["project_row", "rotate_token", "attend_piece", *merge, "project_row", "project_row", "project_row"]
    assert [name for name, _ in launches] == layer * len(model.layers) + ["project_row"]
    assert all(options == PROMISED for _, options in launches)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_fused_forward_of_latents_and_experts_starts_every_launch_early(launches, rows):
    model = latent_toy(dtype=torch.float32, experts=ExpertsShape(6, 2, 8, 1, first_k_dense_replace=1))
    cache = PagedKernelCache(**model.config.kv_shape, num_pages=8, page_size=4, dtype=model.dtype, device=model.device)
    table = torch.tensor([[1, 2]] * rows, dtype=torch.int32)
    latent = model.config.latent.kv_lora_rank
    batch = plan_batch(table, [6] * rows, [1] * rows, cache.keys[0], model.config.heads, latent)
    places = torch.tensor([5] * rows), torch.tensor([9] * rows)
    with torch.inference_mode():
        fused_logits(model, torch.tensor([3] * rows), *places, cache, batch)
    merge = ["merge_token"] if batch.plan.num_states else []
    own = ["rotate_latent", "absorb_tile", "attend_piece", *merge, "value_tile"]
    if rows == 1:
        attention = ["project_row", *own, "project_row"]
        dense, mixture = ["project_row", "project_row"], ["project_row", "route_token", "up_row", "down_row"]
        head = ["project_row"]
    else:  # the library multiplies many rows
        attention, dense, head = ["norm_token", *own], ["norm_token", "gate_token"], ["norm_token"]
        mixture = ["norm_token", "score_tile", "route_token", "sort_expert", "up_tile", "down_tile", "join_token"]
    assert [name for name, _ in launches] == attention + dense + attention + mixture + head
    assert all(options == PROMISED for _, options in launches)


def test_a_mixture_starts_early_only_behind_kernels_unless_asked(launches):
    """The first launch may read its weights early only if that is promised; the others wait before they read."""
    h, width = torch.zeros(3, 16), torch.zeros(6, 8, 16)
    weights = experts.Weights(width, torch.zeros(6, 16, 4))
    given = (torch.nn.RMSNorm(16), torch.zeros(6, 16), None, experts.Routing(2), weights)
    for rows in (1, 3):
        experts.mixture(h[:rows], *given)
        assert launches[0] in (("project_row", ORDINARY), ("norm_token", ORDINARY))
        assert all(options == PROMISED for _, options in launches[1:])
        launches.clear()


def test_a_projection_and_a_rotation_start_early_only_where_asked(launches):
    x, weight, pages = torch.zeros(1, 16), torch.zeros(32, 16), torch.zeros(2, 4, 1, 8)
    angles, places = torch.zeros(3, 8), torch.zeros(1, dtype=torch.int64)
    fused.project(x, weight)
    fused.rotate_write(torch.zeros(1, 32), angles, angles, places, places, pages, pages)
    assert launches == [("project_row", ORDINARY), ("rotate_token", ORDINARY)]


def test_kernels_that_wait_before_they_read_may_always_start_early(launches):
    fused.swiglu(torch.zeros(2, 8))
    for kind in ("greedy", "sampled", "filtered"):
        steps.Steps(1, 2, torch.device("cpu")).end(torch.zeros(2, 8), kind)
    race = ["race_of_block", "end_of_race"]
    assert [name for name, _ in launches] == [
        "gate_token", "best_of_block", "end_of_step", *race, "filter_row", *race
    ]  # fmt: skip
    assert all(options == PROMISED for _, options in launches)


@pytest.mark.parametrize("pdl_", [False, True])
def test_attention_runs_beside_the_kernel_in_front_only_if_it_starts_early(launches, monkeypatch, pdl_):
    """Behind the Gluon kernel for many rows it needs nothing of that kernel: but only PDL may let it overlap."""
    options = []
    monkeypatch.setattr(Spy, "__getitem__", lambda self, grid: lambda *a, **named: options.append(named))
    gluon = SimpleNamespace(attend_pieces=lambda *arguments: None)
    monkeypatch.setitem(sys.modules, "inference_opt.kernels.hopper.gqa", gluon)
    q, k, v, table, lengths = inputs(batch=3)
    prefixes = [kernels.SharedPrefix(0, 3, 16)]
    table[:, 0] = 0
    tiles = iter([Tile(16, 32, 4, 2, 2), Tile(128, 64, 8, 2, 1, "gqa")])  # of their own keys, of the prefix
    monkeypatch.setattr("inference_opt.kernels.batch.choose_tile", lambda *sizes: next(tiles))
    batch = plan_batch(table, lengths, [1] * 3, k, 4, prefixes=prefixes)
    kernels.paged_attention(q, k, v, batch, 0.1, pdl=pdl_)
    assert options[0]["PDL_OVERLAP"] == options[0]["PDL"] == pdl_


@pytest.mark.parametrize("card", [(8, 0), (8, 9)])
def test_older_cards_and_the_interpreter_know_no_early_start(monkeypatch, card):
    assert pdl.launch_options(True) == ORDINARY or not pdl.INTERPRETED
    monkeypatch.setattr(pdl, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: card)
    assert pdl.launch_options(True) == ORDINARY
