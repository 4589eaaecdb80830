"""A model's configuration from a checkpoint.

Two kinds of files describe the same architectures: the `config.json` beside safetensors (with Hugging Face's names) and
the metadata of a GGUF file (with llama.cpp's names). Both become a `ModelConfig`. A configuration that this code would
compute wrongly is refused here, with the field's name: every model that loads is computed exactly.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from inference_opt.loading.fp8 import block_size
from inference_opt.loading.vocabulary import end_token_ids
from inference_opt.model.config import ExpertsShape, LatentShape, ModelConfig, RopeScaling
from inference_opt.model.fields import (
    CONTEXT,
    COUNT,
    FLAG,
    INDICES,
    NOT_NEGATIVE,
    OBJECT,
    POSITIVE,
    SIZE,
    TEXT,
    TEXTS,
    Fields,
    Kind,
)

GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")  # Mistral's files say "llama"

# The values that `transformers` gives to fields that are missing in config.json. (A field that is null is not missing.)
_QWEN: dict[str, Any] = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
_LATENT: dict[str, Any] = {"q_lora_rank": 1536}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32_768} | _QWEN,
    "qwen3": {"max_position_embeddings": 32_768, "head_dim": 128} | _QWEN,
    "qwen3_moe": {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    "deepseek_v2": {"max_position_embeddings": 2048, "n_shared_experts": 2} | _LATENT,
    "deepseek_v3": {
        "max_position_embeddings": 4096,
        "n_shared_experts": 1,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "rope_interleave": True,
    }
    | _LATENT,
    "glm4_moe_lite": {
        "max_position_embeddings": 202_752,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.8,
        "norm_topk_prob": True,
        "rope_interleave": True,
        "rms_norm_eps": 1e-5,
        "q_lora_rank": 768,
    },
}
_MLA = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")
_SAME = {"kimi_k2": "deepseek_v3"}  # other names of the same architecture
ARCHITECTURES = (*_DEFAULTS, *_SAME)

# Fields that change what a model computes or how it is stored, and that are not supported here.
_NOT_READ = {
    "compression_config": "quantised safetensors are not read here: take the unquantised model",
    "text_config": "a language model within another model is not read here: take the language model's own folder",
}


def config_from_hf(values: Mapping[str, Any], eos_token_ids: Sequence[int] = ()) -> ModelConfig:
    """Read a Hugging Face `config.json`. ValueError names the field that this code does not compute."""
    model_type = Fields(values).need("model_type", TEXT)
    if model_type not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {model_type!r}: this code computes {', '.join(ARCHITECTURES)}")
    arch = _SAME.get(model_type, model_type)
    fields = Fields(_DEFAULTS[arch] | dict(values))

    # Refuse what is not computed.
    if (act := fields.get("hidden_act", TEXT, "silu")) not in ("silu", "swish"):  # two names for the same function
        raise ValueError(f"activation {act!r} is not computed here, only 'silu' (SwiGLU)")
    if not fields.get("is_causal", FLAG, True):
        raise ValueError("is_causal is false: attention to later tokens is not computed here")
    for name, why in _NOT_READ.items():
        if fields.get(name, OBJECT, {}):
            raise ValueError(f"{name} is set: {why}")
    block_size(fields)

    # Sizes, and what depends on several fields.
    dim, depth, heads = (fields.need(n, SIZE) for n in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    context = fields.get("max_position_embeddings", CONTEXT, _DEFAULTS[arch]["max_position_embeddings"])
    _refuse_windows(fields, arch, depth, context)
    latent = _latent_from_hf(fields, arch, heads) if arch in _MLA else None
    rope_theta, rope_scaling = _rope_from_hf(fields, context)
    # Qwen2 always has biases on q, k and v; Mistral never has any.
    bias = arch not in ("qwen2", "mistral") and fields.get("attention_bias", FLAG, False)
    return ModelConfig(
        vocab_size=fields.need("vocab_size", SIZE),
        dim=dim,
        depth=depth,
        heads=heads,
        kv_heads=fields.get("num_key_value_heads", SIZE, heads),
        head_dim=latent.qk_nope_head_dim + latent.qk_rope_head_dim
        if latent
        else fields.get("head_dim", SIZE, dim // heads),
        ffn_dim=fields.need("intermediate_size", SIZE),
        max_context=context,
        norm_eps=fields.get("rms_norm_eps", POSITIVE, 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tied_embeddings=fields.get("tie_word_embeddings", FLAG, False),
        qkv_bias=arch == "qwen2" or bias,
        out_bias=bias,
        mlp_bias=arch in ("llama", "deepseek_v2") and fields.get("mlp_bias", FLAG, False),
        qk_norm=arch in ("qwen3", "qwen3_moe"),
        # If both files name end tokens, those of generation_config.json (given by the caller) are right.
        eos_token_ids=tuple(eos_token_ids) or fields.tokens("eos_token_id"),
        latent=latent,
        experts=_experts_from_hf(fields, arch, depth),
    )


def extra_layers(config: ModelConfig, values: Mapping[str, Any]) -> range:
    """Indices of layers, after the model's own, that a checkpoint may hold for multi-token prediction."""
    count = Fields(values).get("num_nextn_predict_layers", COUNT, 1 if config.latent else 0)
    return range(config.depth, config.depth + count)


