"""Calling a model so that nothing about it changes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sparsify.copies import copied as copied

Inputs = tuple[Tensor, ...] | Mapping[str, Tensor]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """model(*inputs), or model(**inputs) for a mapping."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def detached(inputs: Inputs) -> Inputs:
    """Copies of the tensors, as a forward call may change what it is given."""
    if isinstance(inputs, Mapping):
        return {key: value.detach().clone() for key, value in inputs.items()}
    return tuple(value.detach().clone() for value in inputs)


def first(inputs: Inputs) -> Tensor:
    """The tensor whose leading dimension is the batch: the first that has dimensions, where any has."""
    given = list(inputs.values() if isinstance(inputs, Mapping) else inputs)
    return next((x for x in given if x.ndim), given[0])


def shown(inputs: Inputs) -> str:
    """The shapes, such as 2x3x32x32."""
    shapes = {k: "x".join(map(str, v.shape)) for k, v in (inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs))}
    return ", ".join(f"{k} {v}" if isinstance(k, str) else v for k, v in shapes.items())


@contextmanager
def in_eval(*models: nn.Module) -> Iterator[None]:
    """Eval mode; each module gets its own mode back."""
    training = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, flag in training:
            module.training = flag
