"""Tensors that a module computes when it is built, and that are neither parameters nor buffers."""

import dis
from collections.abc import Iterator
from functools import cache
from inspect import unwrap
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn


def list_constants(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(attribute, tensor) of a module's plain floating tensors: positions that it computed when it was built.

    What a hook or a forward call computes is none: it follows from something else, and a model that was just
    built does not have it yet.
    """
    if not any(type(value) is Tensor for value in vars(module).values()):
        return
    kind: type = type(module)
    computed = _list_computed(module) | _list_assigned(kind)
    for name, value in vars(module).items():
        is_constant = type(value) is Tensor and value.is_leaf and not value.requires_grad
        if is_constant and value.dim() and value.is_floating_point() and name not in computed:
            yield name, value


def _list_computed(module: nn.Module) -> set[str]:
    """The attributes that hooks compute before each call: weights under weight_norm or a mask."""
    hooks = module._forward_pre_hooks.values()
    names = (getattr(hook, key, None) for hook in hooks for key in ("name", "_tensor_name"))
    return {name for name in names if isinstance(name, str)}


BUILDING = ("__init__", "__setstate__", "_apply")
"""methods that give a module what it has from the beginning, on whichever device"""


@cache
def _list_assigned(kind: type) -> frozenset[str]:
    """The attributes that methods of a class assign after it was built, such as a cache of a forward call."""
    found: set[str] = set()
    for own in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for name, method in vars(own).items():
            if name not in BUILDING:
                found.update(_list_stores(_find_code(method)))
    return frozenset(found)


def _find_code(method: Any) -> CodeType | None:
    """The code of a function, a property or a static or class method, behind its decorators."""
    function = getattr(method, "fget", None) or getattr(method, "__func__", None) or method
    function = unwrap(function) if callable(function) else function
    return function.__code__ if isinstance(function, FunctionType) else None


def _list_stores(code: CodeType | None) -> Iterator[str]:
    if code is None:
        return
    for step in dis.get_instructions(code):
        if step.opname == "STORE_ATTR":
            yield step.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _list_stores(inner)
