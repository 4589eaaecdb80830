"""How the package writes: files whole or not at all, a bad place refused beforehand, and text as a terminal has it.

And what is a file that it reads.
"""

import contextlib
import errno
import functools
import json
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

_POINTER = b"version https://git-lfs"
BINARY = getattr(os, "O_BINARY", 0)  # Windows translates line ends otherwise


def home(path: str | Path) -> Path:
    """The path with `~` expanded. ValueError where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None


def writable(path: str | Path) -> Path:
    """The path, `~` expanded. ValueError if no file can be written there; nothing is changed."""
    path = home(path)
    with _named(path):
        if path.is_dir():
            raise ValueError(f"{path} is a folder: expected the name of a file")
        if path.exists() and not os.access(path, os.W_OK):
            raise ValueError(f"{path} is there and may not be written")
        if _is_replaced(path):
            target = _target(path)
            if not target.parent.is_dir():
                raise ValueError(f"{path} cannot be written: there is no folder {target.parent}")
            _try(target.parent)
    return path


def folder(path: str | Path) -> Path:
    """The path, `~` expanded. ValueError if it is no folder and none can be made there; nothing is changed."""
    path = home(path)
    with _named(path):
        there = next(each for each in (path, *path.absolute().parents) if each.exists())
        if not there.is_dir():
            raise ValueError(f"{path} is no folder: {there} is a file")
        _try(there)
    return path


def check_file(path: Path) -> None:
    """ValueError where there is no regular file that can be read, or only git-lfs's pointer to one."""
    try:
        if not path.is_file():
            raise ValueError(f"{path} is {'not a regular file' if path.exists() else 'not there'}")
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if start == _POINTER:
        raise ValueError(f"{path} is a git-lfs pointer, not the file that it stands for: run `git lfs pull`")


def printable(text: str, encoding: str | None) -> str:
    """The text with `?` in place of each character that the encoding lacks."""
    return text.encode(encoding or "utf-8", "replace").decode(encoding or "utf-8")


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file as `whole` does. Half a surrogate pair, which UTF-8 has not, is written as JSON escapes it."""
    with whole(path) as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def write_json(path: str | Path | None, figures: Any) -> None:
    """Write figures whole or not at all; with no path, nothing."""
    if path is not None:
        write_whole(path, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def growing(path: str | Path | None) -> Iterator[Callable[[Any], None]]:
    """What writes the figures so far of a long work beside `path`: what is interrupted leaves PATH.partial.

    When the block has ended well, it is gone. With no path, or one that is not replaced, nothing is written.
    """
    path = None if path is None else home(path)
    part = Path(f"{_target(path)}.partial") if path is not None and _is_replaced(path) else None
    yield functools.partial(write_json, part)
    if part is not None:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes its place when the block has ended well; otherwise all stays as it was.

    Links are followed: what they point to is replaced. A file that was there keeps its mode, and its owner where the
    system allows it; a hard link to it keeps the old content. A FIFO, a device, or what standard output goes to cannot
    be replaced: it is written in place.
    """
    path = home(path)
    if not _is_replaced(path):
        with os.fdopen(_descriptor(path), "wb") as file:
            yield file
        return
    target = _target(path)
    part = target.with_name(f".{secrets.token_hex(6)}.part")
    earlier = target.stat() if target.exists() else None
    mode = 0o666 if earlier is None else stat.S_IMODE(earlier.st_mode)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, mode), "wb") as file:
            if earlier is not None:
                with contextlib.suppress(AttributeError, PermissionError):  # Windows; another user's file
                    os.chown(part, earlier.st_uid, earlier.st_gid)
                part.chmod(mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)  # atomic: same folder, same file system
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _is_replaced(path: Path) -> bool:
    """Whether writing replaces what is there, or makes what is not."""
    if not path.exists():
        return True
    return path.is_file() and _stream(path) is None and Path(os.path.realpath(path)).exists()


def _target(path: Path) -> Path:
    """What is replaced: the end of the links. OSError where they have none."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _stream(path: Path) -> int | None:
    """The number of the standard stream that goes to the same file: `/dev/stdout`, or by its name."""
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(path.stat(), os.fstat(number)):
                return number
    return None


def _descriptor(path: Path) -> int:
    """Of what is written in place. A standard stream goes on where it stands: opened anew, it would start over."""
    number = _stream(path)
    if number is None:
        return os.open(path, os.O_WRONLY | BINARY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return os.dup(number)


def _try(place: Path) -> None:
    """Make a file in the folder, and remove it: permissions do not tell of a file system that takes none."""
    with tempfile.TemporaryFile(dir=place):
        pass


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """The system's errors as a ValueError that names the path."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
