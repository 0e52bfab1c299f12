"""Calling a model so that nothing about it changes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Inputs = tuple[Tensor, ...] | Mapping[str, Tensor]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """model(*inputs), or model(**inputs) for a mapping."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def first(inputs: Inputs) -> Tensor:
    """The tensor whose leading dimension is the batch."""
    return next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs))


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
