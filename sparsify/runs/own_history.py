"""The history that a loop of one's own hands to a saved run: its epochs, and where the model was cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from sparsify.errors import RunError, first_line
from sparsify.pruning.cut import Result, measure_left
from sparsify.runs.evaluate import worst_verdict
from sparsify_schemas.report import Epoch, Round, StageRow

UNPLACED = (
    "the history has no row {'stage': 'cut'}, so it is not known which of its epochs came after the cut"
)


@dataclass(frozen=True)
class History:
    """What a loop of one's own did, in order."""

    epochs: tuple[Epoch, ...] = ()
    stages: tuple[StageRow, ...] = ()
    cut: StageRow | None = None
    """the last cut; None where the history does not say when the model was cut"""


def read_history(rows: Sequence[Epoch | Mapping[str, Any]] | None) -> History:
    """The epochs of a loop of one's own, numbered where they are not, and its stages.

    A row `{"stage": "cut"}` or `{"stage": "repair"}` without a loss is no epoch; it says when that was done.
    Epochs without a stage are of `train`, after a cut of `finetune`. A stage that goes on after a cut or
    repair gets a number. Raises RunError, which names the row.
    """
    epochs: list[Epoch] = []
    stages: list[StageRow] = []
    cut, going = None, ""
    for number, row in enumerate(rows or (), 1):
        if isinstance(row, Mapping) and row.get("stage") in _MARKS and "loss" not in row:
            stages.append(_read_mark(row, number, stages))
            cut, going = (stages[-1] if stages[-1].kind == "cut" else cut), ""
            continue
        default = "finetune" if cut else "train"
        called = row.stage if isinstance(row, Epoch) else str(row.get("stage", default))
        if called != going:
            stages.append(StageRow(name=_name_stage(called, stages), kind="train", seconds=0.0))
            going = called
        epochs.append(_read_epoch(row, number, stages[-1]))
        stages[-1] = _add_epoch(stages[-1], epochs[-1])
    return History(tuple(epochs), tuple(stages), cut)


_MARKS: Mapping[Any, Literal["cut", "repair"]] = {"cut": "cut", "repair": "repair"}


def _read_mark(row: Mapping[str, Any], number: int, stages: Sequence[StageRow]) -> StageRow:
    kind = _MARKS[row["stage"]]
    given = {"seconds": 0.0, **row, "name": _name_stage(kind, stages), "kind": kind}
    del given["stage"]
    try:
        return StageRow.model_validate(given)
    except ValidationError as error:
        raise RunError(f"history, row {number}: {first_line(error)}") from None


def _read_epoch(row: Epoch | Mapping[str, Any], number: int, stage: StageRow) -> Epoch:
    if isinstance(row, Epoch):
        return row.model_copy(update={"stage": stage.name})
    defaults = {"epoch": stage.epochs + 1, "lr": 0.0, "sparsity": 0.0, "seconds": 0.0}
    try:
        return Epoch.model_validate({**defaults, **row, "stage": stage.name})
    except ValidationError as error:
        raise RunError(f"history, row {number}: {first_line(error)}") from None


def _name_stage(name: str, stages: Sequence[StageRow]) -> str:
    """The name, with a number where an earlier stage has it."""
    taken, count, own = {stage.name for stage in stages}, 1, name
    while own in taken:
        count += 1
        own = f"{name} {count}"
    return own


def _add_epoch(stage: StageRow, epoch: Epoch) -> StageRow:
    return stage.model_copy(
        update={
            "seconds": stage.seconds + epoch.seconds,
            "epochs": stage.epochs + 1,
            "loss": epoch.loss,
            "validation_metric": epoch.validation_metric,
        }
    )


def describe_cut(result: Result, stage: StageRow) -> Round:
    """The report's row of the one cut."""
    left = measure_left(result.plan, result.model, (result.cuts,))
    return Round(
        stage=stage.name,
        macs=round(left["macs"]),
        params=round(left["params"]),
        validation_metric=stage.validation_metric,
        verdict=worst_verdict(result.verdicts),
    )
