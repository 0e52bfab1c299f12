"""The folder of a study: how it was started, its recipe, and where its trials are kept."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from sparsify.errors import RunError, first_line
from sparsify.files import as_json, read_bytes, write_bytes
from sparsify.runs import run_folder

STATE = "tune.json"
RECIPE = "search.yaml"
DATABASE = "study.db"
PAGE = "report.html"


@dataclass(frozen=True)
class StudyState:
    """How a study was started; all that a worker needs besides the recipe."""

    name: str
    """of the study in its storage"""
    storage: str | None
    """URL or file of a journal, without a password; None for the database in the folder"""
    model_file: str | None
    model_digest: str | None
    recipe_digest: str
    """SHA-256 of the recipe's text"""
    created: str
    """UTC, ISO 8601"""
    allow: tuple[str, ...] = ()
    from_scratch: bool = False
    strict: bool = False
    data: dict[str, str] | None = None
    """part of the training data -> its SHA-256, of the recipe as it is written; None in studies of older
    versions"""
    sources: dict[str, str] | None = None
    """what names a callable or a teacher's file in the recipe -> SHA-256 of its files; None as above"""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises RunError where the folder holds no study, or a damaged one."""
        path = folder / STATE
        if not path.is_file():
            raise RunError(f"{folder} holds no study: {STATE} is missing")
        try:
            return cls.from_json(json.loads(read_bytes(path)), str(path))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RunError(f"{path} is damaged ({first_line(error)}); start a new study") from None

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str) -> Self:
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise RunError(
                f"{where} was written by a newer sparsify (it has '{unknown[0]}'); use that version"
            )
        return cls(**{**values, "allow": tuple(values["allow"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, folder: Path) -> None:
        write_bytes(folder / STATE, as_json(self.to_json()))


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_recipe_text(folder: Path, state: StudyState) -> str:
    """The text of a study's recipe. Raises RunError where it is missing or was changed."""
    text = read_bytes(folder / RECIPE).decode()
    if hash_text(text) != state.recipe_digest:
        raise RunError(f"{folder / RECIPE} was changed since the study began; start a new study with it")
    return text


def check_model(state: StudyState, path: Path) -> None:
    """Raises RunError where a model's file is not the one that the study began with."""
    from sparsify.runs.setup import hash_model

    if not path.exists():
        raise RunError(f"there is no model file {path}; give the study's model where this machine has it")
    if hash_model(path) != state.model_digest:
        raise RunError(f"{path} is not the model that the study began with")


def name_trial(number: int) -> str:
    """The name of a trial's run folder."""
    return f"trial-{number}"


def list_folders(folder: Path, numbers: Sequence[int]) -> dict[int, Path]:
    """Number of a trial -> its complete run, of those that lie in this folder."""
    found = {number: folder / name_trial(number) for number in numbers}
    return {number: path for number, path in found.items() if run_folder.is_run(path)}
