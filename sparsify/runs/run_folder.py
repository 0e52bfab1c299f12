"""The run folder: its name, its files, its lock. A crash at any moment leaves each file whole, old or absent."""

import hashlib
import json
import os
import re
import socket
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

from pydantic import ValidationError

from sparsify.errors import RunError, first_line
from sparsify.files import as_json, read, write
from sparsify.recipe import load
from sparsify_schemas.recipe import Recipe

RECIPE = "recipe.yaml"
PLAN = "plan.json"
CUTS = "cuts.json"
BASE = "base.json"
WEIGHTS = "model.safetensors"
DENSE = "dense.safetensors"
QUANTISED = "model.int8.onnx"
PARTS = "int8"
PAGE = "report.md"
HTML = "report.html"
REPORT = "report.json"
LOG = "log.jsonl"
BASELINES = "baselines"
COST = "cost.json"
STATE = "state.json"
CHECKPOINT = "checkpoint.pt"
BEFORE = "before.pt"
BEST = "best.pt"
LOCK = "lock"
KEPT = (RECIPE, PLAN, CUTS, BASE, WEIGHTS, DENSE, QUANTISED, PAGE, HTML, LOG)
"""files of a complete run besides its report"""


@dataclass(frozen=True)
class State:
    """How a run was started: all that `--resume` needs, in the first file that a run writes; and the error that ended it."""

    recipe: dict[str, Any]
    """the resolved recipe, as JSON"""
    model_file: str | None
    """absolute path; None when the model is built with random weights"""
    model_digest: str | None
    """SHA-256 of the file, or of a run folder's report"""
    allow: tuple[str, ...] = ()
    from_scratch: bool = False
    strict: bool = False
    failure: str | None = None
    """the error that ended the run, if one did"""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises RunError when the folder holds no run, or state.json was damaged."""
        path = folder / STATE
        if not path.is_file():
            raise RunError(f"{folder} holds no interrupted run: {STATE} is missing")
        try:
            values = json.loads(read(path))
            state = cls(**{**values, "allow": tuple(values["allow"])})
            texts = (state.model_file, state.failure, *state.allow)
            if not all(isinstance(text, str | None) for text in texts) or None in state.allow:
                raise TypeError("'model_file', 'failure' and 'allow' are no text")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RunError(
                f"{path} is damaged ({first_line(error)}); the run cannot be resumed, start a new one"
            ) from None
        return state

    def resolved(self, folder: Path) -> Recipe:
        """The recipe. Raises RunError when this version of sparsify does not know it."""
        try:
            return Recipe.model_validate(self.recipe)
        except ValidationError as error:
            raise RunError(
                f"{folder / STATE} holds no recipe that this version of sparsify can read: {first_line(error)}"
            ) from None

    @cached_property
    def digest(self) -> str:
        """`recipe_digest` of the recipe."""
        return _digest(self.recipe)

    def write(self, folder: Path) -> None:
        write(folder / STATE, as_json(asdict(self)))


def read_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a run. Raises RunError when missing, RecipeError when it was broken."""
    if not (folder / RECIPE).is_file():
        raise RunError(f"{folder / RECIPE} is missing")
    return load(folder / RECIPE).recipe


def recipe_digest(recipe: Recipe) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the resolved recipe; independent of key order and comments."""
    return _digest(recipe_json(recipe))


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON that `load` reads; defaults are left out."""
    return recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def sha256(path: Path) -> str:
    """Of a file, or of a run folder's report, which holds the digests of the rest. Raises RunError."""
    file = path / REPORT if path.is_dir() else path
    if file.exists() and not file.is_file():
        raise RunError(f"{file} is no plain file")
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}") from None


def slug(title: str) -> str:
    """A title as a folder name: `LeNet-5 on MNIST` -> `lenet-5-on-mnist`."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:48].strip("-") or "run"


def create(root: Path, title: str) -> Path:
    """Make `root/<slug>-<n>` with the next free n; of two processes that ask at once each gets its own."""
    stem = slug(title)
    try:
        root.mkdir(parents=True, exist_ok=True)
        taken = [
            int(m[1]) for p in root.iterdir() if (m := re.fullmatch(re.escape(stem) + r"-(\d{1,9})", p.name))
        ]
        n = max(taken, default=0)
        while True:
            n += 1
            with suppress(FileExistsError):
                (root / f"{stem}-{n}").mkdir()
                return root / f"{stem}-{n}"
    except OSError as error:
        raise RunError(
            f"cannot make a run folder in {root}: {error.strerror}; choose another place with --out"
        ) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run for this process. The lock is the kernel's, so it goes with the process however that ends.

    Raises RunError when another process holds it.
    """
    path = folder / LOCK
    try:
        stream = os.fdopen(_itself(path), "a+")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from None
    with stream:
        if not _take(stream):
            raise RunError(
                f"{folder} is in use by process {_holder(path) or 'unknown'}; wait for it, or stop it"
            )
        stream.truncate(0)
        stream.write(f"{os.getpid()} {socket.gethostname()}")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


if sys.platform == "win32":
    import msvcrt

    def _take(stream: IO[str]) -> bool:
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _take(stream: IO[str]) -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a file system without locks; better an unguarded run than none
        return True


def _itself(path: Path) -> int:
    """Open to append, but never through a link, which may lead to a file outside the run."""
    return os.open(
        path,
        os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0),
        0o666,
    )


def _holder(lock: Path) -> str:
    try:
        return lock.read_text().partition(" ")[0]
    except OSError:
        return ""


def running(folder: Path) -> bool:
    """Whether a live process of this machine holds the run."""
    if sys.platform == "win32":
        return False  # there, asking after a process by signal would end it
    try:
        pid, _, host = (folder / LOCK).read_text().partition(" ")
        if host != socket.gethostname():
            return False
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True


def log(folder: Path, entry: dict[str, Any]) -> None:
    """Append one line of JSON to log.jsonl; a line torn by a crash is closed first, so that it spoils no other. Raises RunError."""
    path = folder / LOG
    try:
        with os.fdopen(_itself(path), "a+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(end - 1, 0))
            torn = stream.read(1) not in (b"", b"\n")
            stream.write((b"\n" if torn else b"") + json.dumps(entry, sort_keys=True).encode() + b"\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def finished(folder: Path) -> None:
    """Remove what only an unfinished run needs."""
    for path in (
        *(folder / BASELINES).glob(f"*/{CHECKPOINT}"),
        *(folder / name for name in (CHECKPOINT, BEFORE, BEST, STATE, LOCK)),
    ):
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        (folder / BASELINES / "dense").rmdir()
