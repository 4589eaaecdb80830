"""Logits of tiny random Llama, Mistral, Qwen2 and Qwen3 models, from safetensors and GGUF, against `transformers`.

In float64, where only equality will do: 1e-10 of the largest logit, far below float32's rounding.
"""

import tempfile
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.cache.contiguous import ContiguousCache
from inference_opt.loading.checkpoint import GGUFFile, SafetensorsFolder
from inference_opt.model.attention import QUERY_BLOCK, NoCache
from inference_opt.model.linear import Linear, can_pack
from tests.toys import run

CPU = torch.device("cpu")
EXACT = 1e-10
CONTEXT = 2 * QUERY_BLOCK + 20
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
THETA = st.sampled_from([100.0, 10_000.0, 1_000_000.0])
PLAIN = st.fixed_dictionaries({"rope_type": st.just("default"), "rope_theta": THETA})
LINEAR = st.fixed_dictionaries(
    {"rope_type": st.just("linear"), "rope_theta": THETA, "factor": st.sampled_from([1.5, 4.0])}
)
LLAMA3 = st.fixed_dictionaries(
    {
        "rope_type": st.just("llama3"),
        "rope_theta": THETA,
        "factor": st.sampled_from([3.0, 8.0]),
        "low_freq_factor": st.sampled_from([1.0, 1.5]),
        "high_freq_factor": st.sampled_from([2.0, 4.0]),
        # Small enough that some wavelengths lie above, some between and some below the two bounds.
        "original_max_position_embeddings": st.sampled_from([16, 64, 1024]),
    }
)
YARN = st.fixed_dictionaries(
    {
        "rope_type": st.just("yarn"),
        "rope_theta": THETA,
        "factor": st.sampled_from([2.0, 40.0]),
        "original_max_position_embeddings": st.sampled_from([16, 64]),
        "truncate": st.booleans(),
    }
)


@st.composite
def models(draw, biases=True, ropes=(PLAIN, LINEAR, LLAMA3, YARN)):
    arch, kv_heads, group = draw(st.sampled_from(sorted(CLASSES))), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = kv_heads * group
    options = {"rope_parameters": draw(st.one_of(*ropes)), "tie_word_embeddings": draw(st.booleans())}
    if arch == "mistral":
        options["sliding_window"] = draw(st.sampled_from([None, CONTEXT]))
    elif biases and arch != "qwen2":  # Qwen2's are not a choice: q, k and v have one, the output has none
        options["attention_bias"] = draw(st.booleans())
    if biases and arch == "llama":
        options["mlp_bias"] = draw(st.booleans())
    make_config, make_model = CLASSES[arch]
    config = make_config(
        vocab_size=draw(st.integers(2, 40)),
        hidden_size=heads * draw(st.integers(1, 6)),
        intermediate_size=draw(st.integers(1, 40)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 8)),
        max_position_embeddings=CONTEXT,
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 2e-3])),
        **options,
    )
    model = make_model(config).eval()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    with torch.no_grad():  # as they come, norms are 1 and biases 0, and a mistake there would not show
        for name, p in model.named_parameters():
            p.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    return model


@st.composite
def prompts(draw, model):
    length = draw(st.one_of(st.integers(1, 20), st.integers(QUERY_BLOCK - 2, CONTEXT)))  # the second: several blocks
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return torch.randint(model.config.vocab_size, (length,), generator=generator)


def norm_in_float64(x, norm):
    return norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()


def widen(model):
    """`transformers` rounds what it normalises to float32, whatever the model's dtype: its norms are written anew."""
    model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, norm=module: norm_in_float64(x, norm)


@torch.inference_mode()
def expected_logits(model, prompt):
    widen(model)
    return model(input_ids=prompt[None]).logits[0]


@torch.inference_mode()
def our_logits(model, prompt):
    return model(prompt, torch.arange(len(prompt)), NoCache([len(prompt)]))


def error(ours, expected):
    assert ours.shape == expected.shape
    return float((ours.double() - expected).abs().max() / expected.abs().max())


