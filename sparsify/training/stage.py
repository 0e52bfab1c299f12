"""One training stage on Accelerate: the recipe's penalties act through the hooks of the ordinary optimizer.

Everything random in an epoch derives from (seed, stage index, epoch).
A stage that goes on from a checkpoint therefore sees the batches, flips and dropouts that it would have seen,
and a checkpoint needs no generator state.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import GradientAccumulationPlugin, broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparsify.cost.measure import copy_model
from sparsify.data import Datasets, batches
from sparsify.distributed import whole
from sparsify.errors import RunError, TrainingError
from sparsify.events import EpochDone, Listener, StageStarted, StepDone, silence
from sparsify.pruning.planning.plan import Plan
from sparsify.recipe import schedules
from sparsify.training.fsdp import gathered, shard
from sparsify.training.hooks import Hooks, attach
from sparsify.training.loss_threshold import plateaued, zero_smallest
from sparsify.training.objective import are_right, distillation_losses, evaluate, in_mode, losses, outputs_of
from sparsify.training.optimizers import make_optimizer
from sparsify.training.restore import restore_optimizer, restore_scale
from sparsify_schemas.data import Augment
from sparsify_schemas.report import Epoch
from sparsify_schemas.stage import Train


@dataclass(frozen=True)
class Moment:
    """A stage after some epochs: what a checkpoint must hold for it to go on."""

    epochs: int
    """epochs done"""
    history: tuple[Epoch, ...]
    """a row for each of them"""
    seconds: float
    """what they took, validation included"""
    step_seconds: float
    """of these, spent in training steps"""
    penalty_seconds: float
    """of these, spent in the hooks"""
    model: Mapping[str, Any] = field(repr=False)
    """state dict"""
    optimizer: Mapping[str, Any] = field(repr=False)
    """state dict"""
    hooks: Mapping[str, Any] = field(repr=False)
    """state dict; empty without a plan"""
    scaler: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """state dict of what scales the loss in fp16; empty otherwise"""


_PLAIN = Augment()
SCALE = 2.0**16
"""what the loss is first multiplied by in fp16"""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OnEpoch = Callable[[Moment], None]


def make_accelerator() -> Accelerator:
    """An Accelerator whose processes share a batch,
    so that `batch` means examples per step on one process or many.

    Raises RunError when the launcher asks for something else than DDP.
    """
    asked = next(
        (
            engine
            for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
            if os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() in ("true", "1")
        ),
        None,
    )
    if asked is not None:
        raise RunError(
            f"the launcher asks for {asked}, and apply trains by DDP, or by FSDP 2 where a train stage of "
            "the recipe says 'shard: true'; "
            "launch it without, such as by torchrun"
        )
    # mixed precision is the recipe's to choose, stage by stage, whatever the launcher was told
    whole = GradientAccumulationPlugin(num_steps=1)  # accumulation likewise
    cpu = (
        not torch.accelerator.is_available()
    )  # unless told so, torchrun's processes would not find each other there
    return Accelerator(
        cpu=cpu,
        mixed_precision="no",
        gradient_accumulation_plugin=whole,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )


def derived_seed(seed: int, stage: int, epoch: int) -> int:
    """63 bits of SHA-256 over the three numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}/{epoch}".encode()).digest()[:8], "big") >> 1


def train_stage(
    model: nn.Module,
    stage: Train,
    datasets: Datasets,
    plan: Plan | None,
    *,
    seed: int,
    stage_index: int,
    accelerator: Accelerator,
    augment: Augment = _PLAIN,
    hold_zeros: bool = False,
    restore: Moment | None = None,
    until: int | None = None,
    listener: Listener = silence,
    on_epoch: OnEpoch | None = None,
    teacher: nn.Module | None = None,
) -> Moment:
    """Train `model` in place and return how it ended; it is on the CPU afterwards.

    plan: whose penalties act unless the stage says otherwise, and whose groups are counted;
    None for plain training.
    hold_zeros: weights that are zero in rules on groups inside a tensor stay so.
    restore: an earlier moment of this very stage, to go on from;
    right after a cut its hooks hold what that has left of `own`.
    until: epochs after which to stop; the whole stage when left out.
    teacher: the dense model, for a stage with `distill`.
    on_epoch: called after each epoch on every process, with a moment whose tensors are the live ones.
    Raises TrainingError when the loss is no longer finite, before the step that would spoil the weights;
    DataError when there are more classes than the model has outputs.
    """
    steps = _steps(stage, datasets, accelerator)
    listener(StageStarted(stage.name, "train", stage.epochs, steps, restore.epochs if restore else 0))
    if restore is not None:
        model.load_state_dict(restore.model)
    apart = stage.shard and accelerator.num_processes > 1
    trained = shard(copy_model(model).to(accelerator.device), accelerator.device) if apart else model
    raw = make_optimizer(stage.optimizer, trained)
    prepared, scaler = (
        trained if apart else accelerator.prepare(model),
        torch.amp.GradScaler(accelerator.device.type, SCALE, enabled=stage.precision == "fp16"),
    )
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
    with hooked as hooks:
        if restore is not None:
            restore_optimizer(raw, restore.optimizer)
            restore_scale(scaler, restore.scaler)
            if hooks is not None and "step" in restore.hooks:
                hooks.load_state_dict(dict(restore.hooks))
            elif hooks is not None:
                hooks.start_at(restore.epochs * steps, restore.hooks.get("own", {}))
        run = _Run(
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
            _frozen(teacher, accelerator.device) if stage.distill is not None else None,
        )
        moment = restore or Moment(0, (), 0.0, 0.0, 0.0, {}, {}, {})
        for epoch in range(moment.epochs, until or stage.epochs):
            moment = _epoch(run, derived_seed(seed, stage_index, epoch), epoch, moment)
            if on_epoch is not None:
                on_epoch(moment)
    accelerator.free_memory()
    model.to("cpu")
    if apart:
        model.load_state_dict(gathered(trained.state_dict()))
    return moment


