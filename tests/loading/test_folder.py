"""Which of a folder's files are the model: the choice of `transformers`, or a refusal that names the file."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from inference_opt.loading import load
from inference_opt.loading.folder import INDEX, read_json
from inference_opt.loading.load import load_model
from tests.loading.test_checkpoint_errors import CONFIG, SHAPES, load_folder, write_folder

NAMES = sorted(SHAPES)
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
MAP = {name: FIRST if name in NAMES[:6] else SECOND for name in NAMES}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n"


def save(folder, name, names, value):
    save_file({n: torch.full(SHAPES[n], value) for n in names}, folder / name)


@pytest.fixture
def sharded(tmp_path):
    """A model of ones in two files, and three of an earlier save that hold sevens."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save(tmp_path, FIRST, NAMES[:6], 1.0)
    save(tmp_path, SECOND, NAMES[6:], 1.0)
    for index, names in enumerate((NAMES[:4], NAMES[4:8], NAMES[8:]), 1):
        save(tmp_path, f"model-{index:05}-of-00003.safetensors", names, 7.0)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": MAP}))
    return tmp_path


def values(model):
    return {float(p.flatten()[0]) for p in model.parameters()}


def test_the_index_says_which_shards_are_the_model(sharded):
    assert values(load_folder(sharded)) == {1.0}


def test_a_whole_file_counts_before_an_index(sharded):
    save(sharded, "model.safetensors", NAMES, 3.0)
    assert values(load_folder(sharded)) == {3.0}


@pytest.mark.parametrize("beside", ["consolidated", "adapter_model", "._model", "zz"])
def test_other_files_are_left_alone(tmp_path, beside):
    save_file({"model.norm.weight": torch.full((8,), 7.0)}, write_folder(tmp_path) / f"{beside}.safetensors")
    assert values(load_folder(tmp_path)) == {1.0}


@pytest.mark.parametrize(
    ("index", "culprit"),
    [
        ({}, f"{INDEX}: .*lacks 'weight_map'"),
        ({"weight_map": ["a"]}, f"{INDEX}: weight_map must be a JSON object"),
        ({"weight_map": {"a": 3}}, rf"{INDEX}: weight_map\.a must be .* got 3"),
        ({"weight_map": {"a": "../x.safetensors"}}, rf"{INDEX}: weight_map\.a must be .* of the folder"),
        ({"weight_map": {"a": "config.json"}}, rf"{INDEX}: weight_map\.a must be a \*\.safetensors file"),
        ({"weight_map": MAP | {"a": "b.safetensors"}}, r"b\.safetensors is not there"),
        ({"weight_map": MAP | {"a": SECOND}}, f"{SECOND} lacks 'a', which {INDEX} says it holds"),
        ({"weight_map": MAP | {NAMES[0]: SECOND}}, f"{SECOND} lacks '{NAMES[0]}'"),
        ({"weight_map": MAP | {NAMES[0]: "model-00001-of-00003.safetensors"}}, "holds .*, and so does"),
        ({"weight_map": dict.fromkeys(NAMES[:6], FIRST)}, r"\.weight' is missing"),
    ],
)
def test_an_index_that_contradicts_the_files(sharded, index, culprit):
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=culprit):
        load_folder(sharded)


