"""What a long call tells whoever listens, while it goes on."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class RunStarted:
    """The first event of `apply`: where the run lies, so that an interrupted one can be named."""

    folder: str
    resumed: bool = False


@dataclass(frozen=True)
class StageStarted:
    name: str
    kind: str
    epochs: int
    steps_per_epoch: int
    done: int = 0
    """epochs done before, in a stage that goes on"""


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
    train_accuracy: float
    validation_accuracy: float | None
    sparsity: float
    remaining: tuple[tuple[str, float], ...]
    """(MACs, then what is budgeted besides; share of the dense model that would remain if the dead groups left now)"""
    seconds: float


@dataclass(frozen=True)
class CutDone:
    outcome: str
    difference: float
    macs: tuple[int, int]
    params: tuple[int, int]
    validation_accuracy: float | None = None
    """of the cut model, before any fine-tuning"""


@dataclass(frozen=True)
class Measuring:
    """The latency model is being measured: layers one by one, then whole networks."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Note:
    text: str


Event = RunStarted | StageStarted | StepDone | EpochDone | CutDone | Measuring | Note
Listener = Callable[[Event], None]


def silence(event: Event) -> None:
    """The listener of who does not want to know."""
