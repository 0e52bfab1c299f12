"""What the products of a forward call cost, and which labels lie along the dimensions that they run over.

[n, k] x [k, m] runs over n, k and m, with one multiply-accumulate for each combination of indices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from sparsify.graph.trace.axis_labels import AxisLabels, varying_dims

Factor = tuple[Tensor, tuple[int, ...]]
"""a tensor, and for each of its dimensions the dimension of the product"""
Space = tuple[tuple[int, ...], list[Factor], int]
"""lengths of the dimensions that a product runs over, its factors, and its multiply-accumulates"""

_INDICES: dict[str, tuple[int, str, tuple[str, str]]] = {
    "mm": (0, "nkm", ("nk", "km")),
    "addmm": (1, "nkm", ("nk", "km")),
    "bmm": (0, "bnkm", ("bnk", "bkm")),
    "baddbmm": (1, "bnkm", ("bnk", "bkm")),
    "mv": (0, "nk", ("nk", "k")),
    "addmv": (1, "nk", ("nk", "k")),
    "dot": (0, "k", ("k", "k")),
    "vdot": (0, "k", ("k", "k")),
}
"""operator -> place of its first factor, the indices that it runs over, and those of its two factors"""

PRODUCTS = frozenset((*_INDICES, "convolution", "_trilinear"))
"""operators that are counted"""


@dataclass(frozen=True, eq=False)
class TracedProduct:
    """One product that ran in a module."""

    module: str
    macs: int
    """for the whole batch"""
    aspects: tuple[Tensor, ...]
    """labels of its factors, laid along the dimensions that it runs over; those of parameters first"""
    parameters: tuple[Tensor, ...]
    """labels of the factors that are computed from parameters only"""


def trace_product(
    name: str, module: str, args: Sequence[Any], out: Tensor, of: Callable[[Tensor], AxisLabels]
) -> TracedProduct:
    """Read what an operator of PRODUCTS costs; of: the labels of a tensor."""
    is_labelled = name == "convolution" and any(varying_dims(aspect) - {1} for aspect in of(args[0]).aspects)
    lengths, factors, macs = _read_places(args, out) if is_labelled else _read_space(name, args, out)
    all_labels = [(of(tensor), dims) for tensor, dims in factors]
    all_labels.sort(key=lambda factor: not factor[0].parameter)
    rank = len(lengths)
    aspects = tuple(
        _lay_along_space(aspect, dims, rank)
        for axis_labels, dims in all_labels
        for aspect in axis_labels.aspects
    )
    parameters = tuple(
        aspect for axis_labels, _ in all_labels if axis_labels.parameter for aspect in axis_labels.aspects
    )
    return TracedProduct(module, macs, aspects, parameters)


def _read_space(name: str, args: Sequence[Any], out: Tensor) -> Space:
    if name == "convolution":
        return _read_convolution(args, out)
    if name == "_trilinear":
        return _read_trilinear(args)
    at, indices, of_factors = _INDICES[name]
    factors = [(args[at + i], tuple(map(indices.index, own))) for i, own in enumerate(of_factors)]
    lengths = [1] * len(indices)
    for tensor, dims in factors:
        for dim, length in zip(dims, tensor.shape, strict=True):
            lengths[dim] = length
    return tuple(lengths), factors, prod(lengths)


def _read_convolution(args: Sequence[Any], out: Tensor) -> Space:
    """Each weight element is used once at each place of the output, or of the input if transposed."""
    x, weight, transposed = args[0], args[1], args[6]
    places = (x if transposed else out).shape
    macs = places[0] * prod(places[2:]) * weight.numel()
    return tuple(weight.shape), [(weight, tuple(range(weight.dim())))], macs


def _read_places(args: Sequence[Any], out: Tensor) -> Space:
    """A convolution over what is labelled along other dimensions than the channels: where each example and
    place is computed apart, the product runs over these too."""
    x, weight, transposed, groups = args[0], args[1], args[6], args[8]
    lengths, factors, macs = _read_convolution(args, out)
    if transposed or groups > 1 or x.shape[2:] != out.shape[2:]:
        return lengths, factors, macs
    rank = weight.dim()
    of_x = (rank, 1, *range(rank + 1, 2 * rank - 1))
    return (*lengths, x.shape[0], *x.shape[2:]), [*factors, (x, of_x)], macs


def _read_trilinear(args: Sequence[Any]) -> Space:
    """Three tensors get new dimensions until they have one rank, and are multiplied elementwise."""
    factors = []
    for tensor, added in zip(args[:3], args[3:6], strict=True):
        rank = tensor.dim() + len(added)
        factors.append((tensor, tuple(d for d in range(rank) if d not in added)))
    lengths = [1] * rank
    for tensor, dims in factors:
        for dim, length in zip(dims, tensor.shape, strict=True):
            lengths[dim] = max(lengths[dim], length)
    return tuple(lengths), factors, prod(lengths)


def _lay_along_space(aspect: Tensor, dims: Sequence[int], rank: int) -> Tensor:
    """An aspect of a factor, with one dimension for each dimension of the product."""
    shape = [1] * rank
    for dim, size in zip(dims, aspect.shape, strict=True):
        shape[dim] = size
    return aspect.reshape(shape)
