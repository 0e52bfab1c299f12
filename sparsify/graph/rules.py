"""What each operator does to labels. A rule reads the operator's arguments and gives the shadow of its result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsify.graph.labels import Labels
from sparsify.graph.operators import argument, axes_of, dimension
from sparsify.graph.shadow import Algebra, Shadow, varying


@dataclass(frozen=True)
class Op:
    """One operator that ran."""

    name: str
    args: Any
    kwargs: Mapping[str, Any]
    out: Any


class Follower(Protocol):
    """What a rule needs of whoever follows the labels."""

    labels: Labels
    algebra: Algebra

    def of(self, tensor: Tensor) -> Shadow:
        """The shadow of a tensor."""

    def sized(self, shadow: Shadow) -> Shadow:
        """Remember that a shape was written down."""


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
    return Shadow(())


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


# taking apart and putting together


def _split(w: Follower, op: Op) -> list[Shadow]:
    dim = dimension(argument(op.args, op.kwargs, 2, "dim", 0), op.args[0])
    sizes = op.args[1] if isinstance(op.args[1], list | tuple) else [t.shape[dim] for t in op.out]
    return _parts(w, op.args[0], dim, sizes)


def _chunk(w: Follower, op: Op) -> list[Shadow]:
    dim = dimension(argument(op.args, op.kwargs, 2, "dim", 0), op.args[0])
    return _parts(w, op.args[0], dim, [t.shape[dim] for t in op.out])


def _parts(w: Follower, tensor: Tensor, dim: int, sizes: Sequence[int]) -> list[Shadow]:
    shadow = w.of(tensor)
    if len(sizes) > 1:
        w.sized(shadow)  # an attribute may hold the whole of it, and the parts be computed from that
        w.algebra.blocks(shadow, dim, sizes[0] if len(set(sizes)) == 1 else 0, "it is split at fixed places")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [w.algebra.moved(shadow, lambda t, s=s, n=n: t.narrow(dim, s, n)) for s, n in zip(starts, sizes, strict=True)]  # type: ignore[misc]
    return [w.sized(part) for part in parts]


def _unbind(w: Follower, op: Op) -> list[Shadow]:
    dim = dimension(argument(op.args, op.kwargs, 1, "dim", 0), op.args[0])
    shadow = w.of(op.args[0])
    for aspect in shadow.aspects:
        if dim in varying(aspect):
            w.algebra.hold(aspect, {dim}, "it is taken apart index by index")
    return [w.algebra.moved(shadow, lambda t, i=i: t.select(dim, i)) for i in range(len(op.out))]  # type: ignore[misc]


def _select(w: Follower, op: Op) -> Shadow:
    shadow, dim = w.of(op.args[0]), dimension(op.args[1], op.args[0])
    for aspect in shadow.aspects:
        if dim in varying(aspect):
            w.algebra.hold(aspect, {dim}, "a fixed index of it is taken")
    return w.algebra.moved(shadow, lambda t: t.select(dim, op.args[2]))


def _slice(w: Follower, op: Op) -> Shadow:
    shadow, dim = w.of(op.args[0]), dimension(argument(op.args, op.kwargs, 1, "dim", 0), op.args[0])
    start, step = argument(op.args, op.kwargs, 2, "start", None) or 0, argument(op.args, op.kwargs, 4, "step", 1)
    size, kept = op.args[0].shape[dim], op.out.shape[dim]
    start = start + size if start < 0 else start
    if kept < size:
        whole = kept and size % kept == 0 and (start % kept == 0 if step == 1 else size == kept * step)
        if step == 1:
            w.algebra.blocks(shadow, dim, kept if whole else 0, "it is sliced at a fixed place")
        else:
            _strided(w, shadow, dim, step if whole else 0)
    return w.algebra.moved(
        shadow, lambda t: t.narrow(dim, start, 1 + (kept - 1) * step)[(slice(None),) * dim + (slice(None, None, step),)]
    )


def _strided(w: Follower, shadow: Shadow, dim: int, step: int) -> None:
    for aspect in shadow.aspects:
        if dim not in varying(aspect):
            continue
        if step < 1:
            w.algebra.hold(aspect, {dim}, "it is sliced at a fixed place")
        else:
            parts = torch.unflatten(aspect, dim, (-1, step))
            w.algebra.join(parts, parts.narrow(dim + 1, 0, 1))


def _as_strided(w: Follower, op: Op) -> Shadow:
    x = op.args[0]

    def change(labels: Tensor) -> Tensor:
        own = torch.empty_strided(x.shape, x.stride(), dtype=labels.dtype).copy_(labels)
        return own.as_strided(op.out.shape, op.out.stride(), 0)

    return w.algebra.moved(w.of(x), change)


def _cat(w: Follower, op: Op) -> Shadow:
    parts = [t for t in op.args[0] if t.numel() or t.dim() > 1]
    dim = dimension(argument(op.args, op.kwargs, 1, "dim", 0), op.out)
    shadows = [w.of(t) for t in parts]
    along = [next((v for v in s.aspects if dim in varying(v)), None) for s in shadows]
    others = [
        Shadow((*s.shape[:dim], 1, *s.shape[dim + 1 :]), tuple(v for v in s.aspects if dim not in varying(v)), s.parameter)
        for s in shadows
    ]
    flat = (*op.out.shape[:dim], 1, *op.out.shape[dim + 1 :])
    made = list(w.algebra.pointwise(flat, others).aspects)
    if any(v is not None for v in along) or any(n.aspects for n in shadows):
        pieces = [torch.zeros([1] * op.out.dim(), dtype=torch.int64) if v is None else v for v in along]
        if any(v is not None for v in along):
            shape = [max(p.shape[d] for p in pieces) for d in range(op.out.dim())]
            wide = [
                p.expand([s.shape[d] if d == dim else shape[d] for d in range(op.out.dim())])
                for p, s in zip(pieces, shadows, strict=True)
            ]
            made.append(torch.cat(wide, dim))
    return Shadow(tuple(op.out.shape), tuple(v for v in made if varying(v)), all(s.parameter for s in shadows))


def _stack(w: Follower, op: Op) -> Shadow:
    dim = dimension(argument(op.args, op.kwargs, 1, "dim", 0), op.out)
    made = w.algebra.pointwise(tuple(n for d, n in enumerate(op.out.shape) if d != dim), [w.of(t) for t in op.args[0]])
    return Shadow(tuple(op.out.shape), tuple(v.unsqueeze(dim) for v in made.aspects), made.parameter)


def _constant_pad_nd(w: Follower, op: Op) -> Shadow:
    shadow, pads = w.of(op.args[0]), list(op.args[1])
    kept = []
    for aspect in shadow.aspects:
        for i in range(len(pads) // 2):
            dim = len(shadow.shape) - 1 - i
            if dim in varying(aspect) and (pads[2 * i] or pads[2 * i + 1]):
                edges = [
                    aspect.new_zeros([n if d != dim else max(p, 0) for d, n in enumerate(aspect.shape)])
                    for p in pads[2 * i : 2 * i + 2]
                ]
                aspect = torch.cat([edges[0], aspect, edges[1]], dim)
        kept.append(aspect)
    return Shadow(tuple(op.out.shape), tuple(kept), shadow.parameter)


def _im2col(w: Follower, op: Op) -> Shadow:
    """[N, C, H, W] -> [N, C * places, windows]"""
    held = w.algebra.hold_all(w.of(op.args[0]), {0, 2, 3}, "windows of it are taken")
    places = op.out.shape[1] // op.args[0].shape[1]
    return Shadow(tuple(op.out.shape), tuple(v.flatten(2).repeat_interleave(places, 1) for v in held.aspects))


def _col2im(w: Follower, op: Op) -> Shadow:
    """[N, C * places, windows] -> [N, C, H, W]"""
    held = w.algebra.hold_all(w.of(op.args[0]), {0, 2}, "windows of it are put back")
    blocks = [torch.unflatten(v, 1, (op.out.shape[1], -1)) for v in held.aspects]
    return Shadow(tuple(op.out.shape), tuple(w.algebra.tie(v, {2}) for v in blocks if op.out.shape[1] > 1))


def _index(w: Follower, op: Op) -> Shadow:
    shadow = w.of(op.args[0])
    indexed = {d for d, i in enumerate(op.args[1]) if i is not None}
    held = w.algebra.hold_all(shadow, indexed, "fixed indices of it are taken")
    index = [None if i is None else torch.zeros(i.shape, dtype=torch.int64) for i in op.args[1]]
    return w.algebra.moved(held, lambda t: torch.ops.aten.index.Tensor(t, index))


def _index_select(w: Follower, op: Op) -> Shadow:
    held = w.algebra.hold_all(w.of(op.args[0]), {dimension(op.args[1], op.args[0])}, "fixed indices of it are taken")
    return w.algebra.moved(held, lambda t: t.narrow(dimension(op.args[1], op.args[0]), 0, 1).expand(op.out.shape))


def _gather(w: Follower, op: Op) -> Shadow:
    held = w.algebra.hold_all(w.of(op.args[0]), set(range(op.out.dim())), "elements of it are gathered")
    return Shadow(tuple(op.out.shape), held.aspects)


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
        one, two = _parts(w, op.args[0], dim, [op.out.shape[dim]] * 2)
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


RULES: dict[str, Callable[[Follower, Op], Shadow | list[Shadow]]] = {
    "_embedding_bag": _embedding_bag,
    "_embedding_bag_forward_only": _embedding_bag,
    "_pack_padded_sequence": _packed,
    "_trilinear": _trilinear,
    "_weight_norm_interface": _weight_norm,
    "addmm": _addmm,
    "as_strided": _as_strided,
    "baddbmm": _baddbmm,
    "bmm": _bmm,
    "cat": _cat,
    "chunk": _chunk,
    "col2im": _col2im,
    "constant_pad_nd": _constant_pad_nd,
    "convolution": _convolution,
    "dot": _dot,
    "embedding": _embedding,
    "gather": _gather,
    "im2col": _im2col,
    "index": _index,
    "index_select": _index_select,
    "linear": _linear,
    "mm": _mm,
    "mv": _mv,
    "native_group_norm": _native_group_norm,
    "native_layer_norm": _native_layer_norm,
    "select": _select,
    "slice": _slice,
    "split": _split,
    "stack": _stack,
    "vdot": _dot,
    "unbind": _unbind,
    "split_with_sizes": _split,
    "unsafe_split": _split,
    "unsafe_split_with_sizes": _split,
    "unsafe_chunk": _chunk,
}
"""operators with a rule of their own"""
