"""A checkpoint that is damaged, or that this code would compute wrongly, is refused by name."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from inference_opt import load_model, naive
from inference_opt.model.checkpoint import GGUFFile, load_safetensors
from inference_opt.sampling import SamplingParams
from tests.model.checkpoints import build_theirs, write_gguf

CONFIG = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": None,
}


@pytest.fixture
def folder(tmp_path):
    build_theirs("llama", CONFIG).save_pretrained(tmp_path)
    return tmp_path


def load(folder):
    return load_safetensors(folder, torch.float32, torch.device("cpu"))


def edit_config(folder, **changes):
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v != "remove"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": "remove"}, "model_type"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"use_sliding_window": True}, "sliding"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "yarn"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"num_hidden_layers": "remove"}, "num_hidden_layers"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"head_dim": 3}, "even"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "multiple"),
        ({"vocab_size": 12}, r"model\.embed_tokens.*\(12, 8\).*\(11, 8\)"),
        ({"intermediate_size": 13}, r"gate_proj.*26.*24"),
        ({"num_hidden_layers": 2}, r"model\.layers\.1\.\S*.*missing"),
    ],
)
def test_a_configuration_that_is_not_computed_here(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_missing_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.self_attn.k_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.k_proj\.weight"):
        load(folder)


def test_a_tensor_that_would_be_ignored(folder, tmp_path_factory):
    # A bias in the file that the configuration does not speak of: leaving it out would be another model.
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.0.self_attn.q_proj.bias": torch.ones(8)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"q_proj\.bias.*no place"):
        load(folder)
    biased = build_theirs("llama", CONFIG | {"attention_bias": True})
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(biased, "llama", path)
    with pytest.raises(ValueError, match=r"attn_k\.bias.*no place"):
        GGUFFile(path).load(torch.float32, torch.device("cpu"))


def test_a_truncated_safetensors_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        load(folder)


def test_folders_that_are_no_models(folder, tmp_path_factory):
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(ValueError, match="JSON"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        load(folder)


def test_a_pickle_is_never_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 3, 40, 2000, -500])
def test_a_gguf_file_that_is_not_whole(tmp_path, keep):
    path = tmp_path / "model.gguf"
    write_gguf(build_theirs("llama", CONFIG), "llama", path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.gguf is not a whole GGUF file"):
        GGUFFile(path)


def test_something_else_under_the_name_of_gguf(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK" + bytes(4000))
    with pytest.raises(ValueError, match=r"model\.gguf"):
        load_model(path)


@pytest.mark.parametrize(("dtype", "source"), [("float16", "x"), (torch.int8, "x"), ("nonsense", "x")])
def test_precisions_that_are_not_computed(dtype, source):
    with pytest.raises(ValueError, match="float32, bfloat16, float64"):
        load_model(source, dtype=dtype)


@pytest.mark.parametrize("name", ["nonsense", "a/b/c", "", "smollm3"])
def test_a_name_that_is_no_model(name):
    with pytest.raises(ValueError, match=r"no model|no config\.json"):
        load_model(name)


def tiny_tokenizer(folder):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({chr(97 + i): i for i in range(11)}, unk_token="a")).save(str(folder / "tokenizer.json"))


def test_a_hub_id_is_fetched_once_and_loaded(folder, monkeypatch):
    tiny_tokenizer(folder)
    calls = []

    def snapshot(name, allow_patterns, local_files_only=False):
        calls.append(local_files_only)
        assert not any("bin" in p for p in allow_patterns)
        if local_files_only:
            raise LocalEntryNotFoundError("not here yet")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model, tokenizer = load_model("owner/name", dtype="float64")
    assert calls == [True, False]
    assert len(naive.generate(model, tokenizer.encode("b"), SamplingParams(max_new_tokens=3, ignore_eos=True))) == 3


@pytest.mark.parametrize(
    ("problem", "kind", "message"),
    [
        (OSError("no route"), ConnectionError, "network"),
        (LocalEntryNotFoundError("offline"), ConnectionError, "network"),
        ("missing", ValueError, "no model 'owner/name'"),
    ],
)
def test_a_hub_that_does_not_answer(monkeypatch, problem, kind, message):
    def snapshot(name, allow_patterns, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        if problem == "missing":
            raise RepositoryNotFoundError("404", response=httpx_response())
        raise problem

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(kind, match=message):
        load_model("owner/name")


def httpx_response():
    import httpx

    return httpx.Response(404, request=httpx.Request("GET", "https://example.org"))


def test_a_folder_without_its_tokenizer(folder):
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_model(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer"):
        load_model(folder)
    shutil.rmtree(folder)
