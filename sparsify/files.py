"""Reading a whole file of a run folder, which may have come from anywhere."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from sparsify.errors import RunError

LARGEST = 2**29
"""bytes of a file that is read as text"""


def read(path: Path) -> bytes:
    """All of it. Raises RunError when it is missing, no plain file, or far larger than it would ever be."""
    try:
        if not path.exists():
            raise RunError(f"{path} is missing")
        if not path.is_file():
            raise RunError(f"{path} is damaged: it is not a regular file")
        if path.stat().st_size > LARGEST:
            raise RunError(f"{path} is damaged: it is larger than {LARGEST >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary name to write to; it becomes `path` when the block ends well: fsync, rename, fsync of the folder.

    shared: other processes may write the same file at the same time, so that the temporary name is one of its own.
    """
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp" if shared else f".{path.name}.tmp")
    try:
        try:
            temporary.unlink(missing_ok=True)  # a link, left by whoever made the folder, would lead elsewhere
            yield temporary
            with temporary.open("r+b") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder. One that was there before is gone only once the new one is written."""
    temporary, before = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            if path.exists():
                path.rename(before)
            temporary.rename(path)
            _sync_folder(path.parent)
        finally:
            if before.exists() and not path.exists():
                before.rename(path)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def write(path: Path, data: bytes, shared: bool = False) -> None:
    """Write a whole file or nothing; shared: as in `replacing`. Raises RunError."""
    with replacing(path, shared) as temporary:
        temporary.write_bytes(data)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # folders cannot be opened there; the rename itself is journalled
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
