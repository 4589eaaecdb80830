"""Weights from files: a folder of safetensors, or one GGUF file. Never a pickle.

Both kinds answer two questions, `shape(name)` and `tensor(name)`, with Hugging Face's names; `_SOURCES` says which of
those make up each of our parameters. All shapes are compared with the configuration before the first tensor is read.
Then parameters are filled one at a time and packed at once, so that loading peaks at the model's own size and one
tensor more.
"""

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
from inference_opt.loading.formats import config_from_gguf, config_from_hf
from inference_opt.model.config import ModelConfig
from inference_opt.model.fields import Fields
from inference_opt.model.linear import Linear
from inference_opt.model.transformer import Transformer, check_fits

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


class Checkpoint(ABC):
    """An opened checkpoint: the model's shape, and its tensors by Hugging Face's names. ValueErrors name the file."""

    path: Path
    config: ModelConfig

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, from the file's header. ValueError where it is missing or its numbers are not read here."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """Its values, in our order of rows."""

    @abstractmethod
    def unused(self, used: set[str]) -> set[str]:
        """The file's own names of tensors that belong to the model and are not among those used."""

    def load(self, dtype: torch.dtype, device: torch.device) -> Transformer:
        """The model. ValueError for a tensor that is missing, misshapen or has no place in it."""
        return build(self, self.config, dtype, device)


