"""Random models of `transformers`, small enough to draw by hypothesis, and the same models as GGUF files."""

from pathlib import Path

import gguf
import torch
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
CONTEXT = 40


@st.composite
def theirs(draw, arch):
    """A configuration of `transformers` for this architecture: {keyword: value}."""
    kv_heads, group, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([2, 4, 6, 8]))
    heads = kv_heads * group
    own_head_dim = arch != "qwen2" and draw(st.booleans())
    scaling = draw(st.sampled_from(["default", "linear", "llama3"]))
    rope = {"rope_type": scaling, "rope_theta": draw(st.sampled_from([10_000.0, 100_000.0, 500.0]))}
    if scaling != "default":
        rope["factor"] = draw(st.sampled_from([2.0, 8.0, 3.5]))
    if scaling == "llama3":
        low = draw(st.sampled_from([1.0, 2.0]))
        original = draw(st.sampled_from([8, 16, 32]))
        rope |= {"low_freq_factor": low, "high_freq_factor": 4 * low, "original_max_position_embeddings": original}
    config = {
        "vocab_size": draw(st.integers(5, 40)),
        "hidden_size": heads * (draw(st.sampled_from([2, 3, 6])) if own_head_dim else head_dim),
        "intermediate_size": draw(st.integers(4, 24)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": rope,
        "eos_token_id": 1,
        "bos_token_id": 0,
        "pad_token_id": None,
    }
    if arch == "llama":
        config |= {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    return config


def build_theirs(arch, config, seed=0):
    """Random weights, norms and biases too, so that no mistake in one hides behind a 1 or a 0; float32 numbers."""
    kind, model_class = KINDS[arch]
    model = model_class(kind(**config, attn_implementation="sdpa")).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 if p.ndim == 1 else 0.3) + (p.ndim == 1))
    return model


def in_float64(model):
    """The oracle in float64 throughout: its norms cast to float32 whatever they are given, so they are replaced."""

    def norm(module):
        def forward(x):
            return module.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)

        return forward

    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = norm(module)
    return model


def write_gguf(model, arch, path: Path):
    """The same numbers as a GGUF file, with llama.cpp's names and its order of Llama's query and key rows."""
    c = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    if c.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(c.rope_parameters["factor"])
    if c.rope_parameters["rope_type"] == "llama3":  # llama.cpp stores what became of it: a divisor a frequency
        plain = 1.0 / (c.rope_parameters["rope_theta"] ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim))
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], c.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        rows = tensor
        for part, heads in ((".q_proj.", c.num_attention_heads), (".k_proj.", c.num_key_value_heads)):
            if arch == "llama" and part in name:
                halves = tensor.reshape(heads, 2, c.head_dim // 2, *tensor.shape[1:])
                rows = halves.transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), rows.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