def _refuse_windows(fields: Fields, arch: str, depth: int, context: int) -> None:
    """ValueError for a sliding window that has an effect: some layer has it, and it is shorter than the context.

    `layer_types` says which layers have a window. If it is missing and `use_sliding_window` is on, all layers from
    `max_window_layers` on have it. Mistral's layers all have it, unless it is null.
    """
    kinds = fields.get("layer_types", TEXTS, None)
    window = fields.get("sliding_window", SIZE, None)
    on = fields.get("use_sliding_window", FLAG, False)
    first = 0 if arch == "qwen3_moe" else fields.get("max_window_layers", COUNT, 0)
    if kinds is not None and (len(kinds) != depth or set(kinds) - {"full_attention", "sliding_attention"}):
        raise ValueError(f"layer_types must name 'full_attention' or 'sliding_attention' for each of {depth} layers")
    if arch == "mistral":
        name = "sliding_window"
        windowed = window is not None
    elif kinds is not None:
        name = "layer_types"
        windowed = "sliding_attention" in kinds
        window = window if on else None
    else:
        name = "use_sliding_window"
        windowed = on and first < depth
    if windowed and (window is None or window < context):
        raise ValueError(
            f"sliding-window attention ({name}) is not computed here: sliding_window is {window}, and "
            f"max_position_embeddings is {context}"
        )


def _latent_from_hf(fields: Fields, arch: str, heads: int) -> LatentShape:
    if (kv_heads := fields.get("num_key_value_heads", SIZE, heads)) != heads:
        raise ValueError(
            f"num_key_value_heads ({kv_heads}) differs from num_attention_heads ({heads}): with latent attention every "
            "head has a key of its own"
        )
    return LatentShape(
        kv_lora_rank=fields.need("kv_lora_rank", SIZE),
        qk_rope_head_dim=fields.need("qk_rope_head_dim", SIZE),
        qk_nope_head_dim=fields.need("qk_nope_head_dim", SIZE),
        v_head_dim=fields.need("v_head_dim", SIZE),
        q_lora_rank=fields.get("q_lora_rank", SIZE, None),
        rope_interleave=arch == "deepseek_v2" or fields.get("rope_interleave", FLAG, False),
    )


def _experts_from_hf(fields: Fields, arch: str, depth: int) -> ExpertsShape | None:
    if arch == "qwen3_moe":
        return _qwen_experts(fields)
    if arch not in _MLA or not fields.get("n_routed_experts", COUNT, 0):
        return None
    corrected = arch != "deepseek_v2"
    glm = arch == "glm4_moe_lite"
    given_method = fields.get("topk_method", TEXT, None)
    given_scoring = fields.get("scoring_func", TEXT, None)
    method = "noaux_tc" if corrected else given_method or "greedy"
    scoring = "sigmoid" if corrected else "softmax"
    if given_method not in (None, "", method) or given_scoring not in (None, "", scoring):
        raise ValueError(
            f"experts chosen by {given_method!r} from {given_scoring!r} scores are not computed here: {arch} takes "
            f"{method!r} from {scoring!r}"
        )
    if not corrected and method not in ("greedy", "group_limited_greedy"):
        raise ValueError(f"topk_method {method!r} is not computed here, only 'greedy' and 'group_limited_greedy'")
    normed = fields.get("norm_topk_prob", FLAG, False)
    if not corrected and normed:
        raise ValueError(
            "norm_topk_prob=true is not computed for DeepSeek-V2: no released model has it, and DeepSeek's own code "
            "and others disagree on its meaning"
        )
    if fields.get("moe_layer_freq", SIZE, 1) != 1:
        raise ValueError("layers without experts between layers with experts (moe_layer_freq) are not computed here")
    grouped = method != "greedy"
    return ExpertsShape(
        n_routed_experts=fields.need("n_routed_experts", SIZE),
        num_experts_per_tok=fields.need("num_experts_per_tok", SIZE),
        moe_intermediate_size=fields.need("moe_intermediate_size", SIZE),
        n_shared_experts=fields.get("n_shared_experts", COUNT, 0),
        first_k_dense_replace=0 if glm else fields.get("first_k_dense_replace", COUNT, 0),
        mlp_only_layers=_glm_dense_layers(fields, depth) if glm else (),
        n_group=fields.need("n_group", COUNT) if grouped else 1,
        topk_group=fields.need("topk_group", COUNT) if grouped else 1,
        routed_scaling_factor=fields.get("routed_scaling_factor", POSITIVE, 1.0),
        norm_topk_prob=normed,
        corrected=corrected,
    )


