"""Tensors that a module computes when it is built, and that are neither parameters nor buffers."""

import dis
import re
from collections.abc import Iterator
from dataclasses import dataclass
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
    methods = list(_list_methods(kind))
    building = _find_building(methods)
    return frozenset(name for method in methods if method.name not in building for name in method.assigned)


@dataclass(frozen=True)
class _Method:
    name: str
    assigned: frozenset[str]
    """the attributes that it stores"""
    named: frozenset[str]
    """the attributes that it reads, other methods among them"""


def _list_methods(kind: type) -> Iterator[_Method]:
    """The methods of a class and of its parents below nn.Module."""
    for own in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for name, value in vars(own).items():
            steps = list(_list_steps(_find_code(value)))
            assigned = frozenset(step.argval for step in steps if step.opname == "STORE_ATTR")
            named = frozenset(step.argval for step in steps if step.opname in ("LOAD_ATTR", "LOAD_METHOD"))
            yield _Method(name, assigned, named)


def _find_building(methods: list[_Method]) -> set[str]:
    """BUILDING, and the private methods that only those call, by themselves or through others of the kind.

    What is public may be called from outside, at any time.
    """
    private = {method.name for method in methods if re.match(r"_[^_]", method.name)}
    building = set(BUILDING)
    called = building
    while called:
        called = {name for method in methods if method.name in called for name in method.named}
        called = (called & private) - building
        building |= called
    later: set[str] = building
    while later:
        later = {name for method in methods if method.name not in building for name in method.named}
        later = (later & building) - set(BUILDING)
        building -= later
    return building


def _find_code(method: Any) -> CodeType | None:
    """The code of a function, a property or a static or class method, behind its decorators."""
    function = getattr(method, "fget", None) or getattr(method, "__func__", None) or method
    function = unwrap(function) if callable(function) else function
    return function.__code__ if isinstance(function, FunctionType) else None


def _list_steps(code: CodeType | None) -> Iterator[dis.Instruction]:
    """The instructions of a function and of those that are defined in it."""
    if code is None:
        return
    yield from dis.get_instructions(code)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _list_steps(inner)
