"""The numbers that define a transformer's shape, whatever file they come from (`formats.py` reads them)."""

import math
from dataclasses import dataclass
from typing import Any

from inference_opt.model.fields import CONTEXT, INDICES, POSITIVE, SIZE
from inference_opt.values import token_ids


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles are stretched for contexts longer than those of the training.

    kind "linear" divides every frequency by `factor` (Chen et al. 2023, 2306.15595).
    kind "llama3" divides only slow frequencies: those with a wavelength above `original_context / low_freq_factor` by
    `factor`, those below `original_context / high_freq_factor` not at all, those between in proportion (Llama 3.1).
    kind "factors" divides frequency i by `factors[i]`: GGUF files store the result of any kind in this form.
    kind "yarn" (Peng et al. 2023, 2309.00071) divides by `factor` if a pair turns fewer than `beta_slow` times within
    the original context, not at all if it turns more than `beta_fast` times, and in proportion between. With
    `truncate`, the bounds of that range are rounded to whole pairs. YaRN also sharpens attention: see
    `attention_factor` and `logit_scale`.
    kind "frequencies" gives every frequency, `factors[i]`, in radians a token; `factor` is the attention factor.
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    factors: tuple[float, ...] = ()
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def _mscale(self, mscale: float) -> float:
        """0.1 · mscale · ln(factor) + 1: how much sharper attention must be on a context `factor` times as long."""
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    @property
    def attention_factor(self) -> float:
        """The factor of every rotated query and key under YaRN. The tables of cos and sin contain it."""
        if self.kind == "frequencies":
            return self.factor
        if self.kind != "yarn":
            return 1.0
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    @property
    def logit_scale(self) -> float:
        """DeepSeek's factor of the softmax scale: one mscale for the query and one for the key, rotated or not."""
        return self._mscale(self.mscale_all_dim) ** 2 if self.kind == "yarn" and self.mscale_all_dim else 1.0


@dataclass(frozen=True)
class LatentShape:
    """Widths in Multi-head Latent Attention (DeepSeek-V2, 2405.04434, §2.1)."""

    kv_lora_rank: int  # d_c: width of the latent that keys and values are computed from
    qk_rope_head_dim: int  # d_R: width of the one rotated key that all heads share
    qk_nope_head_dim: int  # d_h: width of a head's own key, which is not rotated
    v_head_dim: int  # width of a head's value
    q_lora_rank: int | None = None  # d_c': width of the queries' latent; None: queries have no latent
    rope_interleave: bool = True  # rotary pairs in the checkpoint are neighbours; False: half a head apart
    normed: bool = True  # RMSNorm of the latents; False after conversion, because it would change the function

    def __post_init__(self) -> None:
        for name in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "q_lora_rank"):
            value = getattr(self, name)
            if value is not None or name != "q_lora_rank":
                SIZE.check(name, value)
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim must be even, because pairs are rotated; got {self.qk_rope_head_dim}")


