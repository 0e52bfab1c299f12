"""Scratch models: copies of our own, and copies of those that share the values of their weights.

A forward call reads weights. A copy that is only called needs its own modules, hooks, buffers and gradients,
and no values of its own where the original is a copy already: what a call would write into a weight, it would
write at every call of the user's model as well.
"""

from weakref import WeakSet

import torch
from torch import Tensor, nn

from sparsify.forward.copies import Memo, copy_model
from sparsify.forward.opaque import is_nested

_OWN: "WeakSet[nn.Module]" = WeakSet()
"""models that nobody else holds"""


def make_scratch(model: nn.Module) -> nn.Module:
    """A deep copy that `copy_to_call` may share values with. Raises ModelError."""
    made = copy_model(model)
    _OWN.add(made)
    return made


def is_scratch(model: nn.Module) -> bool:
    return model in _OWN


def copy_to_call(model: nn.Module) -> nn.Module:
    """A copy to be called, with hooks or in another mode: of a scratch model it shares the weights' values,
    of any other model it is a deep copy. Raises ModelError."""
    return borrow_model(model) if model in _OWN else make_scratch(model)


def borrow_model(model: nn.Module) -> nn.Module:
    """A copy whose parameters are new ones that hold the values of the original's, without copying these.

    Buffers and all else are copied. Raises ModelError.
    """
    memo: Memo = {id(p): borrow_parameter(p) for p in model.parameters() if is_plain(p)}
    made = copy_model(model, memo)
    _OWN.add(made)
    return made


def borrow_parameter(parameter: nn.Parameter) -> nn.Parameter:
    with torch.inference_mode(False):
        return nn.Parameter(parameter.detach(), parameter.requires_grad)


def is_plain(tensor: Tensor) -> bool:
    """Whether a parameter is one of torch's own class, strided, and no result of inference mode."""
    odd = tensor.layout is not torch.strided or is_nested(tensor) or tensor.is_inference()
    return type(tensor) is nn.Parameter and not odd
