"""The calls that a run's plan was made with, and inputs drawn anew in their shapes."""

import json
from collections.abc import Mapping
from pathlib import Path

from sparsify.errors import RunError, first_line
from sparsify.files import read_bytes
from sparsify.forward.calls import Inputs
from sparsify.forward.input_records import draw_from_record, read_record, resize_record
from sparsify.forward.recorded_calls import RecordedCall
from sparsify.runs import run_folder


def read_planned_calls(folder: Path) -> tuple[RecordedCall, ...]:
    """The calls that a run's plan was made with. Raises RunError."""
    path = folder / run_folder.PLAN
    try:
        return read_record(json.loads(read_bytes(path))["map"]["inputs"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {first_line(error)}") from None


def draw_planned_inputs(
    folder: Path,
    batch: int | None = None,
    seed: int = 0,
    sizes: Mapping[str, Mapping[int, int]] | None = None,
) -> Inputs:
    """Draw random inputs in the shapes that a run's plan was made with. Raises RunError.

    batch: replaces the plan's batch size, along the dimension of each tensor that counts examples.
    sizes: replace further lengths of the first call: path of a tensor -> dimension -> length.
    """
    path = folder / run_folder.PLAN
    try:
        first, *others = read_planned_calls(folder)
        return draw_from_record((resize_record(first, sizes or {}), *others), seed, batch)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        raise RunError(f"{path} is damaged: {first_line(error)}") from None
