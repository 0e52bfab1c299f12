"""The order in memory of convolution weights and images: contiguous or channels last."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.data import Examples
from sparsify.errors import TrainingError
from sparsify.forward.copies import copy_model
from sparsify.objective.objective import Objective, predict
from sparsify_schemas.target import Layout

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""dimensions of a weight over images and over volumes -> that order"""


def order_weights(model: nn.Module, layout: Layout | None) -> dict[str, torch.memory_format]:
    """Bring the weights over images and volumes into an order, in place; name -> what it was before.

    None leaves them as they are.
    """
    before = {}
    for name, parameter in model.named_parameters():
        if layout is not None and parameter.dim() in _CHANNELS_LAST:
            before[name] = _find_order(parameter)
            _reorder(parameter, _choose_order(parameter, layout))
    return before


def restore_order(model: nn.Module, before: Mapping[str, torch.memory_format]) -> None:
    """Bring weights back into the order that `order_weights` found."""
    for name, order in before.items():
        _reorder(model.get_parameter(name), order)


def order_inputs(inputs: Any, layout: Layout | None) -> Any:
    """Images and volumes of a batch in an order: tensors in mappings, tuples and lists."""
    if layout is None:
        return inputs
    if isinstance(inputs, Tensor):
        is_image = inputs.dim() in _CHANNELS_LAST and inputs.is_floating_point()
        return inputs.contiguous(memory_format=_choose_order(inputs, layout)) if is_image else inputs
    if isinstance(inputs, Mapping):
        return {name: order_inputs(part, layout) for name, part in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(order_inputs(part, layout) for part in inputs)
    return inputs


def _choose_order(tensor: Tensor, layout: Layout) -> torch.memory_format:
    return _CHANNELS_LAST[tensor.dim()] if layout == "channels_last" else torch.contiguous_format


def _find_order(tensor: Tensor) -> torch.memory_format:
    last = _CHANNELS_LAST[tensor.dim()]
    is_last = tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous()
    return last if is_last else torch.contiguous_format


def _reorder(parameter: nn.Parameter, order: torch.memory_format) -> None:
    parameter.data = parameter.data.contiguous(memory_format=order)


def why_not_in_layout(
    model: nn.Module, layout: Layout | None, examples: Examples, objective: Objective
) -> str | None:
    """What is wrong where the model cannot be trained in that order; tried on a copy."""
    if layout != "channels_last":
        return None
    copy = copy_model(model).cpu().eval()
    if not order_weights(copy, layout):
        return (
            "'layout: channels_last' orders the weights of convolutions over images or volumes, and the "
            "model has none; leave it out"
        )
    inputs, targets = examples[:2].batch()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            predict(objective, copy, order_inputs(inputs, layout), targets)
    except TrainingError as error:
        return (
            f"in 'layout: channels_last' {error}; where the model says 'view', write 'reshape', or leave the "
            "layout out"
        )
    return None
