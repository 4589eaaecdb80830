"""What comes with the package: SmolLM2-135M's healed factors, and text that this model wrote."""

from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from inference_opt.conversion.convert import Factors, assemble, convert_to_mla
from inference_opt.loading.checkpoint import save_whole
from inference_opt.loading.prompts import load_prompts
from inference_opt.loading.tokenizer import Tokenizer
from inference_opt.model.transformer import Transformer

PACKAGED = "mla-smollm2-135m.safetensors"
TEXTS = "smollm2-texts.safetensors"
RANK = 96  # kv_lora_rank of the packaged factors; their rotated key is 32 wide


def save_factors(factors: Factors, path: Path, **notes: str) -> None:
    """Write factors in bfloat16 (the mixing, which is small, in float32). The file is written whole or not at all."""
    tensors = {"rotated": torch.tensor(factors.rotated, dtype=torch.int32)}
    for i, (mixing, down, up) in enumerate(zip(factors.mixing, factors.kv_down, factors.kv_up)):
        tensors[f"{i}.mixing"] = torch.view_as_real(mixing).float().cpu().contiguous()
        tensors[f"{i}.kv_down"] = down.detach().bfloat16().cpu().contiguous()
        tensors[f"{i}.kv_up"] = up.detach().bfloat16().cpu().contiguous()
    save_whole(tensors, path, notes)


def load_factors(path: Path | None = None) -> Factors:
    """Factors from a file; by default the packaged ones of SmolLM2-135M. ValueError for a file of anything else."""
    path = path or Path(str(resources.files("inference_opt") / "data" / PACKAGED))
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        layers = range((len(tensors) - 1) // 3)
        return Factors(
            tuple(tensors["rotated"].tolist()),
            [torch.view_as_complex(tensors[f"{i}.mixing"].double()) for i in layers],
            [tensors[f"{i}.kv_down"] for i in layers],
            [tensors[f"{i}.kv_up"] for i in layers],
        )
    except (SafetensorError, KeyError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{path.name} does not hold a model's latent factors: {type(error).__name__}: {error}"
        ) from error


def texts_of(tokens: Int[Tensor, "rows length"], ended: Int[Tensor, "rows"]) -> list[list[int]]:
    """The rows of a corpus, each cut at its end."""
    return [row[: int(end)].tolist() for row, end in zip(tokens, ended)]


def sampled_texts(part: str) -> list[list[int]]:
    """Conversations that SmolLM2-135M wrote, as token ids: 64 to "observe" and make factors from, 128 "held" out."""
    if part not in ("observe", "held"):
        raise ValueError(f'part must be "observe" or "held", got {part!r}')
    rows = load_file(str(resources.files("inference_opt") / "data" / TEXTS))
    texts = texts_of(rows["tokens"].int(), rows["ended"])
    return texts[:128] if part == "held" else texts[128:]


def latent_model(model: Transformer, tokenizer: Tokenizer, source: str | Path, rank: int = RANK) -> Transformer:
    """The model that was loaded from `source`, with latent attention of this rank (kv_lora_rank).

    "smollm2-135m" at the packaged rank takes the packaged, healed factors. Any other model is factorised on the
    built-in prompts, with a rotated key of half a head's width. ValueError if the model cannot be converted.
    """
    c = model.config
    if (str(source), rank) == ("smollm2-135m", RANK):
        return assemble(model, load_factors())
    texts = [tokenizer.encode(prompt.text) for prompt in load_prompts("speculative")]
    width = min(c.kv_heads * c.head_dim, c.head_dim // 4 * 2)
    return convert_to_mla(model, rank, width, texts)
