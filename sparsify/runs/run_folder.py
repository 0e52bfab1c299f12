"""The run folder: its name, its files, its lock.

A crash at any moment leaves each file whole, old or absent.
"""

import hashlib
import json
import os
import re
import socket
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

from pydantic import ValidationError

from sparsify.errors import RunError, SparsifyError, first_line
from sparsify.files import as_json, read_bytes, write_bytes
from sparsify.recipe import load
from sparsify.reporting import report_file
from sparsify_schemas.recipe import Recipe

RECIPE, PLAN, STATE, REPORT = report_file.RECIPE, report_file.PLAN, report_file.STATE, report_file.FILE
CUTS = "cuts.json"
BASE = "base.json"
WEIGHTS = "model.safetensors"
DENSE = "dense.safetensors"
QUANTISED = "model.int8.onnx"
PARTS = "int8"
PAGE = "report.md"
HTML = "report.html"
ADOPTED = "the model was cut elsewhere and adopted from"
"""beginning of the note of a run of `adopt`"""
LOG = "log.jsonl"
BASELINES = "baselines"
COST = "cost.json"
CHECKPOINT = "checkpoint.pt"
UNCUT = "uncut.safetensors"
"""weights that the first cut found, where a run has trained the given model before; removed at the end"""
BEFORE = "before.pt"
BEST = "best.pt"
LOCK = "lock"
SAVED_FILES = (RECIPE, PLAN, CUTS, BASE, WEIGHTS, DENSE, QUANTISED, PAGE, HTML, LOG)
"""Files of a complete run besides its report."""
_TEMPORARY = (CHECKPOINT, BEFORE, BEST, UNCUT, STATE, LOCK)
"""files that only an unfinished run needs"""
_OWN = frozenset(name.casefold() for name in (*SAVED_FILES, REPORT, BASELINES, PARTS, *_TEMPORARY))
"""names in the folder of a run that it writes, replaces or removes"""


@dataclass(frozen=True)
class State:
    """How a run was started, which is all that `--resume` needs, and the error that ended it.

    state.json is the first file that a run writes.
    """

    recipe: dict[str, Any]
    """The resolved recipe, as JSON."""
    model_file: str | None
    """Absolute path; None when the model is built with random weights."""
    model_digest: str | None
    """SHA-256 of the file, or of a run folder's report."""
    allow: tuple[str, ...] = ()
    from_scratch: bool = False
    strict: bool = False
    failure: str | None = None
    """The error that ended the run, if any."""
    data: dict[str, str] | None = None
    """Part of the data -> its SHA-256; None in runs of older versions."""
    sources: dict[str, str] | None = None
    """What names a callable or a teacher's file in the recipe -> SHA-256 of its files; None in runs of older
    versions."""
    reads_test: bool = True
    """Whether the test set is read at the end."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read state.json.

        Raises RunError when the folder holds no interrupted run or the file is damaged.
        """
        path = folder / STATE
        if not path.is_file():
            raise RunError(f"{folder} holds no interrupted run: {STATE} is missing")
        try:
            values = json.loads(read_bytes(path))
            unknown = sorted(set(values) - {field.name for field in fields(cls)})
            if unknown:
                raise RunError(
                    f"{path} was written by a newer sparsify (it has '{unknown[0]}'); "
                    "continue the run with that version"
                )
            state = cls(**{**values, "allow": tuple(values["allow"])})
            texts = (state.model_file, state.failure, *state.allow)
            if not all(isinstance(text, str | None) for text in texts) or None in state.allow:
                raise TypeError("'model_file', 'failure' and 'allow' must be text")
            if not all(isinstance(digests, dict | None) for digests in (state.data, state.sources)):
                raise TypeError("'data' and 'sources' must be mappings")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RunError(
                f"{path} is damaged ({first_line(error)}); the run cannot be resumed, start a new one"
            ) from None
        return state

    def parse_recipe(self, folder: Path) -> Recipe:
        """The recipe. Raises RunError when this version of sparsify cannot read it."""
        try:
            return Recipe.model_validate(self.recipe)
        except ValidationError as error:
            raise RunError(
                f"{folder / STATE} holds no recipe that this version of sparsify can read: "
                f"{first_line(error)}"
            ) from None

    @cached_property
    def digest(self) -> str:
        """`recipe_digest` of the recipe."""
        return _hash_bytes(self.recipe)

    def write(self, folder: Path) -> None:
        write_bytes(folder / STATE, as_json(asdict(self)))


