"""What a loop of one's own hands to a saved run: batches to judge by, and figures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsify.data.targets import split_batch
from sparsify.errors import RunError
from sparsify.objective.objective import Objective

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


def describe_given(metrics: Figures | None) -> str | None:
    """A note on figures that were not measured here."""
    names = dict.fromkeys(name for side in (metrics or {}).values() for name in side)
    if not names:
        return None
    return f"measured elsewhere and handed to save_run: {', '.join(names)}"
