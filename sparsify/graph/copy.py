"""Deep copies of a model with some tensors replaced: by narrower ones, or by ones without values."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from sparsify.forward.copies import SHARED_KINDS, copy_value, finish_copies, tensors_without_history
from sparsify.graph.names import walk_modules


def copy_with(model: nn.Module, tensors: dict[int, Any]) -> nn.Module:
    """A deep copy with tensors[id(t)] in place of every tensor t that is listed there.

    Tensors that autograd computed are copied without their history. `tensors` is written into.
    """
    with tensors_without_history():
        made: nn.Module = copy_value(model, tensors)
    finish_copies((module for _, module in walk_modules(made)), tensors)
    return made


def copy_to_meta(model: nn.Module) -> nn.Module:
    """A copy without values in which tied weights stay tied, unlike after `model.to("meta")`.

    Buffers of whole numbers and masks keep their values.
    """
    return copy_with(model, {id(tensor): _make_meta(tensor) for tensor in _list_tensors(model)})


def _make_meta(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, nn.Parameter) and not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.detach().clone()
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


def _list_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes."""
    for _, module in walk_modules(model):
        yield from (
            value for value in (*module._parameters.values(), *module._buffers.values()) if value is not None
        )
        yield from (
            value
            for value in vars(module).values()
            if type(value) not in SHARED_KINDS and isinstance(value, Tensor)
        )