def _qwen_experts(fields: Fields) -> ExpertsShape | None:
    # transformers 5 writes num_local_experts, Qwen num_experts.
    counts = {n: c for n in ("num_experts", "num_local_experts") if (c := fields.get(n, COUNT, None)) is not None}
    if len(set(counts.values())) > 1:
        raise ValueError(f"num_experts and num_local_experts must be the same number, got {counts}")
    if not (count := next(iter(counts.values()), 128)):
        return None
    return ExpertsShape(
        n_routed_experts=count,
        num_experts_per_tok=fields.need("num_experts_per_tok", SIZE),
        moe_intermediate_size=fields.need("moe_intermediate_size", SIZE),
        n_shared_experts=0,
        norm_topk_prob=fields.get("norm_topk_prob", FLAG, False),
        decoder_sparse_step=fields.get("decoder_sparse_step", SIZE, 1),
        mlp_only_layers=fields.get("mlp_only_layers", INDICES, ()),
    )


def _glm_dense_layers(fields: Fields, depth: int) -> tuple[int, ...]:
    """The layers without experts. `transformers` lists each layer's kind, by default only the first is dense."""
    kinds = fields.get("mlp_layer_types", TEXTS, None)
    if kinds is not None and (len(kinds) != depth or set(kinds) - {"dense", "sparse"}):
        raise ValueError(f"mlp_layer_types must name 'dense' or 'sparse' for each of {depth} layers")
    dense = (0,) if kinds is None else tuple(i for i, kind in enumerate(kinds) if kind == "dense")
    first = fields.get("first_k_dense_replace", COUNT, None)  # in GLM's own files
    if first is not None and (len(dense) != first or any(i >= first for i in dense)):
        raise ValueError(f"first_k_dense_replace is {first}, but the dense layers are {list(dense)} (mlp_layer_types)")
    return dense


def _rope_from_hf(fields: Fields, context: int) -> tuple[float, RopeScaling | None]:
    """θ and the scaling of rotary embeddings.

    transformers 5 writes a dictionary `rope_parameters`. Earlier versions wrote `rope_theta` and, beside it, a
    dictionary `rope_scaling`, which counts if both are there. A field in the dictionary counts before one beside it.
    """
    name = "rope_scaling" if fields.get("rope_scaling", OBJECT, None) else "rope_parameters"
    rope = Fields(fields.get(name, OBJECT, {}), f"{name}.")
    if by_layer := [key for key, value in rope.values.items() if isinstance(value, Mapping)]:
        raise ValueError(f"{name}.{by_layer[0]}: rotary embeddings that differ by layer are not computed here")
    theta = rope.get("rope_theta", POSITIVE, fields.get("rope_theta", POSITIVE, 10_000.0))
    if rope.get("partial_rotary_factor", POSITIVE, fields.get("partial_rotary_factor", POSITIVE, 1.0)) != 1.0:
        raise ValueError("partial rotary embeddings (partial_rotary_factor) are not computed here")
    kind = rope.get("rope_type", TEXT, rope.get("type", TEXT, "default"))
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3", "yarn"):
        raise ValueError(f"RoPE scaling {kind!r} is not computed here, only 'linear', 'llama3' and 'yarn'")
    if kind != "yarn" and rope.get("mscale_all_dim", NOT_NEGATIVE, 0):
        raise ValueError(f"mscale_all_dim is YaRN's: with RoPE scaling {kind!r} it is not computed here")
    factor = rope.need("factor", POSITIVE)
    if kind == "linear":
        return theta, RopeScaling("linear", factor=factor)
    original = rope.get("original_max_position_embeddings", SIZE, context)
    original = fields.get("original_max_position_embeddings", SIZE, original)
    if kind == "llama3":
        low, high = (rope.need(n, POSITIVE) for n in ("low_freq_factor", "high_freq_factor"))
        if low >= high:
            raise ValueError(f"{name}: low_freq_factor ({low}) must be less than high_freq_factor ({high})")
        return theta, RopeScaling("llama3", factor, low, high, original)
    if rope.get("attention_factor", NOT_NEGATIVE, None) is not None:
        raise ValueError("YaRN with an explicit attention_factor is not computed here, only with mscale")
    if theta == 1.0:
        raise ValueError(
            "rope_theta is 1: all pairs turn at the same rate, so YaRN cannot tell slow pairs from fast ones"
        )
    return theta, RopeScaling(
        "yarn",
        factor=factor,
        original_context=original,
        beta_fast=rope.get("beta_fast", NOT_NEGATIVE, 0.0) or 32.0,
        beta_slow=rope.get("beta_slow", NOT_NEGATIVE, 0.0) or 1.0,
        truncate=rope.get("truncate", FLAG, True),
        mscale=rope.get("mscale", NOT_NEGATIVE, None),
        mscale_all_dim=rope.get("mscale_all_dim", NOT_NEGATIVE, None),
    )


