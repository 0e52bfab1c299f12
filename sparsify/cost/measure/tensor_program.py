"""A model as other runtimes take it: called by `forward` with tensors only, and returning tensors only."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.forward.calls import (
    Call,
    Inputs,
    call_without_copies,
    flatten_value,
    list_calls,
    rebuild_value,
    tensors_by_path,
)
from sparsify.forward.copies import copy_model
from sparsify.forward.trial_calls import detach_inputs


def make_tensor_program(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Make a module that takes and returns tensors only, with its inputs; of several calls, the first.

    The model and its inputs are returned as they are if they are like that. Otherwise the module takes the
    tensors in order and fills in the other arguments, and returns the tensors of a dataclass as a tuple.
    """
    first = list_calls(inputs)[0]
    items = first.inputs.values() if isinstance(first.inputs, Mapping) else first.inputs
    bare = first.method == "forward" and all(isinstance(item, Tensor) for item in items)
    if bare and not _returns_a_dataclass(model, first):
        return model, first.inputs
    return _TensorProgram(model, first), tuple(tensors_by_path(first).values())


def program_inputs(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs of the module that `make_tensor_program` makes."""
    return make_tensor_program(model, inputs)[1]


def _returns_a_dataclass(model: nn.Module, first: Call) -> bool:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _has_a_dataclass(call_without_copies(copy_model(model).eval(), detach_inputs((first,))))
    except Exception:  # that it does not run is said by who needs it
        return False


def _has_a_dataclass(made: Any) -> bool:
    if isinstance(made, Mapping):
        return any(map(_has_a_dataclass, made.values()))
    if isinstance(made, list | tuple):
        return any(map(_has_a_dataclass, made))
    return dataclasses.is_dataclass(made)


class _TensorProgram(nn.Module):
    """A call of a model with the given tensors in place of its own."""

    def __init__(self, model: nn.Module, entry: Call) -> None:
        super().__init__()
        self.model, self.entry = model, entry
        self.train(model.training)

    def forward(self, *given: Tensor) -> Any:
        by_path = dict(zip(tensors_by_path(self.entry), given, strict=True))
        own = dataclasses.replace(
            self.entry, inputs=rebuild_value(self.entry.inputs, lambda path, _: by_path[path])
        )
        (made,) = call_without_copies(self.model, (own,))
        if not _has_a_dataclass(made):
            return made
        return tuple(value for _, value in flatten_value(made) if isinstance(value, Tensor))
