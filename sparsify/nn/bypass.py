"""Modules without parameters that replace modules which were removed with a residual branch."""

from typing import Any

import torch
from torch import Tensor, nn


class Bypassed(nn.Module):
    """Returns its first tensor input and ignores the others."""

    def __init__(self, returns: tuple[bool, ...] = ()) -> None:
        super().__init__()
        self.returns = returns

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _wrap_result(_first_tensor(args, kwargs), self.returns)


class Silenced(nn.Module):
    """Returns zeros of the shape of its first tensor input."""

    def __init__(self, returns: tuple[bool, ...] = ()) -> None:
        super().__init__()
        self.returns = returns

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _wrap_result(torch.zeros_like(_first_tensor(args, kwargs)), self.returns)


def replace_module(model: nn.Module, name: str, stub: nn.Module) -> None:
    """Replace a module by a stub.

    Plain attributes of the module (a layer's number or kind) stay readable on the stub; its parameters
    read None. Layers of torch around it no longer use a fused path that reads those parameters.
    """
    parent, _, child = name.rpartition(".")
    old = model.get_submodule(name)
    plain = {k: v for k, v in vars(old).items() if isinstance(v, str | int | float) and k not in vars(stub)}
    vars(stub).update(plain)
    for parameter in old._parameters:
        stub.register_parameter(parameter, None)
    stub.train(old.training)
    owner = model.get_submodule(parent)
    owner._modules[child] = stub
    if isinstance(owner, nn.TransformerEncoderLayer):
        # torch itself writes 0 if the fused path does not have the activation.
        owner.activation_relu_or_gelu = 0
    for outer in model.modules():
        if isinstance(outer, nn.TransformerEncoder) and any(inner is owner for inner in outer.modules()):
            outer.use_nested_tensor = False


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise TypeError("a module that left with a residual branch was called without a tensor")


def _wrap_result(value: Tensor, returns: tuple[bool, ...]) -> Any:
    if not returns:
        return value
    results = []
    for here in returns:
        results.append(value if here else None)
    return tuple(results)
