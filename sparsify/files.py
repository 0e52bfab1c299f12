"""Read and write whole files: bounded reads of untrusted files, atomic writes."""

import hashlib
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from pydantic import BaseModel, ValidationError

from sparsify.errors import RunError, find_newer

LARGEST = 2**29
"""Bytes of a file that is read as text."""


def read_bytes(path: Path) -> bytes:
    """Read a whole file. Raises RunError when it is missing, not a regular file, or far too large."""
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


def explain_unreadable(path: Path, error: Exception, otherwise: str) -> str:
    """Why a file of ours cannot be read: a newer version wrote it, or what the caller says otherwise."""
    sign = find_newer(error)
    return (
        f"{path} was written by a newer sparsify ({sign}); read it with that version" if sign else otherwise
    )


@dataclass(frozen=True)
class Kind:
    """A kind of file that is written where the user says."""

    name: str
    """as in 'is not ...'"""
    is_own: Callable[[bytes], bool]
    """whether this is what a file of the kind holds"""

    @staticmethod
    def of_model(name: str, model: type[BaseModel]) -> "Kind":
        """Files that hold such a model as JSON."""

        def is_own(body: bytes) -> bool:
            try:
                model.model_validate_json(body)
            except ValidationError:
                return False
            return True

        return Kind(name, is_own)


def check_output(path: Path, kind: Kind, option: str = "--out", force: bool = False) -> None:
    """Refuse to replace a file that is not of the kind that will be written. An empty file may go.

    Raises RunError, which names the option that chooses another place.
    """
    _check_regular(path)
    if path.is_dir():
        raise RunError(f"cannot write {path}: it is a folder; name a file in it")
    check_folder(path)
    if force or not path.exists():
        return
    is_own = path.stat().st_size <= LARGEST and kind.is_own(read_bytes(path))
    if path.stat().st_size and not is_own:
        raise RunError(
            f"{path} exists already and is not {kind.name}; "
            f"choose another place with {option}, or replace it with --force"
        )


def write_output(path: Path, data: bytes, kind: Kind, option: str = "--out", force: bool = False) -> None:
    """Write a whole file where the user says, or nothing. A link stays a link.

    Raises RunError, also where `check_output` does.
    """
    check_output(path, kind, option, force)
    write_bytes(path.resolve(), data, shared=True)


def _check_regular(path: Path) -> None:
    """Devices and pipes would be replaced by a file, and a loop of links leads nowhere. Raises RunError."""
    try:
        path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
    if not path.is_file() and not path.is_dir():
        raise RunError(f"cannot write {path}: it is a device or a pipe; name a file")


def check_folder(path: Path) -> None:
    """Refuse a file whose folder is missing or read-only, before the work for it is done. Raises RunError."""
    if not path.parent.is_dir():
        raise RunError(f"cannot write {path}: there is no folder {path.parent}")
    folder = path.resolve().parent
    by_effective_user = os.access in os.supports_effective_ids
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=by_effective_user):
        raise RunError(f"cannot write {path}: the folder {folder} is read-only for you")


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


@contextmanager
def replace_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` when the block succeeds: fsync, rename, fsync.

    shared: other processes may write the same file at the same time, so the temporary name is unique.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _check_regular(path)
        if shared:
            _remove_abandoned(path)
            temporary = path.with_name(f".{path.name}.{os.getpid()}-{_HOST}-{token_hex(4)}.tmp")
        try:
            # A link that someone left in the folder would lead to another file.
            temporary.unlink(missing_ok=True)
            yield temporary
            with temporary.open("r+b") as stream:
                os.fsync(stream.fileno())
            _give_usual_mode(temporary)
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
"""of this machine: a process's number means nothing on another one"""


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files that processes of this machine left when they were killed."""
    if sys.platform == "win32":
        return  # os.kill would end the process there
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d{{1,9}})-{_HOST}-[0-9a-f]{{8}}\.tmp")
    for other in path.parent.iterdir():
        match = pattern.fullmatch(other.name)
        with suppress(OSError, OverflowError):
            if match and not _is_alive(int(match[1])):
                other.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _give_usual_mode(path: Path) -> None:
    """Readable as files that Python opens are: safetensors writes files that their owner alone may read."""
    if sys.platform != "win32":
        mask = os.umask(0o077)
        os.umask(mask)
        path.chmod(0o666 & ~mask)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """The same for a folder. An existing folder is removed only after the new one is complete."""
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


def write_bytes(path: Path, data: bytes, shared: bool = False) -> None:
    """Write a whole file or nothing; shared: as in `replace_file`. Raises RunError."""
    with replace_file(path, shared) as temporary:
        temporary.write_bytes(data)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # folders cannot be opened there; the file system journals the rename
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
