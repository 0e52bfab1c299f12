"""Layouts of groups: coupled groups over all tensors, one dimension of each tensor, or inside tensors."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sparsify.distributed import Extent, find_extent
from sparsify.errors import ModelError
from sparsify.graph.group_index import Axis, Layout, Part
from sparsify.graph.model_map import Coupled, ModelMap, Slice
from sparsify_schemas.group import Block, Group, axes_inside, count_inside


def coupled_layout(
    map: ModelMap,
    names: Iterable[str],
    parameters: Mapping[str, Tensor],
    roles: frozenset[str] = frozenset({"in", "out", "whole"}),
) -> Layout:
    """The groups of some coupled sets over every parameter slice they reach
    (buffers have no norm to shrink)."""
    chosen = [map.by_name[name] for name in names]
    firsts, count = _number_slots((c.name, c.width) for c in chosen)
    # A tensor that leaves with a residual branch has an axis of its own:
    # another group may have slices of the same dimension.
    slots: dict[str, dict[tuple[int, bool], list[tuple[Coupled, Slice]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for group in chosen:
        for part in group.slices:
            if part.role in roles and part.tensor in parameters:
                slots[part.tensor][part.dim, part.role == "whole"].append((group, part))
    parts, known = [], dict[tuple[object, ...], Axis]()
    for name, dims in slots.items():
        axes = []
        for (dim, _), members in sorted(dims.items(), key=lambda item: item[0]):
            size, device = (*parameters[name].shape[dim : dim + 1], 1)[0], parameters[name].device
            alike = (
                dim,
                size,
                device,
                *((group.name, id(part.spans)) for group, part in members),
            )  # dimensions that are alike share their spans
            if alike not in known:
                vector = torch.full((size,), count, dtype=torch.int64)
                for group, part in members:
                    for span in part.spans:
                        first = firsts[group.name] + span.unit
                        vector[span.start : span.start + span.units * span.repeat] = _repeat_slots(
                            first, first + span.units, span.repeat
                        )
                known[alike] = _make_axis((dim,), vector, device)
            axes.append(known[alike])
        parts.append(_make_part(name, tuple(axes), parameters[name]))
    return Layout(tuple(parts), tuple((c.name, firsts[c.name], c.width) for c in chosen), count)


def _repeat_slots(first: int, end: int, times: int) -> Tensor:
    slots = torch.arange(first, end)
    return slots if times == 1 else slots.repeat_interleave(times)


def layer_layout(tensors: Iterable[tuple[str, int]], parameters: Mapping[str, Tensor]) -> Layout:
    """One group per index of one dimension of each tensor:
    the SSL paper's W[n,:,:,:] (dimension 0) or W[:,c,:,:] (1)."""
    chosen = [(name, dim) for name, dim in tensors if name in parameters]
    firsts, count = _number_slots((f"{name}:{dim}", parameters[name].shape[dim]) for name, dim in chosen)
    parts = tuple(
        _make_part(
            name,
            (
                _make_axis(
                    (dim,),
                    torch.arange(parameters[name].shape[dim]) + firsts[f"{name}:{dim}"],
                    parameters[name].device,
                ),
            ),
            parameters[name],
        )
        for name, dim in chosen
    )
    return Layout(
        parts, tuple((f"{n}:{d}", firsts[f"{n}:{d}"], parameters[n].shape[d]) for n, d in chosen), count
    )


def inner_layout(group: Group, tensors: Iterable[str], parameters: Mapping[str, Tensor]) -> Layout:
    """The groups inside weight tensors: filter shapes W[:,c,m,k], kernel positions W[:,:,m,k], or blocks.

    Named after their tensors. Rows and columns beyond the last whole block are in no group.
    """
    chosen = [(name, parameters[name]) for name in tensors if name in parameters]
    counts = [(name, count_inside(group, weight.shape)) for name, weight in chosen]
    firsts, count = _number_slots(counts)
    parts = tuple(
        _make_part(
            name,
            (
                replace(
                    _inner_axis(group, weight),
                    slots=torch.arange(n, device=weight.device) + firsts[name],
                    first=firsts[name],
                ),
            ),
            weight,
        )
        for (name, weight), (_, n) in zip(chosen, counts, strict=True)
    )
    return Layout(parts, tuple((name, firsts[name], n) for name, n in counts), count)


def element_layout(tensors: Iterable[str], parameters: Mapping[str, Tensor]) -> Layout:
    """Every weight a group of its own, for penalties that keep something of each."""
    chosen = [(name, parameters[name]) for name in tensors if name in parameters]
    firsts, count = _number_slots((name, weight.numel()) for name, weight in chosen)
    parts = tuple(
        _make_part(
            name, (_make_axis(tuple(range(w.dim())), torch.arange(w.numel()) + firsts[name], w.device),), w
        )
        for name, w in chosen
    )
    return Layout(parts, tuple((name, firsts[name], w.numel()) for name, w in chosen), count)


def _inner_axis(group: Group, weight: Tensor) -> Axis:
    none = torch.empty(0, dtype=torch.int64)
    tile = (group.rows, group.columns) if isinstance(group, Block) else None
    return Axis(axes_inside(group, weight.dim()), none, None, tile)


def _number_slots(widths: Iterable[tuple[str, int]]) -> tuple[dict[str, int], int]:
    firsts, count = {}, 0
    for name, width in widths:
        firsts[name] = count
        count += width
    return firsts, count


def _make_part(name: str, axes: tuple[Axis, ...], tensor: Tensor) -> Part:
    """The axes of a whole tensor, narrowed to this process's part of it.
    Raises ModelError for tiles of a sharded one."""
    own = find_extent(name, tensor)
    if own is None:
        return Part(name, axes)
    if any(axis.tile is not None for axis in axes):
        raise ModelError(
            f"'{name}' is sharded over processes, and blocks may lie across two of them; "
            "train groups of blocks without FSDP"
        )
    return Part(name, tuple(_narrow_axis(axis, own, tensor.shape) for axis in axes), own.processes)


def _narrow_axis(axis: Axis, own: Extent, shape: Sequence[int]) -> Axis:
    if own.dim not in axis.dims:
        return axis
    slots = axis.slots.view([shape[d] for d in axis.dims]).narrow(
        axis.dims.index(own.dim), own.start, own.length
    )
    return _make_axis(axis.dims, slots.flatten(), slots.device)


def _make_axis(dims: tuple[int, ...], slots: Tensor, device: torch.device) -> Axis:
    if not len(slots):
        return Axis(dims, slots.to(device), None)
    first = int(slots[0])
    plain = bool((slots == torch.arange(first, first + len(slots))).all())
    return Axis(dims, slots.to(device), first if plain else None)