@dataclass(frozen=True)
class ExpertsShape:
    """A mixture of experts in the feed-forward (DeepSeekMoE, 2405.04434, §2.2; V3: 2412.19437, §2.1.2)."""

    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    n_shared_experts: int
    first_k_dense_replace: int = 0  # the first layers, this many, have a dense feed-forward
    n_group: int = 1
    topk_group: int = 1  # the number of groups that a token's experts may come from
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = False  # the chosen experts' weights sum to one
    corrected: bool = False  # V3: sigmoid scores, and a learnt bias in the choice; V2: softmax
    decoder_sparse_step: int = 1  # only every so many-th layer has experts (Qwen3-MoE)
    mlp_only_layers: tuple[int, ...] = ()  # indices of further layers with a dense feed-forward (Qwen3-MoE)

    def __post_init__(self) -> None:
        for name in (
            "n_routed_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "n_shared_experts",
            "first_k_dense_replace",
            "n_group",
            "topk_group",
            "decoder_sparse_step",
        ):
            value = getattr(self, name)
            if type(value) is not int:
                raise ValueError(f"{name} must be an integer, got {value!r}")
        if self.n_routed_experts < 1 or self.n_group < 1 or self.n_routed_experts % self.n_group:
            raise ValueError(f"{self.n_routed_experts} experts cannot be divided into {self.n_group} equal groups")
        group = self.n_routed_experts // self.n_group
        if not 1 <= self.topk_group <= self.n_group:
            raise ValueError(f"topk_group must lie in [1, n_group = {self.n_group}], got {self.topk_group}")
        if not 1 <= self.num_experts_per_tok <= self.topk_group * group:
            raise ValueError(
                f"num_experts_per_tok must lie in [1, {self.topk_group * group}], the experts of the chosen groups; "
                f"got {self.num_experts_per_tok}"
            )
        if self.moe_intermediate_size < 1 or self.n_shared_experts < 0:
            raise ValueError("moe_intermediate_size must be positive, and n_shared_experts not negative")
        if self.corrected and group < 2:
            raise ValueError(
                "bias-corrected routing scores a group by its two best experts, so each group needs two or more"
            )
        if self.decoder_sparse_step < 1 or self.first_k_dense_replace < 0:
            raise ValueError("decoder_sparse_step must be positive, and first_k_dense_replace not negative")
        INDICES.check("mlp_only_layers", list(self.mlp_only_layers))

    def in_layer(self, index: int) -> bool:
        """Whether a layer has experts; the others have a dense feed-forward."""
        dense = index < self.first_k_dense_replace or index in self.mlp_only_layers
        return not dense and (index + 1) % self.decoder_sparse_step == 0

    def layers(self, depth: int) -> int:
        """How many layers of a model of this depth have experts: by arithmetic, because a depth may be absurd."""
        first, step = min(self.first_k_dense_replace, depth), self.decoder_sparse_step
        excepted = {i for i in self.mlp_only_layers if first <= i < depth and (i + 1) % step == 0}
        return depth // step - first // step - len(excepted)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: RMSNorm, RoPE, grouped-query or latent attention, SwiGLU or a mixture of experts.

    `heads == kv_heads` is multi-head attention, `kv_heads == 1` multi-query, anything between grouped-query.
    With `latent`, `kv_heads` keys and values are computed from the one vector that is kept.
    Raises ValueError for shapes that no such model can have.
    """

    vocab_size: int
    dim: int  # width of the residual stream, d
    depth: int  # layers, l
    heads: int  # query heads, n_h
    kv_heads: int  # key and value heads, n_g
    head_dim: int  # d_h: width of a query; with `latent`, its unrotated and rotated part together
    ffn_dim: int  # width inside SwiGLU
    max_context: int  # largest number of tokens in a sequence
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False  # the output head is the embedding table
    qkv_bias: bool = False  # Qwen2
    out_bias: bool = False  # Llama with attention_bias
    mlp_bias: bool = False
    qk_norm: bool = False  # Qwen3: RMSNorm on each query and key head before RoPE
    eos_token_ids: tuple[int, ...] = ()  # each of them ends a text
    latent: LatentShape | None = None
    experts: ExpertsShape | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "depth", "heads", "kv_heads", "head_dim", "ffn_dim"):
            SIZE.check(name, getattr(self, name))
        CONTEXT.check("max_context", self.max_context)
        for name in ("norm_eps", "rope_theta"):
            POSITIVE.check(name, getattr(self, name))
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.rope_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")
        if (m := self.latent) and self.head_dim != m.qk_nope_head_dim + m.qk_rope_head_dim:
            raise ValueError(
                f"head_dim ({self.head_dim}) must be qk_nope_head_dim + qk_rope_head_dim "
                f"({m.qk_nope_head_dim} + {m.qk_rope_head_dim})"
            )

    @property
    def rope_dim(self) -> int:
        """The number of columns of a query or key that are rotated."""
        return self.latent.qk_rope_head_dim if self.latent else self.head_dim

    @property
    def attention_scale(self) -> float:
        """The factor of the scores before the softmax: 1/√d, times YaRN's correction for latent attention."""
        corrected = self.rope_scaling.logit_scale if self.latent and self.rope_scaling else 1.0
        return self.head_dim**-0.5 * corrected

    @property
    def kv_shape(self) -> dict[str, Any]:
        """The shape of what a cache stores, as keyword arguments of a cache.

        A key and a value for each KV head. For latent attention, one vector for each token: its first `latent_dim`
        columns are the latent, the others are the shared rotated key.
        """
        if m := self.latent:
            width = m.kv_lora_rank + m.qk_rope_head_dim
            return {"depth": self.depth, "kv_heads": 1, "head_dim": width, "latent_dim": m.kv_lora_rank}
        return {"depth": self.depth, "kv_heads": self.kv_heads, "head_dim": self.head_dim, "latent_dim": None}

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers that a KV cache stores for one token: 2 · n_g · d_h · l, or (d_c + d_R) · l with latent attention."""
        kept = self.kv_shape
        return (1 if self.latent else 2) * kept["kv_heads"] * kept["head_dim"] * self.depth

    def check_prompt(self, prompt_ids: Any) -> list[int]:
        """The prompt (a sequence, an array or a tensor) as a list of ints.

        ValueError if this model cannot continue it.
        """
        ids = token_ids("the prompt", prompt_ids)
        if not ids:
            raise ValueError("the prompt is empty: a language model needs at least one token to continue")
        if bad := [t for t in ids if not 0 <= t < self.vocab_size]:
            raise ValueError(f"token id {bad[0]} is outside the vocabulary (0 to {self.vocab_size - 1})")
        if len(ids) > self.max_context:
            raise ValueError(f"the prompt has {len(ids)} tokens, the model's context holds {self.max_context}")
        return ids
