"""A training stage as values: what stays the same through it, and how far it has come."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sparsify.data import Datasets
from sparsify.events import Listener
from sparsify.objective.losses import MeasureLosses
from sparsify.objective.objective import Objective
from sparsify.training.hints import Hints
from sparsify.training.hooks import Hooks
from sparsify_schemas.data import Augment
from sparsify_schemas.report import Epoch
from sparsify_schemas.stage import Train


@dataclass(frozen=True)
class StageState:
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
    average: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """state dict of the moving average of the weights; empty without one"""
    best: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """state dict of the weights after the best epoch so far; empty where the last ones are kept"""


OnEpoch = Callable[[StageState], None]


@dataclass(frozen=True)
class StageRun:
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
    objective: Objective
    """what is minimised, and what the model is validated by"""
    measure_losses: MeasureLosses
    """the objective's losses, with label smoothing where the stage asks for it"""
    average: AveragedModel | None = None
    """the moving average of the weights, for a stage with `ema`"""
    teacher: nn.Module | None = None
    """what a stage with `distill` learns from, in eval mode"""
    hints: Hints | None = None
    """layers whose outputs are drawn to the teacher's, for `distill` with `features`"""

    @property
    def judged(self) -> nn.Module:
        """The model that is validated: the average where there is one."""
        return self.model if self.average is None else self.average.module
