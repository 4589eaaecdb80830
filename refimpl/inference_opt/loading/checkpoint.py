"""Weights from files: a folder of safetensors, or one GGUF file. Never a pickle.

Both kinds answer two questions, `shape(name)` and `tensor(name)`, by Hugging Face's names. `_SOURCES` and
`_LAYER_SOURCES` list the names that make up each of our parameters. All shapes are compared with the configuration
before the first tensor is read. Then each tensor is written into its place in the model, and each parameter is packed
before the next is read, so that loading never needs more memory than the model, one more parameter and one more tensor.
"""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from inference_opt.files import write_whole
from inference_opt.loading.folder import INDEX, check_file, named, read_json, weight_files
from inference_opt.loading.formats import config_from_gguf, config_from_hf, extra_layers
from inference_opt.loading.fp8 import SUFFIX, block_size, check_scale, dequantize
from inference_opt.model.config import ModelConfig
from inference_opt.model.experts import MixtureOfExperts, Router
from inference_opt.model.fields import Fields
from inference_opt.model.linear import Linear, can_pack
from inference_opt.model.transformer import Transformer, check_fits

# Our name in a layer → Hugging Face's names; several tensors are stacked along the output dimension.
_LAYER_SOURCES = {
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "attention.q": ("self_attn.q_proj",),  # this and the next five: latent attention; see also `_sources`
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
    """The names of the checkpoint's tensors that make up one of our parameters."""
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
    """The number of rows of each part that is stacked in a module; () if all parts are equal."""
    if module.endswith("attention.qkv"):
        return tuple(n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads))
    return ()


class Checkpoint(ABC):
    """An open checkpoint: the model's shape, and its tensors by Hugging Face's names. ValueErrors name the file."""

    path: Path
    config: ModelConfig

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header. ValueError if it is missing or of an unsupported type."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """A tensor's values, with its rows in our order."""

    @abstractmethod
    def unused(self, used: set[str]) -> set[str]:
        """The names, in the file, of tensors that belong to the model but are not among `used`."""

    def load(self, dtype: torch.dtype, device: torch.device) -> Transformer:
        """The model. ValueError for a tensor that is missing, has another shape, or has no place in the model."""
        return build(self, self.config, dtype, device)


