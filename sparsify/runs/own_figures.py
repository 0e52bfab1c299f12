"""What a loop of one's own hands to a saved run: batches to judge by, figures, and the history of its
training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sparsify.data.targets import split_batch
from sparsify.errors import RunError, first_line
from sparsify.objective.objective import Objective
from sparsify_schemas.report import Epoch, StageRow

Figures = Mapping[str, Mapping[str, float]]
"""dense or cut -> name of a figure, such as 'test mAP' -> value"""


@dataclass(frozen=True)
class OwnFigures:
    """What is judged, and what is only handed on."""

    validation: tuple[Any, ...] = ()
    """batches that both models are validated on"""
    test: tuple[Any, ...] = ()
    """batches that both are tested on"""
    metrics: Figures | None = None
    """figures that were measured elsewhere"""
    objective: Objective | None = None
    """what batches are judged by; the recipe's task when None"""


NOTHING = OwnFigures()


def collect_figures(
    validation: Iterable[Any] | None,
    test: Iterable[Any] | None,
    metrics: Figures | None,
    objective: Objective | None,
) -> OwnFigures:
    """The figures of a saved run. Raises RunError where some are of neither model, DataError without
    targets."""
    strange = next((side for side in metrics or {} if side not in ("dense", "cut")), None)
    if strange is not None:
        raise RunError(f"metrics has figures of '{strange}'; they are of 'dense' or of 'cut'")
    return OwnFigures(
        tuple(split_batch(batch) for batch in validation or ()),
        tuple(split_batch(batch) for batch in test or ()),
        metrics,
        objective,
    )


def read_history(rows: Sequence[Epoch | Mapping[str, Any]] | None) -> tuple[Epoch, ...]:
    """The epochs of a loop of one's own, numbered where they are not. Raises RunError, which names the
    row."""
    found = []
    for number, row in enumerate(rows or (), 1):
        if isinstance(row, Epoch):
            found.append(row)
            continue
        defaults = {"stage": "train", "epoch": number, "lr": 0.0, "sparsity": 0.0, "seconds": 0.0}
        try:
            found.append(Epoch.model_validate({**defaults, **row}))
        except ValidationError as error:
            raise RunError(f"history, row {number}: {first_line(error)}") from None
    return tuple(found)


def list_stages(history: Sequence[Epoch]) -> tuple[StageRow, ...]:
    """A row for each stage of a history."""
    names = dict.fromkeys(row.stage for row in history)
    stages = []
    for name in names:
        own = [row for row in history if row.stage == name]
        stages.append(
            StageRow(
                name=name,
                kind="train",
                seconds=sum(row.seconds for row in own),
                epochs=len(own),
                loss=own[-1].loss,
                validation_metric=own[-1].validation_metric,
            )
        )
    return tuple(stages)


def describe_given(metrics: Figures | None) -> str | None:
    """A note on figures that were not measured here."""
    names = dict.fromkeys(name for side in (metrics or {}).values() for name in side)
    if not names:
        return None
    return f"measured elsewhere and handed to save_run: {', '.join(names)}"
