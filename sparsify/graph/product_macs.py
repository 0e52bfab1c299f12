"""Which cuts lower the MACs of each product that ran in a forward call: the Products of a ModelMap."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sparsify.graph.model_map import Product, Run, Tensor
from sparsify.graph.trace.axis_labels import take_first, varying_dims
from sparsify.graph.trace.labels import Ints, Labels
from sparsify.graph.trace.products import TracedProduct

Dims = tuple[tuple[int, tuple[Run, ...]], ...]
"""(length, the indices that can leave) of every dimension that a cut can shorten"""


@dataclass(frozen=True)
class TraceResult:
    """What the forward call showed."""

    labels: Labels
    classes: Ints
    """classes of the labels: labels of one class are removed together"""
    reached: Set[tuple[str, int]]
    """(tensor, dimension) of every slice of a coupled group"""


def find_products(
    ran: Iterable[tuple[TracedProduct, int]],
    followed: TraceResult,
    macs: Mapping[str, int],
    tensors: Iterable[Tensor],
) -> tuple[Product, ...]:
    """The products of a forward call; equal ones of a module are merged.

    Args:
        ran: the products, and how often each ran.
        tensors: of the model.
        macs: as counted on one example, by module. These counts decide: MACs without a traced product are
            constant.
    """
    siblings: defaultdict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        siblings[_owning_module(tensor.name)].append(tensor)
    found: defaultdict[tuple[str, Dims, str | None], int] = defaultdict(int)
    for one, times in ran:
        dims, weight = tuple(_find_dims(one, followed)), _find_weight(one, followed.labels, siblings)
        found[one.module, dims, weight] += times * one.macs
    watched: defaultdict[str, int] = defaultdict(int)
    for (module, _, _), count in found.items():
        watched[module] += count
    counted = {module: (macs.get(module, 0), whole) for module, whole in watched.items()}
    rest = {module: count for module, count in macs.items() if module not in watched}
    if _counts_agree(watched, macs):  # by module they may not, where a forward is called without its module
        counted, rest = dict.fromkeys(watched, (sum(macs.values()), sum(watched.values()))), {}
    made = [
        Product(module, spent * counted[module][0] / counted[module][1], dims, weight)
        for (module, dims, weight), spent in found.items()
        if spent and counted[module][0]
    ]
    return (*made, *(Product(module, float(count)) for module, count in rest.items() if count))


def _counts_agree(watched: Mapping[str, int], macs: Mapping[str, int]) -> bool:
    """Whether the traced MACs of a batch match those counted on one example, rounded for each module."""
    total = sum(macs.values())
    examples = round(sum(watched.values()) / total) if total else 0
    return examples > 0 and abs(sum(watched.values()) - examples * total) <= examples * len(macs)


def _find_dims(one: TracedProduct, followed: TraceResult) -> Iterator[tuple[int, tuple[Run, ...]]]:
    """The dimensions of a product that a cut can shorten."""
    found: dict[int, Ints] = {}
    for aspect in one.aspects:
        dims = varying_dims(aspect)
        if len(dims) > 1:  # heads and their features: whole heads leave, or the same features of all of them
            field = followed.classes[aspect.numpy()]
            dims = {d for d in dims if (field != field.take([0], d)).any()}
        if len(dims) == 1:
            (dim,) = dims
            found.setdefault(dim, take_first(aspect, varying_dims(aspect) - dims).flatten().numpy())
    for dim in sorted(found):
        runs = _find_runs(found[dim], followed.labels)
        leaving = tuple(run for run in runs if (run.tensor, run.dim) in followed.reached)
        if leaving:
            yield len(found[dim]), leaving


def _find_runs(own: Ints, labels: Labels) -> Iterator[Run]:
    """The labels along a dimension as indices of parameters and buffers, without those that must stay."""
    if len(own) > 1 and own[0] and own[-1] - own[0] == len(own) - 1 and (own[1:] > own[:-1]).all():
        members, counts = own, np.ones_like(own)
    else:
        members, counts = np.unique(own[own != 0], return_counts=True)
    if not len(members):
        return
    breaks = np.nonzero((np.diff(members) != 1) | (np.diff(counts) != 0))[0] + 1
    for start, end in pairwise((0, *breaks.tolist(), len(members))):
        yield from _split_by_axis(int(members[start]), end - start, int(counts[start]), labels)


def _split_by_axis(label: int, count: int, times: int, labels: Labels) -> Iterator[Run]:
    """`count` labels from this one on, which may lie on several consecutive axes."""
    while count > 0:
        axis = labels.axis_of(label)
        if axis is None:
            return
        own = min(count, axis.first + axis.size - label)
        yield Run(axis.tensor, axis.dim, label - axis.first, own, times)
        label, count = label + own, count - own


def _find_weight(one: TracedProduct, labels: Labels, siblings: Mapping[str, Sequence[Tensor]]) -> str | None:
    """The parameter that a product multiplies by: the largest that a factor is computed from."""
    axes = (labels.axis_of(int(aspect.flatten()[-1])) for aspect in one.parameters)
    names = {axis.tensor for axis in axes if axis is not None}
    owners = sorted({_owning_module(name) for name in names})
    near = [tensor for module in owners for tensor in siblings[module]]
    named = [tensor for tensor in near if tensor.name in names]
    parameters = [tensor for tensor in named if tensor.parameter]
    if parameters:
        return max(parameters, key=lambda tensor: tensor.numel).name
    shapes = {mask.shape for mask in named}
    masked = [tensor for tensor in near if tensor.parameter and tensor.shape in shapes]
    pruned = {f"{mask.name.removesuffix('_mask')}_orig" for mask in named}  # by torch.nn.utils.prune
    masked.sort(key=lambda tensor: tensor.name not in pruned)
    return masked[0].name if masked else None


def _owning_module(tensor: str) -> str:
    return tensor.rpartition(".")[0]
