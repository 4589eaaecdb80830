"""A model's configuration out of a checkpoint.

Two kinds of files describe the same architectures: a `config.json` beside safetensors (Hugging Face's names) and the
metadata of a GGUF file (llama.cpp's names). Both become one `ModelConfig`. Whatever this code would compute wrongly is
refused here, by name: a model that loads is a model that is computed exactly.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inference_opt.model.config import ExpertsShape, LatentShape, ModelConfig, RopeScaling
from inference_opt.model.vocabulary import end_token_ids

GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")
ARCHITECTURES = (*GGUF_ARCHITECTURES, "deepseek_v2", "deepseek_v3")


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
    heads, deepseek = _need(fields, "num_attention_heads"), arch.startswith("deepseek")
    latent = _latent_from_hf(fields, arch) if deepseek else None
    # transformers 5 writes `rope_parameters`; before, `rope_theta` stood alone and `rope_scaling` beside it.
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"rope_parameters or rope_scaling holds {rope!r}, expected a JSON object")
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
        head_dim=latent.qk_nope_head_dim + latent.qk_rope_head_dim
        if latent
        else fields.get("head_dim") or _need(fields, "hidden_size") // max(heads, 1),
        ffn_dim=_need(fields, "intermediate_size"),
        max_context=fields.get("max_position_embeddings") or 2048,
        norm_eps=float(fields.get("rms_norm_eps") or 1e-6),
        rope_theta=float(rope.get("rope_theta") or fields.get("rope_theta") or 10_000.0),
        rope_scaling=_rope_scaling_from_hf(rope, fields),
        tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
        qkv_bias=arch == "qwen2" or bias,
        out_bias=arch != "qwen2" and bias,
        mlp_bias=bool(fields.get("mlp_bias", False)),
        qk_norm=arch == "qwen3",
        eos_token_ids=(eos,) if isinstance(eos, int) else tuple(eos),
        latent=latent,
        experts=_experts_from_hf(fields, arch) if deepseek and fields.get("n_routed_experts") else None,
    )


def _latent_from_hf(fields: Mapping[str, Any], arch: str) -> LatentShape:
    heads, kv_heads = fields["num_attention_heads"], fields.get("num_key_value_heads")
    if kv_heads not in (None, heads):
        raise ValueError(f"num_key_value_heads ({kv_heads}) differs from num_attention_heads ({heads}): in DeepSeek's "
                         "models every head has a key of its own")  # fmt: skip
    return LatentShape(
        **{n: _need(fields, n) for n in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")},
        q_lora_rank=fields.get("q_lora_rank"),
        rope_interleave=arch == "deepseek_v2" or bool(fields.get("rope_interleave", True)),
    )


def _experts_from_hf(fields: Mapping[str, Any], arch: str) -> ExpertsShape:
    corrected = arch == "deepseek_v3"
    method, scoring = ("noaux_tc", "sigmoid") if corrected else (fields.get("topk_method") or "greedy", "softmax")
    if (fields.get("topk_method") or method, fields.get("scoring_func") or scoring) != (method, scoring):
        raise ValueError(f"experts chosen by {fields.get('topk_method')!r} of {fields.get('scoring_func')!r} scores "
                         f"are not computed here, {arch} takes {method!r} of {scoring!r}")  # fmt: skip
    if not corrected and method not in ("greedy", "group_limited_greedy"):
        raise ValueError(f"topk_method {method!r} is not computed here, only 'greedy' and 'group_limited_greedy'")
    if not corrected and fields.get("norm_topk_prob"):
        raise ValueError("norm_topk_prob=true is not computed for DeepSeek-V2: no released model has it, and "
                         "DeepSeek's own code and others disagree on what it means")  # fmt: skip
    if fields.get("moe_layer_freq", 1) != 1:
        raise ValueError("layers without experts between layers with experts (moe_layer_freq) are not computed here")
    grouped = method != "greedy"
    return ExpertsShape(
        **{n: _need(fields, n) for n in ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")},
        n_shared_experts=fields.get("n_shared_experts") or 0,
        first_k_dense_replace=fields.get("first_k_dense_replace") or 0,
        n_group=_need(fields, "n_group") if grouped else 1,
        topk_group=_need(fields, "topk_group") if grouped else 1,
        routed_scaling_factor=float(fields.get("routed_scaling_factor") or 1.0),
        norm_topk_prob=corrected and bool(fields.get("norm_topk_prob", True)),
        corrected=corrected,
    )


def _rope_scaling_from_hf(rope: Mapping[str, Any], fields: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "yarn" and rope.get("mscale_all_dim"):
        raise ValueError(f"mscale_all_dim is YaRN's: with RoPE scaling {kind!r} it is not computed here")
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
    if kind == "yarn":
        if rope.get("attention_factor") is not None:
            raise ValueError("YaRN with an attention_factor of its own is not computed here, only with mscale")
        original = int(_need(rope, "original_max_position_embeddings"))
        return RopeScaling(
            "yarn",
            factor=float(rope.get("factor") or _need(fields, "max_position_embeddings") / original),
            original_context=original,
            beta_fast=float(rope.get("beta_fast") or 32),
            beta_slow=float(rope.get("beta_slow") or 1),
            truncate=bool(rope.get("truncate", True)),
            mscale=rope.get("mscale"),
            mscale_all_dim=rope.get("mscale_all_dim"),
        )
    raise ValueError(f"RoPE scaling {kind!r} is not computed here, only 'linear', 'llama3' and 'yarn'")


def config_from_gguf(fields: Mapping[str, Any], rope_factors: Sequence[float] = (), tied: bool = False) -> ModelConfig:
    """Read a GGUF file's metadata (already a plain mapping). Raises ValueError, naming what is not computed here."""
    arch = _need(fields, "general.architecture")
    if arch not in GGUF_ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}: this code computes {', '.join(GGUF_ARCHITECTURES)}")

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
    return ModelConfig(
        vocab_size=int(get("vocab_size", len(fields.get("tokenizer.ggml.tokens", [])))),
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
        eos_token_ids=end_token_ids(fields),
    )
