"""Logits equal those of `transformers` in float64, for random models of every architecture and both kinds of file."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.kv.contiguous import ContiguousCache
from inference_opt.model.attention import NoCache
from inference_opt.model.checkpoint import GGUFFile, load_safetensors
from inference_opt.model.linear import Linear, can_pack
from tests.model.checkpoints import CONTEXT, KINDS, build_theirs, in_float64, theirs, write_gguf

CPU = torch.device("cpu")


def relative_error(a, b):
    return float((a - b).abs().max() / b.abs().max())


def tokens_of(model, seed, length=CONTEXT):
    return torch.randint(model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def ours_on(model, tokens):
    return model(tokens, torch.arange(len(tokens)), NoCache([len(tokens)]))


@torch.inference_mode()
def theirs_on(model, tokens):
    return in_float64(model)(tokens[None]).logits[0]


@pytest.mark.parametrize("arch", KINDS)
@given(data=st.data(), seed=st.integers(0, 9), length=st.integers(1, CONTEXT), sharded=st.booleans())
def test_safetensors_at_every_position_whole_and_in_chunks(arch, data, seed, length, sharded):
    reference = build_theirs(arch, data.draw(theirs(arch)), seed)
    with TemporaryDirectory() as folder:
        reference.save_pretrained(folder, max_shard_size="4KB" if sharded else "1GB")
        model = load_safetensors(Path(folder), torch.float64, CPU)
    tokens = tokens_of(model, seed, length)
    expected = theirs_on(reference, tokens)
    assert relative_error(ours_on(model, tokens), expected) < 1e-10

    cut = data.draw(st.integers(0, length))
    c = model.config
    cache = ContiguousCache(c.depth, c.kv_heads, c.head_dim, [length], torch.float64, CPU)
    with torch.inference_mode():
        chunks = [model(part, cache.extend([len(part)]), cache) for part in (tokens[:cut], tokens[cut:]) if len(part)]
    assert relative_error(torch.cat(chunks), expected) < 1e-10


@pytest.mark.parametrize("arch", KINDS)
@given(data=st.data(), seed=st.integers(0, 9))
def test_gguf_holds_the_same_model(arch, data, seed):
    config = data.draw(theirs(arch).filter(lambda c: not (c.get("attention_bias") or c.get("mlp_bias"))))
    reference = build_theirs(arch, config, seed)
    with TemporaryDirectory() as folder:
        write_gguf(reference, arch, Path(folder) / "model.gguf")
        model = GGUFFile(Path(folder) / "model.gguf").load(torch.float64, CPU)
        tokens = tokens_of(model, seed)
        # The file stores one divisor a frequency in float32: frequencies may differ in their last bit.
        bound = 1e-5 if config["rope_parameters"]["rope_type"] == "llama3" else 1e-10
        assert relative_error(ours_on(model, tokens), theirs_on(reference, tokens)) < bound


@pytest.mark.parametrize("arch", KINDS)
@given(data=st.data())
def test_packed_float32_agrees_with_float64(arch, data):
    reference = build_theirs(arch, data.draw(theirs(arch)))
    with TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        rough = load_safetensors(Path(folder), torch.float32, CPU)
    packed = {m.weight.is_mkldnn for m in rough.modules() if isinstance(m, Linear)}
    assert packed == {can_pack(torch.float32, CPU)}
    tokens = tokens_of(rough, 0)
    assert relative_error(ours_on(rough, tokens).double(), theirs_on(reference, tokens)) < 1e-4


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.booleans(), st.integers(0, 9))
@torch.inference_mode()
def test_packing_moves_numbers_and_changes_none(rows, columns, tokens, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        linear = Linear(columns, rows, bias=bias).to(dtype)
        for p in linear.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
        dense = linear.weight.clone()
        x = torch.randn(tokens, columns, generator=generator).to(dtype)
        expected = linear(x)
        linear.pack()
        linear.pack()  # twice is once
        assert linear.weight.is_mkldnn == can_pack(dtype, CPU)
        unit = torch.finfo(dtype).eps * (x.abs() @ dense.abs().T + 1)  # rounding of a sum in another order
        assert ((linear(x) - expected).abs() <= 2 * columns * unit).all()
        linear.unpack()
        assert torch.equal(linear.weight, dense)
