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

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from sparsify.distributed import add_over_processes, local_part
from sparsify.graph.broadcast_shapes import keep_lengths
from sparsify.graph.row_pieces import PIECE, split_rows, sum_products


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

        def sum_values(part: Part) -> list[Tensor] | None:
            value = values(part.name)
            return None if value is None else marginals(wide(value), part.axes)

        return self._add_up(sum_values)

    def reduce_products(self, factors: Callable[[str], tuple[Tensor, Tensor] | None]) -> Tensor:
        """Sum of one * other over each group, factors(tensor) = (one, other), as `reduce` of their products.

        The products of large tensors are never in memory as a whole.
        """

        def sum_part(part: Part) -> list[Tensor] | None:
            found = factors(part.name)
            return None if found is None else _sum_product(*found, part.axes)

        return self._add_up(sum_part)

    def _add_up(self, sums: Callable[["Part"], list[Tensor] | None]) -> Tensor:
        """The sums of all parts, by slot. sums: one for each axis of a part."""
        totals: dict[Any, Tensor] = {}
        for part in self.parts:
            found = sums(part)
            if found is None:
                continue
            if part.processes not in totals:
                dtype = next((t.dtype for t in totals.values()), found[0].dtype)
                totals[part.processes] = torch.zeros(self.count + 1, dtype=dtype, device=found[0].device)
            total = totals[part.processes]
            for axis, summed in zip(part.axes, found, strict=True):
                if summed.numel():
                    axis.add(total, summed.to(total.dtype))
        for processes, total in totals.items():
            add_over_processes(total, processes)
        return torch.stack(list(totals.values())).sum(0) if totals else torch.zeros(self.count + 1)

    def sizes(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """|g|, the number of weights of each group, as float: [count + 1]."""

        def count(name: str) -> Tensor | None:
            if name not in parameters:
                return None
            own = local_part(parameters[name])
            return wide(own.detach().new_ones(())).expand(own.shape)

        return self.reduce(count)

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


def _sum_product(one: Tensor, other: Tensor, axes: Sequence[Axis]) -> list[Tensor]:
    """Sums of one * other over everything but an axis' own dimensions, for each axis."""
    by_rows = [axis.dims == (0,) for axis in axes]
    alike = one.dtype == other.dtype == wide(one).dtype
    sides = all(_is_side_of_matrix(each, axis) for axis in axes for each in (one, other))
    if not (alike and sides and one.numel() > PIECE):
        return marginals(wide(one) * wide(other), axes)
    rows, columns = sum_products(one, other, any(by_rows), not all(by_rows))
    return [rows if axis.dims == (0,) else _sum_columns(columns, one.shape, axis) for axis in axes]


def _sum_columns(column: Tensor, shape: Sequence[int], axis: Axis) -> Tensor:
    """What an axis without dimension 0 has of the sums over dimension 0."""
    if axis.dims == (1,):
        return column.view(shape[1], -1).sum(1)
    others = [d - 1 for d in range(1, len(shape)) if d not in axis.dims]
    return column.view(tuple(shape[1:])).sum(others).flatten() if others else column


def marginals(value: Tensor, axes: Iterable[Axis]) -> list[Tensor]:
    """Sums over everything but an axis' own dimensions, flattened, for each axis.

    A contiguous weight is summed as the matrix [dimension 0, all others]:
    sums over whole rows and columns are several times faster than sums over 3 x 3 kernels.
    """
    if not value.numel():  # the part of a process that got none of a tensor
        return [value.new_zeros(0) for _ in axes]
    flat = value.view(value.shape[0], -1) if value.dim() > 1 and value.is_contiguous() else None
    return [_marginal(value, flat, axis) for axis in axes]


def _marginal(value: Tensor, flat: Tensor | None, axis: Axis) -> Tensor:
    if axis.tile is not None:
        value = value.contiguous()
        down, rows, across, columns = tiled = tiles(value.shape, axis.tile)
        return value.flatten(1)[: down * rows, : across * columns].reshape(tiled).sum((1, 3)).flatten()
    if value.dim() < 2:
        return value.reshape(-1)
    if value.numel() and not any(value.stride()):  # one number, expanded: its sums are known without summing
        length = math.prod(value.shape[d] for d in axis.dims)
        return value[(0,) * value.dim()].mul(value.numel() // length).expand(length)
    if flat is not None and axis.dims == (0,):
        return flat.sum(1)
    if flat is not None and 0 not in axis.dims:
        return _sum_columns(flat.sum(0), value.shape, axis)
    others = [d for d in range(value.dim()) if d not in axis.dims]
    return (value.sum(others) if others else value).flatten()


def scale(tensor: Tensor, axes: Sequence[Axis], factors: Tensor) -> None:
    """Multiply in place every index of each axis by its slot's factor."""
    own = factors.to(tensor.dtype)
    if not tensor.numel():
        return  # the part of a process that got none of a tensor
    if not all(_is_side_of_matrix(tensor, axis) for axis in axes):
        for axis in axes:
            tensor.mul_(broadcast(own, axis, tensor.shape))
        return
    for piece, *vectors in _split_matrix((tensor,), axes, own):
        for vector in vectors:
            piece.mul_(vector)


def add_scaled(target: Tensor, tensor: Tensor, axes: Sequence[Axis], factors: Tensor) -> None:
    """target += tensor * factor in place, for the slot's factor on each axis; both have one shape."""
    own = factors.to(tensor.dtype)
    if not tensor.numel():
        return
    if not all(_is_side_of_matrix(each, axis) for axis in axes for each in (target, tensor)):
        for axis in axes:
            target.addcmul_(tensor, broadcast(own, axis, tensor.shape))
        return
    for into, piece, *vectors in _split_matrix((target, tensor), axes, own):
        for vector in vectors:
            into.addcmul_(piece, vector)


def _is_side_of_matrix(tensor: Tensor, axis: Axis) -> bool:
    """Whether the axis lies along the rows of a tensor, as the matrix [dimension 0, all others], or along its
    columns."""
    return (
        axis.tile is None
        and tensor.dim() > 1
        and tensor.is_contiguous()
        and (axis.dims == (0,) or 0 not in axis.dims)
    )


def _split_matrix(
    tensors: Sequence[Tensor], axes: Sequence[Axis], factors: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Rows of the tensors as matrices, and of each axis' factors what they combine with."""
    shape = tensors[0].shape
    matrices = [tensor.view(shape[0], -1) for tensor in tensors]
    vectors = [_lay_along(factors, axis, shape) for axis in axes]
    rows = [vector for vector in vectors if vector.dim() == 2]
    for pieces in split_rows(*matrices, *rows):
        own_rows = iter(pieces[len(matrices) :])
        own = [next(own_rows) if vector.dim() == 2 else vector for vector in vectors]
        yield *pieces[: len(matrices)], *own


def _lay_along(factors: Tensor, axis: Axis, shape: Sequence[int]) -> Tensor:
    """The factors of an axis as a column [rows, 1] or a row [columns] of the matrix."""
    if axis.dims == (0,):
        return axis.pick(factors)[:, None]
    if axis.dims == (1,):
        return axis.pick(factors).repeat_interleave(prod(shape[2:]))
    return broadcast(factors, axis, shape).expand(1, *shape[1:]).reshape(-1)


def broadcast(values: Tensor, axis: Axis, shape: Sequence[int]) -> Tensor:
    """values[slot] of every index, shaped so that it combines with a tensor of the given shape."""
    own = axis.pick(values)
    if axis.tile is None:
        return own.view(keep_lengths(shape, axis.dims))
    down, rows, across, columns = tiled = tiles(shape, axis.tile)
    matrix = values[-1].expand(shape[0], prod(shape[1:])).clone()
    matrix[: down * rows, : across * columns] = (
        own.view(down, 1, across, 1).expand(tiled).reshape(down * rows, across * columns)
    )
    return matrix.view(tuple(shape))


def tiles(shape: Sequence[int], tile: tuple[int, int]) -> tuple[int, int, int, int]:
    """The shape of the matrix of tiles: (tiles down, rows, tiles across, columns)."""
    return shape[0] // tile[0], tile[0], prod(shape[1:]) // tile[1], tile[1]
