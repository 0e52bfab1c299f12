"""How labels are joined when tensors meet in an operator."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor

from sparsify.graph.broadcast_shapes import keep_lengths, vector_shape
from sparsify.graph.trace.axis_labels import (
    AxisLabels,
    Numbering,
    SharedLength,
    compress_labels,
    flexible_dims,
    take_first,
    varying_dims,
)
from sparsify.graph.trace.label_fields import FLATTENED, join_or_offer, merge_or_none
from sparsify.graph.trace.labels import CREATED, TIED, Labels

FIXED = "it is combined with something of fixed size"


class LabelAlgebra:
    """How labels are joined when tensors meet; writes what it learns into a Labels."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    def join(self, a: Tensor, b: Tensor) -> None:
        if a is not b:
            self.labels.join(a.numpy(), b.numpy())

    def tie(self, aspect: Tensor, dims: Iterable[int]) -> Tensor:
        """All labels along these dimensions are removed together. Returns the aspect without them."""
        rest = take_first(aspect, dims)
        self.join(aspect, rest)
        return rest

    def tie_runs(self, axis_labels: AxisLabels, dim: int, length: int) -> None:
        """Runs of `length` neighbours along a dimension are removed together."""
        for aspect in axis_labels.aspects:
            if dim in varying_dims(aspect) and aspect.shape[dim] % length == 0:
                runs = torch.unflatten(aspect, dim, (-1, length))
                self.join(runs, runs.narrow(dim + 1, 0, 1))

    def hold(self, aspect: Tensor, dims: set[int], reason: str) -> None:
        """These dimensions keep their size: tie along them and, if nothing else varies, fix the labels."""
        rest = self.tie(aspect, dims)
        if varying_dims(aspect) <= dims:
            self.labels.fix(rest.numpy(), reason)

    def hold_all(self, axis_labels: AxisLabels, dims: set[int], reason: str) -> AxisLabels:
        """Hold whatever varies along some dimensions. The result does not vary along them."""
        kept = []
        for aspect in axis_labels.aspects:
            common = varying_dims(aspect) & dims
            if common:
                self.hold(aspect, common, reason)
                aspect = take_first(aspect, common)
            if varying_dims(aspect):
                kept.append(aspect)
        return AxisLabels(axis_labels.shape, tuple(kept), axis_labels.parameter)

    def number_places(self, axis_labels: AxisLabels, dims: set[int], reason: str) -> tuple[Numbering, ...]:
        """Integers number the places along these dimensions of a tensor."""
        along = [(aspect, varying_dims(aspect) & dims) for aspect in axis_labels.aspects]
        return tuple(Numbering(aspect, frozenset(common), reason) for aspect, common in along if common)

    def hold_numbered(self, axis_labels: AxisLabels) -> None:
        """The integers are read: the places that they number must stay."""
        for own in axis_labels.numbers:
            self.hold(own.aspect, set(own.dims), own.reason)

    def merge_aspects(self, aspects: Iterable[Tensor], joined: bool = False) -> tuple[Tensor, ...]:
        """Aspects that vary along a common dimension mean the same: join them, unless joined, and keep the
        finer one."""
        found: list[Tensor] = []
        for aspect in aspects:
            own = varying_dims(aspect)
            if not own:
                continue
            for i, other in enumerate(found):
                if own & varying_dims(other):
                    if not joined:
                        self.join(aspect, other)
                    found[i] = max(aspect, other, key=lambda a: len(varying_dims(a)))
                    break
            else:
                found.append(aspect)
        return tuple(found)

    def join_elementwise(self, shape: Sequence[int], operands: Sequence[AxisLabels]) -> AxisLabels:
        """Elementwise with broadcasting: labels that meet are joined, labels that meet a fixed size are
        held."""
        rank = len(shape)
        aligned = [_align_rank(s, rank) for s in operands]
        if _vary_alike(aligned):
            return self._join_alike(shape, aligned)
        for i, one in enumerate(aligned):
            for aspect in one.aspects:
                for j, other in enumerate(aligned):
                    if i != j:
                        self._meet(aspect, other, joined=j < i)
        self._join_shared_lengths(aligned)
        aspects = self.merge_aspects((a for s in aligned for a in s.aspects), joined=True)
        return AxisLabels(
            tuple(shape), aspects, all(s.parameter for s in operands), _common_flexible_dims(aligned)
        )

    def _join_shared_lengths(self, operands: Sequence[AxisLabels]) -> None:
        """Flexible dimensions that meet have one length: that of labels that meet any of them, now or
        before."""
        cells: dict[int, list[SharedLength]] = defaultdict(list)
        for operand in operands:
            for d, cell in operand.flexible:
                cells[d].append(cell)
        for d, own in cells.items():
            met = [
                take_first(a, varying_dims(a) - {d}).flatten()
                for s in operands
                for a in s.aspects
                if d in varying_dims(a)
            ]
            for known in [c.labels for c in own if c.labels is not None]:
                for labels in met[:1]:
                    if len(labels) == len(known):
                        self.join(labels, known)
                met = met or [known]
            for cell in own:
                if met:
                    self.meet_length(cell, met[0])

    def meet_length(self, cell: SharedLength, labels: Tensor) -> None:
        """A flexible dimension has the length of these labels; so may an attribute of the module that made
        it."""
        if cell.labels is not labels:
            cell.labels = labels
            if cell.argument is None:
                self.labels.note_length(cell.module, labels.numpy())
            else:
                self.labels.given.append((cell.module, cell.argument, cell.dim, labels.numpy()))

    def name_places(self, axis_labels: AxisLabels, dim: int) -> Tensor | None:
        """Labels of its own for the places of a flexible dimension, or those that it has met; None if it is
        not flexible.

        The places become those of something that has labels: of the columns that read a state which starts
        as zeros.
        """
        cell = next((cell for d, cell in axis_labels.flexible if d == dim), None)
        size = axis_labels.shape[dim]
        if cell is None:
            return None
        if cell.labels is None:
            axis = self.labels.add_axis(CREATED, 0, size)
            own = torch.arange(axis.first, axis.first + size)
            self.labels.named.append(axis)
            self.labels.doubt(own.numpy(), TIED)
            self.meet_length(cell, own)
        known = cell.labels
        return known if known is not None and len(known) == size else None

    def _join_alike(self, shape: Sequence[int], operands: Sequence[AxisLabels]) -> AxisLabels:
        """Operands that vary alike: every place of one meets that place of the next, so a chain joins them
        all."""
        whole, soft, parameter = (
            tuple(shape),
            _common_flexible_dims(operands),
            all(s.parameter for s in operands),
        )
        one = operands[0].aspects[0]
        if all(s.aspects[0] is one for s in operands):
            same = next(
                (
                    s
                    for s in operands
                    if (s.shape, s.flexible, s.parameter, s.reduced_over) == (whole, soft, parameter, ())
                ),
                None,
            )
            return AxisLabels(whole, (one,), parameter, soft) if same is None else same
        for a, b in pairwise(operands):
            self.join(a.aspects[0], b.aspects[0])
        return AxisLabels(whole, (one,), parameter, soft)

    def _meet(self, aspect: Tensor, other: AxisLabels, joined: bool) -> None:
        real = {d for d in varying_dims(aspect) if other.has_fixed_length(d)}
        for theirs in other.aspects:
            if varying_dims(theirs) & varying_dims(aspect):
                if not joined:
                    join_or_offer(self.labels, aspect, theirs)
                real -= varying_dims(theirs)
        if real:
            self.hold(aspect, real, FIXED)

    def consume(self, aspect: Tensor) -> None:
        """A product sums over these labels of a parameter: the parameter's dimension is a consumer's input
        side."""
        self.note_side(aspect, self.labels.consumed)

    def produce(self, aspect: Tensor) -> None:
        """A product's result has these labels of a parameter: the parameter's dimension is a producer's
        outputs."""
        self.note_side(aspect, self.labels.produced)

    def note_twins(self, all_labels: Sequence[AxisLabels]) -> None:
        """Parameters that are added, stacked or concatenated share their role in a product.

        What a product makes of a dimension of the result, it makes of that dimension of each parameter.
        """
        if len(all_labels) < 2 or not all(s.parameter for s in all_labels):
            return
        rank = max(len(s.shape) for s in all_labels)
        aligned = [_align_rank(s, rank) for s in all_labels]
        for d in range(rank):
            met = [
                axis
                for s in aligned
                for a in s.aspects
                if varying_dims(a) == {d} and (axis := self._last_axis(a)) is not None
            ]
            twins = frozenset().union(*(self.labels.twins.get(axis, {axis}) for axis in met))
            self.labels.twins.update(dict.fromkeys(twins, twins))

    def _last_axis(self, aspect: Tensor) -> tuple[str, int] | None:
        axis = self.labels.axis_of(int(aspect[tuple(n - 1 for n in aspect.shape)]))
        return None if axis is None else (axis.tensor, axis.dim)

    def note_side(self, aspect: Tensor, found: set[tuple[str, int]]) -> None:
        """Add the (tensor, dimension) that an aspect of a parameter belongs to."""
        axis = self._last_axis(aspect)
        if axis is not None:
            found |= self.labels.twins.get(axis, {axis})

    def reduce_labels(
        self, axis_labels: AxisLabels, dims: set[int], keepdim: bool, shape: Sequence[int]
    ) -> AxisLabels:
        """A sum, mean, maximum over some dimensions."""
        kept, along = [], frozenset(dims)
        over = tuple((aspect, along) for aspect in axis_labels.aspects if varying_dims(aspect) & dims)
        for aspect in axis_labels.aspects:
            common = varying_dims(aspect) & dims
            if common:
                aspect = (
                    self.tie(aspect, common) if varying_dims(aspect) - common else take_first(aspect, common)
                )
            if not keepdim:
                aspect = aspect.squeeze(sorted(dims))
            if varying_dims(aspect):
                kept.append(aspect)
        return AxisLabels(tuple(shape), tuple(kept), axis_labels.parameter, reduced_over=over)

    def move_labels(
        self, axis_labels: AxisLabels, change: Callable[[Tensor], Tensor], shape: Sequence[int] | None = None
    ) -> AxisLabels:
        """An operation that only moves elements, applied to the labels; shape: of its result, if known."""
        results = [
            compress_labels(change(aspect.expand(axis_labels.shape))) for aspect in axis_labels.aspects
        ]
        for before, after in zip(axis_labels.aspects, results, strict=True):
            if len(varying_dims(after)) > max(1, len(varying_dims(before))):
                self.labels.note_rectangle(after.numpy())
        shape = tuple(
            change(torch.empty(1, dtype=torch.bool).expand(axis_labels.shape)).shape
            if shape is None
            else shape
        )
        return AxisLabels(
            shape,
            self._merge_moved(results, axis_labels.parameter),
            axis_labels.parameter,
            self._move_flexible_dims(axis_labels, change, shape),
        )

    def _move_flexible_dims(
        self, axis_labels: AxisLabels, change: Callable[[Tensor], Tensor], shape: Sequence[int]
    ) -> frozenset[tuple[int, SharedLength]]:
        """Dimensions along which a moved tensor is uniform: those in which a count over the fixed ones
        does not vary."""
        if shape == axis_labels.shape and not axis_labels.flexible:
            return frozenset()
        rank = len(axis_labels.shape)
        firm = keep_lengths(axis_labels.shape, [d for d in range(rank) if axis_labels.has_fixed_length(d)])
        if not axis_labels.flexible and _count_long(shape) <= _count_long(firm):
            return frozenset()
        moved = change(torch.arange(prod(firm)).view(firm).expand(axis_labels.shape))
        alike = set(range(len(shape))) - varying_dims(compress_labels(moved))
        kept = frozenset(
            (e, cell)
            for d, cell in axis_labels.flexible
            for e in alike & _follow_dim(d, axis_labels.shape, change)
            if shape[e] == axis_labels.shape[d]
        )
        return kept | flexible_dims(shape, alike - {e for e, _ in kept})

    def _merge_moved(self, aspects: Iterable[Tensor], parameter: bool) -> tuple[Tensor, ...]:
        """Merge aspects that vary along a common dimension after a move.

        Labels that move together are joined (a diagonal); of two flattened dimensions one may leave, in a
        parameter the finer one.
        """
        live = [a for a in aspects if varying_dims(a)]
        if sum(len(varying_dims(a)) for a in live) == len(set().union(*map(varying_dims, live))):
            return tuple(live)
        found: list[Tensor] = []
        for aspect in sorted(live, key=lambda a: -len(np.unique(a.numpy()))):
            own = varying_dims(aspect)
            at = next((i for i, other in enumerate(found) if varying_dims(other) & own), None)
            if at is None:
                found.append(aspect)
            elif _is_coarser(aspect, found[at]):
                self.join(aspect, found[at])
            elif not parameter and (field := merge_or_none(self.labels, aspect, found[at])) is not None:
                found[at] = field
            else:
                self.hold(aspect, own, FLATTENED)
        return tuple(found)

    def hold_blocks(self, axis_labels: AxisLabels, dim: int, length: int, reason: str) -> None:
        """A dimension is split into equal blocks: the same positions of all are removed. Unequal blocks:
        it stays."""
        for aspect in axis_labels.aspects:
            if dim not in varying_dims(aspect):
                continue
            size = aspect.shape[dim]
            if length < 1 or size % length:
                self.hold(aspect, {dim}, reason)
            else:
                parts = torch.unflatten(aspect, dim, (size // length, length))
                self.join(parts, parts.narrow(dim, 0, 1))


def _follow_dim(dim: int, shape: Sequence[int], change: Callable[[Tensor], Tensor]) -> set[int]:
    """The dimensions along which a result varies if its operand varied along one dimension."""
    lone = torch.arange(shape[dim]).view(vector_shape(len(shape), dim))
    return varying_dims(compress_labels(change(lone.expand(tuple(shape)))))


def _count_long(shape: Sequence[int]) -> int:
    """Dimensions with more than one element."""
    return sum(length > 1 for length in shape)


def _common_flexible_dims(operands: Sequence[AxisLabels]) -> frozenset[tuple[int, SharedLength]]:
    """Dimensions whose length no operand fixes."""
    flexible = [entry for operand in operands for entry in operand.flexible]
    fixed = {d for operand in operands for d, _ in flexible if operand.has_fixed_length(d)}
    return frozenset((d, cell) for d, cell in flexible if d not in fixed)


def _vary_alike(operands: Sequence[AxisLabels]) -> bool:
    """Whether each has one aspect, and all vary along the same dimensions."""
    first = operands[0].aspects
    if not first:
        return False
    return all(len(s.aspects) == 1 and s.aspects[0].shape == first[0].shape for s in operands)


def _is_coarser(aspect: Tensor, finer: Tensor) -> bool:
    """Whether every label of the finer aspect meets only one of the other."""
    a, b = np.broadcast_arrays(aspect.numpy(), finer.numpy())
    return len(np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)[0]) <= len(np.unique(finer.numpy()))


def _align_rank(axis_labels: AxisLabels, rank: int) -> AxisLabels:
    missing = rank - len(axis_labels.shape)
    if missing <= 0:
        return axis_labels
    lead = (1,) * missing
    aspects = tuple(a.view(lead + tuple(a.shape)) for a in axis_labels.aspects)
    return AxisLabels(
        lead + axis_labels.shape,
        aspects,
        axis_labels.parameter,
        frozenset((d + missing, cell) for d, cell in axis_labels.flexible),
    )


def labels_along(weight: AxisLabels, dim: int) -> Tensor | None:
    """The labels along one dimension of a weight; None if they do not vary along it alone."""
    found = [a for a in weight.aspects if varying_dims(a) == {dim}]
    return found[0].flatten() if found else None