def build(source: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A transformer with every parameter from the source. ValueError, before any is read, if one cannot be."""
    used: set[str] = set()

    def check(name: str, shape: tuple[int, ...]) -> None:
        used.add(name)
        stored = source.shape(name)
        if stored != shape:
            raise ValueError(
                f"{source.path}: {name}: the configuration asks for shape {shape}, the file holds {stored}"
            )

    # First the tensors that prove the sizes of the configuration, so that a false one makes no endless model.
    for name, shape in _counted(config):
        check(name, shape)
    try:
        with torch.device("meta"):
            model = Transformer(config)
    except (RuntimeError, TypeError) as error:  # torch's errors for a tensor whose size overflows
        raise ValueError(f"{source.path}: the configuration asks for tensors that are too large: {error}") from error

    # Then every tensor's shape. A tensor that the model does not use (a bias, say) means that the file holds another
    # model than the configuration describes.
    for _, _, parts in _places(model):
        for name, shape in parts.items():
            check(name, shape)
    if names := source.unused(used):
        raise ValueError(f"{source.path}: the tensor {min(names)!r} has no place in the configured architecture")
    check_fits(config, dtype, device)

    # Now the values, one parameter at a time. The head is packed last, because the embedding may share its tensor.
    stacks = _stacks(model, dtype, device)
    for module, name, parts in _places(model):
        # In bfloat16, a router's correction that separates two experts may no longer do so.
        kind = torch.promote_types(dtype, torch.float32) if name == "correction" else dtype
        whole = stacks.get(module)
        if whole is None:
            whole = torch.empty(getattr(module, name).shape, dtype=kind, device=device)
        for place, part in zip(whole.split([shape[0] for shape in parts.values()]), parts, strict=True):
            place.copy_(source.tensor(part))
            if isinstance(module, Router) and not bool(place.isfinite().all()):
                raise ValueError(
                    f"{source.path}: {part} holds NaN or infinity, which no router can choose by: fetch the file again"
                )
        setattr(module, name, nn.Parameter(whole, requires_grad=False))
        if isinstance(module, Linear) and name == "weight" and module is not model.head:
            module.pack()
    if config.tied_embeddings:
        model.head.weight = model.embed.weight
    model.head.pack()
    return model.eval()


def _counted(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that show the vocabulary's size and the numbers of layers and experts."""
    yield "model.embed_tokens.weight", (config.vocab_size, config.dim)
    for index in range(config.depth):
        yield f"model.layers.{index}.input_layernorm.weight", (config.dim,)
    if (shape := config.experts) and shape.layers(config.depth):
        first = next(index for index in range(config.depth) if shape.in_layer(index))
        yield f"model.layers.{first}.mlp.gate.weight", (shape.n_routed_experts, config.dim)


def _stacks(model: Transformer, dtype: torch.dtype, device: torch.device) -> dict[nn.Module, Tensor]:
    """Memory for the experts' weights: those of a layer one after another, where kernels find them by number.

    Weights that will be packed get none, because packing them would not free it before the last.
    """
    stacks: dict[nn.Module, Tensor] = {}
    for mixture in () if can_pack(dtype, device) else model.modules():
        if isinstance(mixture, MixtureOfExperts):
            for part in ("gate_up", "down"):
                products = [getattr(expert, part) for expert in mixture.experts]
                shape = products[0].weight.shape
                stacks |= zip(products, torch.empty(len(products), *shape, dtype=dtype, device=device), strict=True)
    return stacks


def _places(model: Transformer) -> Iterator[tuple[nn.Module, str, dict[str, tuple[int, ...]]]]:
    """For each parameter: its module, its name, and the names and shapes of the tensors that make it up."""
    config = model.config
    for module_name, module in model.named_modules():
        for name, slot in list(module.named_parameters(recurse=False)):
            if module_name == "head" and config.tied_embeddings:
                continue
            sources = _sources(config, module_name, name)
            rows = _rows(config, module_name) or (slot.shape[0] // len(sources),) * len(sources)
            yield module, name, {s: (n, *slot.shape[1:]) for s, n in zip(sources, rows, strict=True)}


_DTYPES = ("F64", "F32", "F16", "BF16")
_FP8 = "F8_E4M3"


class SafetensorsFolder(Checkpoint):
    """A folder of `config.json` and safetensors files, as `save_pretrained` writes it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        config = folder / "config.json"
        generation = folder / "generation_config.json"
        if not config.exists():
            raise ValueError(f"{folder} holds no config.json: expected a folder of config.json and *.safetensors files")
        generation_fields = Fields(read_json(generation) if generation.exists() else {})
        with named(generation):
            eos = generation_fields.tokens("eos_token_id")
        values = read_json(config)
        with named(config):
            self.config = config_from_hf(values, eos)
            self._block = block_size(Fields(values))
        extra = extra_layers(self.config, values)

        # Where each tensor is: its file, and the open file's handle.
        self._where: dict[str, tuple[Path, Any]] = {}
        for file, indexed in weight_files(folder).items():
            check_file(file)
            try:
                handle = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is damaged or is not a safetensors file: {error}") from error
            names = set(handle.keys())
            if twice := names & self._where.keys():
                raise ValueError(f"{file} holds {min(twice)!r}, and so does {self._where[min(twice)][0].name}")
            if missing := indexed - names:
                raise ValueError(f"{file} lacks {min(missing)!r}, which {INDEX} says it holds")
            self._where |= dict.fromkeys(names, (file, handle))
        # DeepSeek-V3's layer of multi-token prediction (2412.19437, §2.2) joins two inputs by `eh_proj`.
        joins = (re.fullmatch(r"(model\.layers\.(\d+)\.)eh_proj\.weight", name) for name in self._where)
        self._skipped = tuple(sorted(match[1] for match in joins if match and int(match[2]) in extra))

    def _header(self, name: str) -> tuple[str, tuple[int, ...]]:
        """A tensor's dtype, by its name in the file, and shape."""
        if name not in self._where:
            raise ValueError(
                f"{self.path}: the tensor {name!r} is missing; config.json asks for it: fetch the files again, or "
                "correct config.json"
            )
        header = self._where[name][1].get_slice(name)
        return header.get_dtype(), tuple(header.get_shape())

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from its file's header."""
        dtype, shape = self._header(name)
        if dtype == _FP8 and self._block and len(shape) == 2:
            scale = self._header(name + SUFFIX)
            with named(self.path):
                check_scale(name, shape, self._block, *scale)
        elif dtype not in _DTYPES:
            raise ValueError(
                f"{self.path}: {name} holds {dtype} in shape {shape}, which is not read here: of quantised tensors, "
                f"only matrices in {_FP8} are, if config.json has quantization_config.weight_block_size; take the "
                "unquantised model, or the config.json that belongs to this one"
            )
        return shape

    def tensor(self, name: str) -> Tensor:
        """A tensor's values, with its rows in our order."""
        values = self._where[name][1].get_tensor(name)
        if values.dtype == torch.float8_e4m3fn:
            assert self._block is not None
            with named(f"{self.path}: {name}{SUFFIX}"):
                values = dequantize(values, self._where[name + SUFFIX][1].get_tensor(name + SUFFIX), self._block)
        if self.config.latent and self.config.latent.rope_interleave:
            values = _latent_to_halves(values, name, self.config)
        return values

    def unused(self, used: set[str]) -> set[str]:
        """All tensors but `used` and their scales, stored angles, and layers of multi-token prediction."""
        used = used | ({"lm_head.weight"} if self.config.tied_embeddings else set())
        scales = {name + SUFFIX for name in used if name in self._where and self._header(name)[0] == _FP8}
        left = self._where.keys() - used - scales
        return {n for n in left if not n.endswith("rotary_emb.inv_freq") and not n.startswith(self._skipped)}

    def load(self, dtype: torch.dtype, device: torch.device) -> Transformer:
        """The model, as in `Checkpoint`."""
        config = self.config
        table, head = "model.embed_tokens.weight", "lm_head.weight"
        # If a table and a head are stored and differ, they are not tied, whatever the configuration says.
        if config.tied_embeddings and {table, head} <= self._where.keys():
            same = self.shape(table) == self.shape(head) and torch.equal(self.tensor(table), self.tensor(head))
            config = replace(config, tied_embeddings=same)
        model = build(self, config, dtype, device)
        if self._skipped:
            names = ", ".join(f"{prefix}*" for prefix in self._skipped)
            warnings.warn(f"{self.path}: {names} is not loaded: multi-token prediction is not used here", stacklevel=3)
        return model


def _latent_to_halves(rows: Tensor, name: str, config: ModelConfig) -> Tensor:
    """Reorder the rotated rows of latent attention: DeepSeek's rotary pairs are neighbours, ours half a head apart."""
    assert config.latent is not None
    if "self_attn.q_proj" in name or "self_attn.q_b_proj" in name:
        by_head = rows.unflatten(0, (config.heads, -1))
    elif "self_attn.kv_a_proj_with_mqa" in name:
        by_head = rows.unsqueeze(0)
    else:
        return rows
    unrotated, rotated = by_head.split((by_head.shape[1] - config.rope_dim, config.rope_dim), dim=1)
    halves = _neighbours_to_halves(rotated.flatten(0, 1), len(by_head)).view(rotated.shape)
    return torch.cat((unrotated, halves), dim=1).flatten(0, 1)


def save_whole(tensors: dict[str, Tensor], path: Path, notes: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all. `notes`: its metadata."""
    write_whole(path, save(tensors, notes))


class GGUFFile(Checkpoint):
    """An open GGUF file. `fields`: its metadata, as Python values."""

    def __init__(self, path: Path) -> None:
        import gguf

        from inference_opt.loading.gguf_file import read_gguf

        self.path = path
        self.fields, self._tensors = read_gguf(path)
        with named(path):
            factors = self._tensors.get("rope_freqs.weight")
            self.config = config_from_gguf(
                self.fields,
                rope_factors=() if factors is None else self._values("rope_freqs.weight").flatten().tolist(),
                tied="output.weight" not in self._tensors,
            )
        arch = gguf.MODEL_ARCH[self.fields["general.architecture"].upper()]
        self._names = gguf.get_tensor_name_map(arch, min(self.config.depth, len(self._tensors)))

    def _stored(self, name: str) -> str:
        return self._names.get_name(name, try_suffixes=(".weight", ".bias")) or name

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from its file's header."""
        if (stored := self._stored(name)) not in self._tensors:
            raise ValueError(f"{self.path}: the tensor {stored!r} is missing")
        return tuple(int(d) for d in reversed(self._tensors[stored].shape))

    def tensor(self, name: str) -> Tensor:
        """A tensor's values, with its rows in our order."""
        values = self._values(self._stored(name))
        for part, heads in ((".q_proj", self.config.heads), (".k_proj", self.config.kv_heads)):
            if self.fields["general.architecture"] == "llama" and part in name:
                return _neighbours_to_halves(values, heads)
        return values

    def unused(self, used: set[str]) -> set[str]:
        """All tensors but `used` and the RoPE factors, which the configuration holds."""
        return self._tensors.keys() - {self._stored(name) for name in used} - {"rope_freqs.weight"}

    def _values(self, stored: str) -> Tensor:
        """A tensor's values, dequantised to float32."""
        from gguf import quants

        t = self._tensors[stored]
        # Read, not mapped: what has been touched of a mapped file stays in memory while the next tensors are read.
        data = np.fromfile(self.path, t.data.dtype, t.data.size, offset=t.data_offset).reshape(t.data.shape)
        data = data.astype(data.dtype.newbyteorder("="), copy=False)  # the bytes of a big-endian file are swapped
        return torch.from_numpy(quants.dequantize(data, t.tensor_type))


def _neighbours_to_halves(rows: Tensor, heads: int) -> Tensor:
    """Reorder a projection's rows: rotary pairs are neighbours in the file, and half a head apart here."""
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
