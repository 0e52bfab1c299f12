"""Units that are zero already: removing them loses no trained weights."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sparsify.distributed import local_part
from sparsify.graph.group_layouts import coupled_layout
from sparsify.graph.model_map import ModelMap, Slice


def flag_nonzero(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """1 where this process's part of a tensor is not zero, else 0. It is made when it is asked for."""
    own = local_part(tensors[name])
    if not own.is_meta and int(torch.count_nonzero(own)) == own.numel():
        return torch.ones((), device=own.device).expand(own.shape)
    return (own != 0).to(torch.float32)


FIRST = 16
"""indices of another dimension at which a first look sees whether an index is alive"""


def is_alive_everywhere(tensor: Tensor) -> bool:
    """Whether every index of every dimension has a weight that is not zero among its first ones.

    False says nothing: such weights may follow later, or not. Most trained weights have no zeros, and few of
    them tell so.
    """
    if tensor.dim() < 2 or not tensor.numel() or tensor.is_meta:
        return False
    for dim in range(tensor.dim()):
        other = 1 if dim == 0 else 0
        part = tensor.narrow(other, 0, min(FIRST, tensor.shape[other]))
        if not bool((part != 0).movedim(dim, 0).flatten(1).any(1).all()):
            return False
    return True


def _flag_alive(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """As `flag_nonzero`; of a tensor without a dead index 1 everywhere."""
    own = local_part(tensors[name])
    if is_alive_everywhere(own):
        return torch.ones((), device=own.device).expand(own.shape)
    return flag_nonzero(tensors, name)


def find_dead_units(
    map: ModelMap,
    names: Iterable[str],
    parameters: Mapping[str, Tensor],
    roles: Collection[str] = ("out", "in", "whole"),
) -> dict[str, Tensor]:
    """Units whose producers' weights, or whose consumers' input slices, are all zero: removing them loses no
    trained weights.

    Biases and normalisation shifts do not count: what such a unit still emits is a constant.
    A residual branch is dead when all of its parameters are zero.
    roles: of the slices that are looked at: ("out",) for units that no weight produces.
    """
    chosen = tuple(names)
    every = {n: p.detach() for n, p in parameters.items()}
    weights = {n: p for n, p in every.items() if p.dim() > 1}
    found: dict[str, Tensor] = {}
    for role, own in (("out", weights), ("in", weights), ("whole", every)):
        if role not in roles:
            continue
        layout = coupled_layout(
            _with_shared_outputs(map) if role == "out" else map, chosen, own, frozenset({role})
        )
        alive = layout.reduce(partial(_flag_alive, own))
        gone = (alive == 0) & (layout.sizes(own) > 0)
        for name, flags in layout.split(gone).items():
            found[name] = flags | found.get(name, torch.zeros_like(flags))
    return found


def _with_shared_outputs(map: ModelMap) -> ModelMap:
    """The map in which a dimension that is one layer's outputs and another one's inputs counts as outputs."""
    if not map.shared:
        return map
    shared = set(map.shared)

    def make_output(part: Slice) -> Slice:
        is_shared = part.role == "in" and (part.tensor, part.dim) in shared
        return replace(part, role="out") if is_shared else part

    coupled = []
    for group in map.coupled:
        slices = tuple(make_output(part) for part in group.slices)
        coupled.append(replace(group, slices=slices))
    return replace(map, coupled=tuple(coupled))
