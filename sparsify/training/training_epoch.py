"""One pass over the training set."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sparsify.data import batches
from sparsify.data.columns import count_examples, split_values
from sparsify.errors import TrainingError
from sparsify.events import StepDone
from sparsify.objective.distillation import mix_losses, teacher_divergence
from sparsify.objective.losses import Losses, count_targets
from sparsify.objective.metrics import are_right
from sparsify.objective.objective import Objective, find_judged, in_mode, predict
from sparsify.recipe import schedules
from sparsify.training.accelerator import share_batches
from sparsify.training.divergence import make_divergence_error, refuse_overflow
from sparsify.training.optimizers import SCALE
from sparsify.training.stage_state import StageRun

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train_epoch(run: StageRun, seed: int, epoch: int) -> tuple[float, float | None, float]:
    """(mean loss, share classified rightly, last learning rate) over the epoch's batches, as they were
    trained on.

    The share is None where the task is no classification.
    """
    torch.manual_seed(seed + run.accelerator.process_index)
    loader = share_batches(
        batches(run.datasets.train, run.stage.batch, seed=seed, augment=run.augment), run.accelerator
    )
    total, counted, lr = 0.0, 0.0, 0.0
    right, seen = torch.zeros((), dtype=torch.int64, device=run.accelerator.device), 0
    with in_mode(run.prepared, training=True):
        for i, (x, y) in enumerate(loader):
            lr = _compute_learning_rate(run, epoch * run.steps + i)
            for group in run.optimizer.param_groups:
                group["lr"] = lr * group.get(SCALE, 1.0)
            run.optimizer.zero_grad()
            found = _run_batch(run, x, y, f"stage '{run.stage.name}', epoch {epoch + 1}, step {i + 1}: ")
            # gathered before the step: each process sees the same loss and they give up together
            sums, weights, rights = run.accelerator.gather_for_metrics(found)
            weight = weights.sum().item()
            loss = (sums.sum() / weights.sum().clamp(min=1)).item()
            if not math.isfinite(loss):
                raise make_divergence_error(run, epoch, i, f"the loss is {loss}")
            run.scaler.unscale_(run.optimizer)
            if run.stage.clip is not None:
                run.accelerator.clip_grad_norm_(run.model.parameters(), run.stage.clip)
            with refuse_overflow(run, epoch, i):
                run.scaler.step(run.optimizer)
            run.scaler.update()
            if run.average is not None:
                run.average.update_parameters(run.model)
            total, counted = total + loss * weight, counted + weight
            right += rights.sum()
            seen += len(rights)
            run.listener(StepDone(run.stage.name, epoch + 1, i + 1, loss))
    accuracy = right.item() / seen if counts_right(run.objective) else None
    return total / max(counted, 1), accuracy, lr


def counts_right(objective: Objective) -> bool:
    """Whether examples have one class each, so that training can count those that were classified rightly."""
    return objective.task.kind == "classification" and objective.task.loss is None


def _compute_learning_rate(run: StageRun, step: int) -> float:
    total = run.steps * run.stage.epochs
    rise = run.stage.warmup.steps(run.steps, total)
    return schedules.value(run.stage.optimizer.lr, step, run.steps, total) * min(
        1.0, (step + 1) / rise if rise else 1.0
    )


def _run_batch(run: StageRun, x: Any, y: Any, where: str) -> tuple[Tensor, Tensor, Tensor]:
    """Forward and backward of a batch, in parts: the sum of each example's losses, how much counts in it, and
    whether it was classified rightly, [N] each. Gradients meet in the last part."""
    inputs, targets = split_values(x, run.stage.accumulate), split_values(y, run.stage.accumulate)
    parts = list(zip(inputs, targets, strict=True))
    whole = _count_for_process(run, y)
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
            outputs = predict(run.objective, run.prepared, xs, ys, where)
            losses = _measure_losses(run, xs, ys, outputs, where)
            run.accelerator.backward(run.scaler.scale(losses.sums.sum() / whole))
        right = (
            are_right(outputs, ys) if counts_right(run.objective) else torch.zeros_like(losses.sums).bool()
        )
        found.append((losses.sums.detach(), losses.weights, right))
    sums, weights, rights = (torch.cat(list(part)) for part in zip(*found, strict=True))
    return sums, weights, rights


def _count_for_process(run: StageRun, targets: Any) -> Tensor | int:
    """What the sum of losses of this process is divided by: its examples; or the tokens and pixels that
    count in the batches of all processes, over their number, since DDP takes the mean of their gradients."""
    if run.objective.task.kind in ("language_model", "masked_language_model", "segmentation"):
        own = count_targets(run.objective.task.kind, targets).sum()
        every: Tensor = run.accelerator.reduce(own, "sum")
        share: Tensor = every.clamp(min=1) / run.accelerator.num_processes
        return share
    return count_examples(targets)


def _measure_losses(run: StageRun, x: Any, y: Any, outputs: Any, where: str) -> Losses:
    """The task's losses, or a mixture with how far the outputs are from the teacher's."""
    losses = run.measure_losses(outputs, y)
    if not losses.sums.requires_grad:
        raise TrainingError(
            f"{where}the loss does not depend on the weights, so nothing can be learned; check task.loss"
        )
    distill = run.stage.distill
    if distill is None or run.teacher is None:
        return losses
    with torch.no_grad():
        taught = find_judged(run.objective, predict(run.objective, run.teacher, x, y, where), where)
    own = find_judged(run.objective, outputs, where)
    divergence = teacher_divergence(run.objective.task, own, y, taught, distill.temperature)
    return mix_losses(losses, divergence, distill.weight)
