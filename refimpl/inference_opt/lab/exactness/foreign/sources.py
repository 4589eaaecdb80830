"""Where foreign code comes from: the version and hash of each file, and its import without the rest of its engine."""

import hashlib
import importlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "INFERENCE_OPT_FOREIGN"


class Missing(RuntimeError):
    """A source that is not there; the message says why and what to do."""


def folder() -> Path:
    """Where wheels and checkouts are kept: $INFERENCE_OPT_FOREIGN, or a folder of the user's cache."""
    from platformdirs import user_cache_path

    return Path(os.environ.get(VARIABLE) or user_cache_path("inference-opt") / "foreign")


def check(data: bytes, sha256: str, what: str) -> None:
    """ValueError unless the bytes have the hash."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{what} has sha256 {found}, expected {sha256}: it is not the file that was judged")


@dataclass(frozen=True)
class Wheel:
    """A release in the package registry. Only the modules asked for are unpacked."""

    project: str
    version: str
    file: str
    sha256: str
    megabytes: int

    def __str__(self) -> str:
        return f"{self.project} {self.version}"

    def download(self) -> None:
        """Fetch it with pip, without what it depends on. Missing where pip finds nothing."""
        if (folder() / self.file).exists():
            return
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "-d", str(folder()), f"{self.project}=={self.version}"], capture_output=True)
        if done.returncode or not (folder() / self.file).exists():
            raise Missing(f"pip did not download {self.file}: {done.stderr.decode()[-200:].strip()}")

    def unpacked(self, kinds: tuple[str, ...] = (".py",), name: str = "") -> Path:
        """The folder of its files of these kinds; wheels that need each other get one name."""
        wheel, into = folder() / self.file, folder() / "unpacked" / (name or self.file.removesuffix(".whl"))
        done = into / f"{self.file}.unpacked"
        if not done.exists():
            if not wheel.exists():
                raise Missing(f"{self} is not in {folder()}: run with --download ({self.megabytes} MB)")
            check(wheel.read_bytes(), self.sha256, self.file)
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(into, [member for member in archive.namelist() if member.endswith(kinds)])
            done.touch()
        return into


@dataclass(frozen=True)
class Checkout:
    """Files of a commit of a repository that was never published as a package; the user clones it."""

    project: str
    commit: str
    files: Mapping[str, str] = field(hash=False)  # path → sha256

    @property
    def version(self) -> str:
        return self.commit[:10]

    @property
    def sha256(self) -> str:
        return next(iter(self.files.values()))

    def __str__(self) -> str:
        return f"{self.project} at {self.version}"

    def download(self) -> None:
        """Nothing: what is no package is not fetched by itself."""

    def unpacked(self) -> Path:
        """The folder of its files."""
        into = folder() / "unpacked" / f"{self.project.replace('/', '+')}-{self.version}"
        clone = folder() / self.project.replace("/", "+")
        for path, sha256 in self.files.items():
            if (into / path).exists():
                continue
            done = subprocess.run(["git", "-C", str(clone), "show", f"{self.commit}:{path}"], capture_output=True)
            if done.returncode:
                raise Missing(f"no clone of {self.project} with commit {self.version} in {clone}")
            check(done.stdout, sha256, path)
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            (into / path).write_bytes(done.stdout)
        return into


class Anything:
    """What a stub module gives for any name: a class, a function, a decorator, a base class."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else super().__new__(cls)  # as a decorator: no change

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return type(self)(*args)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __class_getitem__(cls, item: Any) -> Any:
        return cls


class _Stub(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Anything,), {})


class _Finder:
    """Imports the modules named `real` from their files and stubs all else of the same top-level packages."""

    def __init__(self, root: Path, real: tuple[str, ...], stubs: tuple[str, ...], given: Mapping[str, Any]) -> None:
        self.root, self.real, self.stubs, self.given = root, real, stubs, given

    def owns(self, name: str) -> bool:
        return any(name == top or name.startswith(f"{top}.") for top in self.stubs)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not self.owns(name):
            return None
        if name in self.real:
            file = self.root / f"{name.replace('.', '/')}.py"
            return importlib.util.spec_from_file_location(name, file, loader=SourceFileLoader(name, str(file)))
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _Stub(spec.name)
        vars(module).update(self.given.get(spec.name, {}))
        return module

    def exec_module(self, module: ModuleType) -> None: ...


@contextmanager
def _found_first(finder: _Finder) -> Iterator[None]:
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if finder.owns(name)}
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if finder.owns(name)]:
            del sys.modules[name]
        sys.modules.update(kept)


def load(
    source: Wheel | Checkout,
    *names: str,
    real: tuple[str, ...] = (),
    stubs: tuple[str, ...] = (),
    given: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[ModuleType]:
    """The modules of these names, from their own files, for ourselves alone: `sys.modules` is as it was.

    Their top-level packages and those in `stubs` are stubs, except for the modules in `real` and what `given` says:
    module → name → value. Missing where the source is not there.
    """
    tops = {name.split(".")[0] for name in names}
    with _found_first(_Finder(source.unpacked(), (*names, *real), (*tops, *stubs), given or {})):
        return [importlib.import_module(name) for name in names]
