"""The decoder-only transformer of Llama, Qwen and DeepSeek, on flat ragged batches.

    h ← h + Attention(RMSNorm(h))         grouped-query or latent
    h ← h + FeedForward(RMSNorm(h))       SwiGLU, or a mixture of such; a layer, `depth` times
    logits = W_head · RMSNorm(h)

A batch is one flat row of tokens, sequences laid end to end, each token with its position; there is no padding and no
batch dimension. Which token may see which is answered by `kv.attend` alone.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inference_opt.model.attention import KV
from inference_opt.model.config import ModelConfig
from inference_opt.model.experts import MixtureOfExperts, SwiGLU
from inference_opt.model.gqa import GroupedQueryAttention
from inference_opt.model.linear import Linear, can_pack, packed
from inference_opt.model.mla import LatentAttention
from inference_opt.model.rope import RopeTable
from inference_opt.room import check_room


class Layer(nn.Module):
    """Attention, then feed-forward, each reading the normalised stream and adding to it."""

    def __init__(self, config: ModelConfig, index: int = 0) -> None:
        super().__init__()
        routed = config.experts is not None and index >= config.experts.first_k_dense_replace
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = LatentAttention(config) if config.latent else GroupedQueryAttention(config)
        self.mlp_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.mlp = MixtureOfExperts(config) if routed else SwiGLU(config, config.ffn_dim)

    def forward(
        self, h: Float[Tensor, "tokens dim"], rope: tuple[Tensor, Tensor], layer: int, kv: KV
    ) -> Float[Tensor, "tokens dim"]:
        """One step of the residual stream."""
        h = h + self.attention(self.attention_norm(h), rope, layer, kv)
        return h + self.mlp(self.mlp_norm(h))


class Transformer(nn.Module):
    """The model. Weights are uninitialised until `init_weights` or a checkpoint fills them.

    ValueError, before anything is reserved, for sizes that memory does not hold.
    """

    def __init__(self, config: ModelConfig) -> None:
        check_fits(config, torch.get_default_dtype(), torch.get_default_device())
        super().__init__()
        self.config = config
        self.is_sharded = False  # whether this is one rank's part of a larger model: `parallelize` sets it
        self.embed = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.dim), freeze=False)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.depth))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        # Tied or not, the head is a Linear of its own. Dense and tied, both hold one tensor; packed, the head holds
        # the same numbers in the order that products want, the table in the order that look-ups want.
        self.head = Linear(config.dim, config.vocab_size)
        self._tie()
        self._rope: RopeTable | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where tokens and positions must be."""
        return self.embed.weight.device

    @property
    def rope(self) -> RopeTable:
        """Built at first use, for the dtype and device that the weights have by then."""
        if self._rope is None or self._rope.cos.dtype != self.dtype or self._rope.cos.device != self.device:
            self._rope = RopeTable(self.config, self.dtype, self.device)
        return self._rope

    # [forward]
    def forward(
        self,
        tokens: Int[Tensor, "tokens"],
        positions: Int[Tensor, "tokens"],
        kv: KV,
        rows: Int[Tensor, "rows"] | None = None,
    ) -> Float[Tensor, "rows vocab"]:
        """Logits of the token after each of `rows` (all, if none are named).

        The head is a large part of a small model's work: name only the rows that will be sampled from.
        """
        h, _ = self.hidden_states(tokens, positions, kv)
        return self.logits(h if rows is None else h[rows])

    def hidden_states(
        self,
        tokens: Int[Tensor, "tokens"],
        positions: Int[Tensor, "tokens"],
        kv: KV,
        depth: int | None = None,
        taps: Sequence[int] = (),
    ) -> tuple[Float[Tensor, "tokens dim"], list[Float[Tensor, "tokens dim"]]]:
        """The residual stream behind the first `depth` layers (all, if not said), and behind each layer of `taps`."""
        h = self.embed(tokens)
        rope = self.rope.at(positions)
        tapped = []
        for index, layer in enumerate(self.layers[:depth]):
            h = layer(h, rope, index, kv)
            if index in taps:
                tapped.append(h)
        return h, tapped

    def logits(self, h: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows vocab"]:
        """What the residual stream says of the next token."""
        return self.head(self.norm(h))

    # [/forward]

    def init_weights(self, seed: int = 0) -> "Transformer":
        """Random weights for tests, toys and training: normal with standard deviation 0.02, norms 1, biases 0."""
        if self.device.type == "meta":
            return self  # sizes alone are wanted
        generator = torch.Generator(device=self.device).manual_seed(seed)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if name.endswith("bias"):
                    p.zero_()
                elif p.ndim == 1:
                    p.fill_(1.0)
                else:
                    p.normal_(0.0, 0.02, generator=generator)
        return self

    def pack(self) -> "Transformer":
        """Store every product's weight as this processor reads it fastest (see `linear.py`); no-op elsewhere.

        For inference: what is packed has no gradient.
        """
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()
        return self

    def unpack(self) -> "Transformer":
        """Store every product's weight densely, as training and conversion need it."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.unpack()
        self._tie()
        return self

    def packed(self) -> "Transformer":
        """A model with these weights as they are now, packed; itself, where there is nothing left to pack.

        It takes the memory of the packed weights again, and shares the others. For inference while this one trains.
        """
        products = [m for m in self.modules() if isinstance(m, Linear) and not m.weight.is_mkldnn]
        if not products or not can_pack(self.dtype, self.device):
            return self
        frozen = partial(nn.Parameter, requires_grad=False)
        its = {id(p): frozen(p.detach()) for p in self.parameters()}
        table = its[id(self.embed.weight)]
        its |= {id(m.weight): frozen(packed(m.weight)) for m in products}
        twin = copy.deepcopy(self, its)  # what the second argument names is not copied but replaced
        twin.embed.weight = table  # and not by the packed head that it may be tied to
        return twin

    def requires_grad_(self, requires_grad: bool = True) -> "Transformer":
        """As any module's; weights that shall have gradients are unpacked, so call it before making an optimiser."""
        if requires_grad:
            self.unpack()
        return super().requires_grad_(requires_grad)

    def _tie(self) -> None:
        """One tensor for embedding and head, where the model has one and this processor reads it as it is."""
        if self.config.tied_embeddings and not self.head.weight.is_mkldnn and not self.is_sharded:
            self.head.weight = self.embed.weight

    def _apply(self, fn: Any, recurse: bool = True) -> "Transformer":
        super()._apply(fn, recurse)
        self._tie()  # a packed head was a tensor of its own
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rope": None}  # made anew where it is needed

    def weight_bytes(self) -> int:
        """Bytes that one decoding step reads: every weight once, the embedding table only as the head."""
        head = self.head.weight
        rest = [p for p in self.parameters() if p is not head and p is not self.embed.weight]
        return sum(p.numel() * p.element_size() for p in (head, *rest))


def count_weights(config: ModelConfig) -> int:
    """How many numbers a model of this shape is made of, by arithmetic alone: nothing is built."""
    c, latent, experts = config, config.latent, config.experts

    def product(columns: int, rows: int, bias: bool = False) -> int:
        return (columns + bias) * rows

    def swiglu(width: int, bias: bool) -> int:
        return product(c.dim, 2 * width, bias) + product(width, c.dim, bias)

    if latent:
        rank = latent.q_lora_rank
        attention = product(rank or c.dim, c.heads * c.head_dim)
        attention += product(c.dim, rank, c.qkv_bias) + rank if rank else 0
        attention += product(c.dim, latent.kv_lora_rank + latent.qk_rope_head_dim, c.qkv_bias)
        attention += latent.kv_lora_rank * latent.normed
        attention += product(latent.kv_lora_rank, c.kv_heads * (latent.qk_nope_head_dim + latent.v_head_dim))
        attention += product(c.heads * latent.v_head_dim, c.dim, c.out_bias)
    else:
        attention = product(c.dim, (c.heads + 2 * c.kv_heads) * c.head_dim, c.qkv_bias)
        attention += product(c.heads * c.head_dim, c.dim, c.out_bias) + 2 * c.head_dim * c.qk_norm
    plain = c.depth if experts is None else min(experts.first_k_dense_replace, c.depth)
    mlps = plain * swiglu(c.ffn_dim, c.mlp_bias)
    if experts:
        routed = product(c.dim, experts.n_routed_experts) + experts.n_routed_experts * experts.corrected
        routed += experts.n_routed_experts * swiglu(experts.moe_intermediate_size, False)
        if experts.n_shared_experts:
            routed += swiglu(experts.moe_intermediate_size * experts.n_shared_experts, c.mlp_bias)
        mlps += (c.depth - plain) * routed
    tables = 1 if c.tied_embeddings else 2
    return tables * c.vocab_size * c.dim + c.depth * (attention + 2 * c.dim) + mlps + c.dim


MODULE_BYTES = 25_000  # of a layer's or an expert's Python objects, measured


def check_fits(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """ValueError where a device has no room for a model of this shape: its weights, and the angles of its context."""
    weights, angles = count_weights(config), 2 * config.max_context * config.rope_dim
    modules = config.depth * (1 + (config.experts.n_routed_experts if config.experts else 0))
    check_room(
        (weights + angles) * dtype.itemsize + modules * MODULE_BYTES,
        device,
        f"a model of {weights:,} weights and a context of {config.max_context:,} tokens, in {dtype},",
        "take smaller sizes, a shorter context, or a smaller dtype",
    )
