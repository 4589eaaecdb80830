"""Memory while loading: measured by the operating system, in a process of its own."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from inference_opt.model.linear import Linear
from tests.memory import memory
from tests.model.test_latent import DEEPSEEK_V3

# ru_maxrss would not do: a process begins with its parent's. Writing 5 sets the peak back to what is held now.
PROGRAM = """
import re, sys
from pathlib import Path
import gguf, safetensors.torch, tokenizers
from inference_opt import load_model
Path("/proc/self/clear_refs").write_text("5")
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
model, _ = load_model(sys.argv[1], dtype=sys.argv[2])
print((peak() - before) / model.weight_bytes())
"""


def peak(path, dtype):
    """Of the resident memory, the file's pages included, in sizes of the weights."""
    out = subprocess.run([sys.executable, "-c", PROGRAM, path, dtype], capture_output=True, text=True, check=True)
    return float(out.stdout)


linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


@linux
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1.5), ("bfloat16", 1.65), ("float64", 1.1)])
def test_loading_keeps_neither_the_file_nor_a_second_copy(smollm2_path, dtype, most):
    """A tied table is packed, too, as a head, which is a fifth of the weights more. (In float64 nothing is packed.)"""
    assert peak(smollm2_path, dtype) < most


@linux
@pytest.mark.parametrize(("dtype", "most"), [("float32", 2), ("float64", 1.5)])  # the first packed, the second stacked
def test_experts_in_fp8_are_loaded_without_a_second_copy(tmp_path, dtype, most):
    """The one layer's experts are nearly all of the model: in float32, the file is a quarter of its size."""
    dim, width, experts, block = 512, 1024, 32, [128, 128]
    sizes = {"num_hidden_layers": 1, "first_k_dense_replace": 0, "hidden_size": dim, "moe_intermediate_size": width}
    sizes |= {"n_routed_experts": experts, "n_shared_experts": 0, "n_group": 1, "topk_group": 1, "q_lora_rank": None}
    quantization = {"quant_method": "fp8", "weight_block_size": block}
    config = DEEPSEEK_V3 | sizes | {"quantization_config": quantization}
    layer = "model.layers.0."
    shapes = {"model.embed_tokens": (7, dim), "lm_head": (7, dim), "model.norm": (dim,)}
    shapes |= {f"{layer}input_layernorm": (dim,), f"{layer}post_attention_layernorm": (dim,)}
    shapes |= {f"{layer}self_attn.q_proj": (10, dim), f"{layer}self_attn.kv_a_proj_with_mqa": (6, dim)}
    shapes |= {f"{layer}self_attn.kv_a_layernorm": (4,), f"{layer}self_attn.kv_b_proj": (16, 4)}
    shapes |= {f"{layer}self_attn.o_proj": (dim, 10), f"{layer}mlp.gate": (experts, dim)}
    tensors = {f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    tensors[f"{layer}mlp.gate.e_score_correction_bias"] = torch.zeros(experts)
    for expert in range(experts):
        for name, rows, columns in (("gate", width, dim), ("up", width, dim), ("down", dim, width)):
            weight = f"{layer}mlp.experts.{expert}.{name}_proj.weight"
            tensors[weight] = torch.ones(rows, columns).to(torch.float8_e4m3fn)
            tensors[weight + "_scale_inv"] = torch.ones(rows // 128, columns // 128)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    assert peak(tmp_path, dtype) < most


@torch.inference_mode()
def test_shapes_that_are_past_take_no_memory_from_other_tests():
    """Prepared products are dropped while testing: `tests/conftest.py` says how many stay."""
    product = Linear(64, 96)
    product.requires_grad_(False)
    product.pack()
    for rows in range(1, 161):
        product(torch.ones(rows, 64))
        if rows == 60:
            before = memory("RssAnon")
    assert memory("RssAnon") - before < 10 * 10**6
