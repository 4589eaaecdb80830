"""The decoder-only transformer of Llama, Qwen and DeepSeek, on flat ragged batches.

    h ← h + Attention(RMSNorm(h))         grouped-query or latent
    h ← h + FeedForward(RMSNorm(h))       SwiGLU, or a mixture of such; a layer, `depth` times
    logits = W_head · RMSNorm(h)

A batch is one flat row of tokens, sequences laid end to end, each token with its position; there is no padding and no
batch dimension. Which token may see which is answered by `kv.attend` alone.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inference_opt.model.attention import KV, GroupedQueryAttention
from inference_opt.model.config import ModelConfig
from inference_opt.model.experts import MixtureOfExperts, SwiGLU
from inference_opt.model.latent import LatentAttention
from inference_opt.model.linear import Linear
from inference_opt.model.rope import RopeTable


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
    """The model. Weights are uninitialised until `init_weights` or a checkpoint fills them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.dim), freeze=False)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.depth))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        # Tied or not, the head is a Linear of its own. Dense and tied, both hold one tensor; packed, the head holds
        # the same numbers in the order that products want, the table in the order that look-ups want.
        self.head = Linear(config.dim, config.vocab_size)
        if config.tied_embeddings:
            self.head.weight = self.embed.weight
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
    def is_cut(self) -> bool:
        """Whether this is one rank's part (`parallel.py`): hooks make whole what its products make a part of."""
        return bool(self.head._forward_hooks)

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
        h, _ = self.stream(tokens, positions, kv)
        return self.logits(h if rows is None else h[rows])

    def stream(
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
        """Store every product's weight as this processor reads it fastest (see `linear.py`); no-op elsewhere."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()
        return self

    def unpack(self) -> "Transformer":
        """Store every product's weight densely, as training and conversion need it."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.unpack()
        return self

    def weight_bytes(self) -> int:
        """Bytes that one decoding step reads: every weight once, the embedding table only as the head."""
        head = self.head.weight
        rest = [p for p in self.parameters() if p is not head and p is not self.embed.weight]
        return sum(p.numel() * p.element_size() for p in (head, *rest))
