"""Schedules: optimizer step -> value."""

import math
from typing import assert_never

from sparsify_schemas.schedule import Constant, Cosine, Cubic, Exponential, Linear, OneShot, Schedule, Step
from sparsify_schemas.units import Duration


def value(schedule: Schedule, step: int, steps_per_epoch: int, total: int) -> float:
    """The schedule's value at an optimizer step of a stage.

    Windows are half-open: before `start` the value is `from`, from `end` on it is `to`.

    Args:
        step: Step of the stage, counted from 0.
        steps_per_epoch: Turns `5ep` into steps.
        total: Steps of the stage; turns `0.5dur` into steps.
    """
    match schedule:
        case Constant():
            return schedule.value
        case Step():
            passed = sum(step >= moment.steps(steps_per_epoch, total) for moment in schedule.at)
            return float(schedule.value * schedule.factor**passed)
        case OneShot():
            return schedule.from_ if step < schedule.at.steps(steps_per_epoch, total) else schedule.to
        case Linear() | Cosine() | Cubic() | Exponential():
            return _shape(schedule, _progress(schedule, step, steps_per_epoch, total))
        case _:
            assert_never(schedule)


def compute_rise(
    start: Duration, end: Duration, every: Duration, step: int, steps_per_epoch: int, total: int
) -> float:
    """1 - (1 - t)^3 in steps of `every`: 0 until `start`, 1 from `end` on."""
    cubic = Cubic.model_validate({"kind": "cubic", "to": 1.0, "start": start, "end": end, "every": every})
    return value(cubic, step, steps_per_epoch, total)


def needs_steps(schedule: Schedule) -> bool:
    """Whether the schedule counts in epochs or fractions of a stage, whose lengths must then be known."""
    match schedule:
        case Constant():
            return False
        case Step():
            return any(moment.unit != "it" for moment in schedule.at)
        case OneShot():
            return schedule.at.unit != "it"
        case Linear() | Cosine() | Cubic() | Exponential():
            moments = (schedule.start, schedule.end, schedule.every)
            return any(m.unit != "it" and m.value != 0 for m in moments)
        case _:
            assert_never(schedule)


def _progress(
    schedule: Linear | Cosine | Cubic | Exponential, step: int, steps_per_epoch: int, total: int
) -> float:
    durations = (schedule.start, schedule.end, schedule.every)
    start, end, every = (duration.steps(steps_per_epoch, total) for duration in durations)
    if step < start:
        return 0.0
    if step >= end:
        return 1.0
    moved = math.floor((step - start) / max(every, 1)) * max(every, 1)
    return moved / (end - start)


def _shape(schedule: Linear | Cosine | Cubic | Exponential, t: float) -> float:
    a, b = schedule.from_, schedule.to
    match schedule:
        case Linear():
            return a + (b - a) * t
        case Cosine():
            return b + (a - b) * (1 + math.cos(math.pi * t)) / 2
        case Cubic():
            return b + (a - b) * (1 - t) ** 3
        case Exponential():
            return float(a * (b / a) ** t)
        case _:
            assert_never(schedule)
