"""Axis labels: for every tensor of a forward call, which labels its elements carry.

Axis labels consist of *aspects*. An aspect is an integer tensor of the same rank that varies along some
dimensions and has size 1 along the others. An element is removed if the label of any of its aspects is. A
weight [O, I, 3, 3] has two aspects, [O, 1, 1, 1] and [1, I, 1, 1]; an activation [B, C, H, W] has one,
[1, C, 1, 1]; split into heads, [B, T, h, d] has one that varies along two dimensions, [1, 1, h, d].
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from torch import Tensor


@dataclass(eq=False)
class SharedLength:
    """A length that is not known yet: the labels of the first dimension that met it, which all later ones
    join."""

    labels: Tensor | None = None
    module: str = ""
    """that created the tensor: an attribute of it may hold the length"""
    argument: int | str | None = None
    """place or name under which the module is given the tensor, if it did not create it"""
    dim: int = 0
    """of the tensor that it is given"""


@dataclass(frozen=True, eq=False)
class Numbering:
    """Integers that number the places along dimensions of another tensor: if they are read, these must
    stay."""

    aspect: Tensor
    dims: frozenset[int]
    reason: str


@dataclass(frozen=True, eq=False)
class AxisLabels:
    """The aspects of one tensor.

    Two are equal only if they are the same object: what was learnt from one need not be learnt again.
    `parameter` says that the tensor was computed from parameters and buffers only.
    """

    shape: tuple[int, ...]
    aspects: tuple[Tensor, ...] = ()
    parameter: bool = False
    flexible: frozenset[tuple[int, SharedLength]] = frozenset()
    """dimensions whose indices are all alike (zeros, something expanded): their length follows what they
    meet

    All that meet one of them (a bias of zeros that every layer's heads are added to) have one length.
    """
    reduced_over: tuple[tuple[Tensor, frozenset[int]], ...] = ()
    """labels that it is a sum, mean or maximum of, along these dimensions

    They only matter if the tensor is read: nobody may read attention weights averaged over heads.
    """
    numbers: tuple[Numbering, ...] = ()
    """what its integers number; it only matters if they are read (the second result of `max`)"""

    def has_fixed_length(self, dim: int) -> bool:
        """Whether the tensor's length along a dimension cannot follow other tensors."""
        return self.shape[dim] > 1 and not any(d == dim for d, _ in self.flexible)


def flexible_dims(
    shape: Sequence[int], dims: Iterable[int], module: str = ""
) -> frozenset[tuple[int, SharedLength]]:
    """These dimensions, each with its own length that nothing has met; module: that created the tensor."""
    return frozenset((d, SharedLength(module=module)) for d in dims if shape[d] > 1)


def varying_dims(aspect: Tensor) -> set[int]:
    return {d for d, size in enumerate(aspect.shape) if size > 1}


def compress_labels(full: Tensor) -> Tensor:
    """Narrow every dimension along which the labels do not vary."""
    full = take_first(full, (d for d in range(full.dim()) if full.shape[d] > 1 and full.stride(d) == 0))
    for d in range(full.dim()):
        if full.shape[d] > 1 and bool((full == full.narrow(d, 0, 1)).all()):
            full = full.narrow(d, 0, 1)
    return full.contiguous()


def take_first(aspect: Tensor, dims: Iterable[int]) -> Tensor:
    """The aspect at index 0 of some dimensions, which it keeps with size 1."""
    return reduce(lambda a, d: a.narrow(d, 0, 1), dims, aspect)
