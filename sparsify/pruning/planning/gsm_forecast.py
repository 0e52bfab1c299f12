"""What can be said of a training stage before it begins: whether gsm will have shrunk what it leaves out."""

import math
from collections.abc import Iterator
from typing import assert_never

from sparsify.formatting.numbers import format_digits, format_tiny
from sparsify.recipe import schedules
from sparsify_schemas.penalty import Gsm
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.stage import Adam, AdamW, Optimizer, OtherOptimizer, Sgd, Train

LOSSLESS = 1e-3
"""a weight shrunk to so little of itself is cut without loss"""


def forecast_gsm(recipe: Recipe, examples: int | None) -> Iterator[str]:
    """Notes on every stage before the cut in which gsm acts.
    examples: in the training set, None where that is not known."""
    if not any(isinstance(rule.penalty, Gsm) for rule in recipe.rules):
        return
    for index, stage in enumerate(recipe.stages):
        if not isinstance(stage, Train):
            return  # the cut
        if stage.penalties:
            yield f"stages.{index} ({stage.name}): {_write_note(stage, examples)}"


def compute_decay_rate(optimizer: Optimizer) -> float | None:
    """What a weight without a gradient loses of itself in a step, by lr:
    weight_decay / (1 - momentum). None where it cannot be said.

    AdamW's decay passes by the momentum. Adam divides the decay by its own size.
    """
    match optimizer:
        case Sgd():
            return optimizer.weight_decay / (1 - optimizer.momentum)
        case AdamW():
            return optimizer.weight_decay
        case Adam() | OtherOptimizer():
            return None
        case _:
            assert_never(optimizer)


def compute_residual(stage: Train, steps_per_epoch: int) -> float | None:
    """exp(-sum over steps of lr * weight_decay / (1 - momentum)):
    what is left of a weight whose gradient is always left out."""
    rate, total = compute_decay_rate(stage.optimizer), steps_per_epoch * stage.epochs
    if rate is None:
        return None
    return math.exp(
        -rate
        * sum(schedules.value(stage.optimizer.lr, step, steps_per_epoch, total) for step in range(total))
    )


def _write_note(stage: Train, examples: int | None) -> str:
    rate = compute_decay_rate(stage.optimizer)
    if rate is None:
        return (
            "what adam leaves of a weight that gsm leaves out cannot be foretold, as adam divides the "
            "decay by its own size; use sgd with momentum 0.98 or 0.99"
        )
    if rate == 0:
        return (
            "without weight_decay the weights that gsm leaves out never shrink, and the cut will cost what "
            "they are worth; give the optimizer a weight_decay"
        )
    if examples is None:
        lr = schedules.value(stage.optimizer.lr, 0, 1, stage.epochs)
        steps = f"{math.ceil(-math.log(LOSSLESS) / (lr * rate))} steps" if lr * rate else "no number of steps"
        return (
            f"a weight that gsm always leaves out shrinks to {format_tiny(LOSSLESS)} of itself in {steps} "
            f"at lr {lr:g}"
        )
    per_epoch = math.ceil(examples / stage.batch)
    left = compute_residual(stage, per_epoch)
    assert left is not None
    remainder = format_tiny(left) if left < 0.01 else format_digits(left, 2)
    said = (
        f"a weight that gsm always leaves out shrinks to {remainder} "
        f"of itself in {per_epoch * stage.epochs} steps"
    )
    return (
        said if left <= LOSSLESS else f"{said}, so the cut will cost accuracy; {_suggest_remedy(stage, left)}"
    )


def _suggest_remedy(stage: Train, left: float) -> str:
    """What would bring the rest down to a thousandth."""
    times = math.log(LOSSLESS) / math.log(left)
    ways = [f"{math.ceil(times * stage.epochs)} epochs in place of {stage.epochs}"]
    if isinstance(stage.optimizer, Sgd):
        momentum = math.ceil(1000 * (1 - (1 - stage.optimizer.momentum) / times)) / 1000
        if momentum <= 0.995:
            ways.append(f"a momentum of {momentum:g} in place of {stage.optimizer.momentum:g}")
    return f"{' or '.join(ways)} would leave {format_tiny(LOSSLESS)}"
