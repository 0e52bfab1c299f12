"""Integers that modules hold beside their tensors: attributes, lists of them, and fields of
configurations.

A number is addressed by a path from its module: `num_features`, `dims` (all of a list),
`config.hidden_size`, `feature_info.3.num_chs`. Only stored values are followed, never a property or a
method, so a path from a file can reach nothing else.
"""

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, is_dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from sparsify.forward.copies import OF_TORCH

Number = int | tuple[int, ...]

DEPTH = 4
"""how many nested containers are searched"""


@dataclass(frozen=True)
class HeldNumber:
    """An integer, or a list or tuple of integers, and where it is held."""

    path: str
    """from its module"""
    name: str
    """the last word of the path that is a name"""
    value: Number
    beside: Mapping[str, Any]
    """values stored in the same container, by name"""


def find_numbers(module: nn.Module, seen: set[int]) -> Iterator[HeldNumber]:
    """The integers of one module and of the containers that it holds.

    seen: the `id` of containers that were searched already and are skipped: many modules share one
    configuration.
    """
    yield from _walk_numbers(_own_attributes(module), "", seen, DEPTH)


def read_number(module: nn.Module, path: str) -> Number | None:
    """The number at a path; None where there is none."""
    found = _find_container(module, path)
    return None if found is None else _as_number(found[0][found[1]])


def shares_container(module: nn.Module, other: nn.Module, path: str) -> bool:
    """Whether two modules hold the same container at a path, so that writing to one changes the other."""
    mine, theirs = _find_container(module, path), _find_container(other, path)
    return mine is not None and theirs is not None and mine[0] is theirs[0]


def write_number(module: nn.Module, path: str, value: Number) -> None:
    """Replace the number at a path, which must exist; a list stays a list."""
    found = _find_container(module, path)
    assert found is not None
    container, key = found
    container[key] = list(value) if isinstance(container[key], list) and isinstance(value, tuple) else value
    _call_by_axes(module)


def write_own_number(module: nn.Module, path: str, value: Number) -> None:
    """Replace the number at a path in a copy of the containers that lead to it, which the module then holds
    in their place."""
    first, *rest = path.split(".")
    vars(module)[first] = _copy_with_number(vars(module)[first], rest, value)
    _call_by_axes(module)


AXES = "axes_lengths"
"""what a layer of einops calls the lengths that it is given, by the names of axes in its pattern"""
_CALLED_BY = "_axes_lengths"


def read_axes(module: nn.Module) -> Mapping[str, int]:
    """The lengths of axes of a layer of einops, such as `Rearrange("b (h d) -> b h d", h=4)`.

    Their names do not say what they count. Empty for other modules.
    """
    if _CALLED_BY not in vars(module):
        return {}
    return {axis: length for axis, length in vars(module)[AXES].items() if type(length) is int}


def _call_by_axes(module: nn.Module) -> None:
    """Give a layer of einops the lengths that it says: it is called by a copy of them."""
    if _CALLED_BY in vars(module):
        vars(module)[_CALLED_BY] = tuple(vars(module)[AXES].items())


def _copy_with_number(container: Any, path: list[str], value: Number) -> Any:
    if not path:
        return list(value) if isinstance(container, list) and isinstance(value, tuple) else value
    made = copy(container)
    inside: Any = made if isinstance(made, dict | list) else vars(made)
    key: Any = int(path[0]) if isinstance(made, list) else path[0]
    inside[key] = _copy_with_number(inside[key], path[1:], value)
    return made


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in OF_TORCH and "." not in name}


def _walk_numbers(
    stored: Mapping[str, Any], path: str, seen: set[int], depth: int, name: str = ""
) -> Iterator[HeldNumber]:
    for key, value in stored.items():
        own = f"{path}.{key}" if path else key
        called = name if key.isdigit() else key
        number = _as_number(value)
        if number is not None:
            yield HeldNumber(own, called, number, stored)
        elif depth and id(value) not in seen:
            inside = _open_container(value, called)
            if inside:
                seen.add(id(value))
                yield from _walk_numbers(inside, own, seen, depth - 1, called)


def _as_number(value: object) -> Number | None:
    """Integers as they are; lists and tuples of some as tuples."""
    if type(value) is int:
        return value
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        return tuple(value)
    return None


def _open_container(value: object, name: str) -> Mapping[str, Any]:
    """The values of a container, by name or index.

    Nothing if it is no container of settings, or describes weights that the model may have been loaded
    from.
    """
    if name in ("pretrained_cfg", "default_cfg"):
        return {}
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if type(key) is str and "." not in key}
    if isinstance(value, list):
        return {str(place): item for place, item in enumerate(value)}
    if _is_settings(value, name):
        return {key: item for key, item in vars(value).items() if "." not in key}
    return {}


def _is_settings(value: object, name: str) -> bool:
    """A namespace, a dataclass whose fields may change, or an object that is called a configuration."""
    if isinstance(value, nn.Module | Tensor | type) or not hasattr(value, "__dict__"):
        return False
    if is_dataclass(value):
        made: Any = type(value)
        return not made.__dataclass_params__.frozen
    words = f"{name} {type(value).__name__}".lower()
    return isinstance(value, SimpleNamespace) or any(
        word in words for word in ("config", "cfg", "hparams", "args")
    )


def _find_container(module: nn.Module, path: str) -> tuple[Any, Any] | None:
    """(the container, its key) that a path leads to; None if it leads nowhere."""
    first, *rest = path.split(".")
    if first not in _own_attributes(module):
        return None
    found: tuple[Any, Any] = (vars(module), first)
    name = first
    for word in rest:
        value = found[0][found[1]]
        inside = _open_container(value, name)
        if word not in inside:
            return None
        if isinstance(value, list):
            found = (value, int(word))
        else:
            found = (value if isinstance(value, dict) else vars(value), word)
            name = word
    return found
