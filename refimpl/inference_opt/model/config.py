"""The numbers that fix a transformer's shape, and how to read them from a checkpoint.

Two kinds of files describe the same architectures: a `config.json` beside safetensors (Hugging Face's names) and the
metadata of a GGUF file (llama.cpp's names). Both become one `ModelConfig`. Whatever this code would compute wrongly is
refused here, by name: a model that loads is a model that is computed exactly.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = ("llama", "qwen2", "qwen3")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles are stretched for contexts longer than those trained on.

    kind "linear" divides every frequency by `factor` (Chen et al. 2023, 2306.15595). kind "llama3" divides only the
    slow ones: wavelengths above `original_context / low_freq_factor` by `factor`, those below
    `original_context / high_freq_factor` not at all, and those between in proportion (Llama 3.1's release).
    kind "factors" divides frequency i by `factors[i]`, which is how GGUF files store the result of any of them.
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: RMSNorm, RoPE, grouped-query attention, SwiGLU.

    `heads == kv_heads` is multi-head attention, `kv_heads == 1` multi-query; all between is grouped-query.
    Raises ValueError for shapes that no such model has.
    """

    vocab_size: int
    dim: int  # width of the residual stream, d
    depth: int  # layers, l
    heads: int  # query heads, n_h
    kv_heads: int  # key and value heads, n_g
    head_dim: int  # d_h
    ffn_dim: int  # width inside SwiGLU
    max_context: int  # most tokens a sequence may hold
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False  # the output head is the embedding table
    qkv_bias: bool = False  # Qwen2
    out_bias: bool = False  # Llama with attention_bias
    mlp_bias: bool = False
    qk_norm: bool = False  # Qwen3: RMSNorm on each query and key head before RoPE
    eos_token_ids: tuple[int, ...] = ()  # any of them ends a text

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "depth", "heads", "kv_heads", "head_dim", "ffn_dim", "max_context"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers a KV cache stores for one token: a key and a value a KV head a layer, 2 · n_g · d_h · l."""
        return 2 * self.kv_heads * self.head_dim * self.depth

    def check_prompt(self, prompt_ids: Sequence[int]) -> list[int]:
        """The prompt as a list of ints; ValueError where this model cannot continue it."""
        ids = [int(t) for t in prompt_ids]
        if not ids:
            raise ValueError("the prompt is empty: a language model needs at least one token to continue")
        if bad := [t for t in ids if not 0 <= t < self.vocab_size]:
            raise ValueError(f"token id {bad[0]} is outside the vocabulary (0 to {self.vocab_size - 1})")
        if len(ids) > self.max_context:
            raise ValueError(f"the prompt has {len(ids)} tokens, the model's context holds {self.max_context}")
        return ids


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError names the file that holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def _need(fields: Mapping[str, Any], name: str) -> Any:
    if fields.get(name) is None:
        raise ValueError(f"the checkpoint's configuration lacks {name!r}")
    return fields[name]


def config_from_hf(fields: Mapping[str, Any], eos_token_ids: Sequence[int] = ()) -> ModelConfig:
    """Read a Hugging Face `config.json`. Raises ValueError, naming what this code does not compute."""
    arch = _need(fields, "model_type")
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}: this code computes {', '.join(ARCHITECTURES)}")
    if (act := fields.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"activation {act!r} is not computed here, only 'silu' (SwiGLU)")
    if fields.get("quantization_config"):
        raise ValueError("quantised safetensors (quantization_config) are not read here: take the unquantised model")
    if fields.get("use_sliding_window"):
        raise ValueError("sliding-window attention (use_sliding_window) is not computed here")
    heads = _need(fields, "num_attention_heads")
    # transformers 5 writes `rope_parameters`; before, `rope_theta` stood alone and `rope_scaling` beside it.
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if rope.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ValueError("partial rotary embeddings (partial_rotary_factor) are not computed here")
    bias = bool(fields.get("attention_bias", False))
    # generation_config.json, given by the caller, knows the end tokens better than config.json where both speak.
    eos = eos_token_ids or fields.get("eos_token_id") or ()
    return ModelConfig(
        vocab_size=_need(fields, "vocab_size"),
        dim=_need(fields, "hidden_size"),
        depth=_need(fields, "num_hidden_layers"),
        heads=heads,
        kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or _need(fields, "hidden_size") // max(heads, 1),
        ffn_dim=_need(fields, "intermediate_size"),
        max_context=fields.get("max_position_embeddings") or 2048,
        norm_eps=float(fields.get("rms_norm_eps") or 1e-6),
        rope_theta=float(rope.get("rope_theta") or fields.get("rope_theta") or 10_000.0),
        rope_scaling=_rope_scaling_from_hf(rope),
        tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
        qkv_bias=arch == "qwen2" or bias,
        out_bias=arch != "qwen2" and bias,
        mlp_bias=bool(fields.get("mlp_bias", False)),
        qk_norm=arch == "qwen3",
        eos_token_ids=(eos,) if isinstance(eos, int) else tuple(eos),
    )


def _rope_scaling_from_hf(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", factor=float(_need(rope, "factor")))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor=float(_need(rope, "factor")),
            low_freq_factor=float(_need(rope, "low_freq_factor")),
            high_freq_factor=float(_need(rope, "high_freq_factor")),
            original_context=int(_need(rope, "original_max_position_embeddings")),
        )
    raise ValueError(f"RoPE scaling {kind!r} is not computed here, only 'linear' and 'llama3'")


# Tokens that end a text under any chat template: a GGUF file names one end-of-sequence token, models emit the others.
_END_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>")


def config_from_gguf(fields: Mapping[str, Any], rope_factors: Sequence[float] = (), tied: bool = False) -> ModelConfig:
    """Read a GGUF file's metadata (already a plain mapping). Raises ValueError, naming what is not computed here."""
    arch = _need(fields, "general.architecture")
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}: this code computes {', '.join(ARCHITECTURES)}")

    def get(name: str, default: Any = None) -> Any:
        value = fields.get(f"{arch}.{name}", default)
        return _need(fields, f"{arch}.{name}") if value is None else value

    heads, dim = get("attention.head_count"), get("embedding_length")
    head_dim = get("attention.key_length", dim // heads)
    if get("rope.dimension_count", head_dim) != head_dim:
        raise ValueError("partial rotary embeddings (rope.dimension_count) are not computed here")
    for unknown in ("expert_count", "attention.sliding_window"):
        if get(unknown, 0):
            raise ValueError(f"{arch}.{unknown} is set: mixtures of experts and sliding windows are not computed here")
    scaling: RopeScaling | None = None
    if (kind := get("rope.scaling.type", "none")) == "linear":
        scaling = RopeScaling("linear", factor=float(get("rope.scaling.factor")))
    elif kind != "none":
        raise ValueError(f"RoPE scaling {kind!r} is not computed here, only 'linear' and stored factors")
    if rope_factors:
        if scaling or len(rope_factors) != head_dim // 2:
            raise ValueError(f"rope_freqs.weight holds {len(rope_factors)} factors for {head_dim // 2} frequencies, or "
                             "stands beside another scaling")  # fmt: skip
        scaling = RopeScaling("factors", factors=tuple(rope_factors))
    tokens = fields.get("tokenizer.ggml.tokens", [])
    eos = {fields["tokenizer.ggml.eos_token_id"]} if "tokenizer.ggml.eos_token_id" in fields else set()
    eos |= {i for i, kind in enumerate(fields.get("tokenizer.ggml.token_type", [])) if kind == 3  # a control token
            and tokens[i] in _END_TOKENS}  # fmt: skip
    return ModelConfig(
        vocab_size=int(get("vocab_size", len(tokens))),
        dim=dim,
        depth=get("block_count"),
        heads=heads,
        kv_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_dim=get("feed_forward_length"),
        max_context=get("context_length"),
        norm_eps=float(f"{get('attention.layer_norm_rms_epsilon'):.6g}"),  # float32 in the file: 9.99999975e-06
        rope_theta=float(get("rope.freq_base", 10_000.0)),
        rope_scaling=scaling,
        tied_embeddings=tied,
        qkv_bias=arch == "qwen2",
        qk_norm=arch == "qwen3",
        eos_token_ids=tuple(sorted(eos)),
    )