# Fields that llama.cpp reads and this code does not. Each may only have the value that changes nothing.
_NEUTRAL: dict[str, tuple[Kind[Any], Any]] = {
    "expert_count": (COUNT, 0),
    "attention.causal": (FLAG, True),
    "attention.scale": (NOT_NEGATIVE, 0),
    "logit_scale": (NOT_NEGATIVE, 0),
    "residual_scale": (NOT_NEGATIVE, 0),
    "embedding_scale": (NOT_NEGATIVE, 0),
    "rope.scaling.attn_factor": (NOT_NEGATIVE, 1),
}


def config_from_gguf(fields: Mapping[str, Any], rope_factors: Sequence[float] = (), tied: bool = False) -> ModelConfig:
    """Read a GGUF file's metadata. ValueError names the field that this code does not compute."""
    arch = Fields(fields).need("general.architecture", TEXT)
    if arch not in GGUF_ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {arch!r}: this code computes {', '.join(GGUF_ARCHITECTURES)} from GGUF; load other "
            "architectures from safetensors"
        )
    prefix = f"{arch}."
    own = Fields({n.removeprefix(prefix): v for n, v in fields.items() if n.startswith(prefix)}, prefix)
    dim = own.need("embedding_length", SIZE)
    heads = own.need("attention.head_count", SIZE)
    context = own.need("context_length", CONTEXT)
    head_dim = own.get("attention.key_length", SIZE, dim // heads)

    # Refuse what is not computed.
    for name, meaning in (
        ("attention.value_length", "values of another width than keys"),
        ("rope.dimension_count", "partial rotary embeddings"),
    ):
        if (width := own.get(name, SIZE, head_dim)) != head_dim:
            raise ValueError(
                f"{arch}.{name} is {width}, but a head's width is {head_dim}: {meaning} are not computed here"
            )
    for name, (type_, neutral) in _NEUTRAL.items():
        if (value := own.get(name, type_, neutral)) != neutral:
            raise ValueError(f"{arch}.{name} is {value}: only {neutral} is computed here")
    if 0 < (window := own.get("attention.sliding_window", COUNT, 0)) < context:
        raise ValueError(f"{arch}.attention.sliding_window is {window}: sliding windows are not computed here")

    tokens = fields.get("tokenizer.ggml.tokens", [])
    return ModelConfig(
        vocab_size=own.get("vocab_size", SIZE, len(tokens)),
        dim=dim,
        depth=own.need("block_count", SIZE),
        heads=heads,
        kv_heads=own.get("attention.head_count_kv", SIZE, heads),
        head_dim=head_dim,
        ffn_dim=own.need("feed_forward_length", SIZE),
        max_context=context,
        # The file holds a float32: 1e-05 there is 9.99999975e-06.
        norm_eps=float(f"{own.need('attention.layer_norm_rms_epsilon', POSITIVE):.6g}"),
        rope_theta=own.get("rope.freq_base", POSITIVE, 10_000.0),
        rope_scaling=_rope_scaling_from_gguf(own, rope_factors, head_dim // 2),
        tied_embeddings=tied,
        qkv_bias=arch == "qwen2",
        qk_norm=arch == "qwen3",
        eos_token_ids=end_token_ids(fields),
    )


def _rope_scaling_from_gguf(own: Fields, factors: Sequence[float], pairs: int) -> RopeScaling | None:
    """Read as in llama.cpp: a factor without a type, even under its old name, is linear, and 0 means no scaling."""
    kind = own.get("rope.scaling.type", TEXT, None)
    if kind not in (None, "none", "linear"):
        raise ValueError(f"RoPE scaling {kind!r} is not computed here, only 'linear' and stored factors")
    if kind == "linear":
        own.need("rope.scaling.factor", NOT_NEGATIVE)
    factor = own.get("rope.scaling.factor", NOT_NEGATIVE, own.get("rope.scale_linear", NOT_NEGATIVE, 0.0)) or 1.0
    linear = RopeScaling("linear", factor=factor) if kind != "none" and factor != 1 else None
    if not factors:
        return linear
    if linear or len(factors) != pairs or not all(map(POSITIVE.holds, factors)):
        raise ValueError(
            f"rope_freqs.weight must hold {pairs} positive factors, one for each frequency, and be the only scaling; "
            f"it holds {len(factors)}"
        )
    return RopeScaling("factors", factors=tuple(factors))
