"""Parts of a recipe that do nothing: schedules that begin too late, rates and strengths of zero."""

import math
from collections.abc import Iterator
from typing import Any

from sparsify.recipe.schedules import value
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.schedule import Auto, Constant
from sparsify_schemas.stage import Train

SMALLEST = 1.2e-38
"""a number below it loses digits in float32, or becomes 0"""
_STEPS = 1000
"""in an epoch whose length is not known"""
_SIZES = 1000, 10**9
"""examples of a small and of a large training set"""
IDLE = "change it, or run without --strict"
_LOOKED_AT = 500
"""steps of a stage"""


def list_certain_no_ops(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What `list_no_ops` finds however many examples the training set has: with few and with many."""
    few, many = (list(list_no_ops(recipe, examples)) for examples in _SIZES)
    also = {path for path, _ in many}
    yield from (found for found in few if found[0] in also)


def list_no_ops(recipe: Recipe, examples: int | None) -> Iterator[tuple[str, str]]:
    """(path in the recipe, what is wrong) of what has no effect in any step.

    examples: in the training set, None where that is not known.
    """
    stages = [(index, stage) for index, stage in enumerate(recipe.stages) if isinstance(stage, Train)]
    for index, stage in stages:
        yield from _check_rate(f"stages.{index}", stage, examples)
    acting = [stage for _, stage in stages if stage.penalties]
    for index, rule in enumerate(recipe.rules):
        strength = getattr(rule.penalty, "strength", None)
        if strength is None or isinstance(strength, Auto) or not acting:
            continue
        path = f"rules.{index}.penalty.strength"
        values = [number for stage in acting for number in _sample(strength, stage, examples)]
        if max(values) < SMALLEST:
            yield path, f"is {_describe(max(values))} in every step of every stage that it acts in"
        elif not isinstance(strength, Constant) and len(set(values)) == 1:
            yield (
                path,
                f"stays at {values[0]:g}: its schedule begins after the stages that it acts in have ended",
            )


def _check_rate(path: str, stage: Train, examples: int | None) -> Iterator[tuple[str, str]]:
    rate = stage.optimizer.lr
    values = _sample(rate, stage, examples)
    if max(values) < SMALLEST:
        yield f"{path}.optimizer.lr", f"is {_describe(max(values))} in every step: nothing is learned"
    elif not isinstance(rate, Constant) and len(set(values)) == 1:
        yield (
            f"{path}.optimizer.lr",
            f"stays at {values[0]:g}: its schedule begins after the stage has ended",
        )
    steps, total = _count_steps(stage, examples)
    if stage.warmup.steps(steps, total) > total:
        yield f"{path}.warmup", f"{stage.warmup} is longer than the stage: 'lr' is never reached"


def _describe(number: float) -> str:
    return "0" if number == 0 else f"{number:g}, which float32 does not hold,"


def _sample(schedule: Any, stage: Train, examples: int | None) -> list[float]:
    """Values of the schedule at the steps of a stage, at 500 of them where there are more."""
    steps, total = _count_steps(stage, examples)
    stride = max(1, total // _LOOKED_AT)
    return [value(schedule, step, steps, total) for step in {*range(0, total, stride), total - 1}]


def _count_steps(stage: Train, examples: int | None) -> tuple[int, int]:
    """(steps of an epoch, steps of the stage)"""
    steps = _STEPS if examples is None else max(1, math.ceil(examples / stage.batch))
    return steps, steps * stage.epochs
