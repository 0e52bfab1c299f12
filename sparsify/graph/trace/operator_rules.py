"""What each operator does to labels. A rule reads the operator's arguments and gives the shadow of its result."""

from dataclasses import replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from sparsify.graph.trace.axis_labels import Shadow, varying
from sparsify.graph.trace.complex_rules import COMPLEX_RULES
from sparsify.graph.trace.index_rules import INDEXING
from sparsify.graph.trace.operators import DISTANCES, LOSSES, argument, axes_of, dimension, flattened
from sparsify.graph.trace.reshape_rules import REARRANGING, parts
from sparsify.graph.trace.rule_api import Follower, Op, Rule
from sparsify.graph.trace.sort_rules import ORDERING, number_reason
from sparsify.graph.trace.vision_rules import VISION

# products


def _mm(w: Follower, op: Op) -> Shadow:
    return w.algebra.product(w.of(op.args[0]), w.of(op.args[1]), set(), op.out.shape)


def _addmm(w: Follower, op: Op) -> Shadow:
    made = w.algebra.product(w.of(op.args[1]), w.of(op.args[2]), set(), op.out.shape)
    w.algebra.alike([made, w.of(op.args[0])])  # of learnt queries, whose projection is made of weights alone
    return w.algebra.pointwise(op.out.shape, [made, w.of(op.args[0])])


def _bmm(w: Follower, op: Op) -> Shadow:
    return w.algebra.product(w.of(op.args[0]), w.of(op.args[1]), {0}, op.out.shape)


def _baddbmm(w: Follower, op: Op) -> Shadow:
    made = w.algebra.product(w.of(op.args[1]), w.of(op.args[2]), {0}, op.out.shape)
    return w.algebra.pointwise(op.out.shape, [made, w.of(op.args[0])])


def _addbmm(w: Follower, op: Op) -> Shadow:
    """The products of all matrices of two batches, added up."""
    batch, _, columns = op.args[2].shape
    made = w.algebra.product(w.of(op.args[1]), w.of(op.args[2]), {0}, (batch, op.out.shape[0], columns))
    return w.algebra.pointwise(
        op.out.shape, [w.algebra.reduced(made, {0}, False, op.out.shape), w.of(op.args[0])]
    )


def _addmv(w: Follower, op: Op) -> Shadow:
    made = _mv(w, Op("mv", op.args[1:3], {}, op.out))
    return w.algebra.pointwise(op.out.shape, [made, w.of(op.args[0])])


def _addr(w: Follower, op: Op) -> Shadow:
    """The product of a column and a row, added to a matrix."""
    column = w.algebra.moved(w.of(op.args[1]), lambda t: t.unsqueeze(1))
    row = w.algebra.moved(w.of(op.args[2]), lambda t: t.unsqueeze(0))
    return w.algebra.pointwise(op.out.shape, [w.of(op.args[0]), column, row])


def _in_runs(w: Follower, shadow: Shadow, dim: int, length: int) -> None:
    """So many neighbours along a dimension leave together."""
    for aspect in shadow.aspects:
        if dim in varying(aspect) and aspect.shape[dim] % length == 0:
            runs = torch.unflatten(aspect, dim, (-1, length))
            w.algebra.join(runs, runs.narrow(dim + 1, 0, 1))


def _grouped_mm(w: Follower, op: Op) -> Shadow:
    """Runs of rows, each times a matrix of its own out of a stack: [rows, K] x [experts, K, N]; or a batch of products."""
    x, stack = op.args[:2]
    for value in (*op.args[2:], *op.kwargs.values()):
        if isinstance(value, Tensor):
            w.algebra.hold_all(w.of(value), set(range(value.dim())), "it says which expert takes a row")
    for tensor in (x, stack):  # it takes whole runs of 16 bytes: of eight numbers at least, in half precision
        _in_runs(
            w, w.of(tensor), tensor.dim() - 1, 8 if tensor.shape[-1] % 8 == 0 else 16 // tensor.element_size()
        )
    if x.dim() == 3 and stack.dim() == 3:
        return w.algebra.product(w.of(x), w.of(stack), {0}, op.out.shape)
    if x.dim() == 3 or stack.dim() == 2:  # runs of columns, or of what is summed over
        for tensor in (x, stack):
            w.algebra.hold_all(w.of(tensor), set(range(tensor.dim())), "'_grouped_mm' takes runs of it")
        return Shadow(tuple(op.out.shape))
    rows = w.algebra.hold_all(w.of(x), {0}, "its rows are given to experts")
    experts = w.algebra.hold_all(w.of(stack), {0}, "experts are taken by number")
    one = Shadow(experts.shape[1:], tuple(aspect.squeeze(0) for aspect in experts.aspects), experts.parameter)
    return w.algebra.product(rows, one, set(), op.out.shape)


