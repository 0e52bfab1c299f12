"""Number the removed units, and find which labels belong to them."""

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from sparsify.graph.model_map import ModelMap
from sparsify.graph.surgery.operations import Keep, removed_branches
from sparsify.graph.trace.labels import Labels


def chosen_units(units: Tensor, chosen: Tensor) -> set[int]:
    return set(units[chosen & (units >= 0)].tolist())


def mark_units(units: Tensor, wanted: Collection[int]) -> Tensor:
    if not wanted:
        return torch.zeros_like(units, dtype=torch.bool)
    return torch.isin(units, torch.tensor(sorted(wanted)))


def number_units(
    labels: Labels, model_map: ModelMap, keep: Keep
) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    """Number the removed units.

    Returns:
        label -> number of the removed unit that it belongs to, or -1
        group -> (number of its first unit, its width)
    """
    at = {(axis.tensor, axis.dim): axis.first for axis in labels.axes}
    branches = removed_branches(model_map, keep)
    left = {tensor for b in branches for tensor in b.tensors}
    found = np.full(labels.count, -1)
    numbers: dict[str, tuple[int, int]] = {}
    first = 0
    for name, kept in keep.items():
        group = model_map.by_name[name]
        if not kept and name in {b.name for b in branches}:
            continue
        numbers[name] = (first, group.width)
        own = np.arange(first, first + group.width)
        own[np.asarray(kept, np.int64)] = -1
        first += group.width
        for part in group.slices:
            start = at.get((part.tensor, part.dim))
            if part.role == "size" or part.tensor in left or start is None:
                continue
            for span in part.spans:
                places = np.repeat(own[span.unit : span.unit + span.units], span.repeat)
                begin = start + span.start
                own_labels = found[begin : begin + len(places)]
                np.copyto(own_labels, places, where=places >= 0)
    return torch.from_numpy(found), numbers
