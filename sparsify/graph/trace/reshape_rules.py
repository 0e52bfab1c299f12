"""What operators that split or join tensors do to labels."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sparsify.graph.broadcast_shapes import drop_lengths, find_common_shape, vector_shape
from sparsify.graph.trace.axis_labels import AxisLabels, varying_dims
from sparsify.graph.trace.label_fields import offer_part
from sparsify.graph.trace.operators import read_argument, wrap_dim
from sparsify.graph.trace.rule_api import Follower, Op, Rule

SPLIT = "it is split at fixed places"
SLICED = "it is sliced at a fixed place"


def _split(w: Follower, op: Op) -> list[AxisLabels]:
    dim = wrap_dim(read_argument(op.args, op.kwargs, 2, "dim", 0), op.args[0])
    sizes = op.args[1]
    if not isinstance(sizes, list | tuple):
        sizes = [piece.shape[dim] for piece in op.out]
    return split_labels(w, op.args[0], dim, sizes)


def _chunk(w: Follower, op: Op) -> list[AxisLabels]:
    dim = wrap_dim(read_argument(op.args, op.kwargs, 2, "dim", 0), op.args[0])
    return split_labels(w, op.args[0], dim, [t.shape[dim] for t in op.out])


def split_labels(w: Follower, tensor: Tensor, dim: int, sizes: Sequence[int]) -> list[AxisLabels]:
    axis_labels = w.labels_of(tensor)
    if len(sizes) > 1:
        w.note_length(
            axis_labels
        )  # an attribute may hold the whole of it, and the parts be computed from that
        if len(set(sizes)) == 1:
            w.algebra.hold_blocks(axis_labels, dim, sizes[0], SPLIT)
        else:
            _cut_apart(w, axis_labels, dim, sizes, 0, SPLIT)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    found = []
    for start, size in zip(starts, sizes, strict=True):
        narrow = partial(torch.narrow, dim=dim, start=start, length=size)
        found.append(w.algebra.move_labels(axis_labels, narrow))
    for number, part in enumerate(found):
        w.note_length(part)
        w.note_part(part, dim, sizes, number)
    return found


def _cut_apart(
    w: Follower, axis_labels: AxisLabels, dim: int, sizes: Sequence[int], length: int, reason: str
) -> None:
    """Parts of these sizes are taken of a dimension: one of blocks of a length, or with length 0 any others.

    Places that vary along this dimension alone may leave where a trial cut shows that the parts follow them;
    not where their sizes may depend on data, nor of a single place that all others may be compared with.
    """
    follows = length != 1 and all(map(w.follows_widths, sizes))
    for aspect in axis_labels.aspects:
        if follows and varying_dims(aspect) == {dim}:
            w.note_slice(aspect.flatten(), length, reason)
        elif length or not follows or not offer_part(w.labels, aspect, dim, reason):
            w.algebra.hold_blocks(replace(axis_labels, aspects=(aspect,)), dim, length, reason)


def _unbind(w: Follower, op: Op) -> list[AxisLabels]:
    dim = wrap_dim(read_argument(op.args, op.kwargs, 1, "dim", 0), op.args[0])
    axis_labels = w.labels_of(op.args[0])
    for aspect in axis_labels.aspects:
        if dim in varying_dims(aspect):
            w.algebra.hold(aspect, {dim}, "it is taken apart index by index")
    moves = [partial(torch.select, dim=dim, index=i) for i in range(len(op.out))]
    return [w.algebra.move_labels(axis_labels, move) for move in moves]


def _select(w: Follower, op: Op) -> AxisLabels:
    axis_labels, dim = w.labels_of(op.args[0]), wrap_dim(op.args[1], op.args[0])
    _take_one(w, axis_labels, dim, op.args[2], "a fixed index of it is taken")
    return w.algebra.move_labels(axis_labels, lambda t: t.select(dim, op.args[2]))


def _take_one(w: Follower, axis_labels: AxisLabels, dim: int, place: int, reason: str) -> None:
    """One index of a dimension is taken: it stays, and so do the others unless they are heads."""
    follows = w.follows_widths(axis_labels.shape[dim] - 1)
    for aspect in axis_labels.aspects:
        if dim in varying_dims(aspect):
            taken = aspect.select(dim, place)
            if follows and offer_part(w.labels, aspect, dim, reason, taken):
                continue
            if reason == SLICED:
                w.algebra.hold_blocks(replace(axis_labels, aspects=(aspect,)), dim, 1, reason)
            else:
                w.algebra.hold(aspect, {dim}, reason)


def _slice(w: Follower, op: Op) -> AxisLabels:
    axis_labels, dim = (
        w.labels_of(op.args[0]),
        wrap_dim(read_argument(op.args, op.kwargs, 1, "dim", 0), op.args[0]),
    )
    start, step = (
        read_argument(op.args, op.kwargs, 2, "start", None) or 0,
        read_argument(op.args, op.kwargs, 4, "step", 1),
    )
    size, kept = op.args[0].shape[dim], op.out.shape[dim]
    start = max(start + size, 0) if start < 0 else min(start, size)  # as Python's slices, beyond the ends
    if kept < size:
        whole = kept and size % kept == 0 and (start % kept == 0 if step == 1 else size == kept * step)
        if kept == 1:
            _take_one(w, axis_labels, dim, start, SLICED)
        elif step == 1:
            _cut_apart(w, axis_labels, dim, [kept], kept if whole else 0, SLICED)
        else:
            _strided(w, axis_labels, dim, step if whole else 0)
    part = w.algebra.move_labels(
        axis_labels,
        lambda t: t.narrow(dim, start, 1 + (kept - 1) * step)[
            (slice(None),) * dim + (slice(None, None, step),)
        ],
    )
    return w.note_length(part) if kept < size else part


def _strided(w: Follower, axis_labels: AxisLabels, dim: int, step: int) -> None:
    for aspect in axis_labels.aspects:
        if dim not in varying_dims(aspect):
            continue
        if step < 1:
            w.algebra.hold(aspect, {dim}, SLICED)
        else:
            parts = torch.unflatten(aspect, dim, (-1, step))
            w.algebra.join(parts, parts.narrow(dim + 1, 0, 1))


def _as_strided(w: Follower, op: Op) -> AxisLabels:
    x = op.args[0]

    def change(labels: Tensor) -> Tensor:
        own = torch.empty_strided(x.shape, x.stride(), dtype=labels.dtype).copy_(labels)
        return own.as_strided(op.out.shape, op.out.stride(), 0)

    return w.algebra.move_labels(w.labels_of(x), change)


def _cat(w: Follower, op: Op) -> AxisLabels:
    given = [t for t in op.args[0] if t.numel() or t.dim() > 1]
    dim = wrap_dim(read_argument(op.args, op.kwargs, 1, "dim", 0), op.out)
    all_labels = [w.labels_of(t) for t in given]
    along = [_find_aspect_along(w, labels, dim) for labels in all_labels]
    others = [_drop_aspects_along(labels, dim) for labels in all_labels]
    w.algebra.note_twins(others)
    flat = (*op.out.shape[:dim], 1, *op.out.shape[dim + 1 :])
    made = list(w.algebra.join_elementwise(flat, others).aspects)
    if any(aspect is not None for aspect in along):
        nothing = torch.zeros([1] * op.out.dim(), dtype=torch.int64)
        pieces = []
        for aspect in along:
            pieces.append(nothing if aspect is None else aspect)
        shape = find_common_shape([piece.shape for piece in pieces])
        wide = []
        for piece, own in zip(pieces, all_labels, strict=True):
            shape[dim] = own.shape[dim]
            wide.append(piece.expand(shape))
        made.append(torch.cat(wide, dim))
    aspects = tuple(aspect for aspect in made if varying_dims(aspect))
    return AxisLabels(tuple(op.out.shape), aspects, all(labels.parameter for labels in all_labels))


def _find_aspect_along(w: Follower, labels: AxisLabels, dim: int) -> Tensor | None:
    """The labels along a dimension; zeros whose length may follow others get some."""
    found = next((aspect for aspect in labels.aspects if dim in varying_dims(aspect)), None)
    if found is None:
        own = w.algebra.name_places(labels, dim)
        found = None if own is None else own.view(vector_shape(len(labels.shape), dim))
    return found


def _drop_aspects_along(labels: AxisLabels, dim: int) -> AxisLabels:
    aspects = tuple(aspect for aspect in labels.aspects if dim not in varying_dims(aspect))
    return AxisLabels(tuple(drop_lengths(labels.shape, {dim})), aspects, labels.parameter)


def _stack(w: Follower, op: Op) -> AxisLabels:
    dim = wrap_dim(read_argument(op.args, op.kwargs, 1, "dim", 0), op.out)
    w.algebra.note_twins([w.labels_of(t) for t in op.args[0]])
    all_labels = [w.labels_of(tensor) for tensor in op.args[0]]
    made = w.algebra.join_elementwise((*op.out.shape[:dim], *op.out.shape[dim + 1 :]), all_labels)
    return AxisLabels(tuple(op.out.shape), tuple(v.unsqueeze(dim) for v in made.aspects), made.parameter)


def _constant_pad_nd(w: Follower, op: Op) -> AxisLabels:
    axis_labels, pads = w.labels_of(op.args[0]), list(op.args[1])
    kept = []
    for aspect in axis_labels.aspects:
        for i in range(len(pads) // 2):
            dim = len(axis_labels.shape) - 1 - i
            if dim in varying_dims(aspect) and (pads[2 * i] or pads[2 * i + 1]):
                before, after = (_make_edge(aspect, dim, pad) for pad in pads[2 * i : 2 * i + 2])
                aspect = torch.cat([before, aspect, after], dim)
        kept.append(aspect)
    return AxisLabels(tuple(op.out.shape), tuple(kept), axis_labels.parameter)


def _make_edge(aspect: Tensor, dim: int, pad: int) -> Tensor:
    """Labels of padded places: 0, which belongs to what stays. A negative pad adds none."""
    shape = list(aspect.shape)
    shape[dim] = max(pad, 0)
    return aspect.new_zeros(shape)


def _im2col(w: Follower, op: Op) -> AxisLabels:
    """[N, C, H, W] -> [N, C * places, windows]"""
    held = w.algebra.hold_all(w.labels_of(op.args[0]), {0, 2, 3}, "windows of it are taken")
    places = op.out.shape[1] // op.args[0].shape[1]
    return AxisLabels(
        tuple(op.out.shape), tuple(v.flatten(2).repeat_interleave(places, 1) for v in held.aspects)
    )


def _col2im(w: Follower, op: Op) -> AxisLabels:
    """[N, C * places, windows] -> [N, C, H, W]"""
    held = w.algebra.hold_all(w.labels_of(op.args[0]), {0, 2}, "windows of it are put back")
    blocks = [torch.unflatten(v, 1, (op.out.shape[1], -1)) for v in held.aspects]
    return AxisLabels(
        tuple(op.out.shape), tuple(w.algebra.tie(v, {2}) for v in blocks if op.out.shape[1] > 1)
    )


RESHAPE_RULES: dict[str, Rule] = {
    "as_strided": _as_strided,
    "cat": _cat,
    "chunk": _chunk,
    "col2im": _col2im,
    "constant_pad_nd": _constant_pad_nd,
    "im2col": _im2col,
    "select": _select,
    "slice": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "stack": _stack,
    "unbind": _unbind,
    "unsafe_chunk": _chunk,
    "unsafe_split": _split,
    "unsafe_split_with_sizes": _split,
}
