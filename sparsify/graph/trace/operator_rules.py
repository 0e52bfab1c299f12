"""What each operator does to labels. A rule reads the operator's arguments and returns the labels of its
result."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from sparsify.graph.broadcast_shapes import find_common_shape
from sparsify.graph.trace.axis_labels import AxisLabels, varying_dims
from sparsify.graph.trace.channel_groups import ChannelGroups
from sparsify.graph.trace.complex_rules import COMPLEX_RULES
from sparsify.graph.trace.contraction_labels import follow_convolution, follow_product
from sparsify.graph.trace.index_rules import INDEX_RULES
from sparsify.graph.trace.operators import (
    DISTANCES,
    LOSSES,
    dims_run_over,
    flatten_arguments,
    read_argument,
    wrap_dim,
)
from sparsify.graph.trace.reshape_rules import RESHAPE_RULES, split_labels
from sparsify.graph.trace.rule_api import Follower, Op, Rule
from sparsify.graph.trace.sort_rules import SORT_RULES, number_reason
from sparsify.graph.trace.vision_rules import VISION_RULES

# products


def _mm(w: Follower, op: Op) -> AxisLabels:
    return follow_product(w.algebra, w.labels_of(op.args[0]), w.labels_of(op.args[1]), set(), op.out.shape)


def _addmm(w: Follower, op: Op) -> AxisLabels:
    made = follow_product(w.algebra, w.labels_of(op.args[1]), w.labels_of(op.args[2]), set(), op.out.shape)
    w.algebra.note_twins(
        [made, w.labels_of(op.args[0])]
    )  # of learnt queries, whose projection is made of weights alone
    return w.algebra.join_elementwise(op.out.shape, [made, w.labels_of(op.args[0])])


def _bmm(w: Follower, op: Op) -> AxisLabels:
    return follow_product(w.algebra, w.labels_of(op.args[0]), w.labels_of(op.args[1]), {0}, op.out.shape)


def _baddbmm(w: Follower, op: Op) -> AxisLabels:
    made = follow_product(w.algebra, w.labels_of(op.args[1]), w.labels_of(op.args[2]), {0}, op.out.shape)
    return w.algebra.join_elementwise(op.out.shape, [made, w.labels_of(op.args[0])])


def _addbmm(w: Follower, op: Op) -> AxisLabels:
    """The products of all matrices of two batches, added up."""
    batch, _, columns = op.args[2].shape
    made = follow_product(
        w.algebra, w.labels_of(op.args[1]), w.labels_of(op.args[2]), {0}, (batch, op.out.shape[0], columns)
    )
    return w.algebra.join_elementwise(
        op.out.shape, [w.algebra.reduce_labels(made, {0}, False, op.out.shape), w.labels_of(op.args[0])]
    )


def _addmv(w: Follower, op: Op) -> AxisLabels:
    made = _mv(w, Op("mv", op.args[1:3], {}, op.out))
    return w.algebra.join_elementwise(op.out.shape, [made, w.labels_of(op.args[0])])


def _addr(w: Follower, op: Op) -> AxisLabels:
    """The product of a column and a row, added to a matrix."""
    column = w.algebra.move_labels(w.labels_of(op.args[1]), lambda t: t.unsqueeze(1))
    row = w.algebra.move_labels(w.labels_of(op.args[2]), lambda t: t.unsqueeze(0))
    return w.algebra.join_elementwise(op.out.shape, [w.labels_of(op.args[0]), column, row])


def _grouped_mm(w: Follower, op: Op) -> AxisLabels:
    """Runs of rows, each times its own matrix of a stack: [rows, K] x [experts, K, N]; or a batch of
    products."""
    x, stack = op.args[:2]
    for value in (*op.args[2:], *op.kwargs.values()):
        if isinstance(value, Tensor):
            w.algebra.hold_all(
                w.labels_of(value), set(range(value.dim())), "it says which expert takes a row"
            )
    for tensor in (x, stack):  # it takes whole runs of 16 bytes: of eight numbers at least, in half precision
        w.algebra.tie_runs(
            w.labels_of(tensor),
            tensor.dim() - 1,
            8 if tensor.shape[-1] % 8 == 0 else 16 // tensor.element_size(),
        )
    if x.dim() == 3 and stack.dim() == 3:
        return follow_product(w.algebra, w.labels_of(x), w.labels_of(stack), {0}, op.out.shape)
    if x.dim() == 3 or stack.dim() == 2:  # runs of columns, or of what is summed over
        for tensor in (x, stack):
            w.algebra.hold_all(
                w.labels_of(tensor), set(range(tensor.dim())), "'_grouped_mm' takes runs of it"
            )
        return AxisLabels(tuple(op.out.shape))
    rows = w.algebra.hold_all(w.labels_of(x), {0}, "its rows are given to experts")
    experts = w.algebra.hold_all(w.labels_of(stack), {0}, "experts are taken by number")
    one = AxisLabels(
        experts.shape[1:], tuple(aspect.squeeze(0) for aspect in experts.aspects), experts.parameter
    )
    return follow_product(w.algebra, rows, one, set(), op.out.shape)


def _mv(w: Follower, op: Op) -> AxisLabels:
    column = w.algebra.move_labels(w.labels_of(op.args[1]), lambda t: t.unsqueeze(1))
    made = follow_product(w.algebra, w.labels_of(op.args[0]), column, set(), (op.out.shape[0], 1))
    return w.algebra.move_labels(made, lambda t: t.squeeze(1))


def _dot(w: Follower, op: Op) -> AxisLabels:
    row, column = (
        w.algebra.move_labels(w.labels_of(op.args[0]), lambda t: t.unsqueeze(0)),
        w.algebra.move_labels(w.labels_of(op.args[1]), lambda t: t.unsqueeze(1)),
    )
    follow_product(w.algebra, row, column, set(), (1, 1))
    return AxisLabels((), parameter=row.parameter and column.parameter)


def _trilinear(w: Follower, op: Op) -> AxisLabels:
    """Three operands spread to one rank and multiplied, some dimensions summed over: a bilinear layer."""
    spread = []
    for tensor, dims in zip(op.args[:3], op.args[3:6], strict=True):
        insert_dims = partial(_insert_dims, dims=sorted(dims))
        spread.append(w.algebra.move_labels(w.labels_of(tensor), insert_dims))
    rank = len(spread[0].shape)
    summed = {d % rank for d in op.args[6]}
    for weight in spread:
        for aspect in weight.aspects:
            if weight.parameter and varying_dims(aspect) & summed:
                w.algebra.consume(aspect)
    shape = find_common_shape([labels.shape for labels in spread])
    return replace(
        w.algebra.reduce_labels(w.algebra.join_elementwise(shape, spread), summed, False, op.out.shape),
        reduced_over=(),
    )


def _insert_dims(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Insert dimensions of size 1, one after the other."""
    return reduce(torch.unsqueeze, dims, tensor)


