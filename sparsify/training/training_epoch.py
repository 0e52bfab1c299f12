"""One pass over the training set."""

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from sparsify.data import batches
from sparsify.events import StepDone
from sparsify.recipe import schedules
from sparsify.training.accelerator import share_batches
from sparsify.training.divergence import make_divergence_error, refuse_overflow
from sparsify.training.objective import are_right, distillation_losses, in_mode, losses, outputs_of
from sparsify.training.stage_state import StageRun

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train_epoch(run: StageRun, seed: int, epoch: int) -> tuple[float, float, float]:
    """(mean loss, share classified rightly, last learning rate) over the epoch's
    batches, as they were trained on."""
    torch.manual_seed(seed + run.accelerator.process_index)
    loader = share_batches(
        batches(run.datasets.train, run.stage.batch, seed=seed, augment=run.augment), run.accelerator
    )
    total, seen, lr = 0.0, 0, 0.0
    hits = torch.zeros((), dtype=torch.int64, device=run.accelerator.device)
    with in_mode(run.prepared, training=True):
        for i, (x, y) in enumerate(loader):
            lr = _compute_learning_rate(run, epoch * run.steps + i)
            for group in run.optimizer.param_groups:
                group["lr"] = lr
            run.optimizer.zero_grad()
            each, right = _run_batch(
                run, x, y, f"stage '{run.stage.name}', epoch {epoch + 1}, step {i + 1}: "
            )
            # gathered before the step: each process sees the same loss and they give up together
            everyone, rights = run.accelerator.gather_for_metrics((each, right))
            loss = everyone.mean().item()
            if not math.isfinite(loss):
                raise make_divergence_error(run, epoch, i, f"the loss is {loss}")
            run.scaler.unscale_(run.optimizer)
            if run.stage.clip is not None:
                run.accelerator.clip_grad_norm_(run.model.parameters(), run.stage.clip)
            with refuse_overflow(run, epoch, i):
                run.scaler.step(run.optimizer)
            run.scaler.update()
            total, seen = total + loss * len(everyone), seen + len(everyone)
            hits += rights.sum()
            run.listener(StepDone(run.stage.name, epoch + 1, i + 1, loss))
    return total / seen, hits.item() / seen, lr


def _compute_learning_rate(run: StageRun, step: int) -> float:
    total = run.steps * run.stage.epochs
    rise = run.stage.warmup.steps(run.steps, total)
    return schedules.value(run.stage.optimizer.lr, step, run.steps, total) * min(
        1.0, (step + 1) / rise if rise else 1.0
    )


def _run_batch(run: StageRun, x: Tensor, y: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Forward and backward of a batch, in parts; (loss, whether classified rightly) of each example.
    Gradients meet in the last part."""
    parts = list(zip(x.chunk(run.stage.accumulate), y.chunk(run.stage.accumulate), strict=True))
    found = []
    for i, (xs, ys) in enumerate(parts):
        together = nullcontext() if i == len(parts) - 1 else run.accelerator.no_sync(run.prepared)
        with (
            together,
            torch.autocast(
                run.accelerator.device.type,
                _DTYPES[run.stage.precision],
                enabled=run.stage.precision != "fp32",
            ),
        ):
            outputs = outputs_of(run.prepared, xs, run.datasets.classes, where)
            each, right = _compute_losses(run, xs, ys, outputs), are_right(outputs, ys)
            run.accelerator.backward(run.scaler.scale(each.sum() / len(x)))
        found.append((each.detach(), right))
    return torch.cat([each for each, _ in found]), torch.cat([right for _, right in found])


def _compute_losses(run: StageRun, x: Tensor, y: Tensor, outputs: Tensor) -> Tensor:
    """Cross-entropy, or a mixture with what the teacher says: [N]."""
    distill = run.stage.distill
    if distill is None or run.teacher is None:
        return losses(outputs, y)
    with torch.no_grad():
        taught = run.teacher(x)
    return distillation_losses(outputs, y, taught, distill.temperature, distill.weight)
