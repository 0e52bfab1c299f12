"""Training that diverges: it stops before weights that are not finite are saved."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from sparsify.distributed import gather_tensor
from sparsify.errors import TrainingError
from sparsify.objective.objective import Evaluation
from sparsify.training.stage_state import StageRun


def check_weights(run: StageRun, epoch: int, validation: Evaluation | None) -> None:
    """The last step of an epoch may spoil the weights without any training loss to show it."""
    if run.scaler.is_enabled() and run.scaler.get_scale() < 1:
        raise TrainingError(
            f"stage '{run.stage.name}', epoch {epoch + 1}: gradients overflow in fp16 whatever the loss is "
            "scaled by; choose precision bf16 or fp32"
        )
    spoilt = next(
        (n for n, p in run.model.named_parameters() if not bool(gather_tensor(p.detach()).isfinite().all())),
        None,
    )
    if spoilt is not None:
        raise make_divergence_error(run, epoch, run.steps - 1, f"'{spoilt}' holds values that are not finite")
    if validation is not None and not math.isfinite(validation.loss):
        raise make_divergence_error(run, epoch, run.steps - 1, f"the validation loss is {validation.loss}")


@contextmanager
def refuse_overflow(run: StageRun, epoch: int, step: int) -> Iterator[None]:
    """A learning rate or strength beyond the largest float32 is refused by torch with a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise make_divergence_error(run, epoch, step, str(error).splitlines()[0]) from error


def make_divergence_error(run: StageRun, epoch: int, step: int, what: str) -> TrainingError:
    strength = run.hooks.strength if run.hooks else None
    ways = f"lower the learning rate (now {run.optimizer.param_groups[0]['lr']:.3g})" + (
        f" or the strength (now {strength:.3g})" if strength else ""
    )
    return TrainingError(
        f"stage '{run.stage.name}', epoch {epoch + 1}, step {step + 1}: {what}; {ways} and start again"
    )
