"""Deep copies of a model in which some tensors are others: narrower ones, or ones without numbers.

`copy.deepcopy` asks every value how it is copied; modules are known to be a class and a mapping of attributes. What is
no plain module, container or number is left to it.
"""

import copyreg
from collections import OrderedDict
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.copies import rebind_functions, tensors_without_history
from sparsify.graph.names import walk

SHARED = frozenset([type(None), bool, int, float, complex, str, bytes, type, type(len), type(lambda: None), torch.dtype, torch.device, torch.Size])
"""kinds of values that a copy shares with the original"""
EMPTY = frozenset([dict, OrderedDict, list, set])
COMPILED = "_compiled_call_impl"
"""what `module.compile()` leaves; no copy has it"""


def copy_with(model: nn.Module, tensors: dict[int, Any]) -> nn.Module:
    """A deep copy with tensors[id(t)] in place of every tensor t that is listed there.

    Tensors that autograd computed come without their history. `tensors` is written into.
    """
    with tensors_without_history():
        made: nn.Module = _copy(model, tensors)
    for _, module in walk(made):
        rebind_functions(module, tensors)
    return made


def on_meta(model: nn.Module) -> nn.Module:
    """A copy without numbers whose tied weights are still tied, which `model.to("meta")` would undo."""
    return copy_with(model, {id(tensor): _empty(tensor) for tensor in _tensors(model)})


def _empty(tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes."""
    for _, module in walk(model):
        yield from (value for value in (*module._parameters.values(), *module._buffers.values()) if value is not None)
        yield from (value for value in vars(module).values() if type(value) not in SHARED and isinstance(value, Tensor))


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    kind: Any = type(value)
    if kind in SHARED:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in EMPTY and not value:
        return kind()
    if kind is tuple and all(type(item) in SHARED for item in value):
        return value
    made: Any
    if kind is dict or kind is OrderedDict:
        made = memo[id(value)] = kind()
        made.update((_copy(key, memo), _copy(item, memo)) for key, item in value.items())
    elif kind is list:
        made = memo[id(value)] = []
        made.extend(_copy(item, memo) for item in value)
    elif isinstance(value, nn.Module) and _plain(kind):
        made = memo[id(value)] = kind.__new__(kind)
        own = value.__dict__.items()
        made.__dict__.update({key: item if type(item) in SHARED else _copy(item, memo) for key, item in own if key != COMPILED})
    else:
        made = deepcopy(value, memo)
    return made


@cache
def _plain(kind: type) -> bool:
    """Whether modules of this class are copied attribute by attribute, having no way of their own."""
    ways = ("__reduce_ex__", "__reduce__", "__getstate__", "__deepcopy__")
    return (
        all(getattr(kind, way, None) is getattr(nn.Module, way, None) for way in ways)
        and kind.__setstate__.__module__.startswith("torch.nn.modules.")  # type: ignore[attr-defined]  # those fill in what old files lack
        and kind not in copyreg.dispatch_table
        and not any(vars(base).get("__slots__") for base in kind.__mro__)
    )
