"""Weights from files: a folder of safetensors, or one GGUF file. Never a pickle.

Both kinds are read through one question, `tensor(name)`, with Hugging Face's names; `_SOURCES` says which of those make
up each of our parameters. Parameters are filled one at a time and packed at once, so that loading peaks at the model's
own size and one tensor more.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from inference_opt.files import write_whole
from inference_opt.model.config import ModelConfig
from inference_opt.model.formats import config_from_gguf, config_from_hf, read_json
from inference_opt.model.linear import Linear
from inference_opt.model.transformer import Transformer

TensorReader = Callable[[str], Tensor]

# Ours → Hugging Face's, within a layer; several are stacked along the output dimension.
_LAYER_SOURCES = {
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "attention.q": ("self_attn.q_proj",),  # of latent attention, from here on; see also `_sources`
    "attention.q_down": ("self_attn.q_a_proj",),
    "attention.q_latent_norm": ("self_attn.q_a_layernorm",),
    "attention.kv_down": ("self_attn.kv_a_proj_with_mqa",),
    "attention.kv_latent_norm": ("self_attn.kv_a_layernorm",),
    "attention.kv_up": ("self_attn.kv_b_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
    "mlp.router": ("mlp.gate",),
    "mlp.shared.gate_up": ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    "mlp.shared.down": ("mlp.shared_experts.down_proj",),
}
_SOURCES = {"embed": ("model.embed_tokens",), "norm": ("model.norm",), "head": ("lm_head",)}


def _sources(config: ModelConfig, module: str, parameter: str) -> list[str]:
    """The checkpoint's tensors that make up one of ours."""
    if not module.startswith("layers."):
        return [f"{name}.{parameter}" for name in _SOURCES[module]]
    _, index, rest = module.split(".", 2)
    if rest == "attention.q" and config.latent and config.latent.q_lora_rank is not None:
        names: tuple[str, ...] = ("self_attn.q_b_proj",)
    elif rest.startswith("mlp.experts."):
        _, _, expert, part = rest.split(".")
        names = tuple(name.replace("mlp.", f"mlp.experts.{expert}.") for name in _LAYER_SOURCES[f"mlp.{part}"])
    else:
        names = _LAYER_SOURCES[rest]
    parameter = "e_score_correction_bias" if parameter == "correction" else parameter
    return [f"model.layers.{index}.{name}.{parameter}" for name in names]


def _rows(config: ModelConfig, module: str) -> tuple[int, ...]:
    """Rows of each of the parts that are stacked to make up a module; () where there is one part."""
    if module.endswith("attention.qkv"):
        return tuple(n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads))
    return ()


