"""Shapes that broadcast: lengths along some dimensions, and 1 along all others."""

from collections.abc import Collection, Sequence


def vector_shape(rank: int, dim: int) -> list[int]:
    """For `view`: a vector laid along one dimension of a tensor of so many dimensions."""
    shape = [1] * rank
    shape[dim] = -1
    return shape


def keep_lengths(shape: Sequence[int], dims: Collection[int]) -> list[int]:
    """The shape with length 1 along all dimensions but these."""
    kept = [1] * len(shape)
    for dim, length in enumerate(shape):
        if dim in dims:
            kept[dim] = length
    return kept


def drop_lengths(shape: Sequence[int], dims: Collection[int]) -> list[int]:
    """The shape with length 1 along these dimensions."""
    left = list(shape)
    for dim in range(len(shape)):
        if dim in dims:
            left[dim] = 1
    return left


def replace_length(shape: Sequence[int], dim: int, length: int) -> list[int]:
    """The shape with another length along one dimension."""
    changed = list(shape)
    changed[dim] = length
    return changed


def find_common_shape(shapes: Sequence[Sequence[int]]) -> list[int]:
    """The largest length along each dimension, of shapes with the same number of them."""
    return [max(lengths) for lengths in zip(*shapes, strict=True)]
