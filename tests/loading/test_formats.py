"""What a config.json says is read as `transformers` reads it, or refused by the name of the field."""

import json
import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from inference_opt.loading.checkpoint import SafetensorsFolder
from inference_opt.loading.formats import ARCHITECTURES, config_from_gguf, config_from_hf
from inference_opt.model.rope import frequencies
from inference_opt.model.transformer import count_weights
from tests.loading.test_checkpoint_errors import CONFIG, load_folder, write_folder
from tests.model.test_architectures import CPU, EXACT, error, expected_logits, our_logits
from tests.model.test_latent import DEEPSEEK_V2, DEEPSEEK_V3

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4.0}


def read_by_transformers(values, folder):
    (folder / "config.json").write_text(json.dumps(values))
    return transformers.AutoConfig.from_pretrained(folder)


def assert_same(values, folder):
    """The shape and the angles of our reading are those of transformers'."""
    ours, theirs = config_from_hf(values), read_by_transformers(values, folder)
    rope = LlamaRotaryEmbedding(theirs)
    torch.testing.assert_close(frequencies(ours), rope.inv_freq, rtol=1e-6, atol=0)
    factor = ours.rope_scaling.attention_factor if ours.rope_scaling else 1.0
    assert factor == pytest.approx(rope.attention_scaling, rel=1e-12)
    assert (ours.vocab_size, ours.dim, ours.ffn_dim, ours.depth) == (
        theirs.vocab_size, theirs.hidden_size, theirs.intermediate_size, theirs.num_hidden_layers)  # fmt: skip
    assert (ours.heads, ours.kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert (ours.max_context, ours.norm_eps) == (theirs.max_position_embeddings, theirs.rms_norm_eps)
    assert ours.tied_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_theta": 500.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_theta": 7.0},
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 500.0},
        {"rope_scaling": {"type": "linear", "factor": 4.0, "rope_theta": 500.0}, "rope_theta": 7.0},
        {"rope_scaling": {"type": "linear", "factor": 4}, "rope_parameters": {"rope_theta": 500.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_parameters": YARN, "rope_theta": 7.0},
        {"rope_scaling": {}, "rope_parameters": YARN | {"rope_theta": 500.0}},
        {"rope_scaling": None, "rope_theta": 500.0},
        {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_scaling": YARN},
        {"rope_scaling": YARN | {"attention_factor": None, "mscale": 0.7}},
        {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 8, "beta_slow": 0.5}},
        {"rope_scaling": YARN, "original_max_position_embeddings": 64},
        {"rope_scaling": LLAMA3},
        {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32, "rope_theta": 500.0}},
        {"hidden_act": "swish"},
        {"tie_word_embeddings": True, "torch_dtype": "float16"},
    ],
)
def test_settings_in_several_places_are_read_as_transformers_reads_them(tmp_path, arch, changes):
    sizes = {"hidden_size": 64, "head_dim": 32, "max_position_embeddings": 128, "sliding_window": 128}
    assert_same(CONFIG | sizes | {"model_type": arch} | changes, tmp_path)


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("missing", ["max_position_embeddings", "num_key_value_heads", "head_dim", "rms_norm_eps"])
@pytest.mark.parametrize("without", ["key", "value"])
def test_what_is_not_said_is_what_transformers_takes(tmp_path, arch, missing, without):
    sizes = {"num_attention_heads": 32, "hidden_size": 128, "max_position_embeddings": 64, "sliding_window": None}
    values = CONFIG | sizes | {"model_type": arch, "rms_norm_eps": 1e-5}
    del values[missing]
    if without == "value":
        values[missing] = None
        try:
            read_by_transformers(values, tmp_path)
        except Exception:  # of its own making: null is not for all fields
            return
    assert_same(values, tmp_path)


def test_kimi_k2_is_deepseek_v3():
    assert config_from_hf(DEEPSEEK_V3 | {"model_type": "kimi_k2"}) == config_from_hf(DEEPSEEK_V3)


@pytest.mark.parametrize("name", ["n_shared_experts", "first_k_dense_replace", "routed_scaling_factor",
                                  "norm_topk_prob", "q_lora_rank", "max_position_embeddings"])  # fmt: skip
@pytest.mark.parametrize("values", [DEEPSEEK_V2, DEEPSEEK_V3], ids=["v2", "v3"])
def test_what_deepseek_does_not_say_is_what_transformers_takes(name, values):
    config = config_from_hf({k: v for k, v in values.items() if k != name})
    made = transformers.AutoConfig.for_model(values["model_type"])
    ours = {"max_position_embeddings": config.max_context, "q_lora_rank": config.latent.q_lora_rank}
    assert ours.get(name, getattr(config.experts, name, None)) == getattr(made, name)


