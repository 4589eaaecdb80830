"""`load_model`: a model and its tokenizer from a name, a path or a hub id. Every technique starts here."""

import contextlib
import errno
import os
from pathlib import Path

import torch

from inference_opt.files import home
from inference_opt.loading.checkpoint import Checkpoint, GGUFFile, SafetensorsFolder
from inference_opt.loading.folder import INDEX, weight_files
from inference_opt.loading.tokenizer import Tokenizer, tokenizer_from_folder, tokenizer_from_gguf
from inference_opt.model.transformer import Transformer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """One of float32, bfloat16 and float64, from its name or torch's own dtype. ValueError for any other."""
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")


def parse_device(device: torch.device | str) -> torch.device:
    """A device that is available here. ValueError for any other."""
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: expected cpu or cuda") from error
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch finds no CUDA device here")
    return parsed


def load_model(
    source: str | Path = "smollm2-135m",
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Transformer, Tokenizer | None]:
    """A model ready for inference, and its tokenizer (None if the checkpoint has none).

    source: "smollm2-135m" (fetched once, about 93 MB), a GGUF file, a folder of `config.json`, `tokenizer.json` and
    safetensors, or a Hugging Face hub id such as "Qwen/Qwen3-0.6B". Llama, Mistral, Qwen2, Qwen3 (with experts, too),
    DeepSeek-V2 and V3 (Kimi K2, Moonlight), GLM-4-MoE-Lite. Weights in FP8 blocks are dequantised.
    ValueError for a source that does not exist or is not computed exactly here, ConnectionError for no network.
    """
    from inference_opt.loading.download import MODELS, fetch

    kind = parse_dtype(dtype)
    where = parse_device(device)
    if not isinstance(source, str | Path) or not str(source):
        raise ValueError(f"source must be a model's name, a path or a hub id, got {source!r}")
    if str(source) in MODELS:
        path = fetch(str(source))
    elif os.path.exists(there := home(source)):  # noqa: PTH110 (Path's raises for names that no file can have)
        path = there
    else:
        path = _from_hub(str(source))
    # Everything that can be refused is refused before the weights are read.
    file: Checkpoint
    if path.is_dir():
        file = SafetensorsFolder(path)
        tokenizer = tokenizer_from_folder(path) if (path / "tokenizer.json").is_file() else None
    else:
        file = gguf = GGUFFile(path)
        tokenizer = tokenizer_from_gguf(gguf.fields) if "tokenizer.ggml.model" in gguf.fields else None
    return file.load(kind, where), tokenizer


def _from_hub(name: str) -> Path:
    """The folder of a model on the hub: from the hub's own cache if it is there, else downloaded."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from inference_opt.loading.download import MODELS

    expected = f"expected one of {', '.join(MODELS)}, a path, or a hub id (owner/name)"
    if name.count("/") != 1:
        raise ValueError(f"there is no model {name!r}: {expected}")
    wanted = ["*.safetensors", "*.json", "*.jinja"]
    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            cached = Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, local_files_only=True))
            if _is_whole(cached):
                return cached
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except HFValidationError as error:
        raise ValueError(f"there is no model {name!r}: {expected}") from error
    except Exception as error:  # an answer that is not a hub's may raise anything in the library
        raise _refusal(name, error, expected) from error


def _refusal(name: str, error: BaseException, expected: str) -> Exception:
    """The error to raise: what the hub's answer means, and what to do. The answer may be among the error's causes."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    token = "`hf auth login`, or the variable HF_TOKEN"
    if any(isinstance(each, GatedRepoError) for each in causes):
        return ValueError(
            f"{name!r} is gated: ask for access at https://huggingface.co/{name}, then provide your token ({token})"
        )
    for each in causes:
        status = getattr(getattr(each, "response", None), "status_code", None)
        if status == 401 and "credentials" in str(each):
            return ValueError(f"the hub does not accept the token it was given for {name!r}: provide another ({token})")
        if status in (401, 404):
            return ValueError(f"there is no model {name!r} on the hub, or it is private ({token}): {expected}")
        if status == 403:
            return ValueError(f"the hub forbids access to {name!r}, even with a token ({token}): {_line(each)}")
        if status == 429:
            return ConnectionError(f"the hub got too many requests from here (429): try {name!r} again later")
        if status is not None and status >= 500:
            return ConnectionError(f"the hub has an error of its own ({status}): try {name!r} again later")
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return OSError(each.errno, f"the hub's cache cannot be written ({each}): set HF_HOME to another folder")
    if constants.HF_HUB_OFFLINE:
        return ConnectionError(f"{name!r} is not complete in the hub's cache, and HF_HUB_OFFLINE is set: {expected}")
    if not isinstance(error, OSError):
        found = _line(error) or type(error).__name__
        return ConnectionError(
            f"the answer for {name!r} is not a hub's (a proxy's page?): set HF_ENDPOINT to a hub, or unset it ({found})"
        )
    return ConnectionError(f"could not reach the hub for {name!r}; is there a network? {expected}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _is_whole(folder: Path) -> bool:
    """Whether a cached folder has all that loading needs. The hub's cache may hold only a part of a model."""
    needed = [folder / "config.json", folder / "tokenizer.json"]
    if not any((folder / name).is_file() for name in ("model.safetensors", INDEX)):
        return False
    try:
        return all(path.is_file() for path in (*needed, *weight_files(folder)))
    except ValueError:  # an index that cannot be read: fetch it again
        return False
