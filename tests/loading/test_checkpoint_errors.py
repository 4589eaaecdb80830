"""A checkpoint that is damaged, or would be computed wrongly, is a ValueError whose message names the culprit."""

import json
from unittest.mock import Mock

import gguf
import huggingface_hub
import pytest
import tokenizers
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from inference_opt.loading.checkpoint import GGUFFile, SafetensorsFolder
from inference_opt.loading.load import load_model

CPU = torch.device("cpu")
CONFIG = {
    "model_type": "llama",
    "vocab_size": 7,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}
LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (7, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (7, 8),
    f"{LAYER}input_layernorm.weight": (8,),
    f"{LAYER}self_attn.q_proj.weight": (8, 8),
    f"{LAYER}self_attn.k_proj.weight": (4, 8),
    f"{LAYER}self_attn.v_proj.weight": (4, 8),
    f"{LAYER}self_attn.o_proj.weight": (8, 8),
    f"{LAYER}post_attention_layernorm.weight": (8,),
    f"{LAYER}mlp.gate_proj.weight": (6, 8),
    f"{LAYER}mlp.up_proj.weight": (6, 8),
    f"{LAYER}mlp.down_proj.weight": (8, 6),
}


def write_folder(folder, changes=(), shapes=SHAPES):
    (folder / "config.json").write_text(json.dumps(CONFIG | dict(changes)))
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def write_gguf(path, arch="llama", fields=(), left_out=()):
    numbers = {
        "vocab_size": 7,
        "embedding_length": 8,
        "block_count": 1,
        "feed_forward_length": 6,
        "context_length": 16,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 4,
    }
    writer = gguf.GGUFWriter(path, arch)
    for name, value in (numbers | dict(fields)).items():
        if name not in left_out:
            (writer.add_string if isinstance(value, str) else writer.add_uint32)(f"{arch}.{name}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, shape in SHAPES.items():
        if name not in left_out:
            writer.add_tensor(names.get_name(name, (".weight",)), torch.ones(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load_folder(folder):
    return SafetensorsFolder(folder).load(torch.float64, CPU)


def load_file(path):
    return GGUFFile(path).load(torch.float64, CPU)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(GGUF file, bytes of the safetensors, bytes of the GGUF): what the tests below damage does load."""
    folder = write_folder(tmp_path_factory.mktemp("whole"))
    path = write_gguf(folder / "model.gguf")
    assert load_folder(folder).config.dim == load_file(path).config.dim == 8
    return path, (folder / "model.safetensors").read_bytes(), path.read_bytes()


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"model_type": "gpt2"}, "unknown architecture 'gpt2'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}}, "'longrope'"),
        ({"rope_scaling": {"type": "yarn"}}, r"lacks 'rope_scaling\.factor'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"head_dim": 5}, "head_dim must be even for rotary embeddings, got 5"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, r"heads \(3\) must be a multiple of kv_heads \(2\)"),
        ({"vocab_size": -7}, "vocab_size must be a positive integer, got -7"),
        ({"num_hidden_layers": 2}, r"'model\.layers\.1\.input_layernorm\.weight' is missing"),
        ({"intermediate_size": 9}, r"mlp\.gate_proj\.weight.*\(9, 8\).*\(6, 8\)"),
        ({"attention_bias": True}, r"'model\.layers\.0\.self_attn\.q_proj\.bias' is missing"),
        ({"model_type": "qwen3"}, r"'model\.layers\.0\.self_attn\.q_norm\.weight' is missing"),
    ],
)
def test_a_configuration_not_computed_here(tmp_path, changes, culprit):
    with pytest.raises(ValueError, match=culprit):
        load_folder(write_folder(tmp_path, changes))


@pytest.mark.parametrize("key", sorted(set(CONFIG) - {"num_key_value_heads", "head_dim"}))  # these two have defaults
@pytest.mark.parametrize("without", ["key", "value"])
def test_a_missing_configuration_key(tmp_path, key, without):
    write_folder(tmp_path)
    fields = {k: v for k, v in CONFIG.items() if k != key} | ({} if without == "key" else {key: None})
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
        load_folder(tmp_path)


@given(name=st.sampled_from(sorted(SHAPES)))
def test_a_missing_tensor(tmp_path_factory, name):
    folder = write_folder(tmp_path_factory.mktemp("f"), shapes={n: s for n, s in SHAPES.items() if n != name})
    with pytest.raises(ValueError, match=f"'{name}' is missing"):
        load_folder(folder)


@given(name=st.sampled_from(sorted(SHAPES)), more=st.integers(1, 3))
def test_a_tensor_of_another_shape(tmp_path_factory, name, more):
    rows, *rest = SHAPES[name]
    folder = write_folder(tmp_path_factory.mktemp("f"), shapes=SHAPES | {name: (rows + more, *rest)})
    with pytest.raises(ValueError, match=rf"{name.removesuffix('.weight')}.*\.weight: .* asks for shape"):
        load_folder(folder)


@pytest.mark.parametrize("content", [b"{", b"", b"not json", b"\xff\xfe{}"])
def test_a_config_that_is_not_json(tmp_path, content):
    write_folder(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_folder(tmp_path)


def test_a_folder_without_config(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path.name} holds no config\.json"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("pickles", "hint"), [((), "file$"), (("pytorch_model.bin",), r"pytorch_model\.bin is a pick")]
)
def test_a_folder_without_safetensors(tmp_path, pickles, hint):
    (write_folder(tmp_path) / "model.safetensors").unlink()
    for name in pickles:
        torch.save({}, tmp_path / name)
    with pytest.raises(ValueError, match=rf"holds no \*\.safetensors.*{hint}"):
        load_folder(tmp_path)


@given(data=st.data())
def test_safetensors_cut_short(tmp_path_factory, whole, data):
    content = whole[1]
    folder = write_folder(tmp_path_factory.mktemp("cut"))
    (folder / "model.safetensors").write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ValueError, match=f"{folder.name}.* damaged"):
        load_folder(folder)


@given(data=st.data())
def test_gguf_cut_short(tmp_path_factory, whole, data):
    content = whole[2]
    path = tmp_path_factory.mktemp("cut") / "model.gguf"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ValueError, match=r"model\.gguf is not a whole GGUF file"):
        load_file(path)


@given(st.binary(max_size=200).filter(lambda b: not b.startswith(b"GGUF")))
def test_a_file_that_is_no_gguf(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("other") / "readme.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"readme\.txt is not a whole GGUF file"):
        load_model(path)


@pytest.mark.parametrize(
    ("how", "culprit"),
    [
        ({"arch": "gpt2"}, "unknown architecture 'gpt2'"),
        ({"fields": {"rope.scaling.type": "yarn"}}, "'yarn'"),
        ({"fields": {"rope.scaling.type": "linear"}}, r"llama\.rope\.scaling\.factor"),
        ({"fields": {"rope.dimension_count": 2}}, r"rope\.dimension_count"),
        ({"fields": {"attention.head_count": 3, "attention.head_count_kv": 2}}, r"heads \(3\)"),
        ({"left_out": ["context_length"]}, r"lacks 'llama\.context_length'"),
        ({"left_out": [f"{LAYER}mlp.up_proj.weight"]}, r"'blk\.0\.ffn_up\.weight' is missing"),
    ],
)
def test_a_gguf_file_not_computed_here(tmp_path, how, culprit):
    with pytest.raises(ValueError, match=culprit):
        load_file(write_gguf(tmp_path / "model.gguf", **how))


@pytest.mark.parametrize("dtype", ["float16", torch.float16, torch.int8, ""])
def test_a_dtype_not_computed_here(whole, dtype):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float64"):
        load_model(whole[0], dtype=dtype)


@pytest.mark.parametrize("name", ["nonsense", "a/b/c", "two words/and: more"])
def test_a_model_that_nobody_knows(name):
    with pytest.raises(ValueError, match=f"no model '{name}'.*smollm2-135m, a path, or a hub id"):
        load_model(name)


def missing_repository():
    return RepositoryNotFoundError("404", response=Mock(status_code=404))


@pytest.mark.parametrize(
    ("online", "expected", "message"),
    [
        (LocalEntryNotFoundError("no network"), ConnectionError, "could not reach the hub for 'owner/name'"),
        (OSError("no route to host"), ConnectionError, "is there a network"),
        (missing_repository(), ValueError, "no model 'owner/name' on the hub"),
    ],
)
def test_a_hub_that_does_not_give_the_model(monkeypatch, online, expected, message):
    def snapshot_download(name, allow_patterns, local_files_only=False):
        raise LocalEntryNotFoundError("not in the cache") if local_files_only else online

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(expected, match=message):
        load_model("owner/name")


@pytest.mark.parametrize("cached", [True, False])
def test_a_hub_id_loads_from_the_cache_or_else_from_the_hub(monkeypatch, tmp_path, cached):
    calls = []

    def snapshot_download(name, allow_patterns, local_files_only=False):
        calls.append((name, local_files_only))
        assert not any(pattern in ("*", "*.bin", "*.py") for pattern in allow_patterns)  # nothing that runs
        if local_files_only and not cached:
            raise LocalEntryNotFoundError("not in the cache")
        return str(write_folder(tmp_path))

    vocabulary = {letter: i for i, letter in enumerate("abcdefg")}
    tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [])).save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model, tokenizer = load_model("owner/name")
    assert model.config.vocab_size == 7
    assert tokenizer.encode("gab") == [6, 0, 1]
    assert calls == [("owner/name", True)] + [("owner/name", False)] * (not cached)