def _mv(w: Follower, op: Op) -> Shadow:
    column = w.algebra.moved(w.of(op.args[1]), lambda t: t.unsqueeze(1))
    made = w.algebra.product(w.of(op.args[0]), column, set(), (op.out.shape[0], 1))
    return w.algebra.moved(made, lambda t: t.squeeze(1))


def _dot(w: Follower, op: Op) -> Shadow:
    row, column = (
        w.algebra.moved(w.of(op.args[0]), lambda t: t.unsqueeze(0)),
        w.algebra.moved(w.of(op.args[1]), lambda t: t.unsqueeze(1)),
    )
    w.algebra.product(row, column, set(), (1, 1))
    return Shadow((), parameter=row.parameter and column.parameter)


def _trilinear(w: Follower, op: Op) -> Shadow:
    """Three operands spread to one rank and multiplied, some dimensions summed over: a bilinear layer."""
    spread = [
        w.algebra.moved(w.of(t), lambda t, dims=dims: reduce(lambda x, d: x.unsqueeze(d), sorted(dims), t))  # type: ignore[misc]
        for t, dims in zip(op.args[:3], op.args[3:6], strict=True)
    ]
    rank, summed = len(spread[0].shape), {d % len(spread[0].shape) for d in op.args[6]}
    for weight in spread:
        for aspect in weight.aspects:
            if weight.parameter and varying(aspect) & summed:
                w.algebra.consume(aspect)
    shape = [max(s.shape[d] for s in spread) for d in range(rank)]
    return replace(
        w.algebra.reduced(w.algebra.pointwise(shape, spread), summed, False, op.out.shape), over=()
    )


def _linear(w: Follower, op: Op) -> Shadow:
    weight = w.algebra.moved(w.of(op.args[1]), lambda t: t.t())
    x = w.of(op.args[0])
    lead = (1,) * (len(x.shape) - 2)
    wide = Shadow(
        lead + weight.shape, tuple(v.view(lead + tuple(v.shape)) for v in weight.aspects), weight.parameter
    )
    made = w.algebra.product(x, wide, set(range(len(lead))), op.out.shape)
    return (
        w.algebra.pointwise(op.out.shape, [made, w.of(op.args[2])])
        if len(op.args) > 2 and op.args[2] is not None
        else made
    )


def _convolution(w: Follower, op: Op) -> Shadow:
    x, weight, bias, *_, transposed, _, groups = op.args
    return w.algebra.convolution(
        w.of(x), w.of(weight), None if bias is None else w.of(bias), transposed, groups, op.out.shape
    )


def _packed(w: Follower, op: Op) -> list[Shadow]:
    """[N, T, F] or [T, N, F] -> [steps of all examples, F]"""
    w.algebra.hold_all(w.of(op.args[1]), {0}, "it says how long sequences are")
    held = w.algebra.hold_all(w.of(op.args[0]), {0, 1}, "it is packed step by step")
    return [Shadow(tuple(op.out[0].shape), tuple(v.squeeze(0) for v in held.aspects))]


# normalisations


def batch_norm(w: Follower, op: Op) -> Shadow:
    x = w.of(op.args[0])
    for aspect in x.aspects:
        if varying(aspect) & axes_of(op.name, op.args, op.kwargs):
            w.labels.statistics(aspect.numpy())
    rank = len(x.shape)
    others = [_at(w, v, 1, rank) for v in op.args[1:5] if isinstance(v, Tensor)]
    return w.algebra.pointwise(x.shape, [x, *others])


def _native_layer_norm(w: Follower, op: Op) -> Shadow:
    x = w.of(op.args[0])
    over = axes_of("native_layer_norm", op.args, op.kwargs)
    if op.args[2] is None:
        w.sized(x)  # without a weight, the module's attribute is the only place of its shape
    for aspect in x.aspects:
        if varying(aspect) & over:
            w.labels.statistics(aspect.numpy())
    return w.algebra.pointwise(x.shape, [x, *[w.of(v) for v in op.args[2:4] if isinstance(v, Tensor)]])


