"""Weights of a copy that is cut on trial: random ones of ordinary scale, and those of the model again."""

import torch
from torch import nn

from sparsify.forward.calls import Inputs
from sparsify.forward.opaque import is_nested, is_sparse
from sparsify.graph.names import all_names
from sparsify.graph.verify.failed_allocations import raise_out_of_memory
from sparsify.graph.verify.run_models import run_model


def randomize_weights(model: nn.Module, trial: nn.Module, inputs: Inputs) -> None:
    """Give a float32 copy of the model random weights of ordinary scale; the model's own weights if the
    outputs are not finite."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*trial.named_parameters(), *trial.named_buffers()]:
            if not tensor.is_floating_point() or is_sparse(tensor) or is_nested(tensor):
                continue
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.dim() > 1:
                spread = 1.5 * (3 / max(1, tensor[0].numel())) ** 0.5
                tensor.uniform_(-spread, spread, generator=generator)
            elif isinstance(tensor, nn.Parameter) or name.endswith("running_mean"):
                tensor.uniform_(-0.2, 0.2, generator=generator)
    try:
        finite = all(bool(t.isfinite().all()) for t in run_model(trial, inputs))
    except Exception as error:
        raise_out_of_memory(error)
        finite = False
    if not finite:
        copy_values(model, trial)


def restore_copy(model: nn.Module, trial: nn.Module) -> None:
    """Give a copy the model's values, and each of its modules the mode of the original."""
    copy_values(model, trial)
    for original, module in zip(model.modules(), trial.modules(), strict=True):
        module.training = original.training


@torch.no_grad()
def copy_values(model: nn.Module, trial: nn.Module) -> None:
    """Give a copy the values of the model's parameters and buffers, in its own precision."""
    values = all_names(model)
    for name, tensor in all_names(trial).items():
        if not (is_sparse(tensor) or is_nested(tensor)):
            tensor.copy_(values[name])
