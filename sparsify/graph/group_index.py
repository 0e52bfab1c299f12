"""Groups as flat indices: where each unit's weights lie, so that one pass per tensor serves all groups.

A *slot* is one group in a flat vector over everything a rule covers.
For each tensor and dimension a layout knows the slot of every index;
indices of no group go to one spare slot at the end. Reductions and scalings are then a handful of operations
per tensor, never a loop over groups. A group inside a tensor is an index along several dimensions
(a kernel position, one position of one input channel) or a tile of the weight as a matrix.

Where tensors are sharded over processes (FSDP), each process knows the slots of its own part,
and `Layout.reduce` alone adds up over the processes:
whatever acts by group is then the same on one process or many.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.distributed import Extent, added, extent, local
from sparsify.errors import ModelError
from sparsify.graph.model_map import Coupled, ModelMap, Slice
from sparsify_schemas.group import Block, Group, axes_inside, count_inside


@dataclass(frozen=True)
class Axis:
    """The slot of every index along some dimensions, flattened:
    a vector, or a plain range that starts at `first`.

    tile: (rows, columns) where a group is a tile of the matrix [dimension 0, all others];
    `dims` are then (0, 1) of the matrix of tiles.
    """

    dims: tuple[int, ...]
    slots: Tensor
    first: int | None
    tile: tuple[int, int] | None = None

    def add(self, total: Tensor, values: Tensor) -> None:
        """total[slot] += values, values: one number per index."""
        if self.first is None:
            total.index_add_(0, self.slots, values)
        else:
            total[self.first : self.first + len(values)] += values

    def pick(self, values: Tensor) -> Tensor:
        """One number per index."""
        return values[self.slots] if self.first is None else values[self.first : self.first + len(self.slots)]


@dataclass(frozen=True)
class Part:
    """One tensor and its axes of groups."""

    name: str
    axes: tuple[Axis, ...]
    processes: Any = None
    """the process group over which the tensor is sharded"""


@dataclass(frozen=True)
class Layout:
    """Slots 0..count-1, one per group, and one spare slot `count`.
    `names` gives (coupled group or tensor, first slot, width)."""

    parts: tuple[Part, ...]
    names: tuple[tuple[str, int, int], ...]
    count: int

    def reduce(self, values: Callable[[str], Tensor | None]) -> Tensor:
        """Sum of values(tensor) over each group: [count + 1], the spare slot last. None leaves a tensor out.

        values: this process's part of a sharded tensor. All its processes must call, as they sum up together.
        """
        totals: dict[Any, Tensor] = {}
        for part in self.parts:
            value = values(part.name)
            if value is None:
                continue
            value = wide(value)
            if part.processes not in totals:
                dtype = next((t.dtype for t in totals.values()), value.dtype)
                totals[part.processes] = torch.zeros(self.count + 1, dtype=dtype, device=value.device)
            total = totals[part.processes]
            for axis, summed in zip(
                part.axes, marginals(value, part.axes) if value.numel() else (), strict=bool(value.numel())
            ):
                axis.add(total, summed.to(total.dtype))
        for processes, total in totals.items():
            added(total, processes)
        return torch.stack(list(totals.values())).sum(0) if totals else torch.zeros(self.count + 1)

    def sizes(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """|g|, the number of weights of each group, as float: [count + 1]."""
        return self.reduce(
            lambda name: torch.ones_like(local(parameters[name])) if name in parameters else None
        )

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """A vector over slots, taken apart by name."""
        return {name: values[first : first + width] for name, first, width in self.names}


def wide(value: Tensor) -> Tensor:
    """float32 in place of half precision, in which squares and sums over many weights
    overflow; of complex numbers, sizes."""
    if value.is_complex():
        return value.abs()
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def is_scale(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is the scale of a normalisation: one number a channel."""
    return parameter.dim() == 1 and name.endswith(".weight")


