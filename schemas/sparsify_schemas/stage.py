"""Stages: train, cut, train again."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sparsify_schemas.base import Flag, NonNegative, Positive, Spec, Text
from sparsify_schemas.schedule import Constant, Scheduled

Unit = Annotated[float, Field(strict=True, ge=0, lt=1)]


class Sgd(Spec):
    """torch.optim.SGD"""

    kind: Literal["sgd"]
    lr: Scheduled
    """learning rate, a number or a schedule"""
    momentum: Unit = 0.0
    """momentum factor"""
    weight_decay: NonNegative = 0.0
    """decay of every parameter, added to the gradient"""
    nesterov: Flag = False
    """Nesterov momentum"""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Sgd":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above zero")
        return self


class Adam(Spec):
    """torch.optim.Adam"""

    kind: Literal["adam"]
    lr: Scheduled = Constant(kind="constant", value=1e-3)
    """learning rate, a number or a schedule"""
    betas: tuple[Unit, Unit] = (0.9, 0.999)
    """decay of the running means of gradient and squared gradient"""
    weight_decay: NonNegative = 0.0
    """decay added to the gradient"""


class AdamW(Spec):
    """torch.optim.AdamW"""

    kind: Literal["adamw"]
    lr: Scheduled = Constant(kind="constant", value=1e-3)
    """learning rate, a number or a schedule"""
    betas: tuple[Unit, Unit] = (0.9, 0.999)
    """decay of the running means of gradient and squared gradient"""
    weight_decay: NonNegative = 0.01
    """decay decoupled from the gradient"""


Optimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="kind")]


class Train(Spec):
    """Train for some epochs by cross-entropy, with the rules' penalties attached unless `penalties: false`."""

    kind: Literal["train"]
    name: Text = "train"
    """how the stage is called in the report; unique within the recipe"""
    epochs: Positive
    """passes over the training set"""
    batch: Positive = 64
    """examples per step"""
    optimizer: Optimizer
    """what takes the steps"""
    penalties: Flag = True
    """whether the rules' penalties act in this stage"""


class Cut(Spec):
    """Choose what goes, remove it from a copy, verify the copy, go on with it."""

    kind: Literal["cut"]
    name: Text = "cut"
    """how the stage is called in the report; unique within the recipe"""


Stage = Annotated[Train | Cut, Field(discriminator="kind")]
