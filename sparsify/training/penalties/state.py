"""What penalties remember, by the names of tensors and groups:
so it outlives a cut, and goes on on another number of processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsify.distributed import find_extent, is_sharded, local_part, shard_like, take_part
from sparsify.graph.group_index import Layout
from sparsify.training.penalties.step_action import Action, Tensors

Pairs = list[tuple[Tensor, Tensor]]


def copy_state(action: Action, layouts: Sequence[Layout], parameters: Tensors) -> dict[str, Any]:
    """A copy of an action's state: a tensor each, or {tensor or group:
    its numbers} for what `per` says it has of many."""
    found: dict[str, Any] = {}
    for key, value in action.state.items():
        match action.per.get(key):
            case None:
                found[key] = value.clone()
            case "weight" as kind:
                found[key] = {
                    name: shard_like(piece.clone(), parameters[name])
                    for name, piece in _split_state(kind, value, layouts, parameters).items()
                }
            case kind:
                found[key] = {
                    name: piece.clone()
                    for name, piece in _split_state(kind, value, layouts, parameters).items()
                }
    return found


def match_saved_state(
    action: Action, layouts: Sequence[Layout], parameters: Tensors, saved: object
) -> Pairs | None:
    """(part of the action's state, what was saved of it), to be copied;
    None where something else was saved."""
    if not isinstance(saved, Mapping) or saved.keys() != action.state.keys():
        return None
    pairs: Pairs = []
    for key, value in action.state.items():
        kind, given = action.per.get(key), saved[key]
        if kind is None:
            pieces, given = {"": value}, {"": given}
        else:
            pieces = _split_state(kind, value, layouts, parameters)
        if not isinstance(given, Mapping) or not pieces.keys() <= given.keys():
            return None
        for name, piece in pieces.items():
            here = _take_own_part(given[name], parameters[name] if kind == "weight" else None, name)
            if here is None or here.shape != piece.shape:
                return None
            pairs.append((piece, here))
    return pairs


def _split_state(
    kind: str, value: Tensor, layouts: Sequence[Layout], parameters: Tensors
) -> dict[str, Tensor]:
    """Views of the numbers of each tensor, in its own shape, or of each group."""
    names = tuple(dict.fromkeys(part.name for layout in layouts for part in layout.parts))
    if kind == "weight":
        own = [local_part(parameters[name]) for name in names]
        parts = torch.split(value, [parameter.numel() for parameter in own])
        views = [part.view(parameter.shape) for part, parameter in zip(parts, own, strict=True)]
        return dict(zip(names, views, strict=True))
    if kind == "tensor":
        return dict(zip(names, value, strict=True))
    slots = value[: sum(layout.count for layout in layouts)]  # without the spare one
    pieces: dict[str, Tensor] = {}
    for layout, own_slots in zip(
        layouts, torch.split(slots, [layout.count for layout in layouts]), strict=True
    ):
        pieces |= layout.split(own_slots)
    return pieces


def _take_own_part(value: object, parameter: Tensor | None, name: str) -> Tensor | None:
    """This process's part of what was saved, of a sharded tensor or of a whole one."""
    if not isinstance(value, Tensor):
        return None
    if is_sharded(value):
        return local_part(value)
    return (
        value
        if parameter is None or value.shape != parameter.shape
        else take_part(value, find_extent(name, parameter))
    )
