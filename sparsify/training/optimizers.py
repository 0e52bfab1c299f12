"""Optimizers: the one that a recipe names, and the parameters that one moves."""

from typing import assert_never

import torch
from torch import nn

from sparsify.errors import ModelError, TrainingError
from sparsify_schemas.stage import Adam, AdamW, Optimizer, Sgd


def make_optimizer(spec: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The torch optimizer that a recipe names, over every parameter that takes a
    gradient. Raises TrainingError."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError(
            "no parameter of the model takes a gradient; set requires_grad on those that shall be trained"
        )
    match spec:
        case Sgd():
            return torch.optim.SGD(
                parameters,
                lr=0.0,
                momentum=spec.momentum,
                weight_decay=spec.weight_decay,
                nesterov=spec.nesterov,
            )
        case Adam():
            return torch.optim.Adam(parameters, lr=0.0, betas=spec.betas, weight_decay=spec.weight_decay)
        case AdamW():
            return torch.optim.AdamW(parameters, lr=0.0, betas=spec.betas, weight_decay=spec.weight_decay)
        case _:
            assert_never(spec)


def trained_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """The model's parameters that the optimizer moves; a penalty moves no others. Raises ModelError."""
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) in moved}
    if not found:
        raise ModelError(
            "the optimizer holds none of the model's parameters; pass the optimizer that trains this model"
        )
    return found


def read_scalar(optimizer: torch.optim.Optimizer, name: str, default: float) -> float:
    """What a GradScaler has left on the optimizer, or the default without one."""
    found = getattr(optimizer, name, None)
    return default if found is None else float(found)
