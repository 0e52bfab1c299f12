"""Events that a study reports to a listener."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsify.events import Event
from sparsify_schemas.study import StudyTrial
from sparsify_schemas.task import Facts


@dataclass(frozen=True)
class StudyOpened:
    """The first event of `tune`: the study's folder, with which it goes on."""

    folder: str
    wanted: int
    """Trials that the study ends with."""
    finished: int
    """Trials that were finished before."""
    is_new: bool = True


@dataclass(frozen=True)
class TrialStarted:
    number: int
    parameters: Mapping[str, Any]
    is_restart: bool = False
    """Whether another worker began it and was lost."""


@dataclass(frozen=True)
class TrialEvent:
    """An event of the run of a trial."""

    number: int
    event: Event


@dataclass(frozen=True)
class TrialFinished:
    trial: StudyTrial
    finished: int
    """Finished trials of all workers."""
    wanted: int
    judged_by: Facts
    """What the metric is."""
    best: StudyTrial | None
    """The best trial so far; of a front the one with the best metric."""


@dataclass(frozen=True)
class StudyWaits:
    """No trial is left to begin, and other workers run the rest."""

    running: int


TuneEvent = StudyOpened | TrialStarted | TrialEvent | TrialFinished | StudyWaits
TuneListener = Callable[[TuneEvent], None]


def silence_study(event: TuneEvent) -> None:
    """A listener that ignores every event."""
