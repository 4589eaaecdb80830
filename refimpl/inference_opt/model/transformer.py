"""The decoder-only transformer of Llama, Qwen and DeepSeek, on flat ragged batches.

    h ← h + Attention(RMSNorm(h))         grouped-query or latent                    } one layer,
    h ← h + FeedForward(RMSNorm(h))       SwiGLU, or a mixture of SwiGLU experts     } `depth` times
    logits = W_head · RMSNorm(h)

A batch is one flat row of tokens: sequences laid end to end, each token with its position. There is no padding and no
batch dimension. `kv.attend` alone decides which tokens a token sees.
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
    """Attention, then feed-forward. Each reads the normalised residual stream and adds to it."""

    def __init__(self, config: ModelConfig, index: int = 0) -> None:
        super().__init__()
        routed = config.experts is not None and config.experts.in_layer(index)
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = LatentAttention(config) if config.latent else GroupedQueryAttention(config)
        self.mlp_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.mlp = MixtureOfExperts(config) if routed else SwiGLU(config, config.ffn_dim)

    def forward(
        self, h: Float[Tensor, "tokens dim"], rope: tuple[Tensor, Tensor], layer: int, kv: KV
    ) -> Float[Tensor, "tokens dim"]:
        """The residual stream after this layer."""
        h = h + self.attention(self.attention_norm(h), rope, layer, kv)
        return h + self.mlp(self.mlp_norm(h))


class Transformer(nn.Module):
    """The model. Weights are uninitialised until `init_weights` or a checkpoint fills them.

    ValueError, before any memory is taken, for sizes that do not fit in memory.
    """

    def generate(self, *given: Any, **named: Any) -> Any:
        """Not here. TypeError: a transformer is the model alone."""
        raise TypeError("a Transformer gives logits alone: write Engine(model, tokenizer=tokenizer).generate(prompt)")

    def __init__(self, config: ModelConfig) -> None:
        check_fits(config, torch.get_default_dtype(), torch.get_default_device())
        super().__init__()
        self.config = config
        self.is_sharded = False  # whether this is one rank's part of a larger model: `parallelize` sets it
        self.embed = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.dim), freeze=False)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.depth))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        # Tied or not, the head is a Linear of its own. If it is tied and dense, the head and the embedding table share
        # one tensor. If it is packed, it holds the same numbers again, in the order that products want.
        self.head = Linear(config.dim, config.vocab_size)
        self._tie()
        self._rope: RopeTable | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights. Tokens and positions must be on it too."""
        return self.embed.weight.device

    @property
    def rope(self) -> RopeTable:
        """The rotary angles, built at first use for the weights' dtype and device at that time."""
        if self._rope is None or self._rope.cos.dtype != self.dtype or self._rope.cos.device != self.device:
            self._rope = RopeTable(self.config, self.dtype, self.device)
        return self._rope

    def forward(
        self,
        tokens: Int[Tensor, "tokens"],
        positions: Int[Tensor, "tokens"],
        kv: KV,
        rows: Int[Tensor, "rows"] | None = None,
    ) -> Float[Tensor, "rows vocab"]:
        """Logits of the token after each of `rows` (None: after every token).

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
        """The residual stream after the first `depth` layers (None: all), and after each layer in `taps`."""
        h = self.embed(tokens)
        rope = self.rope.at(positions)
        tapped = []
        for index, layer in enumerate(self.layers[:depth]):
            h = layer(h, rope, index, kv)
            if index in taps:
                tapped.append(h)
        return h, tapped

    def logits(self, h: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows vocab"]:
        """Logits of the next token, from the residual stream after the last layer."""
        return self.head(self.norm(h))

    def init_weights(self, seed: int = 0) -> "Transformer":
        """Random weights: normal with standard deviation 0.02, norms 1, biases 0."""
        if self.device.type == "meta":
            return self  # a model without numbers
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
        """Store every product's weight in the order that this processor reads fastest (see `linear.py`), if it has one.

        For inference: a packed weight has no gradient. On CUDA, weights that meet the same numbers lie in one tensor.
        """
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()
            elif isinstance(module, MixtureOfExperts | LatentAttention) and self.device.type == "cuda":
                module.stacked()
        if self.config.experts and self.device.type == "cuda":
            torch.cuda.empty_cache()  # the single experts' memory has the wrong sizes for anything else
        return self

    def unpack(self) -> "Transformer":
        """Store every product's weight densely: training and conversion need it so."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.unpack()
        self._tie()
        return self

    def packed(self) -> "Transformer":
        """A packed model with the present weights; the model itself if nothing is left to pack.

        The packed weights are copies, the others are shared. For inference while this model trains.
        """
        products = [m for m in self.modules() if isinstance(m, Linear) and not m.weight.is_mkldnn]
        if not products or not can_pack(self.dtype, self.device):
            return self
        frozen = partial(nn.Parameter, requires_grad=False)
        # deepcopy's second argument maps each object that is not to be copied to what takes its place.
        replacements = {id(p): frozen(p.detach()) for p in self.parameters()}
        table = replacements[id(self.embed.weight)]
        replacements |= {id(m.weight): frozen(packed(m.weight)) for m in products}
        twin = copy.deepcopy(self, replacements)
        twin.embed.weight = table  # a tied table shares its id with the head, and must not become the packed head
        return twin

    def requires_grad_(self, requires_grad: bool = True) -> "Transformer":
        """As any module's. It unpacks the weights if they are to have gradients: call it before making an optimiser."""
        if requires_grad:
            self.unpack()
        return super().requires_grad_(requires_grad)

    def _tie(self) -> None:
        """Let embedding and head share one tensor, if they are tied and the head is neither packed nor sharded."""
        if self.config.tied_embeddings and not self.head.weight.is_mkldnn and not self.is_sharded:
            self.head.weight = self.embed.weight

    def _apply(self, fn: Any, recurse: bool = True) -> "Transformer":
        super()._apply(fn, recurse)
        self._tie()  # a packed head may have become dense
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rope": None}  # built again at its next use

    def weight_bytes(self) -> int:
        """Bytes of weights that one decoding step reads: every weight once, the embedding table only as a tied head."""
        head = self.head.weight
        rest = [p for p in self.parameters() if p is not head and p is not self.embed.weight]
        return sum(p.numel() * p.element_size() for p in (head, *rest))


