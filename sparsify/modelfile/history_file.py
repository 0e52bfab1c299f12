"""Read torch-pruning's `pruning_history` from a file, without executing anything in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparsify.errors import ModelError, first_line

KEYS = ("pruning", "pruning_history", "history")
"""under which a checkpoint holds the history"""


def read_history_file(path: Path) -> Any:
    """What a file holds as a history: JSON, or what torch.save wrote, by itself or in a checkpoint.

    Raises ModelError.
    """
    found = _read(path)
    if found is None:
        raise ModelError(f"{path}: holds no pruning history")
    if not isinstance(found, Mapping):
        return found
    named = next((key for key in KEYS if key in found), None)
    if named is None:
        raise ModelError(f"{path}: holds no pruning history under {', '.join(KEYS)}")
    return found[named]


def find_history(path: Path) -> Any:
    """The history that a checkpoint holds beside its weights; None where it holds none."""
    try:
        found = _read(path) if path.is_file() else None
    except ModelError:
        return None
    if not isinstance(found, Mapping):
        return None
    return next((found[key] for key in KEYS if key in found), None)


def _read(path: Path) -> Any:
    if not path.exists():
        raise ModelError(f"there is no file {path}")
    try:
        if path.suffix.lower() == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged or hostile file may make a reader raise anything.
        raise ModelError(
            f"{path}: cannot be read as a pruning history ({first_line(error)}); write it with "
            "json.dump(pruner.pruning_history(), file)"
        ) from error
