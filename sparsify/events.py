"""Events that a long call reports to a listener."""

from collections.abc import Callable
from dataclasses import dataclass

from sparsify_schemas.task import Facts

_ACCURACY = Facts()


@dataclass(frozen=True)
class RunStarted:
    """The first event of `apply`: the run's folder, with which an interrupted run is resumed."""

    folder: str
    resumed: bool = False


@dataclass(frozen=True)
class StageStarted:
    name: str
    kind: str
    epochs: int
    steps_per_epoch: int
    done: int = 0
    """Epochs done before, in a resumed stage."""


@dataclass(frozen=True)
class StepDone:
    stage: str
    epoch: int
    step: int
    loss: float


@dataclass(frozen=True)
class EpochDone:
    stage: str
    epoch: int
    loss: float
    train_metric: float | None
    validation_metric: float | None
    sparsity: float
    remaining: tuple[tuple[str, float], ...]
    """(cost, fraction of the dense model that would remain if the zero groups were removed now).

    MACs first.
    """
    seconds: float
    judged_by: Facts = _ACCURACY
    """What the metric is."""


@dataclass(frozen=True)
class CutDone:
    outcome: str
    difference: float
    macs: tuple[int, int]
    params: tuple[int, int]
    validation_metric: float | None = None
    """Of the cut model, before any fine-tuning."""
    judged_by: Facts = _ACCURACY
    """What the metric is."""


@dataclass(frozen=True)
class Measuring:
    """Something long goes on step by step: the latency model is measured, layers are refitted."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Note:
    text: str


Event = RunStarted | StageStarted | StepDone | EpochDone | CutDone | Measuring | Note
Listener = Callable[[Event], None]


def silence(event: Event) -> None:
    """A listener that ignores every event."""
