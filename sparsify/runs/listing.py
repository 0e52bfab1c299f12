"""List the runs in a folder and their states. Reads no tensors and never imports torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparsify.errors import SparsifyError
from sparsify.formatting.numbers import divide
from sparsify.reporting.report_file import has_lost_record, read_report
from sparsify.runs import run_folder

State = Literal["complete", "running", "interrupted", "failed", "damaged"]


@dataclass(frozen=True)
class RunRow:
    """One run, as `sparsify runs` lists it. Unknown values are None."""

    name: str
    state: State
    title: str | None = None
    created: str | None = None
    """UTC, ISO 8601"""
    macs: float | None = None
    """Remaining fraction of the dense model's MACs."""
    params: float | None = None
    """Remaining fraction of the dense model's parameters."""
    metric: float | None = None
    """The deciding metric of the cut model, on the test set, else on the validation set."""
    judged_by: str | None = None
    """What the metric is called."""
    percent: bool = True
    """Whether it is a share."""
    judged_on: str | None = None
    """The set that the metric is of: test, else validation."""
    better: str = "higher"
    """Which way is better."""
    speedup: float | None = None
    """On the first target."""
    speedup_low: float | None = None
    """Lower end of its 95 % interval."""
    speedup_high: float | None = None
    """Upper end of its 95 % interval."""
    missed: tuple[str, ...] = ()
    """Limits of the recipe that were missed, such as budget.macs."""
    problem: str | None = None
    """Why it is damaged, or the error that ended it."""


def list_runs(root: str | Path) -> tuple[RunRow, ...]:
    """List every run in a folder by name and number. Folders without a run are skipped. Never raises."""
    try:
        found = [p for p in Path(root).iterdir() if p.is_dir() and not p.name.startswith(".") and _is_run(p)]
    except OSError:
        return ()
    return tuple(_make_row(p) for p in sorted(found, key=_sort_key))


def _is_run(folder: Path) -> bool:
    """Whether a run was begun here. A recipe alone is none: it may lie in a folder of the user's own."""
    if (folder / run_folder.REPORT).exists() or (folder / run_folder.STATE).exists():
        return True
    return has_lost_record(folder)


def _sort_key(folder: Path) -> tuple[str, int, str]:
    stem, _, number = folder.name.rpartition("-")
    if number.isascii() and number.isdigit() and len(number) < 10:
        return stem, int(number), ""
    return folder.name, 0, ""


def _make_row(folder: Path) -> RunRow:
    name = folder.name
    if not (folder / run_folder.REPORT).exists():
        return _unfinished_row(folder)
    try:
        found = read_report(folder)
        problem = _find_problem(folder, found.files)
    except (SparsifyError, OSError) as error:
        return RunRow(name, "damaged", title=_read_title(folder), problem=str(error).splitlines()[0])
    dense, cut = found.dense, found.cut
    timed = found.latency[0] if found.latency else None
    return RunRow(
        name=name,
        state="damaged" if problem else "complete",
        title=found.title,
        created=found.created,
        macs=divide(cut.macs, dense.macs),
        params=divide(cut.params, dense.params),
        metric=cut.validation_metric if cut.test_metric is None else cut.test_metric,
        judged_by=found.metric.name,
        judged_on="validation" if cut.test_metric is None else "test",
        percent=found.metric.percent,
        better=found.metric.better,
        speedup=timed.speedup if timed else None,
        speedup_low=timed.low if timed else None,
        speedup_high=timed.high if timed else None,
        missed=tuple(limit.what for limit in found.limits if not limit.met),
        problem=problem,
    )


def _unfinished_row(folder: Path) -> RunRow:
    title = _read_title(folder)
    if run_folder.is_running(folder):
        return RunRow(folder.name, "running", title=title)
    if has_lost_record(folder):
        return RunRow(folder.name, "damaged", title=title, problem=f"{run_folder.REPORT} is missing")
    try:
        failure = run_folder.State.read(folder).failure
    except (SparsifyError, OSError) as error:  # such a run cannot be continued
        return RunRow(folder.name, "damaged", title=title, problem=str(error).splitlines()[0])
    return RunRow(folder.name, "interrupted" if failure is None else "failed", title=title, problem=failure)


def _find_problem(folder: Path, digests: Mapping[str, str]) -> str | None:
    """What is wrong with the files that rebuild the models.

    Weights are checked by length only, to be quick.
    """
    for name in (run_folder.RECIPE, run_folder.CUTS, run_folder.BASE, run_folder.WEIGHTS, run_folder.DENSE):
        path = folder / name
        if name not in digests:
            continue
        if not path.is_file():
            return f"{name} is missing"
        if path.suffix == ".safetensors":
            is_intact = _has_full_length(path)
        else:
            is_intact = run_folder.hash_file(path) == digests[name]
        if not is_intact:
            return f"{name} is damaged"
    return None


def _has_full_length(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            return False
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = max((entry["data_offsets"][1] for entry in tensors), default=0)
            return bool(8 + length + end == path.stat().st_size)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return False


def _read_title(folder: Path) -> str | None:
    try:
        return run_folder.read_recipe(folder).title
    except (SparsifyError, OSError):
        return None
