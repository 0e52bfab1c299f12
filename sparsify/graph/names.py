"""Names of a model's tensors, from one walk over its modules."""

import dis
from collections.abc import Iterator
from functools import cache
from inspect import unwrap
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of that tensor (tied weights have several)."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in all_names(model).items()}


def all_names(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under every name that they have."""
    return {name: tensor for name, tensor, _ in _list_slots(model, every=True)}


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and constants under every name that they have."""
    return all_names(model) | {name: tensor for name, tensor, _ in _list_held(model, every=True)}


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """(name, tensor, whether it is saved) of parameters, then buffers, then constants, tied ones once."""
    seen = set()
    for name, tensor, saved in (*_list_slots(model, every=False), *_list_held(model, every=False)):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor, saved


def walk_modules(model: nn.Module, every: bool = False) -> list[tuple[str, nn.Module]]:
    """`named_modules` without nested generators, which are slow; every: list a module under each of its
    names."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()

    def enter(name: str, module: nn.Module) -> None:
        if every or id(module) not in seen:
            seen.add(id(module))
            found.append((name, module))
            for child, inner in module._modules.items():
                if inner is not None:
                    enter(f"{name}.{child}" if name else child, inner)

    enter("", model)
    return found


def _list_slots(model: nn.Module, every: bool) -> Iterator[tuple[str, Tensor, bool]]:
    walked = []
    for name, module in walk_modules(model, every):
        walked.append((f"{name}." if name else "", module))
    for prefix, module in walked:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter, True
    for prefix, module in walked:
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield prefix + name, buffer, name not in module._non_persistent_buffers_set


def _list_held(model: nn.Module, every: bool) -> Iterator[tuple[str, Tensor, bool]]:
    for name, module in walk_modules(model, every):
        for attribute, constant in list_constants(module):
            yield f"{name}.{attribute}" if name else attribute, constant, False


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