def test_shards_without_an_index(sharded):
    (sharded / INDEX).unlink()
    with pytest.raises(ValueError, match=f"holds model-00001.*neither model.safetensors nor {INDEX}"):
        load_folder(sharded)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("what", "culprit"), [("fifo", "not a regular file"), ("folder", "not a regular file"), ("lfs", "git lfs pull")]
)
def test_something_else_in_the_place_of_a_file(tmp_path, name, what, culprit):
    path = write_folder(tmp_path) / name
    path.unlink(missing_ok=True)
    {"fifo": os.mkfifo, "folder": os.mkdir, "lfs": lambda p: p.write_text(POINTER)}[what](path)
    with pytest.raises(ValueError, match=f"{name} is .*{culprit}"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ("", "Expecting value"),
        ("\ufeff{}", "BOM"),
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' is given twice"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' is given twice"),
        ("[" * 100_000 + "]" * 100_000, "recursion"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
    ],
)
def test_json_that_is_not_read(tmp_path, content, culprit):
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"x\.json is not valid JSON: .*{culprit}"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("eos", ["2", 2.5, {"a": 1}, [[1]], -1])
def test_end_tokens_that_are_none(tmp_path, eos):
    (write_folder(tmp_path) / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id must be a token id or a list"):
        load_folder(tmp_path)


@pytest.mark.parametrize(("told", "ends"), [(None, (3,)), ({}, (3,)), ({"eos_token_id": [4, 5]}, (4, 5))])
def test_end_tokens_of_two_files(tmp_path, told, ends):
    write_folder(tmp_path, {"eos_token_id": 3})
    if told is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(told))
    assert load_folder(tmp_path).config.eos_token_ids == ends


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 2_000_000}, {"hidden_size": 2**62}, {"vocab_size": 2**70},
                                     {"intermediate_size": 2**62}, {"num_attention_heads": 2**40}])  # fmt: skip
def test_sizes_that_no_file_has_are_refused_before_anything_is_built(tmp_path, changes):
    with pytest.raises(ValueError, match=r"is missing|asks for"):
        load_folder(write_folder(tmp_path, changes))


def test_no_tensor_is_read_before_all_are_known_to_fit(tmp_path, monkeypatch):
    read = []
    folder = write_folder(tmp_path, shapes=SHAPES | {"lm_head.weight": (8, 8)})
    monkeypatch.setattr("inference_opt.loading.checkpoint.SafetensorsFolder.tensor", lambda _, name: read.append(name))
    with pytest.raises(ValueError, match=r"lm_head\.weight: .* asks for shape \(7, 8\), the file holds \(8, 8\)"):
        load_folder(folder)
    assert not read


def test_a_tokenizer_is_refused_before_the_weights_are_read(tmp_path, monkeypatch):
    (write_folder(tmp_path) / "tokenizer.json").write_text("{")
    monkeypatch.setattr("inference_opt.loading.checkpoint.build", lambda *_: pytest.fail("the weights are read"))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8, torch.bool])
def test_numbers_of_a_kind_that_is_not_read(tmp_path, kind):
    tensors = {n: torch.ones(s).to(kind if n == NAMES[-1] else torch.float32) for n, s in SHAPES.items()}
    save_file(tensors, write_folder(tmp_path) / "model.safetensors")
    with pytest.raises(ValueError, match=f"{NAMES[-1]} holds .* not read here"):
        load_folder(tmp_path)


@pytest.mark.parametrize("header", [b"", b"x" * 100, b"[" * 50_000, b'{"a": 1}'])
@pytest.mark.parametrize("size", [None, 10**6, 2**63, 2**64 - 1])
def test_hostile_headers_of_safetensors(tmp_path, header, size):
    content = struct.pack("<Q", len(header) if size is None else size) + header
    (write_folder(tmp_path) / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_folder(tmp_path)


@pytest.mark.parametrize("source", ["", "a" * 5000, "a\0b"])
def test_a_source_that_names_nothing(source):
    with pytest.raises(ValueError, match=r"source must be|there is no model"):
        load_model(source)


def test_a_path_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a regular file"):
        load_model(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole GGUF file: .* load the folder"):
        load_model(write_folder(tmp_path) / "model.safetensors")


def test_a_cached_folder_is_whole_where_its_index_has_all_shards(sharded):
    (sharded / "tokenizer.json").write_text("{}")
    assert load._is_whole(sharded)
    (sharded / SECOND).unlink()
    assert not load._is_whole(sharded)
    (sharded / INDEX).unlink()
    assert not load._is_whole(sharded)
