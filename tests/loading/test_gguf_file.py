"""A GGUF file's bytes: whole, in order, of a kind that is read; or refused, soon, by the name of what is wrong."""

import contextlib
import struct

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.loading.checkpoint import GGUFFile
from inference_opt.loading.gguf_file import read_gguf
from inference_opt.loading.load import load_model
from tests.loading.test_checkpoint_errors import SHAPES, load_file, write_gguf

NUMBERS = {"vocab_size": 7, "embedding_length": 8, "block_count": 1, "feed_forward_length": 6, "context_length": 16,
           "attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 4}  # fmt: skip


def text(value):
    return struct.pack("<Q", len(value)) + value


def field(name, kind, content):
    return text(name.encode()) + struct.pack("<I", kind) + content


def tensor(name, dims, kind, offset):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


ARCH = field("general.architecture", 8, text(b"llama"))


def whole(fields=(), tensors=0, count=None, version=3, rest=b""):
    head = struct.pack("<IQQ", version, tensors, len(fields) if count is None else count)
    return b"GGUF" + head + b"".join(fields) + rest


U32, U8, STRING, ARRAY = 4, 0, 8, 9


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (whole(version=1), "version 1"),
        (whole(version=99), "version 99"),
        (whole(count=2**63), "ends at byte"),
        (whole([ARCH], tensors=2**63), "ends at byte"),
        (whole([field("a", ARRAY, struct.pack("<IQ", U32, 2**63))]), "ends at byte"),
        (whole([field("a", ARRAY, struct.pack("<IQ", U8, 2**40) + bytes(8))]), "ends at byte"),
        (whole([field("a", ARRAY, struct.pack("<IQ", STRING, 2**63) + text(b"x"))]), "ends at byte"),
        (whole([field("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 5000)]), "recursion"),
        (whole([field("a", STRING, struct.pack("<Q", 2**63) + b"abc")]), "ends at byte"),
        (whole([field("a", U32, b"")]), "ends at byte"),
        (whole([field("a", 77, b"1234")]), "77"),
        (whole([field("a", STRING, text(b"\xff\xfe"))]), "utf-8"),
        (whole([ARCH, ARCH]), "Duplicate"),
        (whole([ARCH, field("general.alignment", U32, struct.pack("<I", 0))]), "alignment"),
        (whole([ARCH], 1, rest=tensor(b"x", [2**63, 2], 0, 0) + bytes(64)), "whole"),
        (whole([ARCH], 1, rest=tensor(b"x", [4], 0, 2**63) + bytes(64)), "ends at byte"),
        (whole([ARCH], 1, rest=tensor(b"x", [4], 99, 0) + bytes(64)), "99"),
        (whole([ARCH], 1, rest=tensor(b"x", [7, 2], 12, 0) + bytes(600)), "Q4_K"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_file_that_is_not_whole(tmp_path, content, culprit):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=rf"m\.gguf is .*{culprit}"):
        load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("tensors", "culprit"),
    [
        ([(b"a", [4], 0, 0), (b"b", [4], 0, 0)], "'b' is said to begin at byte 0 of the data, expected 32"),
        ([(b"a", [4], 0, 32)], "'a' is said to begin at byte 32 of the data, expected 0"),
        ([(b"a", [4], 0, 2**64 - 32)], "ends at byte|is said to begin|buffer|whole"),
        ([(b"a", [4], 0, 0), (b"a", [4], 0, 32)], "duplicated tensor with name a"),
        ([(b"a", [4], 24, 0)], "'a' holds I8, which is not read here"),
        ([(b"a", [4], 28, 0)], "'a' holds F64, which is not read here"),
    ],
)
def test_tensors_that_overlap_leave_gaps_or_hold_what_is_not_read(tmp_path, tensors, culprit):
    head = whole([ARCH], len(tensors), rest=b"".join(tensor(*t) for t in tensors))
    (tmp_path / "m.gguf").write_bytes(head + bytes(-len(head) % 32) + bytes(128))
    with pytest.raises(ValueError, match=culprit):
        read_gguf(tmp_path / "m.gguf")


@given(at=st.integers(4, 400), byte=st.integers(0, 255))
def test_one_byte_of_the_head_changed_is_refused_or_read(tmp_path_factory, at, byte):
    path = write_gguf(tmp_path_factory.mktemp("g") / "m.gguf")
    content = bytearray(path.read_bytes())
    content[at] = byte
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        load_file(path)


@pytest.mark.parametrize("endianess", gguf.GGUFEndian)
def test_what_an_array_holds_is_read_as_it_was_written(tmp_path, endianess):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=endianess)
    arrays = {"a": [1, 2, 3], "b": [0.5, -1.0], "c": [True, False], "d": ["x", "", "ÿz"], "e": [["x", "y"], ["z"]]}
    for name, values in arrays.items():
        writer.add_array(name, values)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    fields, _ = read_gguf(tmp_path / "m.gguf")
    assert {name: fields[name] for name in "abcd"} == {name: arrays[name] for name in "abcd"}


def write(path, quantised=None, endianess=gguf.GGUFEndian.LITTLE, alignment=32, **fields):
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess)
    writer.add_custom_alignment(alignment)
    for name, value in NUMBERS.items():
        writer.add_uint32(f"llama.{name}", value)
    for name, value in fields.items():
        writer.add_uint32(name.replace("_", "."), value)
    writer.add_layer_norm_rms_eps(1e-5)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for seed, (name, shape) in enumerate(SHAPES.items()):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
        writer.add_tensor(names.get_name(name, (".weight",)), values.astype(quantised or np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("how", [{"endianess": gguf.GGUFEndian.BIG}, {"alignment": 64}])
def test_byte_order_and_alignment_change_no_number(tmp_path, kind, how):
    plain = load_file(write(tmp_path / "a.gguf", kind))
    other = load_file(write(tmp_path / "b.gguf", kind, **how))
    for ours, expected in zip(other.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_a_big_endian_file_of_quantised_blocks_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    blocks = gguf.quants.quantize(np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("x", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(ValueError, match="'x' holds Q8_0 in a big-endian file"):
        read_gguf(tmp_path / "m.gguf")


def test_one_part_of_a_split_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"split\.count: it is one of 2 parts, .* --merge"):
        GGUFFile(write(tmp_path / "m-00001-of-00002.gguf", split_count=2))
    GGUFFile(write(tmp_path / "m.gguf", split_count=1))


@pytest.mark.parametrize("changes", [{"block_count": 2**31}, {"embedding_length": 2**31}, {"vocab_size": 2**31}])
def test_sizes_that_no_file_has(tmp_path, changes):
    with pytest.raises(ValueError, match=r"m\.gguf: .*(is missing|asks for shape)"):
        load_file(write_gguf(tmp_path / "m.gguf", fields=changes))