def build(source: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A transformer with every parameter taken from the source. ValueError before any is read, where one cannot be."""
    used: set[str] = set()

    def check(name: str, shape: tuple[int, ...]) -> None:
        used.add(name)
        if (stored := source.shape(name)) != shape:
            raise ValueError(
                f"{source.path}: {name}: the configuration asks for shape {shape}, the file holds {stored}"
            )

    for name, shape in _counted(config):  # so that no more modules are made than there are tensors for
        check(name, shape)
    try:
        with torch.device("meta"):
            model = Transformer(config)
    except (RuntimeError, TypeError) as error:  # how torch says that a tensor's size overflows
        raise ValueError(
            f"{source.path}: the configuration asks for tensors larger than any file's: {error}"
        ) from error
    for _, _, parts in _places(model):
        for name, shape in parts.items():
            check(name, shape)
    # A tensor that the model does not use, a bias say, means that it is not the model that the file holds.
    if names := source.unused(used):
        raise ValueError(f"{source.path}: the tensor {min(names)!r} has no place in the configured architecture")
    check_fits(config, dtype, device)
    for module, name, parts in _places(model):
        values = [source.tensor(part) for part in parts]
        whole = values[0] if len(values) == 1 else torch.cat(values)
        # Rounded to bfloat16, a correction that separates two experts may no longer do so.
        kind = torch.promote_types(dtype, torch.float32) if name == "correction" else dtype
        setattr(module, name, nn.Parameter(whole.to(device=device, dtype=kind), requires_grad=False))
        if isinstance(module, Linear) and name == "weight" and module is not model.head:
            module.pack()
    if config.tied_embeddings:
        model.head.weight = model.embed.weight
    model.head.pack()
    return model.eval()


def _counted(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors that show how many rows, layers and experts there are, with their shapes."""
    yield "model.embed_tokens.weight", (config.vocab_size, config.dim)
    for index in range(config.depth):
        yield f"model.layers.{index}.input_layernorm.weight", (config.dim,)
    if (shape := config.experts) and shape.first_k_dense_replace < config.depth:
        yield f"model.layers.{shape.first_k_dense_replace}.mlp.gate.weight", (shape.n_routed_experts, config.dim)


def _places(model: Transformer) -> Iterator[tuple[nn.Module, str, dict[str, tuple[int, ...]]]]:
    """Every parameter's module and name, and the checkpoint's tensors that make it up, with their shapes."""
    config = model.config
    for module_name, module in model.named_modules():
        for name, slot in list(module.named_parameters(recurse=False)):
            if module_name == "head" and config.tied_embeddings:
                continue
            sources = _sources(config, module_name, name)
            rows = _rows(config, module_name) or (slot.shape[0] // len(sources),) * len(sources)
            yield module, name, {s: (n, *slot.shape[1:]) for s, n in zip(sources, rows, strict=True)}


_DTYPES = ("F64", "F32", "F16", "BF16")


class SafetensorsFolder(Checkpoint):
    """A folder with `config.json` and safetensors, as `save_pretrained` writes it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        config, generation = folder / "config.json", folder / "generation_config.json"
        if not config.exists():
            raise ValueError(f"{folder} holds no config.json: expected a folder of config.json and *.safetensors files")
        told = Fields(read_json(generation) if generation.exists() else {})
        with named(generation):
            eos = told.tokens("eos_token_id")
        values = read_json(config)
        with named(config):
            self.config = config_from_hf(values, eos)
        self._where: dict[str, tuple[Path, Any]] = {}
        for file, indexed in weight_files(folder).items():
            check_file(file)
            try:
                handle = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is damaged, or no safetensors file: {error}") from error
            names = set(handle.keys())
            if twice := names & self._where.keys():
                raise ValueError(f"{file} holds {min(twice)!r}, and so does {self._where[min(twice)][0].name}")
            if missing := indexed - names:
                raise ValueError(f"{file} lacks {min(missing)!r}, which {INDEX} says it holds")
            self._where |= dict.fromkeys(names, (file, handle))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, from its file's header."""
        if name not in self._where:
            raise ValueError(f"{self.path}: the tensor {name!r} is missing")
        header = self._where[name][1].get_slice(name)
        if header.get_dtype() not in _DTYPES:
            raise ValueError(f"{self.path}: {name} holds {header.get_dtype()}: quantised safetensors are not read here")
        return tuple(header.get_shape())

    def tensor(self, name: str) -> Tensor:
        """Its values, in our order of rows."""
        values = self._where[name][1].get_tensor(name)
        if self.config.latent and self.config.latent.rope_interleave:
            values = _latent_to_halves(values, name, self.config)
        return values

    def unused(self, used: set[str]) -> set[str]:
        """All but those that no model has: DeepSeek-V3's layer behind the last, which predicts a token further, too."""
        spare = f"model.layers.{self.config.depth}." if self.config.latent else "rotary_emb"
        used = used | ({"lm_head.weight"} if self.config.tied_embeddings else set())
        return {n for n in self._where if not n.endswith("rotary_emb.inv_freq") and spare not in n} - used

    def load(self, dtype: torch.dtype, device: torch.device) -> Transformer:
        """The model."""
        config, table, head = self.config, "model.embed_tokens.weight", "lm_head.weight"
        # Where a table and a head are stored that differ, they are not tied, whatever the configuration says.
        if config.tied_embeddings and {table, head} <= self._where.keys():
            same = self.shape(table) == self.shape(head) and torch.equal(self.tensor(table), self.tensor(head))
            config = replace(config, tied_embeddings=same)
        return build(self, config, dtype, device)


def load_safetensors(folder: Path, dtype: torch.dtype, device: torch.device) -> Transformer:
    """The model of a folder with `config.json` and safetensors."""
    return SafetensorsFolder(folder).load(dtype, device)


def _latent_to_halves(rows: Tensor, name: str, config: ModelConfig) -> Tensor:
    """Reorder the rotated rows of latent attention: DeepSeek pairs neighbours, here they lie half a head apart."""
    assert config.latent is not None
    if "self_attn.q_proj" in name or "self_attn.q_b_proj" in name:
        by_head = rows.unflatten(0, (config.heads, -1))
    elif "self_attn.kv_a_proj_with_mqa" in name:
        by_head = rows.unsqueeze(0)
    else:
        return rows
    plain, rotated = by_head.split((by_head.shape[1] - config.rope_dim, config.rope_dim), dim=1)
    halves = _neighbours_to_halves(rotated.flatten(0, 1), len(by_head)).view(rotated.shape)
    return torch.cat((plain, halves), dim=1).flatten(0, 1)


def save_whole(tensors: dict[str, Tensor], path: Path, notes: dict[str, str] | None = None) -> None:
    """A safetensors file, whole or not at all; `notes` are its metadata."""
    write_whole(path, save(tensors, notes))


class GGUFFile(Checkpoint):
    """An opened GGUF file; `fields` is its metadata, as plain values."""

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
        """Of a tensor, from its file's header."""
        if (stored := self._stored(name)) not in self._tensors:
            raise ValueError(f"{self.path}: the tensor {stored!r} is missing")
        return tuple(int(d) for d in reversed(self._tensors[stored].shape))

    def tensor(self, name: str) -> Tensor:
        """Its values, in our order of rows."""
        values = self._values(self._stored(name))
        for part, heads in ((".q_proj", self.config.heads), (".k_proj", self.config.kv_heads)):
            if self.fields["general.architecture"] == "llama" and part in name:
                return _neighbours_to_halves(values, heads)
        return values

    def unused(self, used: set[str]) -> set[str]:
        """All but those used, and the factors that the configuration has."""
        return self._tensors.keys() - {self._stored(name) for name in used} - {"rope_freqs.weight"}

    def _values(self, stored: str) -> Tensor:
        """Dequantised to float32."""
        from gguf import quants

        t = self._tensors[stored]
        data = t.data.astype(t.data.dtype.newbyteorder("="), copy=False)  # a big-endian file's turned about
        # A tensor stored as float32 comes back as a read-only view of the file: "W" copies those and no others.
        return torch.from_numpy(np.require(quants.dequantize(data, t.tensor_type), requirements="W"))


def _neighbours_to_halves(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a Llama projection from GGUF: rotary pairs there are neighbours, here half a head apart."""
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