def check_fits(map: ModelMap, model: nn.Module) -> None:
    """Refuse a model of other widths than those the map was read from. Raises ModelError."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    shapes = {name: tuple(tensor.shape) for name, tensor in named}
    reached = {part.tensor for group in map.coupled for part in group.slices}
    wrong = next((t for t in map.tensors if t.name in reached and shapes.get(t.name) != t.shape), None)
    if wrong is not None:
        now = f"it is {shapes[wrong.name]} now" if wrong.name in shapes else "there is none now"
        raise ModelError(
            f"the plan was made of another model: '{wrong.name}' was {wrong.shape}, {now}; "
            "make a plan of this model (of a cut model, after the cut)"
        )


def marginals(value: Tensor, axes: Iterable[Axis]) -> list[Tensor]:
    """Sums over everything but an axis' own dimensions, flattened, for each axis.

    A contiguous weight is summed as the matrix [dimension 0, all others]:
    sums over whole rows and columns are several times faster than sums over 3 x 3 kernels.
    """
    flat = value.view(value.shape[0], -1) if value.dim() > 1 and value.is_contiguous() else None
    return [_marginal(value, flat, axis) for axis in axes]


def _marginal(value: Tensor, flat: Tensor | None, axis: Axis) -> Tensor:
    if axis.tile is not None:
        down, rows, across, columns = tiled = tiles(value.shape, axis.tile)
        return value.flatten(1)[: down * rows, : across * columns].reshape(tiled).sum((1, 3)).flatten()
    if value.dim() < 2:
        return value.view(-1)
    if flat is not None and axis.dims == (0,):
        return flat.sum(1)
    if flat is not None and 0 not in axis.dims:
        column = flat.sum(0)
        if axis.dims == (1,):
            return column.view(value.shape[1], -1).sum(1)
        others = [d - 1 for d in range(1, value.dim()) if d not in axis.dims]
        return column.view(value.shape[1:]).sum(others).flatten() if others else column
    others = [d for d in range(value.dim()) if d not in axis.dims]
    return (value.sum(others) if others else value).flatten()


def scale(tensor: Tensor, axis: Axis, factor: Tensor) -> None:
    """Multiply in place every index of an axis by its slot's factor."""
    if not tensor.numel():
        return  # the part of a process that got none of a tensor
    if (
        axis.tile is None
        and tensor.dim() > 1
        and tensor.is_contiguous()
        and (axis.dims == (0,) or 0 not in axis.dims)
    ):
        flat = tensor.view(tensor.shape[0], -1)
        if axis.dims == (0,):
            flat.mul_(axis.pick(factor)[:, None])
        elif axis.dims == (1,):
            flat.mul_(axis.pick(factor).repeat_interleave(flat.shape[1] // tensor.shape[1]))
        else:
            flat.mul_(broadcast(factor, axis, tensor.shape).expand(1, *tensor.shape[1:]).reshape(-1))
    else:
        tensor.mul_(broadcast(factor, axis, tensor.shape))


def broadcast(values: Tensor, axis: Axis, shape: Sequence[int]) -> Tensor:
    """values[slot] of every index, shaped so that it combines with a tensor of the given shape."""
    own = axis.pick(values)
    if axis.tile is None:
        return own.view([size if d in axis.dims else 1 for d, size in enumerate(shape)])
    down, rows, across, columns = tiled = tiles(shape, axis.tile)
    matrix = values[-1].expand(shape[0], prod(shape[1:])).clone()
    matrix[: down * rows, : across * columns] = (
        own.view(down, 1, across, 1).expand(tiled).reshape(down * rows, across * columns)
    )
    return matrix.view(tuple(shape))


def tiles(shape: Sequence[int], tile: tuple[int, int]) -> tuple[int, int, int, int]:
    """The shape of the matrix of tiles: (tiles down, rows, tiles across, columns)."""
    return shape[0] // tile[0], tile[0], prod(shape[1:]) // tile[1], tile[1]


def coupled_layout(
    map: ModelMap,
    names: Iterable[str],
    parameters: Mapping[str, Tensor],
    roles: frozenset[str] = frozenset({"in", "out", "whole"}),
) -> Layout:
    """The groups of some coupled sets over every parameter slice they reach
    (buffers have no norm to shrink)."""
    chosen = [map.by_name[name] for name in names]
    firsts, count = _numbered((c.name, c.width) for c in chosen)
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
                        vector[span.start : span.start + span.units * span.repeat] = _repeated(
                            first, first + span.units, span.repeat
                        )
                known[alike] = _axis((dim,), vector, device)
            axes.append(known[alike])
        parts.append(_part(name, tuple(axes), parameters[name]))
    return Layout(tuple(parts), tuple((c.name, firsts[c.name], c.width) for c in chosen), count)


def _repeated(first: int, end: int, times: int) -> Tensor:
    slots = torch.arange(first, end)
    return slots if times == 1 else slots.repeat_interleave(times)


def layer_layout(tensors: Iterable[tuple[str, int]], parameters: Mapping[str, Tensor]) -> Layout:
    """One group per index of one dimension of each tensor:
    the SSL paper's W[n,:,:,:] (dimension 0) or W[:,c,:,:] (1)."""
    chosen = [(name, dim) for name, dim in tensors if name in parameters]
    firsts, count = _numbered((f"{name}:{dim}", parameters[name].shape[dim]) for name, dim in chosen)
    parts = tuple(
        _part(
            name,
            (
                _axis(
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
    firsts, count = _numbered(counts)
    parts = tuple(
        _part(
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
    firsts, count = _numbered((name, weight.numel()) for name, weight in chosen)
    parts = tuple(
        _part(name, (_axis(tuple(range(w.dim())), torch.arange(w.numel()) + firsts[name], w.device),), w)
        for name, w in chosen
    )
    return Layout(parts, tuple((name, firsts[name], w.numel()) for name, w in chosen), count)


def _inner_axis(group: Group, weight: Tensor) -> Axis:
    none = torch.empty(0, dtype=torch.int64)
    tile = (group.rows, group.columns) if isinstance(group, Block) else None
    return Axis(axes_inside(group, weight.dim()), none, None, tile)


def find_nonzero(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """1 where this process's part of a tensor is not zero, else 0. It is made when it is asked for."""
    return (local(tensors[name]) != 0).to(torch.float32)


def dead_units(
    map: ModelMap,
    names: Iterable[str],
    parameters: Mapping[str, Tensor],
    roles: Collection[str] = ("out", "in", "whole"),
) -> dict[str, Tensor]:
    """Units whose producers' weights are all zero, or whose consumers' input slices all
    are: nothing learnt goes with them.

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
        alive = layout.reduce(partial(find_nonzero, own))
        gone = (alive == 0) & (layout.sizes(own) > 0)
        for name, flags in layout.split(gone).items():
            found[name] = flags | found.get(name, torch.zeros_like(flags))
    return found


def _with_shared_outputs(map: ModelMap) -> ModelMap:
    """The map in which a dimension that is one layer's outputs and another one's inputs counts as outputs."""
    if not map.shared:
        return map
    shared = set(map.shared)

    def seen(part: Slice) -> Slice:
        return replace(part, role="out") if part.role == "in" and (part.tensor, part.dim) in shared else part

    return replace(
        map, coupled=tuple(replace(c, slices=tuple(seen(part) for part in c.slices)) for c in map.coupled)
    )


def _numbered(widths: Iterable[tuple[str, int]]) -> tuple[dict[str, int], int]:
    firsts, count = {}, 0
    for name, width in widths:
        firsts[name] = count
        count += width
    return firsts, count


def _part(name: str, axes: tuple[Axis, ...], tensor: Tensor) -> Part:
    """The axes of a whole tensor, narrowed to this process's part of it.
    Raises ModelError for tiles of a sharded one."""
    own = extent(name, tensor)
    if own is None:
        return Part(name, axes)
    if any(axis.tile is not None for axis in axes):
        raise ModelError(
            f"'{name}' is sharded over processes, and blocks may lie across two of them; "
            "train groups of blocks without FSDP"
        )
    return Part(name, tuple(_narrowed(axis, own, tensor.shape) for axis in axes), own.processes)


def _narrowed(axis: Axis, own: Extent, shape: Sequence[int]) -> Axis:
    if own.dim not in axis.dims:
        return axis
    slots = axis.slots.view([shape[d] for d in axis.dims]).narrow(
        axis.dims.index(own.dim), own.start, own.length
    )
    return _axis(axis.dims, slots.flatten(), slots.device)


def _axis(dims: tuple[int, ...], slots: Tensor, device: torch.device) -> Axis:
    if not len(slots):
        return Axis(dims, slots.to(device), None)
    first = int(slots[0])
    plain = bool((slots == torch.arange(first, first + len(slots))).all())
    return Axis(dims, slots.to(device), first if plain else None)