GLM = {k: v for k, v in DEEPSEEK_V3.items() if k != "first_k_dense_replace"} | {"model_type": "glm4_moe_lite"}
QWEN3_MOE = CONFIG | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 3}


@pytest.mark.parametrize(
    "name", ["n_shared_experts", "routed_scaling_factor", "norm_topk_prob", "q_lora_rank", "max_position_embeddings"]
)
def test_what_glm_does_not_say_is_what_transformers_takes(name):
    config = config_from_hf({k: v for k, v in GLM.items() if k != name})
    made = transformers.Glm4MoeLiteConfig()
    ours = {"max_position_embeddings": config.max_context, "q_lora_rank": config.latent.q_lora_rank}
    assert ours.get(name, getattr(config.experts, name, None)) == getattr(made, name)
    assert config.norm_eps == made.rms_norm_eps
    assert config.latent.rope_interleave == made.rope_interleave


def test_what_qwen_does_not_say_of_its_experts_is_what_transformers_takes():
    bare = {k: v for k, v in CONFIG.items() if k not in ("num_key_value_heads", "head_dim", "num_attention_heads")}
    config = config_from_hf(bare | {"model_type": "qwen3_moe", "num_attention_heads": 32, "hidden_size": 128})
    made = transformers.Qwen3MoeConfig(num_attention_heads=32, hidden_size=128)
    assert (config.kv_heads, config.head_dim, config.max_context) == (4, 4, made.max_position_embeddings)
    for name in ("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "decoder_sparse_step"):
        assert getattr(config.experts, name) == getattr(made, name)
    assert config.experts.n_routed_experts == made.num_experts
    assert list(config.experts.mlp_only_layers) == made.mlp_only_layers


@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({}, [0]),
        ({"first_k_dense_replace": 1}, [0]),
        ({"mlp_layer_types": ["sparse", "dense"]}, [1]),
        ({"mlp_layer_types": ["dense", "dense"], "first_k_dense_replace": 2}, [0, 1]),
        ({"mlp_layer_types": ["sparse", "sparse"], "first_k_dense_replace": 0}, []),
    ],
)
def test_the_dense_layers_of_glm(changes, dense):
    experts = config_from_hf(GLM | changes).experts
    assert [i for i in range(2) if not experts.in_layer(i)] == dense


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (GLM, {"first_k_dense_replace": 2}, r"first_k_dense_replace is 2, but the dense layers are \[0\]"),
        (GLM, {"mlp_layer_types": ["sparse", "dense"], "first_k_dense_replace": 1}, r"the dense layers are \[1\]"),
        (GLM, {"mlp_layer_types": ["dense"]}, "mlp_layer_types must name .* each of 2 layers"),
        (GLM, {"mlp_layer_types": ["dense", "moe"]}, "mlp_layer_types must name 'dense' or 'sparse'"),
        (GLM, {"topk_method": "greedy"}, "chosen by 'greedy' .* glm4_moe_lite takes 'noaux_tc'"),
        (GLM, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (QWEN3_MOE, {"num_local_experts": 9}, "num_experts and num_local_experts must be the same number"),
        (QWEN3_MOE, {"num_experts_per_tok": 9}, r"num_experts_per_tok must lie in \[1, 8\]"),
        (QWEN3_MOE, {"decoder_sparse_step": 0}, "decoder_sparse_step must be a positive integer, got 0"),
        (
            QWEN3_MOE,
            {"mlp_only_layers": [True]},
            r"mlp_only_layers must be a list of integers of 0 or more, got \[True\]",
        ),
        (QWEN3_MOE, {"norm_topk_prob": 1}, "norm_topk_prob must be true or false"),
    ],
)
def test_experts_not_computed_here(config, changes, message):
    config_from_hf(config)
    with pytest.raises(ValueError, match=message):
        config_from_hf(config | changes)


@pytest.mark.parametrize("arch", ["deepseek2", "qwen3moe", "kimi-linear"])
def test_experts_are_not_read_from_gguf(arch):
    with pytest.raises(ValueError, match=f"unknown architecture '{arch}'.*from GGUF; load other .* from safetensors"):
        config_from_gguf(GGUF_FIELDS | {"general.architecture": arch})


WINDOW = {"max_position_embeddings": 64, "num_hidden_layers": 2}
FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {"sliding_window": 8}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True}),  # max_window_layers is 28, unless it is said
        ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}),
        ("qwen3", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0}),
        ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "layer_types": [FULL, FULL]}),
        ("qwen3", {"sliding_window": 99, "use_sliding_window": True, "layer_types": [SLIDING, FULL]}),
        ("qwen3_moe", {"sliding_window": 8}),
        ("qwen3_moe", {"sliding_window": 64, "use_sliding_window": True}),
    ],
)
def test_a_window_without_effect(arch, changes):
    config_from_hf(CONFIG | WINDOW | {"model_type": arch} | changes)


