"""One forward pass of a model over the paged cache, in fewer launches: layers made of kernels that join operations.

It computes what `model(tokens, positions, cache)` computes. Each half of a layer is fused if there are kernels for it,
and else computed by its module. There are kernels for attention of grouped queries (`kernels/fused.py`) and of latents
(`kernels/latents.py`), both without biases and without norms of heads; for SwiGLU without biases; and for mixtures of
experts (`kernels/experts.py`).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.cache.explicit import Explicit
from inference_opt.cache.paged_kernel import PagedKernelBatch, PagedKernelCache
from inference_opt.kernels import Batch, paged_attention
from inference_opt.model.experts import MixtureOfExperts, SwiGLU
from inference_opt.model.gqa import GroupedQueryAttention
from inference_opt.model.mla import LatentAttention
from inference_opt.model.rope import RopeTable
from inference_opt.model.transformer import Layer, Transformer


def can_fuse(model: Transformer) -> bool:
    """Whether `fused_states` knows the model's layers: their weights are dense, and whole.

    A model sharded over several cards sums after its products, which the fused ones would pass by. Biases of shared
    experts are not known.
    """
    config = model.config
    return not (config.experts and config.mlp_bias) and not model.head.weight.is_mkldnn and not model.is_sharded


def fused_states(
    model: Transformer,
    tokens: Int[Tensor, "tokens"],
    positions: Int[Tensor, "tokens"],
    slots: Int[Tensor, "tokens"],
    cache: PagedKernelCache,
    batch: Batch,
    taps: Sequence[int] = (),
    explicit: Explicit | None = None,
) -> tuple[Float[Tensor, "tokens dim"], list[Float[Tensor, "tokens dim"]]]:
    """`model.hidden_states(tokens, positions, kv, taps=taps)`, in fewer launches; the caller has planned the batch.

    All kernels may start early: weights, positions, slots and plan are there before the lookup of the embeddings, which
    is an ordinary launch (`kernels/pdl.py`). With `explicit`, the batch is that of the sequences in front of these.
    """
    config, rope = model.config, model.rope
    known = not (config.qk_norm or config.qkv_bias or config.out_bias)
    kv = None if known else PagedKernelBatch(cache, positions, slots, lambda heads: batch)
    angles = None if known else rope.at(positions)
    places = (rope, positions, slots, batch)
    h = model.embed(tokens)
    tapped: list[Tensor] = []
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        out = torch.empty_like(h) if known and index - 1 in taps else h  # what is tapped stays as it is
        if not known:
            h = h + layer.attention(layer.attention_norm(h), angles, index, kv)
        elif isinstance(layer.attention, LatentAttention):
            h = _latent_attention(h, layer, layer.attention, cache.latents_of(index), *places, explicit, out)
        else:
            h = _grouped_attention(h, layer, layer.attention, cache.keys[index], cache.values_of(index), *places, out)
        if isinstance(layer.mlp, MixtureOfExperts):
            h = _mixture(h, layer, layer.mlp)
        elif config.mlp_bias:
            h = h + layer.mlp(layer.mlp_norm(h))
        else:
            h = _swiglu(h, layer, layer.mlp)
        if index in taps:
            tapped.append(h)
    return h, tapped


def fused_layer(h: Float[Tensor, "tokens dim"], layer: Layer, rope: RopeTable, kv: PagedKernelBatch) -> Tensor:
    """`layer(h, rope.at(kv.positions), 0, kv)`, in fewer launches and in place.

    For grouped queries and SwiGLU, without biases and norms of heads. An ordinary launch has made h, and the batch was
    planned before it (`kernels/pdl.py`).
    """
    assert isinstance(layer.attention, GroupedQueryAttention)
    assert isinstance(layer.mlp, SwiGLU)
    places = (rope, kv.positions, kv.slots, kv.plan(layer.attention.heads))
    h = _grouped_attention(h, layer, layer.attention, kv.cache.keys[0], kv.cache.values_of(0), *places, h)
    return _swiglu(h, layer, layer.mlp)


# The halves of a layer: each returns h and what it adds, in place or in `out`.


def _grouped_attention(
    h: Float[Tensor, "tokens dim"],
    layer: Layer,
    attention: GroupedQueryAttention,
    k_pages: Tensor,
    v_pages: Tensor,
    rope: RopeTable,
    positions: Int[Tensor, "tokens"],
    slots: Int[Tensor, "tokens"],
    batch: Batch,
    out: Float[Tensor, "tokens dim"],
) -> Float[Tensor, "tokens dim"]:
    from inference_opt.kernels.fused import project, rotate_write  # needs Triton

    qkv = project(h, attention.qkv.weight, norm=layer.attention_norm, pdl=True)
    q = rotate_write(qkv, rope.cos, rope.sin, positions, slots, k_pages, v_pages, pdl=True)
    mixed, _ = paged_attention(q, k_pages, v_pages, batch, attention.scale, pdl=True)
    return project(mixed.flatten(1), attention.out.weight, residual=h, out=out, pdl=True)


def _latent_attention(
    h: Float[Tensor, "tokens dim"],
    layer: Layer,
    attention: LatentAttention,
    pages: Tensor,
    rope: RopeTable,
    positions: Int[Tensor, "tokens"],
    slots: Int[Tensor, "tokens"],
    batch: Batch,
    explicit: Explicit | None,
    out: Float[Tensor, "tokens dim"],
) -> Float[Tensor, "tokens dim"]:
    from inference_opt.kernels.fused import normed, project  # needs Triton
    from inference_opt.kernels.latents import absorb, expand, rotate, values

    shape, up = attention.shape, attention.kv_up.weight.unflatten(0, (attention.kv_heads, -1))
    # One row is normalised by each product that reads it; more rows once, before both.
    x, norm = (h, layer.attention_norm) if len(h) == 1 else (normed(h, layer.attention_norm, pdl=True), None)
    q, kept = project(x, attention.stacked(), norm=norm, pdl=True).tensor_split([-pages.shape[-1]], dim=1)
    if shape.q_lora_rank is not None:
        q = project(q, attention.q.weight, norm=attention.q_latent_norm, pdl=True)
    q = q.unflatten(1, (attention.heads, -1))

    # Absorbed in front, explicit at the end. All latents are written before any is read.
    plain, first = shape.qk_nope_head_dim, len(h) if explicit is None else explicit.token
    latent_norm, angles = attention.kv_latent_norm, (rope.cos, rope.sin)
    front, end = (positions[:first], slots[:first]), (positions[first:], slots[first:])
    mixed = []
    if first:
        absorbed = absorb(q[:first], kept[:first], latent_norm, up, *angles, *front, pages, pdl=True)
    if explicit is not None:
        turned = rotate(q[first:], kept[first:], latent_norm, *angles, *end, pages, plain, pdl=True)
        turned[..., :plain] = q[first:, :, :plain]
    if first:
        latents, _ = paged_attention(absorbed, pages, None, batch, attention.scale, shape.kv_lora_rank, pdl=True)
        mixed.append(values(latents, up, plain))
    if explicit is not None:
        k, v = expand(pages.index_select(0, explicit.pages), up, plain)
        own, _ = paged_attention(turned, k, v, explicit.batch, attention.scale, pdl=True)
        mixed.append(own.flatten(1))
    both = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    return project(both, attention.out.weight, residual=h, out=out, pdl=True)


def _swiglu(h: Float[Tensor, "tokens dim"], layer: Layer, mlp: SwiGLU) -> Float[Tensor, "tokens dim"]:
    from inference_opt.kernels.fused import project  # needs Triton

    gated = project(h, mlp.gate_up.weight, norm=layer.mlp_norm, gated=True, pdl=True)
    return project(gated, mlp.down.weight, residual=h, pdl=True)


def _mixture(h: Float[Tensor, "tokens dim"], layer: Layer, mlp: MixtureOfExperts) -> Float[Tensor, "tokens dim"]:
    from inference_opt.kernels.experts import Routing, Weights, mixture  # needs Triton

    router, shape, shared = mlp.router, mlp.router.shape, mlp.shared
    how = Routing(
        shape.num_experts_per_tok,
        shape.n_group,
        shape.topk_group,
        shape.norm_topk_prob,
        shape.routed_scaling_factor,
    )
    weights = Weights(*mlp.stacked(), *((shared.gate_up.weight, shared.down.weight) if shared else ()))
    return mixture(h, layer.mlp_norm, router.weight, router.correction, how, weights, pdl=True)


def fused_logits(
    model: Transformer,
    tokens: Int[Tensor, "tokens"],
    positions: Int[Tensor, "tokens"],
    slots: Int[Tensor, "tokens"],
    cache: PagedKernelCache,
    batch: Batch,
    taps: Sequence[int] = (),
) -> tuple[Float[Tensor, "tokens vocab"], list[Float[Tensor, "tokens dim"]]]:
    """`model(tokens, positions, kv)`, likewise, and the states behind the tapped layers."""
    from inference_opt.kernels.fused import project  # needs Triton

    h, tapped = fused_states(model, tokens, positions, slots, cache, batch, taps)
    return project(h, model.head.weight, norm=model.norm, pdl=True), tapped
