"""Tensor parallelism (Megatron-LM: Shoeybi et al. 2019, 1909.08053, §3): every layer sharded across ranks by heads.

    [A₁; A₂] x = [A₁ x; A₂ x]           sharded by rows: each rank computes its own heads, or its part of the MLP
    [B₁ B₂] [y₁; y₂] = B₁ y₁ + B₂ y₂    sharded by columns: each rank reads what it computed, and the parts are summed

The first product is sharded by rows and the second by columns, so ranks need not communicate between them. There are
two sums a layer: one after attention, one after the feed-forward. The head is sharded by rows, and its parts are
concatenated.

Each rank runs the same program on a model that has only its own heads, so a cache built for it holds only its own keys
and values. (A latent serves all heads, so every rank keeps it whole.) All ranks get the same, complete logits, hence
sample the same tokens and schedule the same steps. An engine need not know that its model is sharded.
"""

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from inference_opt.model.config import ModelConfig
from inference_opt.model.gqa import GroupedQueryAttention
from inference_opt.model.mla import LatentAttention
from inference_opt.model.transformer import Layer, Transformer

_BY_ROWS = {"qkv", "q", "kv_up", "gate_up", "head"}  # these compute heads, MLP columns and logits
_BY_COLUMNS = {"out", "down"}  # these read heads and MLP columns; all other weights are whole on every rank


def parallelize(model: Transformer, mesh: DeviceMesh) -> Transformer:
    """Reduce a model, in place, to this rank's part. Every rank of the mesh calls it with a model of the same shape.

    The weights are rank 0's. They go to the mesh's device one at a time, so a model on the CPU need never fit on one
    card. ValueError, and no change, if heads, KV heads or widths are not multiples of the number of ranks, for a mesh
    of several dimensions, and for a model that is sharded already. For inference.
    """
    if mesh.ndim != 1:
        raise ValueError(f"expected a mesh of one dimension, got shape {tuple(mesh.shape)}: pass one dimension of it")
    if model.is_sharded:
        raise ValueError("this model is sharded already: load it again to shard it anew")
    whole = model.config
    local = local_config(whole, mesh.size())
    model.unpack()

    # Every parameter is replaced by this rank's share of it, and every module learns how many heads it has left.
    for module_name, module in model.named_modules():
        for name, p in list(module.named_parameters(recurse=False)):
            share = _share(p.detach(), name, module_name.rsplit(".")[-1], whole, mesh)
            setattr(module, name, nn.Parameter(share, requires_grad=False))
        if isinstance(module, GroupedQueryAttention | LatentAttention):
            module.heads, module.kv_heads = local.heads, local.kv_heads
        if isinstance(module, LatentAttention):
            module.config = local
        # What attention and feed-forward return are parts of a sum: a hook sums them over the ranks.
        if isinstance(module, Layer):
            for half in (module.attention, module.mlp):
                half.register_forward_hook(partial(_whole, mesh, Partial(), whole.dim))
    # The head's logits are concatenated.
    model.head.register_forward_hook(partial(_whole, mesh, Shard(1), whole.vocab_size))
    model.config = local
    model.is_sharded = True
    return model.pack()


def local_config(config: ModelConfig, ranks: int) -> ModelConfig:
    """The shape of one rank's part. ValueError names the sizes that are not multiples of `ranks`."""
    sizes = {name: getattr(config, name) for name in ("heads", "kv_heads", "ffn_dim")}
    experts = config.experts
    inner = experts.moe_intermediate_size if experts else 0
    named = sizes | {"moe_intermediate_size": inner}
    if uneven := [f"{name} = {n}" for name, n in named.items() if n % ranks]:
        raise ValueError(f"{', '.join(uneven)} cannot be divided by {ranks}: choose a number of ranks that divides it")
    part = {name: n // ranks for name, n in sizes.items()}
    return replace(config, **part, experts=experts and replace(experts, moe_intermediate_size=inner // ranks))


def _share(weight: Tensor, name: str, module: str, whole: ModelConfig, mesh: DeviceMesh) -> Tensor:
    """This rank's part of the parameter `name` of a module whose own name is `module`."""
    # Some weights are several products stacked by rows: each is sharded, and its shares are stacked again.
    parts: list[int] = [len(weight)]
    if module == "qkv":
        parts = [n * whole.head_dim for n in (whole.heads, whole.kv_heads, whole.kv_heads)]
    elif module == "gate_up":
        parts = [len(weight) // 2] * 2
    placement: Placement = Replicate()
    if module in _BY_ROWS:
        placement = Shard(0)
    elif module in _BY_COLUMNS and name == "weight":
        placement = Shard(1)
    pieces = [distribute_tensor(piece, mesh, [placement]).to_local() for piece in weight.split(parts)]
    share = torch.cat(pieces)
    if module in _BY_COLUMNS and name == "bias" and mesh.get_local_rank():
        share.zero_()  # the sum over ranks must include the bias once
    return share


def _whole(
    mesh: DeviceMesh, placement: Placement, width: int, module: nn.Module, inputs: tuple, out: Float[Tensor, "rows _"]
) -> Float[Tensor, "rows width"]:
    """The ranks' outputs combined, on every rank: summed (`Partial`) or concatenated (`Shard`)."""
    shape = torch.Size((len(out), width))  # explicit, because ranks may have unequal numbers of logits
    return DTensor.from_local(out, mesh, [placement], shape=shape, stride=(width, 1)).full_tensor()