def _native_group_norm(w: Follower, op: Op) -> Shadow:
    x, groups = w.of(op.args[0]), op.args[6]
    w.algebra.blocks(x, 1, x.shape[1] // groups, "it falls into unequal groups of a normalisation")
    for aspect in x.aspects:
        if 1 in varying(aspect):
            w.labels.statistics(aspect.numpy())
    return w.algebra.pointwise(
        x.shape, [x, *[_at(w, v, 1, len(x.shape)) for v in op.args[1:3] if isinstance(v, Tensor)]]
    )


def _weight_norm(w: Follower, op: Op) -> Shadow:
    """v * g / norm(v), the norm over everything but one dimension."""
    direction = w.of(op.args[0])
    for aspect in direction.aspects:
        if varying(aspect) & axes_of(op.name, op.args, op.kwargs):
            w.labels.statistics(aspect.numpy())
    return w.algebra.pointwise(direction.shape, [direction, w.of(op.args[1])])


def _at(w: Follower, vector: Tensor, dim: int, rank: int) -> Shadow:
    """The shadow of a vector, laid along one dimension of a tensor of so many dimensions."""
    shadow, size = w.of(vector), vector.shape[0]
    shape = (1,) * dim + (size,) + (1,) * (rank - dim - 1)
    return Shadow(
        shape,
        tuple(v.view(shape) for v in shadow.aspects),
        shadow.parameter,
        frozenset((dim, cell) for _, cell in shadow.soft),
    )


# across elements


NUMBERED = frozenset(["argmax", "argmin", "max", "min"])
"""reductions that give the number of an element: by itself, or as a second result"""


def reduction(w: Follower, op: Op) -> Shadow | list[Shadow]:
    shadow, rank = w.of(op.args[0]), op.args[0].dim()
    result = op.out if isinstance(op.out, Tensor) else op.out[0]
    if len(op.args) > 1 and isinstance(op.args[1], Tensor):  # max(a, b), elementwise
        return w.algebra.pointwise(result.shape, [shadow, w.of(op.args[1])])
    over = axes_of(op.name, op.args, op.kwargs)
    keepdim = result.dim() == rank and rank > 0
    made = w.algebra.reduced(shadow, over, keepdim, result.shape)
    if op.name in NUMBERED and (op.name.startswith("arg") or not isinstance(op.out, Tensor)):
        numbers = replace(made, over=(), numbers=w.algebra.numbering(shadow, over, number_reason(op.name)))
        return numbers if isinstance(op.out, Tensor) else [made, numbers]
    return made if isinstance(op.out, Tensor) else [made for _ in op.out]


def along(w: Follower, op: Op) -> Shadow | list[Shadow]:
    shadow = w.of(op.args[0])
    if op.name == "glu":
        dim = dimension(argument(op.args, op.kwargs, 1, "dim", -1), op.args[0])
        one, two = parts(w, op.args[0], dim, [op.out.shape[dim]] * 2)
        return w.algebra.pointwise(op.out.shape, [one, two])
    dims = axes_of(op.name, op.args, op.kwargs)
    if "softmax" in op.name:
        for aspect in shadow.aspects:
            if varying(aspect) & dims:
                w.labels.statistics(aspect.numpy())
        return shadow
    held = w.algebra.hold_all(shadow, dims, f"'{op.name}' runs along it")
    result = op.out if isinstance(op.out, Tensor) else op.out[0]
    gone = sorted(dims) if result.dim() < len(shadow.shape) else []
    made = Shadow(tuple(result.shape), tuple(aspect.squeeze(gone) for aspect in held.aspects))
    return made if isinstance(op.out, Tensor) else [made for _ in op.out]


def _distance(w: Follower, op: Op) -> Shadow:
    """[..., P, M] and [..., R, M]: [..., P, R], a sum over M; of one matrix, the distances between its rows."""
    one = w.of(op.args[0])
    if op.name == "_pdist_forward":
        held = w.algebra.hold_all(one, {0}, "distances between its rows are taken")
        return w.algebra.reduced(
            replace(held, shape=(op.out.shape[0], one.shape[1])), {1}, False, op.out.shape
        )
    rows, last = w.algebra.moved(one, lambda t: t.unsqueeze(-2)), op.args[0].dim()
    columns = w.algebra.moved(w.of(op.args[1]), lambda t: t.unsqueeze(-3))
    spread = w.algebra.pointwise((*op.out.shape, one.shape[-1]), [rows, columns])
    return w.algebra.reduced(spread, {max(last, op.args[1].dim())}, False, op.out.shape)


def _loss(w: Follower, op: Op) -> Shadow:
    """Element by element, then a mean or a sum over all of them."""
    operands = [v for v in flattened(op.args, op.kwargs) if isinstance(v, Tensor)]
    shape = np.broadcast_shapes(*(t.shape for t in operands))
    made = w.algebra.pointwise(shape, [w.of(t) for t in operands])
    over = axes_of(op.name, op.args, op.kwargs)
    return w.algebra.reduced(made, set(range(len(shape))), False, op.out.shape) if over else made


RULES: dict[str, Rule] = {
    **COMPLEX_RULES,
    **INDEXING,
    **ORDERING,
    **REARRANGING,
    **VISION,
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