def _linear(w: Follower, op: Op) -> AxisLabels:
    weight = w.algebra.move_labels(w.labels_of(op.args[1]), lambda t: t.t())
    x = w.labels_of(op.args[0])
    lead = (1,) * (len(x.shape) - 2)
    wide = AxisLabels(
        lead + weight.shape, tuple(v.view(lead + tuple(v.shape)) for v in weight.aspects), weight.parameter
    )
    made = follow_product(w.algebra, x, wide, set(range(len(lead))), op.out.shape)
    return (
        w.algebra.join_elementwise(op.out.shape, [made, w.labels_of(op.args[2])])
        if len(op.args) > 2 and op.args[2] is not None
        else made
    )


def _convolution(w: Follower, op: Op) -> AxisLabels:
    x, weight, bias, stride, padding, _, transposed, added, groups = op.args
    moves = zip(weight.shape[2:], stride, padding, added, strict=False)
    slides = frozenset(d for d, move in enumerate(moves, 2) if move != (1, 1, 0, 0))
    return follow_convolution(
        w.algebra,
        w.labels_of(x),
        w.labels_of(weight),
        None if bias is None else w.labels_of(bias),
        transposed,
        groups,
        op.out.shape,
        w.find_group_count(groups),
        slides,
    )


def _packed(w: Follower, op: Op) -> list[AxisLabels]:
    """[N, T, F] or [T, N, F] -> [steps of all examples, F]"""
    w.algebra.hold_all(w.labels_of(op.args[1]), {0}, "it says how long sequences are")
    held = w.algebra.hold_all(w.labels_of(op.args[0]), {0, 1}, "it is packed step by step")
    return [AxisLabels(tuple(op.out[0].shape), tuple(v.squeeze(0) for v in held.aspects))]


