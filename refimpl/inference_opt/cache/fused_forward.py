"""One forward pass of a model over the paged cache, in fewer launches: layers made of `kernels/fused.py` and others.

It computes what `model(tokens, positions, cache)` computes. Each half of a layer is fused if there are kernels for it,
and else computed by its module: attention of grouped queries without biases and norms of queries and keys; SwiGLU
without biases; mixtures of experts (`kernels/experts.py`).
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.cache.paged_kernel import PagedKernelBatch, PagedKernelCache
from inference_opt.kernels import Batch, paged_attention
from inference_opt.model.experts import MixtureOfExperts
from inference_opt.model.gqa import GroupedQueryAttention
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
) -> tuple[Float[Tensor, "tokens dim"], list[Float[Tensor, "tokens dim"]]]:
    """`model.hidden_states(tokens, positions, kv, taps=taps)`, in fewer launches; the caller has planned the batch.

    All kernels may start early: weights, positions, slots and plan are there before the lookup of the embeddings, which
    is an ordinary launch (`kernels/pdl.py`).
    """
    from inference_opt.kernels.fused import project, rotate_write  # needs Triton

    config, rope = model.config, model.rope
    fused_attention = not (config.latent or config.qk_norm or config.qkv_bias or config.out_bias)
    kv = None if fused_attention else PagedKernelBatch(cache, positions, slots, lambda heads: batch)
    angles = None if fused_attention else rope.at(positions)
    h = model.embed(tokens)
    tapped = []
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        attention, mlp = layer.attention, layer.mlp
        if isinstance(attention, GroupedQueryAttention) and fused_attention:
            k_pages, v_pages = cache.keys[index], cache.values_of(index)
            qkv = project(h, attention.qkv.weight, norm=layer.attention_norm, pdl=True)
            q = rotate_write(qkv, rope.cos, rope.sin, positions, slots, k_pages, v_pages, pdl=True)
            mixed, _ = paged_attention(q, k_pages, v_pages, batch, attention.scale, pdl=True)
            h = project(mixed.flatten(1), attention.out.weight, residual=h, pdl=True)
        else:
            h = h + attention(layer.attention_norm(h), angles, index, kv)
        if isinstance(mlp, MixtureOfExperts):
            h = _mixture(h, layer, mlp)
        elif config.mlp_bias:
            h = h + mlp(layer.mlp_norm(h))
        else:
            gated = project(h, mlp.gate_up.weight, norm=layer.mlp_norm, gated=True, pdl=True)
            h = project(gated, mlp.down.weight, residual=h, pdl=True)
        if index in taps:
            tapped.append(h.clone())  # the next layer adds to it in place
    return h, tapped


def _mixture(h: Float[Tensor, "tokens dim"], layer: Layer, mlp: MixtureOfExperts) -> Float[Tensor, "tokens dim"]:
    """h + mlp(norm(h)), in place."""
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
) -> Float[Tensor, "tokens vocab"]:
    """`model(tokens, positions, kv)`, likewise."""
    from inference_opt.kernels.fused import project  # needs Triton

    h, _ = fused_states(model, tokens, positions, slots, cache, batch)
    return project(h, model.head.weight, norm=model.norm, pdl=True)