def _checked(part: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    if not part.is_floating_point():
        raise ValueError(f"{name} holds {part.dtype}: quantised safetensors are not read here")
    if tuple(part.shape) != shape:
        raise ValueError(f"{name}: the configuration asks for shape {shape}, the file holds {tuple(part.shape)}")
    return part


def build(config: ModelConfig, tensor: TensorReader, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A transformer with every parameter taken from `tensor(name)`. ValueError names one missing or misshapen."""
    with torch.device("meta"):
        model = Transformer(config)
    for module_name, module in model.named_modules():
        for name, slot in list(module.named_parameters(recurse=False)):
            if module_name == "head" and config.tied_embeddings:
                continue
            sources = _sources(config, module_name, name)
            rows = _rows(config, module_name) or (slot.shape[0] // len(sources),) * len(sources)
            parts = [_checked(tensor(s), s, (n, *slot.shape[1:])) for s, n in zip(sources, rows, strict=True)]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            # Rounded to bfloat16, a correction that separates two experts may no longer do so.
            kind = torch.promote_types(dtype, torch.float32) if name == "correction" else dtype
            setattr(module, name, nn.Parameter(whole.to(device=device, dtype=kind), requires_grad=False))
        if isinstance(module, Linear) and module is not model.head:
            module.pack()
    if config.tied_embeddings:
        model.head.weight = model.embed.weight
    model.head.pack()
    return model.eval()


def load_safetensors(folder: Path, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A folder with `config.json` and one or more `*.safetensors`, as `save_pretrained` writes it."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json: expected a folder of config.json and *.safetensors files")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [p.name for p in folder.glob("*.bin")]
        hint = f" ({pickles[0]} is a pickle, which can run code: convert it to safetensors)" if pickles else ""
        raise ValueError(f"{folder} holds no *.safetensors file{hint}")
    generation = folder / "generation_config.json"
    eos = read_json(generation).get("eos_token_id") or () if generation.is_file() else ()
    config = config_from_hf(read_json(folder / "config.json"), (eos,) if isinstance(eos, int) else eos)
    try:
        handles = [safe_open(file, framework="pt") for file in files]
    except SafetensorError as error:
        raise ValueError(f"{folder}: a safetensors file is damaged: {error}") from error
    where = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 (not a dict)

    used = {"lm_head.weight"} if config.tied_embeddings else set()

    def tensor(name: str) -> Tensor:
        if name not in where:
            raise ValueError(f"{folder}: the tensor {name!r} is missing")
        used.add(name)
        values = where[name].get_tensor(name)
        if config.latent and config.latent.rope_interleave:
            values = _latent_to_halves(values, name, config)
        return values

    model = build(config, tensor, dtype, device)
    # DeepSeek-V3's files hold, behind the last layer, one that predicts a token further: not part of the model's law.
    spare = f"model.layers.{config.depth}." if config.latent else "rotary_emb"
    _refuse_unused(folder, {n for n in where if not n.endswith("rotary_emb.inv_freq") and spare not in n} - used)
    return model


def _latent_to_halves(rows: Tensor, name: str, config: ModelConfig) -> Tensor:
    """Reorder the rotated rows of latent attention: DeepSeek pairs neighbours, here they lie half a head apart."""
    assert config.latent is not None
    if "self_attn.q_proj" in name or "self_attn.q_b_proj" in name:
        if len(rows) % config.heads:
            return rows  # `build` says so
        by_head = rows.unflatten(0, (config.heads, -1))
    elif "self_attn.kv_a_proj_with_mqa" in name:
        by_head = rows.unsqueeze(0)
    else:
        return rows
    if by_head.shape[1] < config.rope_dim:
        return rows
    plain, rotated = by_head.split((by_head.shape[1] - config.rope_dim, config.rope_dim), dim=1)
    halves = _neighbours_to_halves(rotated.flatten(0, 1), len(by_head)).view(rotated.shape)
    return torch.cat((plain, halves), dim=1).flatten(0, 1)


def _refuse_unused(path: Path, names: set[str]) -> None:
    """A tensor that the model does not use, a bias say, means that it is not the model that the file holds."""
    if names:
        raise ValueError(f"{path}: the tensor {min(names)!r} has no place in the configured architecture")


def save_whole(tensors: dict[str, Tensor], path: Path, notes: dict[str, str] | None = None) -> None:
    """A safetensors file, whole or not at all; `notes` are its metadata."""
    write_whole(path, save(tensors, notes))


class _PlainReader(gguf.GGUFReader):
    """The library's reader over a plain array: it makes half a million slices, and numpy's memmap makes each dear."""

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        """The file's bytes, still mapped."""
        return self._bytes

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._bytes = np.asarray(mapped)


class GGUFFile:
    """An opened GGUF file: `fields` (its metadata, as plain values), `config()` and `load()`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = _PlainReader(path)
        except (ValueError, IndexError, KeyError, OSError) as error:
            raise ValueError(f"{path} is not a whole GGUF file: {error}") from error
        self.fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors = {t.name: t for t in reader.tensors}

    def config(self) -> ModelConfig:
        """The model's shape."""
        factors = self._tensors.get("rope_freqs.weight")
        return config_from_gguf(
            self.fields,
            rope_factors=() if factors is None else [float(f) for f in factors.data],
            tied="output.weight" not in self._tensors,
        )

    def load(self, dtype: torch.dtype, device: torch.device) -> Transformer:
        """The model. ValueError for a tensor that is missing, misshapen or has no place in it."""
        config = self.config()
        used = {"rope_freqs.weight"}
        model = build(config, self._reader(config, used), dtype, device)
        _refuse_unused(self.path, self._tensors.keys() - used)
        return model

    def _reader(self, config: ModelConfig, used: set[str]) -> TensorReader:
        """Tensors by Hugging Face's names, dequantised to float32, in our order of rows."""
        arch = self.fields["general.architecture"]
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.depth)

        def tensor(name: str) -> Tensor:
            stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if stored not in self._tensors:
                raise ValueError(f"{self.path}: the tensor {stored or name!r} is missing")
            used.add(stored)
            t = self._tensors[stored]
            # A tensor stored as float32 comes back as a read-only view of the file: "W" copies those and no others.
            values = torch.from_numpy(np.require(gguf.quants.dequantize(t.data, t.tensor_type), requirements="W"))
            for part, heads in ((".q_proj", config.heads), (".k_proj", config.kv_heads)):
                if arch == "llama" and part in name and len(values) == heads * config.head_dim:
                    return _neighbours_to_halves(values, heads)
            return values

        return tensor


def _neighbours_to_halves(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a Llama projection from GGUF: rotary pairs there are neighbours, here half a head apart."""
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
