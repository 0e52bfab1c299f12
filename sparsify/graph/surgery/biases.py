"""Biases of torch's layers: which bias shifts the outputs of a product, and how to create a missing one."""

from dataclasses import dataclass

import torch
from torch import nn

from sparsify.errors import RunError
from sparsify.graph.layer_types import without_power_iteration

Convolution = nn.modules.conv._ConvNd


@dataclass(frozen=True)
class Bias:
    """The bias of a layer, or of one of its products."""

    name: str
    """name in the layer"""
    exists: bool


def find_bias(module: nn.Module, weight: str) -> Bias | None:
    """Find the bias that shifts what `module` computes with this weight; None if the module has its own
    forward.

    weight: name of the parameter in the layer, such as weight_ih_l0. Ignored for layers with one product.
    """
    if not _computes_like_torch(module):
        return None
    if isinstance(module, nn.Linear | Convolution):
        return (
            Bias("bias", module._parameters.get("bias") is not None) if "bias" in module._parameters else None
        )
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and weight.startswith("weight_"):
        name = weight.replace("weight_", "bias_", 1)
        return (
            None if weight.startswith("weight_hr") else Bias(name, module._parameters.get(name) is not None)
        )
    if isinstance(module, nn.MultiheadAttention) and weight == "in_proj_weight":
        return Bias("in_proj_bias", module.in_proj_bias is not None)
    return None


def can_take_bias(module: nn.Module) -> bool:
    """Whether `create_bias` can give the module a bias."""
    kinds = nn.Linear | Convolution | nn.RNNBase | nn.RNNCellBase
    packed = isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
    return _computes_like_torch(module) and (isinstance(module, kinds) or packed)


def create_bias(model: nn.Module, name: str) -> None:
    """Give a layer without a bias a bias of zeros, in place; its outputs do not change.

    A recurrent layer gets all of its biases. Raises RunError if the layer has a bias or cannot take one.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise RunError(f"the cut log gives '{name}' a bias, and this model has no such layer") from None
    if not can_take_bias(module):
        raise RunError(f"the cut log gives '{name}' a bias, which a {type(module).__name__} cannot take")
    if isinstance(module, nn.RNNBase):
        _create_recurrent_biases(module, name)
    elif isinstance(module, nn.RNNCellBase):
        rows = module.weight_ih.shape[0]
        _register_zeros(module, name, "bias_ih", rows, module.weight_ih)
        _register_zeros(module, name, "bias_hh", rows, module.weight_ih)
        module.bias = True
    elif isinstance(module, nn.MultiheadAttention):
        assert module.in_proj_weight is not None
        _register_zeros(module, name, "in_proj_bias", module.in_proj_weight.shape[0], module.in_proj_weight)
    elif isinstance(module, nn.Linear):
        with without_power_iteration(module):
            _register_zeros(module, name, "bias", module.weight.shape[0], module.weight)
    else:
        assert isinstance(module, Convolution)
        with without_power_iteration(module):
            _register_zeros(module, name, "bias", module.out_channels, module.weight)


def _register_zeros(module: nn.Module, name: str, attribute: str, size: int, like: torch.Tensor) -> None:
    if module._parameters.get(attribute) is not None:
        raise RunError(f"the cut log gives '{name}' a bias, and this model's has one already")
    zeros = torch.zeros(size, dtype=like.dtype, device=like.device)
    module.register_parameter(attribute, nn.Parameter(zeros, requires_grad=like.requires_grad))


def _create_recurrent_biases(module: nn.RNNBase, name: str) -> None:
    """One pair for every layer and direction; torch keeps a list of all names beside the parameters."""
    every: list[list[str]] = []
    for names in module._all_weights:
        suffix = names[0].removeprefix("weight_ih")
        rows = module.get_parameter(names[0]).shape[0]
        for kind in ("bias_ih", "bias_hh"):
            _register_zeros(module, name, f"{kind}{suffix}", rows, module.get_parameter(names[0]))
        every.append([*names[:2], f"bias_ih{suffix}", f"bias_hh{suffix}", *names[2:]])
    module._all_weights = every
    module.bias = True
    module._flat_weights_names = [entry for names in every for entry in names]
    module._init_flat_weights()


def _computes_like_torch(module: nn.Module) -> bool:
    """Whether the forward is torch's or ours: both add the bias to the product."""
    own = type(module)
    made_by = [own.forward, getattr(own, "_conv_forward", own.forward)]
    homes = ("torch.nn.", "torch.ao.nn.qat", "sparsify.")
    return all(function.__module__.startswith(homes) for function in made_by)
