"""Which elements of which tensor a cut kept, read off a copy that holds positions in place of weights."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparsify.errors import ModelError
from sparsify.graph.names import all_names, canonical_names, walk_modules
from sparsify.graph.surgery.operations import to_ranges
from sparsify_schemas.cuts import Narrow, SetAttribute


def put_positions(model: nn.Module) -> None:
    """Replace every floating-point parameter and buffer by the flat position of each of its elements."""
    with torch.no_grad():
        for tensor in all_names(model).values():
            if tensor.is_floating_point():
                tensor.copy_(torch.arange(tensor.numel(), dtype=tensor.dtype).view(tensor.shape))


def list_operations(
    dense: nn.Module, pruned: nn.Module, positions: nn.Module
) -> Iterator[Narrow | SetAttribute]:
    """The cut as operations of a log.

    dense: before. pruned: the model that was cut. positions: the same cut of a copy with `put_positions`.
    Raises ModelError where the two do not agree, or a tensor kept other elements than those of whole indices
    of its dimensions.
    """
    before, after, marks = all_names(dense), all_names(pruned), all_names(positions)
    first = canonical_names(dense)
    for name, old in before.items():
        if first[name] != name or name not in after or not old.is_floating_point():
            continue
        kept = _find_kept(name, tuple(old.shape), marks[name])
        grid = old.detach()
        for dim, indices in enumerate(kept):
            grid = grid.index_select(dim, indices)
        if not torch.equal(grid, after[name].detach()):
            raise ModelError(f"replaying its history does not give '{name}' of the model that it cut")
        for dim, indices in enumerate(kept):
            if len(indices) < old.shape[dim]:
                ranges = to_ranges(indices.tolist())
                yield Narrow(tensor=name, dim=dim, size=old.shape[dim], keep=ranges)
    yield from _list_attributes(dense, pruned)


def _find_kept(name: str, shape: tuple[int, ...], marks: Tensor) -> list[Tensor]:
    """The indices of each dimension that stayed, ascending."""
    positions = marks.detach().round().long()
    left = positions
    found: list[Tensor] = []
    for size in reversed(shape):
        found.insert(0, torch.unique(left % size))
        left = left // size
    expected = torch.arange(int(torch.tensor(shape).prod())).view(shape) if shape else positions
    for dim, indices in enumerate(found):
        expected = expected.index_select(dim, indices)
    if expected.shape != positions.shape or not torch.equal(expected, positions):
        raise ModelError(f"it kept elements of '{name}' that are no whole rows or columns, in their order")
    return found


def _list_attributes(dense: nn.Module, pruned: nn.Module) -> Iterator[SetAttribute]:
    """Whole numbers, and tuples of them, that modules of the cut model state otherwise."""
    after = dict(walk_modules(pruned, every=True))
    for name, module in walk_modules(dense, every=True):
        other = vars(after[name]) if name in after else {}
        for attribute, value in vars(module).items():
            old, new = _read_numbers(value), _read_numbers(other.get(attribute))
            if old is not None and new is not None and new != old:
                yield SetAttribute(module=name, attribute=attribute, value=new)


def _read_numbers(value: object) -> int | tuple[int, ...] | None:
    """A whole number, or a plain tuple of them; None of anything else."""
    if type(value) is int:
        return value
    if isinstance(value, tuple) and all(type(v) is int for v in value):
        return tuple(value)
    return None