def load_saved(model, dtype, **how):
    """Through a folder as `save_pretrained` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, **how)
        return SafetensorsFolder(Path(folder)).load(dtype, CPU)


@given(st.data())
def test_safetensors_give_the_logits_of_transformers(data):
    model = data.draw(models())
    prompt = data.draw(prompts(model))
    ours = load_saved(model, torch.float64)
    assert error(our_logits(ours, prompt), expected_logits(model, prompt)) < EXACT


@given(st.data())
def test_the_cache_fed_in_chunks_gives_the_logits_of_transformers(data):
    model = data.draw(models())
    prompt = data.draw(prompts(model))
    ours = load_saved(model, torch.float64)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(prompt)), max_size=4)) | {len(prompt)})
    c = ours.config
    cache = ContiguousCache(c.depth, c.kv_heads, c.head_dim, [len(prompt)], ours.dtype, ours.device)
    with torch.inference_mode():
        chunks = [prompt[a:b] for a, b in zip([0, *cuts], cuts)]
        logits = torch.cat([run(ours, chunk, cache.batch([len(chunk)])) for chunk in chunks])
    assert error(logits, expected_logits(model, prompt)) < EXACT


@given(st.data())
def test_float32_stays_near_float64(data):
    # Normalising one or two numbers is all but taking their sign: there a last bit decides, in any float32 program.
    model = data.draw(models().filter(lambda model: model.config.hidden_size >= 8))
    prompt = data.draw(prompts(model))
    ours = load_saved(model, torch.float32)
    assert {m.weight.is_mkldnn for m in ours.modules() if isinstance(m, Linear)} == {can_pack(torch.float32, CPU)}
    assert error(our_logits(ours, prompt), expected_logits(model, prompt)) < 1e-4


def test_several_safetensors_files_are_one_model(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=9)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = SafetensorsFolder(tmp_path).load(torch.float64, CPU)
    prompt = torch.arange(0, 90, 10)
    assert error(our_logits(ours, prompt), expected_logits(model, prompt)) < EXACT


GGUF_NAMES = {  # as llama.cpp's conversion names them
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    module, kind = name.rsplit(".", 1)
    if not module.startswith("model.layers."):
        return f"{GGUF_NAMES[module]}.{kind}"
    _, _, index, rest = module.split(".", 3)
    return f"blk.{index}.{GGUF_NAMES[rest]}.{kind}"


def neighbours(rows, heads):
    """As llama.cpp's conversion reorders Llama's q and k rows: the two of a rotary pair side by side."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(model, path, rope_factors=None):
    c = model.config
    arch = "llama" if c.model_type == "mistral" else c.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_vocab_size(c.vocab_size)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    if c.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(c.rope_parameters["factor"])
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.numpy())
    for name, p in model.named_parameters():  # a tied head is no parameter of its own
        values = p.detach().numpy()
        for part, heads in (("q_proj", c.num_attention_heads), ("k_proj", c.num_key_value_heads)):
            if arch == "llama" and part in name:
                values = neighbours(values, heads)
        writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stored_factors(model):
    """GGUF holds Llama 3's scaling as a divisor of each frequency, rounded to float32: the oracle is given the same."""
    rope = model.model.rotary_emb
    plain, _ = rope.compute_default_rope_parameters(model.config)
    factors = plain / rope.inv_freq
    torch.testing.assert_close(plain / factors, rope.inv_freq, rtol=2e-7, atol=0)  # off by the last bit at most
    rope.inv_freq = plain / factors
    return factors


@given(st.data())
def test_gguf_files_give_the_logits_of_transformers(data):
    model = data.draw(models(biases=False, ropes=(PLAIN, LINEAR, LLAMA3)))
    prompt = data.draw(prompts(model))
    factors = stored_factors(model) if model.config.rope_parameters["rope_type"] == "llama3" else None
    with tempfile.TemporaryDirectory() as folder:
        write_gguf(model, Path(folder) / "model.gguf", factors)
        ours = GGUFFile(Path(folder) / "model.gguf").load(torch.float64, CPU)
    assert ours.config.tied_embeddings == model.config.tie_word_embeddings
    assert error(our_logits(ours, prompt), expected_logits(model, prompt)) < EXACT


SIZES = st.integers(1, 70)


@given(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), SIZES, SIZES, st.integers(0, 99))
def test_packing_changes_no_bit(dtype, rows, columns, seed):
    linear = Linear(columns, rows).to(dtype)
    with torch.no_grad():
        linear.weight.normal_(generator=torch.Generator().manual_seed(seed))
    before = linear.weight.detach().clone()
    linear.pack()
    assert linear.weight.is_mkldnn == can_pack(dtype, CPU)
    linear.unpack()
    assert torch.equal(linear.weight, before)
    assert linear.weight.dtype == dtype


def test_shapes_in_signatures_are_checked_while_testing():
    with pytest.raises(TypeError, match="forward"):
        Linear(3, 2)(torch.zeros(3))
