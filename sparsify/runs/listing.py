"""Which runs lie in a folder, and in what state. Reads no tensors and never imports torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparsify.errors import SparsifyError
from sparsify.formatting.numbers import divide
from sparsify.reporting import report_tables
from sparsify.runs import run_folder

State = Literal["complete", "running", "interrupted", "failed", "damaged"]


@dataclass(frozen=True)
class RunRow:
    """One run, as `sparsify runs` lists it. What is not known is None."""

    name: str
    state: State
    title: str | None = None
    created: str | None = None
    """UTC, ISO 8601"""
    macs: float | None = None
    """share of the dense model's MACs that is left"""
    params: float | None = None
    """share of the dense model's parameters that is left"""
    accuracy: float | None = None
    """of the cut model, on the test set, else on the validation set"""
    speedup: float | None = None
    """on the first target"""
    speedup_low: float | None = None
    """lower end of its 95 % interval"""
    speedup_high: float | None = None
    """upper end"""
    missed: tuple[str, ...] = ()
    """limits of the recipe that were missed, such as budget.macs"""
    problem: str | None = None
    """why it is damaged, or the error that it failed with"""


def list_runs(root: str | Path) -> tuple[RunRow, ...]:
    """Every run in a folder, in order of name and number; folders that hold no run are passed over. Never raises."""
    try:
        found = [p for p in Path(root).iterdir() if p.is_dir() and not p.name.startswith(".") and _is_run(p)]
    except OSError:
        return ()
    return tuple(_row(p) for p in sorted(found, key=_order))


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (run_folder.REPORT, run_folder.STATE, run_folder.RECIPE))


def _order(folder: Path) -> tuple[str, int, str]:
    stem, _, number = folder.name.rpartition("-")
    return (
        (stem, int(number), "")
        if number.isascii() and number.isdigit() and len(number) < 10
        else (folder.name, 0, "")
    )


def _row(folder: Path) -> RunRow:
    name = folder.name
    if not (folder / run_folder.REPORT).exists():
        return _unfinished(folder)
    try:
        found = report_tables.read(folder)
        problem = _problem(folder, found.files)
    except (SparsifyError, OSError) as error:
        return RunRow(name, "damaged", title=_title(folder), problem=str(error).splitlines()[0])
    dense, cut = found.dense, found.cut
    timed = found.latency[0] if found.latency else None
    return RunRow(
        name=name,
        state="damaged" if problem else "complete",
        title=found.title,
        created=found.created,
        macs=divide(cut.macs, dense.macs),
        params=divide(cut.params, dense.params),
        accuracy=cut.validation_accuracy if cut.test_accuracy is None else cut.test_accuracy,
        speedup=timed.speedup if timed else None,
        speedup_low=timed.low if timed else None,
        speedup_high=timed.high if timed else None,
        missed=tuple(limit.what for limit in found.limits if not limit.met),
        problem=problem,
    )


def _unfinished(folder: Path) -> RunRow:
    title = _title(folder)
    if run_folder.running(folder):
        return RunRow(folder.name, "running", title=title)
    try:
        failure = run_folder.State.read(folder).failure
    except SparsifyError:
        failure = None
    return RunRow(folder.name, "interrupted" if failure is None else "failed", title=title, problem=failure)


def _problem(folder: Path, digests: Mapping[str, str]) -> str | None:
    """What is wrong with the files that rebuild the models; weights are checked by length only, to stay quick."""
    for name in (run_folder.RECIPE, run_folder.CUTS, run_folder.BASE, run_folder.WEIGHTS, run_folder.DENSE):
        path = folder / name
        if name not in digests:
            continue
        if not path.is_file():
            return f"{name} is missing"
        whole = _whole(path) if path.suffix == ".safetensors" else run_folder.sha256(path) == digests[name]
        if not whole:
            return f"{name} is damaged"
    return None


def _whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            return False
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            end = max(
                (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"),
                default=0,
            )
            return bool(8 + length + end == path.stat().st_size)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return False


def _title(folder: Path) -> str | None:
    try:
        return run_folder.read_recipe(folder).title
    except (SparsifyError, OSError):
        return None
