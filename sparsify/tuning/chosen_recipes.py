"""Recipes of the chosen trials in a study's folder. One that a user has changed is never replaced."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from sparsify.errors import RunError
from sparsify.files import read_bytes, write_bytes

BEST = "best.yaml"
_NAME = re.compile(r"best(-\d+)?\.yaml")
_HEAD = "# written by sparsify tune, which replaces it unless it is changed: "


def replace_recipes(folder: Path, texts: Mapping[str, str]) -> list[str]:
    """Write these recipes by name, and remove those that the study wrote before and no longer has.

    A file in the place of one of them that the study has not written, or that was changed since, is kept
    under another name. Returns a note for each of those. Raises RunError.
    """
    notes = list(_keep_changed(folder, texts))
    for name, text in texts.items():
        write_bytes(folder / name, (_write_head(text) + text).encode())
    for path in sorted(folder.glob("best*.yaml")):
        if _NAME.fullmatch(path.name) and path.name not in texts and _is_own(path):
            path.unlink()
    return notes


def _keep_changed(folder: Path, texts: Mapping[str, str]) -> Iterator[str]:
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or _is_own(path) or read_bytes(path) == text.encode():
            continue
        other = _find_free(path)
        path.rename(other)
        yield f"{name} was not as the study writes it, and is kept as {other.name}"


def _find_free(path: Path) -> Path:
    """A name beside a file that no other one has: best.yaml -> best.changed.yaml, best.changed-2.yaml, ..."""
    number, other = 1, path.with_suffix(".changed.yaml")
    while other.exists():
        number += 1
        other = path.with_suffix(f".changed-{number}.yaml")
    return other


def _write_head(text: str) -> str:
    """The first line: with it a file tells whether it is as the study wrote it."""
    return f"{_HEAD}{hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def _is_own(path: Path) -> bool:
    """Whether a file is as a study wrote it."""
    try:
        head, _, text = read_bytes(path).decode().partition("\n")
    except (RunError, UnicodeDecodeError):
        return False
    return f"{head}\n" == _write_head(text)
