"""Tensor parallelism (Megatron-LM: Shoeybi et al. 2019, 1909.08053, §3): every layer cut across ranks, head by head.

    [A₁; A₂] x = [A₁ x; A₂ x]           cut by rows: each rank makes its own heads, or its own part of the MLP
    [B₁ B₂] [y₁; y₂] = B₁ y₁ + B₂ y₂    cut by columns: each rank reads what it made, and the parts are summed

A first product cut by rows, a second by columns, and nothing is said between them: two sums a layer, one behind
attention, one behind the feed-forward. The head is cut by rows, and its parts are laid side by side.

Each rank runs the same program on a model that knows only its own heads; so a cache built for it holds only its own
keys and values (a latent, made for all heads, is kept by every rank). All ranks see the same whole logits, hence
sample the same tokens and schedule the same steps: an engine needs to know nothing of this.
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

_BY_ROWS = {"qkv", "q", "kv_up", "gate_up", "head"}  # these make heads, widths, logits
_BY_COLUMNS = {"out", "down"}  # these read them; all other weights are whole on every rank


# [parallelize]
def parallelize(model: Transformer, mesh: DeviceMesh) -> Transformer:
    """Cut a model, in place, to this rank's part; every rank of the mesh calls it, with a model of the same shape.

    The weights are rank 0's. They go to the mesh's device one at a time, so a model that lies on the CPU need never fit
    on one card. ValueError, and no change, where heads, KV heads or widths do not divide by the number of ranks, for a
    mesh of several dimensions, and for a model that is cut already. For inference.
    """
    if mesh.ndim != 1:
        raise ValueError(f"expected a mesh of one dimension, its ranks; got shape {tuple(mesh.shape)}: take one of it")
    if model.is_sharded:
        raise ValueError("this model is cut already: load it again to cut it anew")
    whole, local = model.config, local_config(model.config, mesh.size())
    model.unpack()
    for module_name, module in model.named_modules():
        for name, p in list(module.named_parameters(recurse=False)):
            share = _share(p.detach(), name, module_name.rsplit(".")[-1], whole, mesh)
            setattr(module, name, nn.Parameter(share, requires_grad=False))
        if isinstance(module, GroupedQueryAttention | LatentAttention):
            module.heads, module.kv_heads = local.heads, local.kv_heads
        if isinstance(module, LatentAttention):
            module.config = local
        if isinstance(module, Layer):
            for half in (module.attention, module.mlp):
                half.register_forward_hook(partial(_whole, mesh, Partial(), whole.dim))
    model.head.register_forward_hook(partial(_whole, mesh, Shard(1), whole.vocab_size))
    model.config = local
    model.is_sharded = True
    return model.pack()


def local_config(config: ModelConfig, ranks: int) -> ModelConfig:
    """The shape of one rank's part. ValueError names what does not divide."""
    sizes = {name: getattr(config, name) for name in ("heads", "kv_heads", "ffn_dim")}
    experts = config.experts
    inner = experts.moe_intermediate_size if experts else 0
    named = sizes | {"moe_intermediate_size": inner}
    if uneven := [f"{name} = {n}" for name, n in named.items() if n % ranks]:
        raise ValueError(f"{', '.join(uneven)} cannot be cut in {ranks}: expected a number of ranks that divides it")
    part = {name: n // ranks for name, n in sizes.items()}
    return replace(config, **part, experts=experts and replace(experts, moe_intermediate_size=inner // ranks))


def _share(weight: Tensor, name: str, module: str, whole: ModelConfig, mesh: DeviceMesh) -> Tensor:
    """This rank's part of a parameter, called `name`, of a module whose own name is `module`."""
    parts: list[int] = [len(weight)]
    if module == "qkv":  # three products stacked: each is cut, and the parts are stacked again
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
        share.zero_()  # a sum over ranks must count it once
    return share


def _whole(
    mesh: DeviceMesh, placement: Placement, width: int, module: nn.Module, inputs: tuple, out: Float[Tensor, "rows _"]
) -> Float[Tensor, "rows width"]:
    """What the ranks' outputs amount to, on every rank: their sum (`Partial`), or all side by side (`Shard`)."""
    shape = torch.Size((len(out), width))  # said, because ranks need not hold equally many logits
    return DTensor.from_local(out, mesh, [placement], shape=shape, stride=(width, 1)).full_tensor()


# [/parallelize]