@dataclass(frozen=True)
class _Run:
    """What stays the same through a stage. `prepared` is Accelerate's wrapper of `model`."""

    prepared: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    hooks: Hooks | None
    stage: Train
    datasets: Datasets
    accelerator: Accelerator
    augment: Augment
    steps: int
    listener: Listener
    teacher: nn.Module | None = None
    """what a stage with `distill` learns from, in eval mode"""


def _frozen(teacher: nn.Module | None, device: torch.device) -> nn.Module | None:
    """A copy in eval mode on the device, so that the teacher itself stays where it is."""
    return None if teacher is None else copy_model(teacher).to(device).eval().requires_grad_(False)


def _epoch(run: _Run, seed: int, epoch: int, before: Moment) -> Moment:
    """One pass over the training set and one over the validation set."""
    started, hooks_before = time.perf_counter(), run.hooks.seconds if run.hooks else 0.0
    loss, accuracy, lr = _train(run, seed, epoch)
    for buffer in run.model.buffers():
        broadcast(buffer)  # each process has gathered statistics of its own part of the batches
    if run.hooks:
        with _stepping(run, epoch, run.steps - 1):
            run.hooks.flush()  # so that what is validated and saved owes nothing
    trained = time.perf_counter()
    validation = evaluate(run.model, run.datasets.validation) if len(run.datasets.validation) else None
    _check_weights(run, epoch, validation)
    threshold = (
        _thresholded(run, before.history, validation[0], last=epoch + 1 == run.stage.epochs)
        if run.hooks and validation
        else None
    )
    if threshold is not None:
        validation = evaluate(run.model, run.datasets.validation)
    ended = time.perf_counter()
    goal = run.hooks.goal() if run.hooks else None
    row = Epoch(
        stage=run.stage.name,
        epoch=epoch + 1,
        loss=loss,
        train_accuracy=accuracy,
        validation_loss=validation[0] if validation else None,
        validation_accuracy=validation[1] if validation else None,
        lr=lr,
        sparsity=run.hooks.sparsity() if run.hooks else 0.0,
        strength=run.hooks.strength if run.hooks else None,
        woken=run.hooks.woken() if run.hooks else None,
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
            row.validation_accuracy,
            row.sparsity,
            remaining,
            row.seconds,
        )
    )
    return Moment(
        epochs=epoch + 1,
        history=(*before.history, row),
        seconds=before.seconds + ended - started,
        step_seconds=before.step_seconds + trained - started,
        penalty_seconds=before.penalty_seconds + (run.hooks.seconds - hooks_before if run.hooks else 0.0),
        model=gathered(run.model.state_dict()),
        optimizer=gathered(run.optimizer.state_dict()),
        hooks=gathered(run.hooks.state_dict()) if run.hooks else {},
        scaler=run.scaler.state_dict(),
    )


def _thresholded(run: _Run, history: Sequence[Epoch], loss: float, *, last: bool) -> float | None:
    """Set small weights to zero and hold them there, where a penalty asks for it and
    it is due; the largest that went."""
    assert run.hooks is not None
    asked = run.hooks.threshold()
    if asked is None:
        return None
    spec, names = asked
    since = max((i for i, row in enumerate(history) if row.threshold is not None), default=0)
    before = [row.validation_loss for row in history[since:] if row.validation_loss is not None]
    if not (last or plateaued([*before, loss], spec.patience)):
        return None
    weights = [run.model.get_parameter(name).detach() for name in names]
    found = zero_smallest(
        weights, lambda: evaluate(run.model, run.datasets.validation)[0], spec.tolerance.fraction
    )
    run.hooks.hold(names)
    return found


