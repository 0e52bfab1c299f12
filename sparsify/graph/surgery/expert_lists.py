"""Experts that are members of a ModuleList: the list gets shorter, and its members new numbers."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch import nn

from sparsify.errors import RunError
from sparsify.graph.model_map import ModelMap
from sparsify.graph.surgery.indices import Keep, to_indices, to_ranges
from sparsify_schemas.cuts import (
    AddBias,
    Bypass,
    Cuts,
    Narrow,
    Operation,
    Replace,
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
                found.append(Shorten(module=name, size=mixture.count, keep=to_ranges(stay)))
    return tuple(found)


def shorten_lists(model: nn.Module, shortened: Iterable[Shorten]) -> None:
    """Take members out of lists, in place.

    Raises RunError if the model has no such list, or one of another length.
    """
    for op in shortened:
        members = _find_members(model, op)
        kept = [members[at] for at in to_indices(op.keep).tolist()]
        own = model.get_submodule(op.module)
        own._modules.clear()
        for number, member in enumerate(kept):
            own._modules[str(number)] = member


def _find_members(model: nn.Module, op: Shorten) -> list[nn.Module]:
    try:
        own = model.get_submodule(op.module)
    except AttributeError:
        own = None
    if not isinstance(own, nn.ModuleList):
        raise RunError(
            f"the cut log shortens '{op.module}', which is no ModuleList in this model; "
            "was it built by the same recipe?"
        )
    if len(own) != op.size:
        raise RunError(
            f"the cut log expects '{op.module}' to have {op.size} members, this model has {len(own)}"
        )
    places = to_indices(op.keep).tolist()
    if places != sorted(set(places)) or not places or places[-1] >= op.size:
        raise RunError(
            f"the cut log keeps members of '{op.module}' that are out of order or beyond its {op.size}"
        )
    return list(own)


def find_shortened(cuts: Cuts) -> tuple[Shorten, ...]:
    """What a log says of lists."""
    return tuple(op for op in cuts.operations if isinstance(op, Shorten))


def rename(name: str, shortened: Iterable[Shorten]) -> str | None:
    """The name of a module or tensor in the model with shorter lists; None if it left."""
    for op in shortened:
        if name.startswith(f"{op.module}."):
            number, dot, rest = name[len(op.module) + 1 :].partition(".")
            stay = to_indices(op.keep).tolist()
            if not number.isdecimal() or int(number) not in stay:
                return None
            return f"{op.module}.{stay.index(int(number))}{dot}{rest}"
    return name


def find_old_names(names: Iterable[str], shortened: Sequence[Shorten]) -> dict[str, str]:
    """Name in the model with shorter lists -> name before, of these names of modules or tensors."""
    found = {}
    for name in names:
        new = rename(name, shortened)
        if new is not None:
            found[new] = name
    return found


def rename_in_turn(name: str, shortened: Iterable[Shorten]) -> str | None:
    """The same after cuts that each went on with what the one before had left."""
    found: str | None = name
    for op in shortened:
        found = None if found is None else rename(found, (op,))
    return found


def rename_operations(operations: Iterable[Operation], shortened: Sequence[Shorten]) -> Iterator[Operation]:
    """What was done to the tensors and modules that stay, under their new names."""
    for op in operations:
        if not shortened:
            yield op
        elif isinstance(op, Narrow):
            tensor = rename(op.tensor, shortened)
            if tensor is not None:
                yield op.model_copy(update={"tensor": tensor})
        elif isinstance(op, SetAttribute | Replace | Bypass | Silence | AddBias):
            module = rename(op.module, shortened)
            if module is not None:
                yield op.model_copy(update={"module": module})
        else:
            yield op