def read_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a run. Raises RunError when it is missing, RecipeError when it is invalid."""
    if not (folder / RECIPE).is_file():
        raise RunError(f"{folder / RECIPE} is missing")
    return load(folder / RECIPE).recipe


def began_at_random(folder: Path) -> bool:
    """Whether the plan of a run says that it began with random weights; not where it has no readable plan."""
    try:
        plan = json.loads(read_bytes(folder / PLAN))
    except (SparsifyError, ValueError, RecursionError):
        return False
    return isinstance(plan, dict) and plan.get("random") is True


def recipe_digest(recipe: Recipe) -> str:
    """First 16 hexadecimal digits of the resolved recipe's SHA-256; key order and comments do not matter."""
    return _hash_bytes(recipe_json(recipe))


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON that `load` reads, without default values."""
    return recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _hash_bytes(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, or of a run folder's report, which holds the digests of the rest.

    Raises RunError.
    """
    file = path / REPORT if is_run(path) else path
    if file.exists() and not file.is_file():
        raise RunError(f"{file} is not a regular file")
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}") from None


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a finished run."""
    return (path / REPORT).exists()


def refuse_own_name(path: Path, option: str = "--out") -> None:
    """Refuse a name that a run uses for itself, whether its file is there or not. Raises RunError."""
    for place in (path.parent.resolve() / path.name, path.resolve()):
        for folder in place.parents[:3]:  # files of baselines lie two folders below the run's
            is_known = is_run(folder) or (folder / STATE).exists()
            if is_known and place.relative_to(folder).parts[0].casefold() in _OWN:
                raise RunError(f"{path} is a file of the run itself; choose another place with {option}")


def make_slug(title: str) -> str:
    """A title as a folder name: `LeNet-5 on MNIST` -> `lenet-5-on-mnist`."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:48].strip("-") or "run"


def create_folder(root: Path, title: str) -> Path:
    """Make `root/<slug>-<n>` with the next free n. Two processes that ask at once get different folders."""
    stem = make_slug(title)
    try:
        root.mkdir(parents=True, exist_ok=True)
        pattern = re.compile(re.escape(stem) + r"-(\d{1,9})")
        matches = [pattern.fullmatch(path.name) for path in root.iterdir()]
        n = max((int(match[1]) for match in matches if match), default=0)
        while True:
            n += 1
            with suppress(FileExistsError):
                (root / f"{stem}-{n}").mkdir()
                return root / f"{stem}-{n}"
    except OSError as error:
        raise RunError(
            f"cannot make a run folder in {root}: {error.strerror}; choose another place with --out"
        ) from None


def take_folder(path: Path) -> Path:
    """Make a folder of a given name, or take it as it is where it is empty. Raises RunError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise RunError(f"{path} exists already; choose another name")
    except OSError as error:
        raise RunError(f"cannot make the run folder {path}: {error.strerror}") from None
    return path


def remove_empty(folder: Path) -> None:
    """Remove a folder that was made and that nothing was written into."""
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def remove_unbegun(folder: Path) -> Iterator[None]:
    """Remove the folder of a run that ends before its state was written: nothing in it can be resumed."""
    try:
        yield
    except BaseException:
        if not (folder / STATE).exists() and not is_run(folder):
            with suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
        raise


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Lock the run for this process. The kernel holds the lock, so it ends with the process in any case.

    Raises RunError when another process holds it.
    """
    path = folder / LOCK
    try:
        stream = os.fdopen(_open_without_links(path), "a+")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from None
    with stream:
        if not try_lock(stream):
            raise RunError(
                f"{folder} is in use by process {_read_holder(path) or 'unknown'}; wait for it, or stop it"
            )
        try:
            stream.truncate(0)
            stream.write(f"{os.getpid()} {socket.gethostname()}")
            stream.flush()
        except OSError as error:
            raise RunError(f"cannot write to {folder}: {error.strerror}") from None
        try:
            yield
        finally:
            with suppress(OSError):
                stream.truncate(0)


if sys.platform == "win32":
    import msvcrt

    def try_lock(stream: IO[str]) -> bool:
        """Lock an open file; False where another process has locked it."""
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def try_lock(stream: IO[str]) -> bool:
        """Lock an open file; False where another process has locked it."""
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # the file system has no locks: run without one
        return True


def _open_without_links(path: Path) -> int:
    """Open to append, but never through a link, which may lead to a file outside of the run."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # not on Windows
    return os.open(path, flags, 0o666)


def _read_holder(lock: Path) -> str:
    try:
        return lock.read_text().partition(" ")[0]
    except OSError:
        return ""


def is_running(folder: Path) -> bool:
    """Whether a live process of this machine has locked the run."""
    if sys.platform == "win32":
        return False  # os.kill would end the process there
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


def append_log(folder: Path, entry: dict[str, Any]) -> None:
    """Append one line of JSON to log.jsonl. Raises RunError.

    A line that a crash left without its end is ended first, so that it damages no other.
    """
    path = folder / LOG
    try:
        with os.fdopen(_open_without_links(path), "a+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(end - 1, 0))
            has_open_line = stream.read(1) not in (b"", b"\n")
            start = b"\n" if has_open_line else b""
            stream.write(start + json.dumps(entry, sort_keys=True).encode() + b"\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def remove_temporary_files(folder: Path) -> None:
    """Remove the files that only an unfinished run needs."""
    of_baselines = (folder / BASELINES).glob(f"*/{CHECKPOINT}")
    of_run = (folder / name for name in _TEMPORARY)
    for path in (*of_baselines, *of_run):
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        (folder / BASELINES / "dense").rmdir()
