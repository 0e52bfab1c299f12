"""One training stage on Accelerate: the recipe's penalties act through the hooks of the ordinary optimizer.

Everything random in an epoch derives from (seed, stage index, epoch).
A stage that goes on from a checkpoint therefore sees the batches, flips and dropouts that it would have seen,
and a checkpoint needs no generator state.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparsify.cost.measure import copy_model
from sparsify.data import Datasets
from sparsify.errors import TrainingError
from sparsify.events import EpochDone, Listener, StageStarted, silence
from sparsify.nn.load_tensors import load_tensors
from sparsify.objective.objective import CLASSIFICATION, Evaluation, Objective, evaluate, smooth_labels
from sparsify.pruning.planning.plan import Plan
from sparsify.training.divergence import check_weights, refuse_overflow
from sparsify.training.fsdp import gather_state, shard_model
from sparsify.training.hints import measure_hints
from sparsify.training.hooks import attach
from sparsify.training.layout import order_weights, restore_order
from sparsify.training.loss_threshold import has_plateaued, zero_smallest
from sparsify.training.optimizers import make_optimizer
from sparsify.training.recompute import recompute_activations
from sparsify.training.restore import restore_optimizer, restore_scale
from sparsify.training.seeds import derive_seed
from sparsify.training.stage_state import OnEpoch, StageRun, StageState
from sparsify.training.training_epoch import train_epoch
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.data import Augment
from sparsify_schemas.report import Epoch
from sparsify_schemas.stage import Train

_PLAIN = Augment()
SCALE = 2.0**16
"""what the loss is first multiplied by in fp16"""


def train_stage(
    model: nn.Module,
    stage: Train,
    datasets: Datasets,
    plan: Plan | None,
    *,
    seed: int,
    stage_index: int,
    accelerator: Accelerator,
    objective: Objective = CLASSIFICATION,
    augment: Augment = _PLAIN,
    hold_zeros: bool = False,
    restore: StageState | None = None,
    until: int | None = None,
    listener: Listener = silence,
    on_epoch: OnEpoch | None = None,
    teacher: nn.Module | None = None,
    cuts: Sequence[Cuts] = (),
) -> StageState:
    """Train `model` in place and return how it ended; it is on the CPU afterwards.

    plan: whose penalties act unless the stage says otherwise, and whose groups are counted;
    None for plain training.
    hold_zeros: weights that are zero in rules on groups inside a tensor stay so.
    restore: an earlier state of this very stage, to go on from;
    right after a cut its hooks hold what that has left of `own`.
    until: epochs after which to stop; the whole stage when left out.
    objective: what is minimised, and what the model is validated by.
    teacher: what a stage with `distill` learns from; cuts: those that made the model from it, in order.
    on_epoch: called after each epoch on every process, with a state whose tensors are the live ones.
    Raises TrainingError when the loss is no longer finite, before the step that would spoil the weights;
    DataError when there are more classes than the model has outputs.
    """
    steps = _count_steps(stage, datasets, accelerator)
    if not objective.classes:
        objective = replace(objective, classes=datasets.classes)
    listener(StageStarted(stage.name, "train", stage.epochs, steps, restore.epochs if restore else 0))
    if restore is not None:
        load_tensors(model, restore.model)
    order_before = order_weights(model, stage.layout)  # before DDP and the optimizer look at the weights
    apart = stage.shard and accelerator.num_processes > 1
    trained = shard_model(copy_model(model).to(accelerator.device), accelerator.device) if apart else model
    raw = make_optimizer(stage.optimizer, trained, stage.rates)
    prepared, scaler = (
        trained if apart else accelerator.prepare(model),
        torch.amp.GradScaler(accelerator.device.type, SCALE, enabled=stage.precision == "fp16"),
    )
    frozen = _freeze_teacher(teacher, stage, accelerator.device)
    drawn = derive_seed(seed, stage_index, 0)
    hints = measure_hints(trained, frozen, cuts, stage, datasets, objective, drawn)  # before hooks see a pass
    total = steps * stage.epochs
    hooked = (
        attach(
            plan,
            trained,
            raw,
            steps_per_epoch=steps,
            steps=total,
            penalties=stage.penalties,
            hold_zeros=hold_zeros,
            until=(until or stage.epochs) * steps,
        )
        if plan
        else nullcontext()
    )
    average = _start_average(stage, trained, restore)
    recomputed = recompute_activations(trained) if stage.recompute_activations else nullcontext()
    with hooked as hooks, recomputed:
        if restore is not None:
            restore_optimizer(raw, restore.optimizer)
            restore_scale(scaler, restore.scaler)
            if hooks is not None and "step" in restore.hooks:
                hooks.load_state_dict(dict(restore.hooks))
            elif hooks is not None:
                hooks.start_at(restore.epochs * steps, restore.hooks.get("own", {}))
        run = StageRun(
            prepared,
            trained,
            raw,
            scaler,
            hooks,
            stage,
            datasets,
            accelerator,
            augment,
            steps,
            listener,
            objective,
            smooth_labels(objective, stage.label_smoothing),
            average,
            frozen,
            hints,
        )
        state = restore or StageState(0, (), 0.0, 0.0, 0.0, {}, {}, {})
        while state.epochs < (until or stage.epochs) and not _is_exhausted(stage, objective, state.history):
            epoch = state.epochs
            state = _run_epoch(run, derive_seed(seed, stage_index, epoch), epoch, state)
            if on_epoch is not None:
                on_epoch(state)
    accelerator.free_memory()
    model.to("cpu")
    if apart:
        load_tensors(model, gather_state(trained.state_dict()))
    chosen = _choose_weights(run, state)
    if chosen is not None:
        load_tensors(model, chosen)
    restore_order(model, order_before)
    return state


def _start_average(stage: Train, model: nn.Module, restore: StageState | None) -> AveragedModel | None:
    """The moving average of the weights, as it was where the stage goes on; None without `ema`."""
    if stage.ema is None:
        return None
    mean = get_ema_multi_avg_fn(stage.ema)  # type: ignore[no-untyped-call]
    average = AveragedModel(copy_model(model), multi_avg_fn=mean, use_buffers=True)
    if restore is not None and restore.average:
        load_tensors(average, restore.average)
    return average


def find_best(objective: Objective, history: Sequence[Epoch]) -> int | None:
    """The first row with the best deciding metric; None where nothing was validated."""
    best: int | None = None
    for place, row in enumerate(history):
        if row.validation_metric is None or math.isnan(row.validation_metric):
            continue
        known = None if best is None else history[best].validation_metric
        if known is None or objective.deciding.worse_by(known, row.validation_metric) < 0:
            best = place
    return best


def _is_exhausted(stage: Train, objective: Objective, history: Sequence[Epoch]) -> bool:
    """Whether the stage has waited long enough for a better epoch."""
    if stage.patience is None:
        return False
    best = find_best(objective, history)
    return best is not None and len(history) - 1 - best >= stage.patience


def _choose_weights(run: StageRun, state: StageState) -> Mapping[str, Any] | None:
    """State dict of the weights that the stage ends with; None for those that the model has."""
    if run.stage.ends_with == "best" and state.best:
        return state.best
    return None if run.average is None else run.average.module.state_dict()


def _freeze_teacher(teacher: nn.Module | None, stage: Train, device: torch.device) -> nn.Module | None:
    """A copy in eval mode on the device, so that the teacher itself stays where it is; None without
    `distill`."""
    if teacher is None or stage.distill is None:
        return None
    frozen = copy_model(teacher)
    order_weights(frozen, stage.layout)
    return frozen.to(device).eval().requires_grad_(False)


def _run_epoch(run: StageRun, seed: int, epoch: int, before: StageState) -> StageState:
    """One pass over the training set and one over the validation set."""
    started, hooks_before = time.perf_counter(), run.hooks.seconds if run.hooks else 0.0
    loss, accuracy, lr = train_epoch(run, seed, epoch)
    for buffer in run.model.buffers():
        broadcast(buffer)  # each process has gathered statistics of its own part of the batches
    if run.hooks:
        with refuse_overflow(run, epoch, run.steps - 1):
            run.hooks.flush()  # so that what is validated and saved owes nothing
    trained = time.perf_counter()
    validation = _validate(run)
    check_weights(run, epoch, validation)
    threshold = (
        _zero_below_threshold(run, before.history, validation.loss, last=epoch + 1 == run.stage.epochs)
        if run.hooks and validation
        else None
    )
    if threshold is not None:
        validation = _validate(run)
    ended = time.perf_counter()
    goal = run.hooks.goal() if run.hooks else None
    row = Epoch(
        stage=run.stage.name,
        epoch=epoch + 1,
        loss=loss,
        train_metric=accuracy,
        validation_loss=validation.loss if validation else None,
        validation_metric=validation.deciding if validation else None,
        lr=lr,
        sparsity=run.hooks.sparsity() if run.hooks else 0.0,
        strength=run.hooks.strength if run.hooks else None,
        woken=run.hooks.reactivated() if run.hooks else None,
        threshold=threshold,
        due=goal[0] if goal else None,
        reached=goal[1] if goal else None,
        processes=run.accelerator.num_processes,
        seconds=ended - started,
    )
    remaining = tuple(run.hooks.remaining().items()) if run.hooks else ()
    run.listener(
        EpochDone(
            run.stage.name,
            epoch + 1,
            loss,
            accuracy,
            row.validation_metric,
            row.sparsity,
            remaining,
            row.seconds,
            run.objective.deciding,
        )
    )
    return StageState(
        epochs=epoch + 1,
        history=(*before.history, row),
        seconds=before.seconds + ended - started,
        step_seconds=before.step_seconds + trained - started,
        penalty_seconds=before.penalty_seconds + (run.hooks.seconds - hooks_before if run.hooks else 0.0),
        model=gather_state(run.model.state_dict()),
        optimizer=gather_state(run.optimizer.state_dict()),
        hooks=gather_state(run.hooks.state_dict()) if run.hooks else {},
        scaler=run.scaler.state_dict(),
        average=gather_state(run.average.state_dict()) if run.average is not None else {},
        best=_keep_best(run, before, (*before.history, row)),
    )


def _keep_best(run: StageRun, before: StageState, history: Sequence[Epoch]) -> Mapping[str, Any]:
    """State dict of the weights after the best epoch, which may be this one; empty where the last are
    kept."""
    if run.stage.ends_with == "last":
        return {}
    if find_best(run.objective, history) != len(history) - 1:
        return before.best
    state = gather_state(run.judged.state_dict())
    return {name: value.clone() for name, value in state.items()}


def _validate(run: StageRun) -> Evaluation | None:
    """Loss and metrics on the validation set; None without one."""
    if not len(run.datasets.validation):
        return None
    return evaluate(run.judged, run.datasets.validation, run.objective)


def _zero_below_threshold(
    run: StageRun, history: Sequence[Epoch], loss: float, *, last: bool
) -> float | None:
    """Set small weights to zero and hold them there, where a penalty asks for it and
    it is due; the largest that went."""
    assert run.hooks is not None
    asked = run.hooks.threshold()
    if asked is None:
        return None
    spec, names = asked
    since = max((i for i, row in enumerate(history) if row.threshold is not None), default=0)
    before = [row.validation_loss for row in history[since:] if row.validation_loss is not None]
    if not (last or has_plateaued([*before, loss], spec.patience)):
        return None
    weights = [run.model.get_parameter(name).detach() for name in names]
    found = zero_smallest(
        weights,
        lambda: evaluate(run.model, run.datasets.validation, run.objective).loss,
        spec.tolerance.fraction,
    )
    run.hooks.hold(names)
    return found


def _count_steps(stage: Train, datasets: Datasets, accelerator: Accelerator) -> int:
    """Optimizer steps of an epoch."""
    if not len(datasets.train):
        raise TrainingError(
            f"stage '{stage.name}': there are no training examples; check data.validation and the data's "
            "files"
        )
    if stage.batch % accelerator.num_processes:
        raise TrainingError(
            f"stage '{stage.name}': a batch of {stage.batch} does not divide among "
            f"{accelerator.num_processes} processes; choose a multiple"
        )
    return math.ceil(len(datasets.train) / stage.batch)