@pytest.mark.parametrize(
    ("arch", "changes", "culprit"),
    [
        ("mistral", {}, r"\(sliding_window\) .* sliding_window is 4096"),
        ("mistral", {"sliding_window": 63}, r"\(sliding_window\) .* is 63, and max_position_embeddings is 64"),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window"),
        ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "layer_types": [SLIDING, FULL]}, "layer_types"),
        ("qwen3", {"sliding_window": 99, "layer_types": [SLIDING, FULL]}, "layer_types.* sliding_window is None"),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 63, "max_window_layers": 2}, "use_sliding_window"),
        ("qwen3", {"layer_types": [FULL]}, "layer_types must name .* each of 2 layers"),
        ("llama", {"layer_types": [FULL, "chunked_attention"]}, "layer_types must name"),
    ],
)
def test_a_window_with_an_effect(arch, changes, culprit):
    long = {} if changes else {"max_position_embeddings": 32_768}
    with pytest.raises(ValueError, match=culprit):
        config_from_hf(CONFIG | WINDOW | long | {"model_type": arch} | changes)


@pytest.mark.parametrize("model_type", ["mixtral", "gemma3", "deepseek_v32", "qwen2_moe", "kimi_k25", "glm4_moe"])
def test_another_architecture_is_refused_with_those_that_are_computed(model_type):
    with pytest.raises(ValueError, match=f"{model_type!r}.*{', '.join(ARCHITECTURES)}"):
        config_from_hf(CONFIG | {"model_type": model_type})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": "abc"}, "rope_theta must be a positive number, got 'abc'"),
        ({"rope_theta": math.nan}, "rope_theta must be a positive number, got nan"),
        ({"rope_theta": 0}, "rope_theta must be a positive number, got 0"),
        ({"rms_norm_eps": math.inf}, "rms_norm_eps must be a positive number, got inf"),
        ({"num_attention_heads": True}, "num_attention_heads must be a positive integer, got True"),
        ({"hidden_size": "8", "head_dim": None}, "hidden_size must be a positive integer, got '8'"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be a positive integer, got 0"),
        ({"max_position_embeddings": 10**8}, r"max_position_embeddings must be .* at most 2\^24"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id or a list of token ids, got '</s>'"),
        ({"eos_token_id": [True]}, "eos_token_id must be a token id"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, got 'false'"),
        ({"rope_scaling": "linear"}, "rope_scaling must be a JSON object, got 'linear'"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, r"rope_scaling\.factor must be a positive number"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, r"rope_scaling\.factor must be a positive number"),
        ({"rope_parameters": YARN | {"beta_fast": -1}}, r"rope_parameters\.beta_fast must be a number of 0 or more"),
        ({"rope_parameters": {FULL: {"rope_theta": 5.0}}}, rf"rope_parameters\.{FULL}: .* differ by layer"),
        (
            {"rope_scaling": LLAMA3 | {"high_freq_factor": 1}},
            "rope_scaling: low_freq_factor .* less than high_freq_factor",
        ),
        ({"rope_scaling": YARN, "rope_theta": 1}, "rope_theta is 1"),
        ({"text_config": {"hidden_size": 8}}, "text_config is set"),
        ({"is_causal": False}, "is_causal is false"),
        ({"model_type": ["llama"]}, r"model_type must be a string, got \['llama'\]"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_file_and_field(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        load_folder(write_folder(tmp_path, changes))


HOSTILE = st.one_of(
    st.sampled_from([None, True, False, "", "abc", "2", [], {}, [1], {"a": 1}, math.nan, math.inf, -math.inf, 1e-320]),
    st.sampled_from([-1, 0, 1, 2, 2.0, 3, 0.5, 2**31, 2**62, 2**70, 10**400]),
)
NAMES = [*CONFIG, "max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "attention_bias",
         "mlp_bias", "layer_types", "hidden_act", "sliding_window", "use_sliding_window", "max_window_layers",
         "eos_token_id", "rope_scaling", "rope_parameters", "partial_rotary_factor", "quantization_config",
         "original_max_position_embeddings"]  # fmt: skip
ROPE_NAMES = ["rope_type", "type", "factor", "rope_theta", "partial_rotary_factor", "low_freq_factor", "mscale",
              "high_freq_factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate",
              "mscale_all_dim", "attention_factor"]  # fmt: skip


@given(st.data())
def test_hostile_values_are_refused_or_make_the_model_of_transformers(tmp_path_factory, data):
    values = CONFIG | {"model_type": data.draw(st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]))}
    values |= data.draw(st.dictionaries(st.sampled_from(NAMES), HOSTILE, min_size=1, max_size=2))
    if data.draw(st.booleans()):
        rope = data.draw(st.sampled_from([YARN, LLAMA3, {"type": "linear", "factor": 2.0}]))
        values["rope_scaling"] = rope | data.draw(st.dictionaries(st.sampled_from(ROPE_NAMES), HOSTILE, max_size=2))
    folder = tmp_path_factory.mktemp("f")
    (write_folder(folder) / "config.json").write_text(json.dumps(values))
    try:
        model = load_folder(folder)
    except ValueError:
        return
    assert torch.isfinite(frequencies(model.config)).all()
    try:
        read_by_transformers(values, folder)
    except Exception:  # of its own making: what it does not read, it does not read otherwise
        return
    assert_same(values, folder)


EXPERT_NAMES = ["num_hidden_layers", "num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok",
                "moe_intermediate_size", "decoder_sparse_step", "mlp_only_layers", "mlp_layer_types",
                "first_k_dense_replace", "norm_topk_prob", "n_group", "topk_group", "quantization_config"]  # fmt: skip


@given(st.sampled_from([GLM, QWEN3_MOE]), st.dictionaries(st.sampled_from(EXPERT_NAMES), HOSTILE, max_size=3))
def test_hostile_values_of_experts_are_refused_or_make_a_model_that_can_be_counted(config, changes):
    try:
        read = config_from_hf(config | changes)
    except ValueError:
        return
    assert count_weights(read) > 0
    if read.experts:
        assert 0 <= read.experts.layers(read.depth) <= read.depth


GGUF_FIELDS = {"general.architecture": "llama"} | {
    f"llama.{name}": value
    for name, value in {
        "vocab_size": 7, "embedding_length": 8, "block_count": 1, "feed_forward_length": 6, "context_length": 16,
        "attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5,
    }.items()
}  # fmt: skip
GGUF_NAMES = [*GGUF_FIELDS, *(f"llama.{name}" for name in (
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
    "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "attention.sliding_window",
    "expert_count", "attention.causal", "attention.scale", "logit_scale"))]  # fmt: skip


@given(st.dictionaries(st.sampled_from(GGUF_NAMES), HOSTILE, max_size=3), st.lists(st.floats(), max_size=3))
def test_hostile_gguf_values_are_refused_or_make_a_configuration(changes, factors):
    try:
        config = config_from_gguf(GGUF_FIELDS | changes, factors)
    except ValueError:
        return
    assert config.head_dim > 0


@pytest.mark.parametrize(
    ("changes", "linear"),
    [
        ({}, None),
        ({"rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scale_linear": 4.0}, 4.0),
        ({"rope.scaling.factor": 2.0, "rope.scale_linear": 4.0}, 2.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.factor": 0.0}, None),
    ],
)
def test_gguf_scaling_has_llama_cpps_defaults(changes, linear):
    config = config_from_gguf(GGUF_FIELDS | {f"llama.{name}": value for name, value in changes.items()})
    assert (config.rope_scaling and config.rope_scaling.factor) == linear
    assert (config.rope_theta, config.kv_heads) == (10_000.0, 2)


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"attention.head_count": [2, 2]}, r"llama\.attention\.head_count must be a positive integer, got \[2, 2\]"),
        ({"attention.head_count": 0}, r"llama\.attention\.head_count must be a positive integer, got 0"),
        ({"attention.value_length": 8}, "attention.value_length is 8"),
        ({"rope.freq_base": -1.0}, r"llama\.rope\.freq_base must be a positive number"),
        ({"attention.sliding_window": 8}, r"attention\.sliding_window is 8"),
        ({"attention.causal": False}, r"attention\.causal is False"),
        ({"attention.scale": 0.5}, r"attention\.scale is 0\.5"),
        ({"expert_count": 8}, "expert_count is 8"),
    ],
)
def test_a_gguf_field_not_computed_here(changes, culprit):
    with pytest.raises(ValueError, match=culprit):
        config_from_gguf(GGUF_FIELDS | {f"llama.{name}": value for name, value in changes.items()})


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_that_differs_from_the_table_is_not_tied(tmp_path, same):
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=9)
    saved = transformers.LlamaForCausalLM(config)
    if same:
        saved.lm_head.weight.data.copy_(saved.model.embed_tokens.weight)
    saved.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": True}))
    ours = SafetensorsFolder(tmp_path).load(torch.float64, CPU)
    assert ours.config.tied_embeddings == same
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompt = torch.arange(9)
    assert error(our_logits(ours, prompt), expected_logits(theirs, prompt)) < EXACT
