"""What each operator does to labels. A rule reads the operator's arguments and gives the shadow of its result."""

from dataclasses import replace
from functools import reduce
from typing import Any

from torch import Tensor

from sparsify.graph.following import Follower, Op, Rule
from sparsify.graph.operators import argument, axes_of, dimension
from sparsify.graph.rearranging import REARRANGING, parts
from sparsify.graph.shadow import Shadow, varying

# products


def _mm(w: Follower, op: Op) -> Shadow:
    return w.algebra.product(w.of(op.args[0]), w.of(op.args[1]), set(), op.out.shape)


def _addmm(w: Follower, op: Op) -> Shadow:
    made = w.algebra.product(w.of(op.args[1]), w.of(op.args[2]), set(), op.out.shape)
    return w.algebra.pointwise(op.out.shape, [made, w.of(op.args[0])])


def _bmm(w: Follower, op: Op) -> Shadow:
    return w.algebra.product(w.of(op.args[0]), w.of(op.args[1]), {0}, op.out.shape)


def _baddbmm(w: Follower, op: Op) -> Shadow:
    made = w.algebra.product(w.of(op.args[1]), w.of(op.args[2]), {0}, op.out.shape)
    return w.algebra.pointwise(op.out.shape, [made, w.of(op.args[0])])


def _mv(w: Follower, op: Op) -> Shadow:
    column = w.algebra.moved(w.of(op.args[1]), lambda t: t.unsqueeze(1))
    made = w.algebra.product(w.of(op.args[0]), column, set(), (op.out.shape[0], 1))
    return w.algebra.moved(made, lambda t: t.squeeze(1))


def _dot(w: Follower, op: Op) -> Shadow:
    row, column = w.algebra.moved(w.of(op.args[0]), lambda t: t.unsqueeze(0)), w.algebra.moved(w.of(op.args[1]), lambda t: t.unsqueeze(1))
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
    return replace(w.algebra.reduced(w.algebra.pointwise(shape, spread), summed, False, op.out.shape), over=())


def _linear(w: Follower, op: Op) -> Shadow:
    weight = w.algebra.moved(w.of(op.args[1]), lambda t: t.t())
    x = w.of(op.args[0])
    lead = (1,) * (len(x.shape) - 2)
    wide = Shadow(lead + weight.shape, tuple(v.view(lead + tuple(v.shape)) for v in weight.aspects), weight.parameter)
    made = w.algebra.product(x, wide, set(range(len(lead))), op.out.shape)
    return w.algebra.pointwise(op.out.shape, [made, w.of(op.args[2])]) if len(op.args) > 2 and op.args[2] is not None else made


def _convolution(w: Follower, op: Op) -> Shadow:
    x, weight, bias, *_, transposed, _, groups = op.args
    return w.algebra.convolution(w.of(x), w.of(weight), None if bias is None else w.of(bias), transposed, groups, op.out.shape)


def _embedding(w: Follower, op: Op) -> Shadow:
    table = w.algebra.hold_all(w.of(op.args[0]), {0}, "its rows are looked up by number")
    lead = (1,) * (op.out.dim() - 1)
    return Shadow(tuple(op.out.shape), tuple(v.view((*lead, -1)) for v in table.aspects))


def _embedding_bag(w: Follower, op: Op) -> list[Shadow]:
    table = w.algebra.hold_all(w.of(op.args[0]), {0}, "its rows are looked up by number")
    return [Shadow(tuple(op.out[0].shape), table.aspects)]


def _packed(w: Follower, op: Op) -> list[Shadow]:
    """[N, T, F] or [T, N, F] -> [steps of all examples, F]"""
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
    return w.algebra.pointwise(x.shape, [x, *[_at(w, v, 1, len(x.shape)) for v in op.args[1:3] if isinstance(v, Tensor)]])


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
    return Shadow(shape, tuple(v.view(shape) for v in shadow.aspects), shadow.parameter, frozenset((dim, cell) for _, cell in shadow.soft))


# across elements


def spatial(w: Follower, tensor: Tensor, out: Any) -> Shadow:
    shadow = w.of(tensor)
    result = out if isinstance(out, Tensor) else out[0]
    moved = {d for d in range(tensor.dim()) if tensor.shape[d] != result.shape[d]} | set(
        range(min(2, tensor.dim() - 1), tensor.dim())
    )
    held = w.algebra.hold_all(shadow, moved, "a window slides over it")
    return Shadow(tuple(result.shape), held.aspects, shadow.parameter)


def reduction(w: Follower, op: Op) -> Shadow | list[Shadow]:
    shadow, rank = w.of(op.args[0]), op.args[0].dim()
    result = op.out if isinstance(op.out, Tensor) else op.out[0]
    if len(op.args) > 1 and isinstance(op.args[1], Tensor):  # max(a, b), elementwise
        return w.algebra.pointwise(result.shape, [shadow, w.of(op.args[1])])
    over = axes_of(op.name, op.args, op.kwargs)
    if op.name in ("argmax", "argmin"):
        w.algebra.hold_all(shadow, over, "the place of its largest element is taken")
    keepdim = result.dim() == rank and rank > 0
    made = w.algebra.reduced(shadow, over, keepdim, result.shape)
    return made if isinstance(op.out, Tensor) else [made for _ in op.out]


def along(w: Follower, op: Op) -> Shadow | list[Shadow]:
    shadow = w.of(op.args[0])
    if op.name == "glu":
        dim = dimension(argument(op.args, op.kwargs, 1, "dim", -1), op.args[0])
        one, two = parts(w, op.args[0], dim, [op.out.shape[dim]] * 2)
        return w.algebra.pointwise(op.out.shape, [one, two])
    (dim,) = axes_of(op.name, op.args, op.kwargs)
    if "softmax" in op.name:
        for aspect in shadow.aspects:
            if dim in varying(aspect):
                w.labels.statistics(aspect.numpy())
        return shadow
    held = w.algebra.hold_all(shadow, {dim}, f"'{op.name}' runs along it")
    result = op.out if isinstance(op.out, Tensor) else op.out[0]
    made = Shadow(tuple(result.shape), held.aspects)
    return made if isinstance(op.out, Tensor) else [made for _ in op.out]


RULES: dict[str, Rule] = {
    **REARRANGING,
    "_embedding_bag": _embedding_bag,
    "_embedding_bag_forward_only": _embedding_bag,
    "_pack_padded_sequence": _packed,
    "_trilinear": _trilinear,
    "_weight_norm_interface": _weight_norm,
    "addmm": _addmm,
    "baddbmm": _baddbmm,
    "bmm": _bmm,
    "convolution": _convolution,
    "dot": _dot,
    "embedding": _embedding,
    "linear": _linear,
    "mm": _mm,
    "mv": _mv,
    "native_group_norm": _native_group_norm,
    "native_layer_norm": _native_layer_norm,
    "vdot": _dot,
}
"""operators with a rule of their own"""
