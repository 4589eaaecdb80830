"""What several commands share: the types of their options, and how figures are written."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Dtype(StrEnum):
    """Precisions that models are loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


class DrafterName(StrEnum):
    """Drafters that need nothing but the target (`speculative.DRAFTERS`)."""

    prompt_lookup = "prompt-lookup"
    n_gram = "n-gram"
    first_layers = "first-layers"
    trained = "trained"


Model = Annotated[str, typer.Option(help="smollm2-135m, a GGUF file, a folder of safetensors, or a hub id.")]
DType = Annotated[Dtype, typer.Option(help="Precision of weights and activations.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.", dir_okay=False)]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")]


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures whole or not at all."""
    if path is None:
        return
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
