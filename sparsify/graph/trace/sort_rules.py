"""What operators that compare elements along a dimension, or number them, do to labels.

The number of an element along a dimension changes its meaning once others are removed. If such numbers are
read, the dimension keeps its size.
"""

from dataclasses import replace

from torch import Tensor

from sparsify.graph.trace.axis_labels import AxisLabels
from sparsify.graph.trace.operators import flatten_arguments, wrap_dim
from sparsify.graph.trace.rule_api import Follower, Op, Rule

LAST_COUNTS = {
    "multinomial": "the number of a drawn element is taken by 'multinomial'",
    "searchsorted": "the number of an interval between its elements is taken by 'searchsorted'",
    "bucketize": "the number of an interval between its elements is taken by 'bucketize'",
    "isin": "elements are looked for in it by 'isin'",
}


def number_reason(name: str) -> str:
    """Why a dimension stays if the numbers that `max`, `min`, `argmax` or `argmin` found along it are
    read."""
    return f"the number of its {'smallest' if 'min' in name else 'largest'} element is taken by '{name}'"


def _multinomial(w: Follower, op: Op) -> AxisLabels:
    held = w.algebra.hold_all(w.labels_of(op.args[0]), {op.args[0].dim() - 1}, LAST_COUNTS["multinomial"])
    return AxisLabels(tuple(op.out.shape), held.aspects)


def _searchsorted(w: Follower, op: Op) -> AxisLabels:
    """The number of an interval for every value: several values for each of several sequences, or all for
    one."""
    sequence, last = op.args[0], op.args[0].dim() - 1
    sorted_by = op.kwargs.get("sorter")
    for tensor in (sequence, *([sorted_by] if isinstance(sorted_by, Tensor) else [])):
        held = w.algebra.hold_all(w.labels_of(tensor), {last}, LAST_COUNTS["searchsorted"])
    if not isinstance(op.args[1], Tensor):
        return AxisLabels(tuple(op.out.shape))
    lead = AxisLabels((*held.shape[:-1], 1), held.aspects, held.parameter)
    return w.algebra.join_elementwise(
        op.out.shape, [lead, w.labels_of(op.args[1])] if last else [w.labels_of(op.args[1])]
    )


def _bucketize(w: Follower, op: Op) -> AxisLabels:
    values, edges = op.args[:2]
    w.algebra.hold_all(w.labels_of(edges), {0}, LAST_COUNTS["bucketize"])
    return w.labels_of(values) if isinstance(values, Tensor) else AxisLabels(())


def _isin(w: Follower, op: Op) -> AxisLabels:
    values, wanted = op.args[:2]
    if isinstance(wanted, Tensor):
        w.algebra.hold_all(w.labels_of(wanted), set(range(wanted.dim())), LAST_COUNTS["isin"])
    return w.labels_of(values) if isinstance(values, Tensor) else AxisLabels(())


def _triangle(w: Follower, op: Op) -> AxisLabels:
    axis_labels, rank = w.labels_of(op.args[0]), op.args[0].dim()
    held = w.algebra.hold_all(
        axis_labels, {rank - 2, rank - 1}, f"one side of its diagonal is taken by '{op.name}'"
    )
    return replace(held, flexible=frozenset((d, cell) for d, cell in axis_labels.flexible if d < rank - 2))


def _renorm(w: Follower, op: Op) -> AxisLabels:
    """Each index of one dimension is scaled to a largest norm over all others."""
    own = wrap_dim(op.args[2], op.args[0])
    return w.algebra.hold_all(
        w.labels_of(op.args[0]), set(range(op.args[0].dim())) - {own}, "'renorm' takes a norm over it"
    )


def _cross(w: Follower, op: Op) -> AxisLabels:
    """The product of vectors of three elements."""
    dim = wrap_dim(op.kwargs.get("dim", -1), op.out)
    held = [w.algebra.hold_all(w.labels_of(t), {dim}, "'linalg_cross' runs along it") for t in op.args[:2]]
    return w.algebra.join_elementwise(op.out.shape, held)


WHOLE = {
    "_ctc_loss": "a loss takes its classes by number ('ctc_loss')",
    "_unique2": "equal elements of it are found by 'unique'",
    "affine_grid_generator": "it says where a grid is sampled",
    "bincount": "its elements are counted by 'bincount'",
    "equal": "it is compared as a whole by 'equal'",
    "histc": "its elements are counted by 'histc'",
    "multi_margin_loss": "a loss takes its classes by number ('multi_margin_loss')",
    "multilabel_margin_loss_forward": "a loss takes its classes by number ('multilabel_margin_loss')",
    "nll_loss2d_forward": "a loss takes its classes by number ('nll_loss')",
    "nll_loss_forward": "a loss takes its classes by number ('nll_loss')",
    "nms": "boxes are chosen by 'nms'",
    "nonzero": "the numbers of its nonzero elements are taken by 'nonzero'",
    "nonzero_static": "the numbers of its nonzero elements are taken by 'nonzero'",
    "ps_roi_align": "its channels are taken by number ('ps_roi_align')",
    "ps_roi_pool": "its channels are taken by number ('ps_roi_pool')",
    "unique_consecutive": "equal elements of it are found by 'unique_consecutive'",
    "unique_dim": "equal elements of it are found by 'unique'",
}
"""operators whose inputs cannot be cut, and why"""


def _whole(w: Follower, op: Op) -> list[AxisLabels]:
    for tensor in flatten_arguments(op.args, op.kwargs):
        if isinstance(tensor, Tensor):
            w.algebra.hold_all(w.labels_of(tensor), set(range(tensor.dim())), WHOLE[op.name])
    return []


SORT_RULES: dict[str, Rule] = {
    **dict.fromkeys(WHOLE, _whole),
    "bucketize": _bucketize,
    "isin": _isin,
    "linalg_cross": _cross,
    "multinomial": _multinomial,
    "renorm": _renorm,
    "searchsorted": _searchsorted,
    "tril": _triangle,
    "triu": _triangle,
}
"""operators that compare or number elements"""
