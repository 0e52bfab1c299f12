"""The optimizer that a recipe names."""

from typing import assert_never

import torch
from torch import nn

from sparsify.errors import TrainingError
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
