"""Read the record of a study."""

import os
from pathlib import Path

from pydantic import ValidationError

from sparsify.errors import RunError, first_line
from sparsify.files import explain_unreadable, read_bytes
from sparsify_schemas.study import Study

STUDY = "study.json"


def is_study(folder: Path) -> bool:
    """Whether a folder holds the record of a study."""
    return os.path.isfile(folder / STUDY)  # noqa: PTH113  # pathlib raises where a name is too long


def read_study(folder: Path) -> Study:
    """Raises RunError where the record is missing or damaged."""
    path = folder / STUDY
    try:
        return Study.model_validate_json(read_bytes(path))
    except ValidationError as error:
        damaged = f"{path} is damaged: {first_line(error)}"
        raise RunError(explain_unreadable(path, error, damaged)) from None