# normalisations


def follow_batch_norm(w: Follower, op: Op) -> AxisLabels:
    x = w.labels_of(op.args[0])
    for aspect in x.aspects:
        if varying_dims(aspect) & dims_run_over(op.name, op.args, op.kwargs):
            w.labels.note_statistics(aspect.numpy())
    rank = len(x.shape)
    others = [_lay_along(w, v, 1, rank) for v in op.args[1:5] if isinstance(v, Tensor)]
    return w.algebra.join_elementwise(x.shape, [x, *others])


def _native_layer_norm(w: Follower, op: Op) -> AxisLabels:
    x = w.labels_of(op.args[0])
    over = dims_run_over("native_layer_norm", op.args, op.kwargs)
    if op.args[2] is None:
        w.note_length(x)  # without a weight, the module's attribute is the only place of its shape
    for aspect in x.aspects:
        if varying_dims(aspect) & over:
            w.labels.note_statistics(aspect.numpy(), frozenset(over))
    return w.algebra.join_elementwise(
        x.shape, [x, *[w.labels_of(v) for v in op.args[2:4] if isinstance(v, Tensor)]]
    )


def _native_group_norm(w: Follower, op: Op) -> AxisLabels:
    """Groups of channels, each with its own statistics. Where the running module holds their number, whole
    groups may leave."""
    x, groups = w.labels_of(op.args[0]), op.args[6]
    size, counted_by = x.shape[1] // groups, w.find_group_count(groups) if groups > 1 else None
    if op.args[1] is None:
        w.note_length(x)  # without a weight, the module's attribute is the only place of its width
    for aspect in x.aspects:
        if counted_by is not None and varying_dims(aspect) == {1}:
            channels = aspect.numpy().reshape(groups, size)
            whole, places = (channels, channels[:, :1]), (channels, channels[:1])
            w.labels.note_channel_groups(ChannelGroups(channels, [whole], [places], True), counted_by)
        elif 1 in varying_dims(aspect):
            alone = AxisLabels(x.shape, (aspect,))
            w.algebra.hold_blocks(alone, 1, size, "it falls into unequal groups of a normalisation")
            w.labels.note_statistics(aspect.numpy())
    return w.algebra.join_elementwise(
        x.shape, [x, *[_lay_along(w, v, 1, len(x.shape)) for v in op.args[1:3] if isinstance(v, Tensor)]]
    )


def _weight_norm(w: Follower, op: Op) -> AxisLabels:
    """v * g / norm(v), the norm over everything but one dimension."""
    direction = w.labels_of(op.args[0])
    for aspect in direction.aspects:
        if varying_dims(aspect) & dims_run_over(op.name, op.args, op.kwargs):
            w.labels.note_statistics(aspect.numpy())
    return w.algebra.join_elementwise(direction.shape, [direction, w.labels_of(op.args[1])])


def _lay_along(w: Follower, vector: Tensor, dim: int, rank: int) -> AxisLabels:
    """The labels of a vector, laid along one dimension of a tensor with `rank` dimensions."""
    axis_labels, size = w.labels_of(vector), vector.shape[0]
    shape = (1,) * dim + (size,) + (1,) * (rank - dim - 1)
    aspects = tuple(aspect.view(shape) for aspect in axis_labels.aspects)
    flexible = frozenset((dim, cell) for _, cell in axis_labels.flexible)
    return AxisLabels(shape, aspects, axis_labels.parameter, flexible)


# across elements


NUMBERED = frozenset(["argmax", "argmin", "max", "min"])
"""reductions that return the number of an element, alone or as a second result"""


