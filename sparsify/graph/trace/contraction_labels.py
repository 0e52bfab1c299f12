"""What matrix products and convolutions do to labels: labels along the summed dimension meet."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsify.graph.broadcast_shapes import vector_shape
from sparsify.graph.trace.axis_labels import (
    AxisLabels,
    varying_dims,
)
from sparsify.graph.trace.channel_groups import ChannelGroups
from sparsify.graph.trace.label_algebra import FIXED, LabelAlgebra, labels_along
from sparsify.graph.trace.label_fields import SHARED, join_or_offer
from sparsify.graph.trace.labels import CREATED, Ints
from sparsify.graph.trace.made_labels import GroupOutputs


@dataclass(frozen=True)
class HeadRows:
    """Rows of a matrix, each of which holds the places of one head."""

    read: Ints
    """labels: [heads, places]"""
    of_row: Ints
    """row -> its head"""


def follow_product(
    algebra: LabelAlgebra, a: AxisLabels, b: AxisLabels, shared: set[int], shape: Sequence[int]
) -> AxisLabels:
    """Batched matrix product [..., n, k] x [..., k, m].

    Labels along k meet; labels that vary along the batch dimensions `shared` stay in the result.
    """
    k_a, k_b = len(a.shape) - 1, len(b.shape) - 2
    over_b = [_tie_over(algebra, x, k_b, shared) for x in b.aspects]
    theirs = [x for x in over_b if k_b in varying_dims(x)]
    in_rows = [] if a.parameter or not b.parameter else _find_head_rows(a, shared, theirs)
    heads = [_offer_head_rows(algebra, x, own, theirs[0].flatten().numpy()) for x, own in in_rows]
    offered = {id(x) for x, _ in in_rows}
    over_a = [_tie_over(algebra, x, k_a, shared) for x in a.aspects if id(x) not in offered]
    ours = [x.transpose(k_a, k_b) for x in over_a if k_a in varying_dims(x)]  # k in the same place for both
    for x in ours:
        for y in theirs:
            join_or_offer(algebra.labels, x, y, is_summed=True)
    _meet_lengths(algebra, a, k_a, theirs)
    _meet_lengths(algebra, b, k_b, ours)
    for mine, against, firm in (
        (ours, theirs, b.has_fixed_length(k_b)),
        (theirs, [*ours, *heads], a.has_fixed_length(k_a)),
    ):
        if not against and firm:
            for x in mine:
                algebra.hold(x, {k_b}, FIXED)
    if not (a.parameter or b.parameter):
        for x in (*ours, *theirs):
            algebra.labels.note_pair(x.numpy())
    if b.parameter:
        for y in theirs:
            algebra.consume(y)
    if a.parameter:
        for x in ours:
            algebra.consume(x)
    kept_a = [x for x in over_a if k_a not in varying_dims(x)]
    kept_b = [x for x in over_b if k_b not in varying_dims(x)]
    for parameter, made in ((a.parameter, kept_a), (b.parameter, kept_b)):
        for x in made:
            if parameter and varying_dims(x) - shared:
                algebra.produce(x)
    kept = [*kept_a, *kept_b, *heads]
    batch = [algebra.tie(x, {k_b}) for x in (*ours, *theirs) if varying_dims(x) - {k_b}]
    return AxisLabels(tuple(shape), algebra.merge_aspects([*kept, *batch]), a.parameter and b.parameter)


def _find_head_rows(
    a: AxisLabels, shared: set[int], theirs: Sequence[Tensor]
) -> list[tuple[Tensor, HeadRows]]:
    """The aspects of rows of heads times the places in each, that one matrix for all heads reads."""
    rows, k = len(a.shape) - 2, len(a.shape) - 1
    if len(theirs) != 1 or len(varying_dims(theirs[0])) != 1 or rows in shared:
        return []
    found = []
    for aspect in a.aspects:
        if varying_dims(aspect) != {rows, k}:
            continue
        field = aspect.flatten(0, rows).numpy()
        _, first, of_row = np.unique(field[:, 0], return_index=True, return_inverse=True)
        if len(first) > 1 and (field == field[first][of_row]).all():
            found.append((aspect, HeadRows(field[first], of_row)))
    return found


def _offer_head_rows(algebra: LabelAlgebra, aspect: Tensor, own: HeadRows, shared_places: Ints) -> Tensor:
    """Whole heads leave, and the matrix that all of them share keeps its places; or the same places of all
    heads leave with those of the matrix.

    So it is with the queries of all heads times one table of relative positions (Shaw et al.,
    arXiv:1803.02155), [N, heads, T, F] x [F, R]. Returned are the labels of the heads in the result.
    """
    axis = algebra.labels.add_axis(CREATED, 0, len(own.read))
    labels = torch.arange(axis.first, axis.first + axis.size)
    read, made = own.read, labels.numpy()[:, None]
    algebra.labels.made.append(GroupOutputs(made, read, None))
    whole = [(read, read[:, :1]), (made, read[:, :1])]
    places = [(read, read[:1]), (read[:1], shared_places[None])]
    stays = (shared_places, made)
    algebra.labels.note_channel_groups(
        ChannelGroups(read, whole, places, False, None, stays, SHARED, is_field=True)
    )
    shape = (*aspect.shape[:-1], 1)
    return labels[torch.from_numpy(own.of_row)].view(shape)


def _meet_lengths(algebra: LabelAlgebra, made: AxisLabels, dim: int, others: Sequence[Tensor]) -> None:
    """The summed dimension of an operand is as long as that of the other one, where nothing fixes it."""
    along = [aspect.flatten() for aspect in others if len(varying_dims(aspect)) == 1]
    known = algebra.name_places(made, dim) if along else None
    if known is not None:
        for labels in along:
            algebra.join(labels, known)


def _tie_over(algebra: LabelAlgebra, aspect: Tensor, summed: int, shared: set[int]) -> Tensor:
    """An aspect that varies along the summed dimension, uniform along all others but the shared ones."""
    varying = varying_dims(aspect)
    return algebra.tie(aspect, varying - shared - {summed}) if summed in varying else aspect


def follow_convolution(
    algebra: LabelAlgebra,
    x: AxisLabels,
    weight: AxisLabels,
    bias: AxisLabels | None,
    transposed: bool,
    groups: int,
    shape: Sequence[int],
    counted_by: str | None = None,
    slides: frozenset[int] | None = None,
) -> AxisLabels:
    """Labels of [N, O, ...] from [N, C, ...] and a weight [O, C/groups, ...], or [C, O/groups, ...] if
    transposed.

    counted_by: `module:attribute` that holds `groups`; then whole groups may leave, with what they read.
    slides: the dimensions that the kernel slides over, by default all behind the channels. Along others,
    as the examples, or all places of a kernel of one place, indices are computed apart and may leave.
    """
    given = x
    rank = len(x.shape)
    slides = frozenset(range(2, rank)) if slides is None else slides
    apart = [aspect for aspect in x.aspects if not varying_dims(aspect) & (slides | {1})]
    along = tuple(aspect for aspect in x.aspects if varying_dims(aspect) & (slides | {1}))
    x = AxisLabels(x.shape, along, x.parameter)
    x = algebra.hold_all(x, set(range(rank)) - {1}, "a convolution slides over it")
    channels = x.shape[1]
    ours = x.aspects[0].flatten() if x.aspects else algebra.name_places(given, 1)
    rows, columns = labels_along(weight, 0), labels_along(weight, 1)
    outs, ins = (columns, rows) if transposed else (rows, columns)
    size = shape[1]
    if groups > 1 and groups == channels:  # depthwise: a channel brings its own filters
        if rows is None:
            for aspect in (*x.aspects, *weight.aspects):
                algebra.labels.fix(aspect.numpy(), "every channel has filters that are computed from others")
            return AxisLabels(tuple(shape), tuple(apart))
        own = rows.repeat_interleave(size // len(rows))
        if ours is None:
            algebra.labels.fix(own.numpy(), FIXED)
        else:
            algebra.join(own, ours.repeat_interleave(size // channels))
        if transposed and columns is not None:
            algebra.labels.fix(columns.numpy(), "every channel has as many filters of its own")
        out: Tensor | None = own
        if weight.parameter:
            algebra.produce(own)
    else:
        out = outs
        if groups == 1 or counted_by is None or ins is None or rows is None or ours is None:
            _join_places(algebra, ours, ins, outs, groups, transposed)
            out = outs.repeat(groups) if outs is not None and transposed else outs
        elif transposed:
            out = _offer_transposed_groups(algebra, ours, ins, outs, groups, size, counted_by)
        else:
            _offer_groups(algebra, ours, ins, rows, groups, counted_by)
        if ins is not None and weight.parameter:
            algebra.consume(ins)
        if outs is not None and weight.parameter:
            algebra.produce(outs)
    if out is None:
        return AxisLabels(tuple(shape), tuple(apart))
    labelled = out.view(vector_shape(len(shape), 1))
    if bias is not None and bias.aspects:
        algebra.join(bias.aspects[0].flatten(), out)
    return AxisLabels(tuple(shape), (*apart, labelled) if size > 1 else tuple(apart))


def _join_places(
    algebra: LabelAlgebra,
    ours: Tensor | None,
    ins: Tensor | None,
    outs: Tensor | None,
    groups: int,
    transposed: bool,
) -> None:
    """The same places of all groups leave: of what a convolution reads, and of what it makes."""
    if ins is not None and ours is None:
        algebra.labels.fix(ins.numpy(), "it reads the network's input or something else of fixed size")
    elif ins is not None and ours is not None:
        algebra.join(ins if transposed else ins.repeat(groups), ours)
        if transposed and groups > 1:
            algebra.join(ins.view(groups, -1), ins.view(groups, -1)[:1])
    elif ours is not None and groups > 1:
        algebra.labels.fix(ours.numpy(), FIXED)
    if outs is not None and groups > 1 and not transposed:
        algebra.join(outs.view(groups, -1), outs.view(groups, -1)[:1])


def _offer_groups(
    algebra: LabelAlgebra, ours: Tensor, ins: Tensor, rows: Tensor, groups: int, counted_by: str
) -> None:
    """Whole groups leave with the channels that they read, or the same places of all groups."""
    read, made = ours.numpy().reshape(groups, -1), rows.numpy().reshape(groups, -1)
    whole = [(read, read[:, :1]), (made, made[:, :1]), (read[:, :1], made[:, :1])]
    places = [(ins.numpy()[None], read), (made, made[:1])]
    algebra.labels.note_channel_groups(ChannelGroups(read, whole, places, False), counted_by)


def _offer_transposed_groups(
    algebra: LabelAlgebra,
    ours: Tensor,
    ins: Tensor,
    columns: Tensor | None,
    groups: int,
    size: int,
    counted_by: str,
) -> Tensor:
    """The same of a weight [C, O/groups, ...]: no index of it is an output channel of one group, so these get
    labels of their own, which are returned."""
    algebra.join(ins, ours)
    axis = algebra.labels.add_axis(CREATED, 0, size)
    out = torch.arange(axis.first, axis.first + size)
    read, made = ours.numpy().reshape(groups, -1), out.numpy().reshape(groups, -1)
    inside = None if columns is None else columns.numpy()
    of_weight = np.zeros(1, np.int64) if inside is None else inside  # label 0: no cut touches it
    algebra.labels.made.append(GroupOutputs(made, read, inside))
    whole = [(read, read[:, :1]), (made, read[:, :1])]
    places = [(read, read[:1]), (made, of_weight[None])]
    algebra.labels.note_channel_groups(ChannelGroups(read, whole, places, False, inside), counted_by)
    return out
