"""Modules that lose heads and go on being given something for all of them select what is theirs."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from torch import nn

from sparsify.errors import RunError
from sparsify.graph.model_map import Branch, Given, ModelMap
from sparsify.graph.surgery.indices import Keep, indices_of_units, to_indices, to_ranges
from sparsify.graph.trace.labels import Ints
from sparsify.nn.selected import select_given
from sparsify_schemas.cuts import Select


def list_selections(model_map: ModelMap, keep: Keep, removed: Iterable[Branch]) -> tuple[Select, ...]:
    """What modules select, of those that are not removed with a residual branch."""
    gone: dict[tuple[str, int | str, int], list[Ints]] = defaultdict(list)
    sizes: dict[tuple[str, int | str, int], int] = {}
    for name, kept in keep.items():
        group = model_map.by_name[name]
        leaves = np.setdiff1d(np.arange(group.width), np.asarray(kept, np.int64), assume_unique=True)
        for given in group.given if len(leaves) else ():
            if not any(branch.holds(given.module) for branch in removed):
                where = _address(given)
                gone[where].append(indices_of_units(given.spans, leaves))
                sizes[where] = given.size
    found = []
    for (module, argument, dim), parts in gone.items():
        size = sizes[module, argument, dim]
        stay = np.setdiff1d(np.arange(size), np.concatenate(parts))
        found.append(Select(module=module, argument=argument, dim=dim, size=size, keep=to_ranges(stay)))
    return tuple(found)


def _address(given: Given) -> tuple[str, int | str, int]:
    return given.module, given.argument, given.dim


def select_heads(model: nn.Module, selections: Iterable[Select]) -> None:
    """Have modules select, in place. Raises RunError if the model has no such module or places."""
    for op in selections:
        try:
            module = model.get_submodule(op.module)
        except AttributeError:
            raise RunError(
                f"the cut log has '{op.module}' select what it is given, which this model does not have; "
                "was it built by the same recipe?"
            ) from None
        places = to_indices(op.keep).tolist()
        if places != sorted(set(places)) or not places or places[-1] >= op.size:
            raise RunError(
                f"the cut log has '{op.module}' select places that are out of order or beyond its {op.size}"
            )
        select_given(module, op.argument, op.dim, op.size, places)
