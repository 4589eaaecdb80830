"""A model's folder: its JSON files, and which of its files hold the weights."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference_opt.files import check_file
from inference_opt.model.fields import OBJECT, Fields

INDEX = "model.safetensors.index.json"


@contextmanager
def named(path: Path | str) -> Iterator[None]:
    """Put the name of a file, or of a tensor in it, before the message of a ValueError from within."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} is given twice")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. ValueError, naming the file, if it holds anything else."""
    check_file(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """The files that hold a folder's weights, each with the names of the tensors that the index puts there.

    They are chosen as `transformers` does: model.safetensors, or else the shards that the index names. Other files are
    ignored.
    """
    whole = folder / "model.safetensors"
    index = folder / INDEX
    if whole.exists():
        return {whole: set()}
    if not index.exists():
        if others := sorted(p.name for p in folder.glob("*.safetensors")):
            raise ValueError(
                f"{folder} holds {others[0]}, but neither model.safetensors nor {INDEX}: one of them is needed to find "
                "the weights"
            )
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        hint = f" ({pickles[0]} is a pickle, which can run code: convert it to safetensors)" if pickles else ""
        raise ValueError(f"{folder} holds no *.safetensors file{hint}")
    files: dict[Path, set[str]] = {}
    with named(index):
        for name, file in Fields(read_json(index)).need("weight_map", OBJECT).items():
            if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file:
                raise ValueError(f"weight_map.{name} must be a *.safetensors file of the folder, got {file!r}")
            files.setdefault(folder / file, set()).add(name)
    return files