def _train(run: _Run, seed: int, epoch: int) -> tuple[float, float, float]:
    """(mean loss, share classified rightly, last learning rate) over the epoch's
    batches, as they were trained on."""
    torch.manual_seed(seed + run.accelerator.process_index)
    loader = _shared(
        batches(run.datasets.train, run.stage.batch, seed=seed, augment=run.augment), run.accelerator
    )
    total, seen, lr = 0.0, 0, 0.0
    hits = torch.zeros((), dtype=torch.int64, device=run.accelerator.device)
    with in_mode(run.prepared, training=True):
        for i, (x, y) in enumerate(loader):
            lr = _lr(run, epoch * run.steps + i)
            for group in run.optimizer.param_groups:
                group["lr"] = lr
            run.optimizer.zero_grad()
            each, right = _passed(run, x, y, f"stage '{run.stage.name}', epoch {epoch + 1}, step {i + 1}: ")
            # gathered before the step: each process sees the same loss and they give up together
            everyone, rights = run.accelerator.gather_for_metrics((each, right))
            loss = everyone.mean().item()
            if not math.isfinite(loss):
                raise _diverged(run, epoch, i, f"the loss is {loss}")
            run.scaler.unscale_(run.optimizer)
            if run.stage.clip is not None:
                run.accelerator.clip_grad_norm_(run.model.parameters(), run.stage.clip)
            with _stepping(run, epoch, i):
                run.scaler.step(run.optimizer)
            run.scaler.update()
            total, seen = total + loss * len(everyone), seen + len(everyone)
            hits += rights.sum()
            run.listener(StepDone(run.stage.name, epoch + 1, i + 1, loss))
    return total / seen, hits.item() / seen, lr


def _lr(run: _Run, step: int) -> float:
    total = run.steps * run.stage.epochs
    rise = run.stage.warmup.steps(run.steps, total)
    return schedules.value(run.stage.optimizer.lr, step, run.steps, total) * min(
        1.0, (step + 1) / rise if rise else 1.0
    )


def _passed(run: _Run, x: Tensor, y: Tensor, where: str) -> tuple[Tensor, Tensor]:
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
            each, right = _losses(run, xs, ys, outputs), are_right(outputs, ys)
            run.accelerator.backward(run.scaler.scale(each.sum() / len(x)))
        found.append((each.detach(), right))
    return torch.cat([each for each, _ in found]), torch.cat([right for _, right in found])


def _losses(run: _Run, x: Tensor, y: Tensor, outputs: Tensor) -> Tensor:
    """Cross-entropy, or a mixture with what the teacher says: [N]."""
    distill = run.stage.distill
    if distill is None or run.teacher is None:
        return losses(outputs, y)
    with torch.no_grad():
        taught = run.teacher(x)
    return distillation_losses(outputs, y, taught, distill.temperature, distill.weight)


def _shared(loader: DataLoader[Any], accelerator: Accelerator) -> DataLoader[Any]:
    """The loader on the accelerator's device, each batch divided among its processes.

    Not `accelerator.prepare`, which would keep the loaders of all epochs alive until the stage ends.
    """
    shared: DataLoader[Any] = prepare_data_loader(
        loader,
        accelerator.device,
        accelerator.num_processes,
        accelerator.process_index,
        split_batches=True,
        put_on_device=True,
    )
    return shared


def _steps(stage: Train, datasets: Datasets, accelerator: Accelerator) -> int:
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


def _check_weights(run: _Run, epoch: int, validation: tuple[float, float] | None) -> None:
    """The last step of an epoch may spoil the weights without any training loss to show it."""
    if run.scaler.is_enabled() and run.scaler.get_scale() < 1:
        raise TrainingError(
            f"stage '{run.stage.name}', epoch {epoch + 1}: gradients overflow in fp16 whatever the loss is "
            "scaled by; choose precision bf16 or fp32"
        )
    spoilt = next(
        (n for n, p in run.model.named_parameters() if not bool(whole(p.detach()).isfinite().all())), None
    )
    if spoilt is not None:
        raise _diverged(run, epoch, run.steps - 1, f"'{spoilt}' holds values that are not finite")
    if validation is not None and not math.isfinite(validation[0]):
        raise _diverged(run, epoch, run.steps - 1, f"the validation loss is {validation[0]}")


@contextmanager
def _stepping(run: _Run, epoch: int, step: int) -> Iterator[None]:
    """A learning rate or strength beyond the largest float32 is refused by torch with a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise _diverged(run, epoch, step, str(error).splitlines()[0]) from error


def _diverged(run: _Run, epoch: int, step: int, what: str) -> TrainingError:
    strength = run.hooks.strength if run.hooks else None
    ways = f"lower the learning rate (now {run.optimizer.param_groups[0]['lr']:.3g})" + (
        f" or the strength (now {strength:.3g})" if strength else ""
    )
    return TrainingError(
        f"stage '{run.stage.name}', epoch {epoch + 1}, step {step + 1}: {what}; {ways} and start again"
    )
