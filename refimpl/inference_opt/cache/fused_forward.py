"""One forward pass of a model over the paged cache, in fewer launches: layers made of `kernels/fused.py`.

It computes what `model(tokens, positions, cache)` computes. It knows the layers of Llama only: grouped queries, SwiGLU,
no biases and no norms of queries and keys.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.cache.paged_kernel import PagedKernelCache
from inference_opt.kernels import Batch, paged_attention
from inference_opt.model.experts import SwiGLU
from inference_opt.model.gqa import GroupedQueryAttention
from inference_opt.model.transformer import Layer, Transformer


def can_fuse(model: Transformer) -> bool:
    """Whether `fused_states` knows the model's layers: Llama's, dense, and whole.

    A model sharded over several cards sums after its products, which the fused ones would pass by.
    """
    config = model.config
    extras = config.latent or config.qk_norm or config.qkv_bias or config.out_bias or config.mlp_bias
    return not extras and not config.experts and not model.head.weight.is_mkldnn and not model.is_sharded


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

    assert cache.values is not None
    rope = model.rope
    h = model.embed(tokens)
    tapped = []
    for index, (layer, k_pages, v_pages) in enumerate(zip(model.layers, cache.keys, cache.values)):
        assert isinstance(layer, Layer)
        attention, mlp = layer.attention, layer.mlp
        assert isinstance(attention, GroupedQueryAttention)
        assert isinstance(mlp, SwiGLU)
        qkv = project(h, attention.qkv.weight, norm=layer.attention_norm, pdl=True)
        q = rotate_write(qkv, rope.cos, rope.sin, positions, slots, k_pages, v_pages, pdl=True)
        mixed, _ = paged_attention(q, k_pages, v_pages, batch, attention.scale, pdl=True)
        h = project(mixed.flatten(1), attention.out.weight, residual=h, pdl=True)
        gated = project(h, mlp.gate_up.weight, norm=layer.mlp_norm, gated=True, pdl=True)
        h = project(gated, mlp.down.weight, residual=h, pdl=True)
        if index in taps:
            tapped.append(h.clone())  # the next layer adds to it in place
    return h, tapped


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
