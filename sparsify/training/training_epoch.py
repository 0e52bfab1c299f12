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
from sparsify.training.layout import order_inputs
from sparsify.training.mixing import Mix, draw_mix
from sparsify.training.optimizers import SCALE
from sparsify.training.recompute import explain_second_pass
from sparsify.training.stage_state import StageRun

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train_epoch(run: StageRun, seed: int, epoch: int) -> tuple[float, float | None, float]:
    """(mean loss, share classified rightly, last learning rate) over the epoch's batches, as they were
    trained on.

    The share is None where the task is no classification. Of mixed batches it is the share of the mixed
    targets: m where the class of an example is named, 1 - m where that of its partner is.
    """
    torch.manual_seed(seed + run.accelerator.process_index)
    loader = share_batches(
        batches(run.datasets.train, run.stage.batch, seed=seed, augment=run.augment), run.accelerator
    )
    total, counted, lr = 0.0, 0.0, 0.0
    right, seen = 0.0, 0
    with in_mode(run.prepared, training=True):
        for i, (x, y) in enumerate(loader):
            lr = _compute_learning_rate(run, epoch * run.steps + i)
            for group in run.optimizer.param_groups:
                group["lr"] = lr * group.get(SCALE, 1.0)
            run.optimizer.zero_grad()
            mix = draw_mix(run.stage, x.shape, seed, i) if run.stage.mixes else None
            found = _run_batch(run, x, y, mix, f"stage '{run.stage.name}', epoch {epoch + 1}, step {i + 1}: ")
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
            right += rights.sum().item()
            seen += len(rights)
            run.listener(StepDone(run.stage.name, epoch + 1, i + 1, loss))
    accuracy = right / seen if counts_right(run.objective) else None
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


def _run_batch(run: StageRun, x: Any, y: Any, mix: Mix | None, where: str) -> tuple[Tensor, Tensor, Tensor]:
    """Forward and backward of a batch, in parts: the sum of each example's losses, how much counts in it, and
    whether it was classified rightly, [N] each. The batch is mixed as a whole. Gradients meet in the last
    part."""
    count = run.stage.accumulate
    x = order_inputs(x if mix is None else mix.mix_inputs(x), run.stage.layout)
    inputs, targets = split_values(x, count), split_values(y, count)
    others = [None] * len(targets) if mix is None else split_values(mix.find_others(y), count)
    parts = list(zip(inputs, targets, others, strict=True))
    whole = _count_for_process(run, y)
    found = []
    for i, (xs, ys, zs) in enumerate(parts):
        together = nullcontext() if i == len(parts) - 1 else run.accelerator.no_sync(run.prepared)
        with (
            together,
            torch.autocast(
                run.accelerator.device.type,
                _DTYPES[run.stage.precision],
                enabled=run.stage.precision != "fp32",
            ),
        ):
            with nullcontext() if run.hints is None else run.hints.pairs.record_model():
                outputs = predict(run.objective, run.prepared, xs, ys, where)
            own = run.measure_losses(outputs, ys)
            losses = own if mix is None else mix.mix_losses(own, run.measure_losses(outputs, zs))
            losses = _add_distillation(run, losses, xs, ys, outputs, where)
            with explain_second_pass(where):
                run.accelerator.backward(run.scaler.scale(losses.sums.sum() / whole))
        found.append((losses.sums.detach(), losses.weights, _find_right(run, outputs, ys, zs, mix)))
    sums, weights, rights = (torch.cat(list(part)) for part in zip(*found, strict=True))
    return sums, weights, rights


def _find_right(run: StageRun, outputs: Any, targets: Any, others: Any, mix: Mix | None) -> Tensor:
    """How much of each example is classified rightly: [N]; nothing where there is no one class."""
    if not counts_right(run.objective):
        return torch.zeros(count_examples(targets), device=run.accelerator.device)
    right = are_right(outputs, targets).float()
    return right if mix is None else mix.mix_values(right, are_right(outputs, others).float())


def _count_for_process(run: StageRun, targets: Any) -> Tensor | int:
    """What the sum of losses of this process is divided by: its examples; or the tokens and pixels that
    count in the batches of all processes, over their number, since DDP takes the mean of their gradients."""
    if run.objective.counts_elements:
        own = count_targets(run.objective.task.kind, targets).sum()
        every: Tensor = run.accelerator.reduce(own, "sum")
        share: Tensor = every.clamp(min=1) / run.accelerator.num_processes
        return share
    return count_examples(targets)


def _add_distillation(run: StageRun, losses: Losses, x: Any, y: Any, outputs: Any, where: str) -> Losses:
    """The task's losses, or a mixture with how far the outputs are from the teacher's, and what the layers
    say."""
    if not losses.sums.requires_grad:
        raise TrainingError(
            f"{where}the loss does not depend on the weights, so nothing can be learned; check task.loss"
        )
    distill = run.stage.distill
    if distill is None or run.teacher is None:
        return losses
    with torch.no_grad(), nullcontext() if run.hints is None else run.hints.pairs.record_teacher():
        said = predict(run.objective, run.teacher, x, y, where)
    if distill.weight:
        own, taught = (find_judged(run.objective, one, where) for one in (outputs, said))
        divergence = teacher_divergence(run.objective.task, own, y, taught, distill.temperature)
        losses = mix_losses(losses, divergence, distill.weight)
    return losses if run.hints is None else run.hints.add_to(losses)
