"""How far each unit of a layer lies from the others: what the geometric median is judged by."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sparsify.errors import ModelError
from sparsify.graph.group_index import Axis, Layout, tiles


def measure_distances(layout: Layout, weights: Mapping[str, Tensor]) -> Tensor:
    """sum over the other units v of the same name of ||w_u - w_v||_2, w_u everything of unit u in tensors of
    two or more
    dimensions: [count]. Raises ModelError where a name has no such tensor.

    Source: He et al., arXiv:1811.00250, equation 6.
    """
    device = next(iter(weights.values())).device
    found = torch.zeros(layout.count, dtype=torch.float64, device=device)
    products = _multiply_units(layout, weights)
    for name, first, width in layout.names:
        if name not in products:
            raise ModelError(
                f"criterion 'fpgm' compares the filters of a layer, and '{name}' has none; "
                "use magnitude there"
            )
        product = products[name]
        squares = product.diagonal()
        apart = (squares[:, None] + squares - 2 * product).clamp_(min=0).fill_diagonal_(0).sqrt_()
        found[first : first + width] = apart.sum(1)
    return found


def _multiply_units(layout: Layout, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> inner product of every pair of its units: [width, width], float64."""
    total: dict[str, Tensor] = {}
    for part in layout.parts:
        weight = weights[part.name].detach()
        if weight.dim() < 2:
            continue
        for axis in part.axes:
            rows = _flatten_rows(weight, axis)
            for place, own in _list_owners(layout, axis):
                name, first, width = layout.names[place]
                slots = axis.slots[own] - first
                if not bool((torch.bincount(slots, minlength=width) * width == len(slots)).all()):
                    raise ModelError(
                        f"criterion 'fpgm' cannot compare the units of '{name}', which have different "
                        f"numbers of weights in '{part.name}'; use magnitude there"
                    )
                units = rows[own[slots.argsort(stable=True)]].view(width, -1).double()
                product = units @ units.T
                total[name] = total[name] + product if name in total else product
    return total


def _list_owners(layout: Layout, axis: Axis) -> Iterator[tuple[int, Tensor]]:
    """(place in the layout's names, indices of the axis that are its) for every name that the axis holds."""
    firsts = torch.tensor([first for _, first, _ in layout.names], device=axis.slots.device)
    owner = torch.bucketize(axis.slots, firsts, right=True) - 1
    owner[axis.slots == layout.count] = -1
    for place in torch.unique(owner).tolist():
        if place >= 0:
            yield place, torch.nonzero(owner == place).flatten()


def _flatten_rows(weight: Tensor, axis: Axis) -> Tensor:
    """What lies at every index of an axis, flat: [indices, ...]."""
    if axis.tile is not None:
        down, rows, across, columns = tiled = tiles(weight.shape, axis.tile)
        return (
            weight.flatten(1)[: down * rows, : across * columns]
            .reshape(tiled)
            .transpose(1, 2)
            .reshape(down * across, -1)
        )
    return weight.movedim(axis.dims, tuple(range(len(axis.dims)))).reshape(len(axis.slots), -1)
