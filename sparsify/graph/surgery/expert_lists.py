"""Experts that are members of a ModuleList or ModuleDict: it gets shorter, and its members new numbers."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch import nn

from sparsify.errors import RunError
from sparsify.graph.expert_numbers import list_kept_members, rename
from sparsify.graph.model_map import ModelMap
from sparsify.graph.surgery.indices import Keep, to_ranges
from sparsify_schemas.cuts import (
    AddBias,
    Bypass,
    Narrow,
    Operation,
    Replace,
    Select,
    SetAttribute,
    Shorten,
    Silence,
)


def list_shortened(model_map: ModelMap, keep: Keep) -> tuple[Shorten, ...]:
    """The lists that lose members, and the members that stay."""
    found = []
    for mixture in model_map.mixtures:
        lost = mixture.list_removed(keep[mixture.name]) if mixture.name in keep else []
        if lost:
            stay = np.setdiff1d(np.arange(mixture.count), lost)
            for name in mixture.lists:
                own = Shorten(module=name, prefix=mixture.prefix, size=mixture.count, keep=to_ranges(stay))
                found.append(own)
    return tuple(found)


def shorten_lists(model: nn.Module, shortened: Iterable[Shorten]) -> None:
    """Take members out of lists, in place.

    Raises RunError if the model has no such list, or one of another length.
    """
    for op in shortened:
        members = _find_members(model, op)
        kept = [members[at] for at in list_kept_members(op)]
        own = model.get_submodule(op.module)
        own._modules.clear()
        for number, member in enumerate(kept):
            own._modules[f"{op.prefix}{number}"] = member


def _find_members(model: nn.Module, op: Shorten) -> list[nn.Module]:
    try:
        own = model.get_submodule(op.module)
    except AttributeError:
        own = None
    if not isinstance(own, nn.ModuleList | nn.ModuleDict):
        raise RunError(
            f"the cut log shortens '{op.module}', which is no ModuleList in this model; "
            "was it built by the same recipe?"
        )
    if len(own) != op.size:
        raise RunError(
            f"the cut log expects '{op.module}' to have {op.size} members, this model has {len(own)}"
        )
    places = list_kept_members(op)
    if places != sorted(set(places)) or not places or places[-1] >= op.size:
        raise RunError(
            f"the cut log keeps members of '{op.module}' that are out of order or beyond its {op.size}"
        )
    if list(own._modules) != [f"{op.prefix}{at}" for at in range(op.size)]:
        raise RunError(
            f"the cut log calls the first member of '{op.module}' '{op.prefix}0', this model calls it "
            f"'{next(iter(own._modules))}'; was it built by the same recipe?"
        )
    return [member for member in own._modules.values() if member is not None]


def rename_operations(operations: Iterable[Operation], shortened: Sequence[Shorten]) -> Iterator[Operation]:
    """What was done to the tensors and modules that stay, under their new names."""
    for op in operations:
        if not shortened:
            yield op
        elif isinstance(op, Narrow):
            tensor = rename(op.tensor, shortened)
            if tensor is not None:
                yield op.model_copy(update={"tensor": tensor})
        elif isinstance(op, SetAttribute | Replace | Select | Bypass | Silence | AddBias):
            module = rename(op.module, shortened)
            if module is not None:
                yield op.model_copy(update={"module": module})
        else:
            yield op