def follow_reduction(w: Follower, op: Op) -> AxisLabels | list[AxisLabels]:
    axis_labels, rank = w.labels_of(op.args[0]), op.args[0].dim()
    result = op.out if isinstance(op.out, Tensor) else op.out[0]
    if len(op.args) > 1 and isinstance(op.args[1], Tensor):  # max(a, b), elementwise
        return w.algebra.join_elementwise(result.shape, [axis_labels, w.labels_of(op.args[1])])
    over = dims_run_over(op.name, op.args, op.kwargs)
    keepdim = result.dim() == rank and rank > 0
    made = w.algebra.reduce_labels(axis_labels, over, keepdim, result.shape)
    if op.name in NUMBERED and (op.name.startswith("arg") or not isinstance(op.out, Tensor)):
        numbers = replace(
            made, reduced_over=(), numbers=w.algebra.number_places(axis_labels, over, number_reason(op.name))
        )
        return numbers if isinstance(op.out, Tensor) else [made, numbers]
    return made if isinstance(op.out, Tensor) else [made] * len(op.out)


def follow_along(w: Follower, op: Op) -> AxisLabels | list[AxisLabels]:
    axis_labels = w.labels_of(op.args[0])
    if op.name == "glu":
        dim = wrap_dim(read_argument(op.args, op.kwargs, 1, "dim", -1), op.args[0])
        one, two = split_labels(w, op.args[0], dim, [op.out.shape[dim]] * 2)
        return w.algebra.join_elementwise(op.out.shape, [one, two])
    dims = dims_run_over(op.name, op.args, op.kwargs)
    if "softmax" in op.name:
        for aspect in axis_labels.aspects:
            if varying_dims(aspect) & dims:
                w.labels.note_statistics(aspect.numpy(), frozenset(dims))
        return axis_labels
    held = w.algebra.hold_all(axis_labels, dims, f"'{op.name}' runs along it")
    result = op.out if isinstance(op.out, Tensor) else op.out[0]
    gone = sorted(dims) if result.dim() < len(axis_labels.shape) else []
    made = AxisLabels(tuple(result.shape), tuple(aspect.squeeze(gone) for aspect in held.aspects))
    return made if isinstance(op.out, Tensor) else [made] * len(op.out)


def _distance(w: Follower, op: Op) -> AxisLabels:
    """Distances between rows, a sum over M: [..., P, M] and [..., R, M] -> [..., P, R]; or within one
    matrix."""
    one = w.labels_of(op.args[0])
    if op.name == "_pdist_forward":
        held = w.algebra.hold_all(one, {0}, "distances between its rows are taken")
        return w.algebra.reduce_labels(
            replace(held, shape=(op.out.shape[0], one.shape[1])), {1}, False, op.out.shape
        )
    rows, last = w.algebra.move_labels(one, lambda t: t.unsqueeze(-2)), op.args[0].dim()
    columns = w.algebra.move_labels(w.labels_of(op.args[1]), lambda t: t.unsqueeze(-3))
    spread = w.algebra.join_elementwise((*op.out.shape, one.shape[-1]), [rows, columns])
    return w.algebra.reduce_labels(spread, {max(last, op.args[1].dim())}, False, op.out.shape)


def _loss(w: Follower, op: Op) -> AxisLabels:
    """Element by element, then a mean or a sum over all elements."""
    operands = [v for v in flatten_arguments(op.args, op.kwargs) if isinstance(v, Tensor)]
    shape = np.broadcast_shapes(*(t.shape for t in operands))
    made = w.algebra.join_elementwise(shape, [w.labels_of(t) for t in operands])
    over = dims_run_over(op.name, op.args, op.kwargs)
    return w.algebra.reduce_labels(made, set(range(len(shape))), False, op.out.shape) if over else made


RULES: dict[str, Rule] = {
    **COMPLEX_RULES,
    **INDEX_RULES,
    **SORT_RULES,
    **RESHAPE_RULES,
    **VISION_RULES,
    **dict.fromkeys(DISTANCES, _distance),
    **dict.fromkeys(LOSSES, _loss),
    "_grouped_mm": _grouped_mm,
    "_pack_padded_sequence": _packed,
    "_trilinear": _trilinear,
    "_weight_norm_interface": _weight_norm,
    "addbmm": _addbmm,
    "addmm": _addmm,
    "addmv": _addmv,
    "addr": _addr,
    "baddbmm": _baddbmm,
    "bmm": _bmm,
    "convolution": _convolution,
    "dot": _dot,
    "linear": _linear,
    "mm": _mm,
    "mv": _mv,
    "native_group_norm": _native_group_norm,
    "native_layer_norm": _native_layer_norm,
    "vdot": _dot,
}
"""operators with a rule of their own"""