def count_weights(config: ModelConfig) -> int:
    """The number of weights of a model of this shape, by arithmetic alone: no model is built."""
    c = config
    latent = config.latent
    experts = config.experts

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
    dense = c.depth - (experts.layers(c.depth) if experts else 0)
    mlps = dense * swiglu(c.ffn_dim, c.mlp_bias)
    if experts:
        routed = product(c.dim, experts.n_routed_experts) + experts.n_routed_experts * experts.corrected
        routed += experts.n_routed_experts * swiglu(experts.moe_intermediate_size, False)
        if experts.n_shared_experts:
            routed += swiglu(experts.moe_intermediate_size * experts.n_shared_experts, c.mlp_bias)
        mlps += (c.depth - dense) * routed
    tables = 1 if c.tied_embeddings else 2
    return tables * c.vocab_size * c.dim + c.depth * (attention + 2 * c.dim) + mlps + c.dim


MODULE_BYTES = 25_000  # memory of a layer's or an expert's Python objects, measured


def check_fits(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """ValueError if a device lacks the memory for a model of this shape: weights, modules, and the table of angles."""
    weights = count_weights(config)
    angles = 2 * config.max_context * config.rope_dim
    modules = config.depth * (1 + (config.experts.n_routed_experts if config.experts else 0))
    check_room(
        (weights + angles) * dtype.itemsize + modules * MODULE_BYTES,
        device,
        f"a model of {weights:,} weights and a context of {config.max_context:,} tokens, in {dtype},",
        "choose smaller sizes, a shorter context, or a smaller dtype",
    )
