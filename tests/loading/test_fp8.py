"""FP8 checkpoints in blocks: read as the formula says, bit for bit, or refused by the name of the tensor."""

import json
import math
from unittest.mock import patch

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from inference_opt.loading.checkpoint import SafetensorsFolder
from inference_opt.loading.formats import config_from_hf
from inference_opt.loading.fp8 import dequantize
from inference_opt.model.linear import dense
from tests.model import test_architectures, test_deepseek, test_experts
from tests.model.test_architectures import CPU, EXACT
from tests.model.test_deepseek import error, expected_logits, filled
from tests.model.test_latent import DEEPSEEK_V3

FP8 = torch.float8_e4m3fn
DEEPSEEK = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
BLOCKS = st.tuples(st.integers(1, 7), st.integers(1, 7)) | st.just((128, 128))


def formula(weight, scale, block):
    """W[i, j] = w[i, j] · s[⌊i / b⌋, ⌊j / c⌋], an element at a time."""
    w, s = weight.float(), scale.float()
    rows, columns = weight.shape
    return torch.tensor(
        [[(w[i, j] * s[i // block[0], j // block[1]]).item() for j in range(columns)] for i in range(rows)]
    )


def grid(shape, block):
    return tuple(math.ceil(n / size) for n, size in zip(shape, block))


def quantised(tensors, block, seed):
    """(The tensors with each projection in FP8 beside its scales, the tensors with what these stand for.)"""
    generator = torch.Generator().manual_seed(seed)
    stored, meant = dict(tensors), dict(tensors)
    for name, value in tensors.items():
        if name.endswith("_proj.weight"):
            scale = torch.empty(grid(value.shape, block)).uniform_(0.01, 1, generator=generator)
            stored[name], stored[name + "_scale_inv"] = (value / 0.3).to(FP8), scale
            meant[name] = formula(stored[name], scale, block)
    return stored, meant


def write(folder, config, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def write_both(tmp, model, block, seed, quantization=DEEPSEEK):
    """A model's folders: in FP8, and with what the FP8 stands for."""
    model.save_pretrained(tmp / "whole")
    config = json.loads((tmp / "whole" / "config.json").read_text())
    stored, meant = quantised(load_file(tmp / "whole" / "model.safetensors"), block, seed)
    said = {"quantization_config": quantization | {"weight_block_size": list(block)}}
    return write(tmp / "fp8", config | said, stored), write(tmp / "plain", config, meant)


def load(folder, dtype=torch.float64):
    return SafetensorsFolder(folder).load(dtype, CPU)


@given(st.data())
def test_a_model_in_fp8_is_the_model_that_the_formula_says(tmp_path_factory, data):
    draw = st.sampled_from([test_deepseek.models(), test_experts.models(), test_architectures.models()])
    model = data.draw(data.draw(draw))
    block, dtype = data.draw(BLOCKS), data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    fp8, plain = write_both(tmp_path_factory.mktemp("f"), model, block, data.draw(st.integers(0, 99)))
    ours, expected = dict(load(fp8, dtype).named_parameters()), dict(load(plain, dtype).named_parameters())
    assert ours.keys() == expected.keys()
    assert all(torch.equal(dense(p), dense(expected[name])) for name, p in ours.items())


ROWS, COLUMNS = st.integers(1, 300), st.integers(1, 300)


@given(ROWS, COLUMNS, BLOCKS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.integers(0, 99))
def test_every_block_has_its_scale(rows, columns, block, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).to(FP8)
    scale = torch.empty(grid(weight.shape, block)).uniform_(0.01, 1, generator=generator).to(kind)
    across = scale.float()[torch.arange(rows)[:, None] // block[0], torch.arange(columns) // block[1]]
    whole = dequantize(weight, scale, block)
    assert whole.dtype == torch.float32
    assert torch.equal(whole, weight.float() * across)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A DeepSeek-V3 of whole 128 × 128 blocks, in FP8 and as the formula says."""
    make_config, make_model, options = test_experts.ROUTERS["deepseek_v3"]
    sizes = {"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128, "q_lora_rank": 128}
    latent = {"kv_lora_rank": 64, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64}
    model = filled(make_model(make_config(**test_experts.SIZES | options | sizes | latent, num_experts_per_tok=2)), 5)
    return write_both(tmp_path_factory.mktemp("both"), model, (128, 128), 5)


def test_logits_of_transformers_that_reads_the_same_fp8(both):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        both[0], dtype=torch.float32, experts_implementation="eager",
        quantization_config=transformers.FineGrainedFP8Config(dequantize=True),
    )  # fmt: skip
    prompt = torch.arange(31)
    expected = expected_logits(theirs.eval(), prompt)
    with torch.inference_mode():
        assert error(test_architectures.our_logits(load(both[0]), prompt), expected) < EXACT


EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"
SCALE = EXPERT + "_scale_inv"


@pytest.fixture
def broken(both, tmp_path):
    """Writes the FP8 folder with changed tensors (None: left out) and a changed quantization_config."""

    def write_changed(tensors=(), quantization=None):
        config = json.loads((both[0] / "config.json").read_text())
        changed = load_file(both[0] / "model.safetensors") | dict(tensors)
        if quantization is not None:
            config["quantization_config"] = quantization
        return write(tmp_path / "broken", config, {n: t for n, t in changed.items() if t is not None})

    return write_changed


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({SCALE: None}, f"'{SCALE}' is missing.*fetch the files again"),
        ({EXPERT: None, SCALE: None}, f"'{EXPERT}' is missing.*fetch the files again"),
        ({EXPERT: None}, f"'{EXPERT}' is missing"),
        ({SCALE: torch.ones(1, 2)}, rf"{SCALE}: expected shape \(1, 1\).*\(128, 128\).*holds \(1, 2\) in F32.*fetch"),
        ({SCALE: torch.ones(1)}, rf"{SCALE}: expected shape \(1, 1\).*holds \(1,\)"),
        ({SCALE: torch.ones(1, 1, dtype=torch.int32)}, rf"{SCALE}: .* in F32, BF16, F16.*in I32"),
        ({SCALE: torch.ones(1, 1).to(torch.float8_e8m0fnu)}, rf"{SCALE}: .*F8_E8M0"),
        ({EXPERT: torch.ones(128, 128).to(torch.float8_e5m2)}, rf"{EXPERT} holds F8_E5M2.*in F8_E4M3.*take the"),
        ({EXPERT: torch.ones(128, 129).to(FP8)}, rf"{EXPERT}.*expected shape \(1, 2\)|{EXPERT}: .*asks for shape"),
        ({EXPERT: torch.ones(128, 128)}, f"'{SCALE}' has no place"),
        ({"model.norm.weight": torch.ones(128).to(FP8)}, r"norm\.weight holds F8_E4M3 .* not read here"),
        (
            {"model.norm.weight": torch.ones(128).to(FP8), "model.norm.weight_scale_inv": torch.ones(1)},
            r"norm\.weight holds F8_E4M3 in shape \(128,\), .*only matrices",
        ),
    ],
)
def test_what_is_missing_or_of_another_shape_is_told_before_a_tensor_is_read(broken, tensors, message):
    folder = broken(tensors)
    with patch.object(SafetensorsFolder, "tensor", None), pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -0.5])
def test_a_scale_that_is_no_positive_number(broken, value):
    with pytest.raises(ValueError, match=rf"{SCALE}: expected scales that are positive .* found {value}: fetch"):
        load(broken({SCALE: torch.full((1, 1), value)}))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["weight", "e_score_correction_bias"])
def test_a_router_that_is_not_a_number(both, broken, part, value):
    name = f"model.layers.1.mlp.gate.{part}"
    values = load_file(both[0] / "model.safetensors")[name]
    values.view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity.*fetch the file again"):
        load(broken({name: values}))


@pytest.mark.parametrize("quantization", [{}, None])
def test_fp8_without_the_size_of_its_blocks(broken, quantization):
    with pytest.raises(ValueError, match=r"holds F8_E4M3 .*weight_block_size; .*or the config\.json"):
        load(broken(quantization={}))


def test_unquantised_weights_may_have_kept_the_configuration(both, tmp_path):
    config = json.loads((both[0] / "config.json").read_text())
    assert load(write(tmp_path / "cast", config, load_file(both[1] / "model.safetensors"))).config.experts


@pytest.mark.parametrize(
    "more",
    [
        {"scale_fmt": "ue8m0"},  # DeepSeek-V3.1: scales are powers of two, and stored as float32
        {"scale_fmt": "float", "modules_to_not_convert": ["lm_head"], "modules_to_convert": None, "dequantize": False},
        {"ignored_layers": [], "expert_dtype": "fp8"},
    ],
)
def test_options_that_change_nothing(more):
    assert config_from_hf(DEEPSEEK_V3 | {"quantization_config": DEEPSEEK | more}) == config_from_hf(DEEPSEEK_V3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "compressed-tensors"}, "only quant_method 'fp8'.*'compressed-tensors'.*unquantised model"),
        ({"quant_method": None}, r"lacks 'quantization_config\.quant_method'"),
        ({"activation_scheme": "static"}, r"activation_scheme is 'static': only 'dynamic'"),
        ({"fmt": "e5m2"}, r"fmt is 'e5m2': only 'e4m3'"),
        ({"expert_dtype": "fp4"}, r"expert_dtype is 'fp4'"),
        ({"scale_fmt": "e8m0"}, r"scale_fmt is 'e8m0': only 'float' or 'ue8m0'"),
        ({"weight_block_size": None}, r"lacks 'quantization_config\.weight_block_size'"),
        ({"weight_block_size": [128]}, r"weight_block_size must be a list of two positive integers, got \[128\]"),
        ({"weight_block_size": [0, 128]}, "weight_block_size must be a list of two positive integers"),
        ({"kv_cache_scheme": {}}, r"quantization_config\.kv_cache_scheme is not known"),
    ],
)
def test_another_quantisation_is_refused_by_its_option(changes, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(DEEPSEEK_V3 | {"quantization_config": DEEPSEEK | changes})
