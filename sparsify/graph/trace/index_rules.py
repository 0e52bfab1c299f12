"""What operators that read or write elements by number do to labels.

`x[index]`, `gather` and an embedding read; `scatter`, `index_add` and `x[index] = y` write. The dimensions
that the numbers run over keep their size. Labels along all other dimensions pass on, and so do those of
the
index: it has one place for each element that is read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sparsify.graph.broadcast_shapes import drop_lengths, keep_lengths
from sparsify.graph.trace.axis_labels import AxisLabels, varying_dims
from sparsify.graph.trace.operators import read_argument, wrap_dim
from sparsify.graph.trace.rule_api import Follower, Op, Rule

TAKEN = "its elements are taken by number"
LOOKED_UP = "its rows are looked up by number"
WRITTEN = "elements are written into it by number"
SAYS_WHERE = "it says which elements are written"
CHOOSES = "a mask of it chooses elements"


@dataclass(frozen=True)
class _PickedElements:
    """The elements that a list of indices picks."""

    dims: frozenset[int]
    """dimensions of the tensor that are indexed"""
    made: AxisLabels
    """labels of the indices, broadcast to one shape"""
    start: int
    """the dimension of the result at which that shape begins"""
    zeros: list[Tensor | None]
    """indices of that shape that pick the first element everywhere"""

    def placed(self, aspect: Tensor, rank: int) -> Tensor:
        """An aspect of the indices as one of the result, which has `rank` dimensions."""
        behind = rank - self.start - len(self.made.shape)
        return aspect.view((1,) * self.start + tuple(aspect.shape) + (1,) * behind)


def _pick_elements(w: Follower, indices: Sequence[Tensor | None], count: int) -> _PickedElements:
    """count: number of elements that a mask chooses."""
    own: dict[int, AxisLabels] = {}
    at = 0
    for index in indices:
        if index is None:
            at += 1
        elif _is_mask(index):
            _hold_whole(w, index, CHOOSES)
            for dim in range(at, at + index.dim()):
                own[dim] = AxisLabels((count,))
            at += index.dim()
        else:
            own[at] = w.labels_of(index)
            at += 1
    shape = np.broadcast_shapes(*(s.shape for s in own.values()))
    side_by_side = max(own) - min(own) + 1 == len(own)
    zeros: list[Tensor | None] = [None] * at
    for dim in own:
        zeros[dim] = torch.zeros(shape, dtype=torch.int64)
    made = w.algebra.join_elementwise(shape, list(own.values()))
    return _PickedElements(frozenset(own), made, min(own) if side_by_side else 0, zeros)


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def _count_chosen(indices: Iterable[Tensor | None]) -> int:
    """How many elements a mask among the indices chooses; if unknown 2, which no broadcast hides."""
    masks = [index for index in indices if index is not None and _is_mask(index)]
    return int(masks[0].count_nonzero()) if masks and not masks[0].is_meta else 2


def _hold_whole(w: Follower, tensor: Tensor, reason: str) -> None:
    w.algebra.hold_all(w.labels_of(tensor), set(range(tensor.dim())), reason)


def _fix_lengths(axis_labels: AxisLabels, dims: Iterable[int]) -> AxisLabels:
    """Labels with fixed lengths along these dimensions."""
    return replace(
        axis_labels, flexible=frozenset((d, cell) for d, cell in axis_labels.flexible if d not in set(dims))
    )


def _index(w: Follower, op: Op) -> AxisLabels:
    if any(index is not None and _is_mask(index) and not index.dim() for index in op.args[1]):
        return _as_a_whole(w, op)
    picked = _pick_elements(w, op.args[1], _count_chosen(op.args[1]))
    x = w.labels_of(op.args[0])
    held = replace(w.algebra.hold_all(x, set(picked.dims), TAKEN), flexible=x.flexible)
    moved = w.algebra.move_labels(held, lambda t: torch.ops.aten.index.Tensor(t, picked.zeros))
    brought = tuple(picked.placed(aspect, op.out.dim()) for aspect in picked.made.aspects)
    soft = {(d + picked.start, cell) for d, cell in picked.made.flexible}
    soft |= _fix_lengths(moved, range(picked.start, picked.start + len(picked.made.shape))).flexible
    parameter = moved.parameter and (picked.made.parameter or not brought)
    return AxisLabels(tuple(op.out.shape), (*moved.aspects, *brought), parameter, frozenset(soft))


def _index_select(w: Follower, op: Op) -> AxisLabels:
    dim = wrap_dim(op.args[1], op.args[0])
    x, index = w.labels_of(op.args[0]), w.labels_of(op.args[2])
    held = w.algebra.hold_all(x, {dim}, TAKEN)
    places = keep_lengths(op.out.shape, {dim})
    brought = tuple(aspect.view(places) for aspect in index.aspects)
    soft = _fix_lengths(x, [dim]).flexible | {(dim, cell) for _, cell in index.flexible}
    parameter = held.parameter and (index.parameter or not brought)
    return AxisLabels(tuple(op.out.shape), (*held.aspects, *brought), parameter, soft)


def _take(w: Follower, op: Op) -> AxisLabels:
    """Elements of the flattened tensor."""
    _hold_whole(w, op.args[0], TAKEN)
    return replace(w.labels_of(op.args[1]), parameter=False)


def _gather(w: Follower, op: Op) -> AxisLabels:
    """out[i, j] = x[index[i, j], j] for dim 0: along the other dimensions element by element."""
    x, index = op.args[0], op.args[2]
    dim = wrap_dim(op.args[1], x)
    own = w.labels_of(x)
    numbered = {dim} | _unequal_dims(dim, x, index)
    held = replace(w.algebra.hold_all(own, numbered, TAKEN), flexible=own.flexible)
    return w.algebra.join_elementwise(op.out.shape, [_drop_dims(held, numbered), w.labels_of(index)])


def _unequal_dims(dim: int, x: Tensor, *others: Tensor) -> set[int]:
    """Other dimensions than the numbered one of which only the first elements take part."""
    sized = [other for other in others if other.dim()]
    unequal = {d for other in sized for d in range(x.dim()) if other.shape[d] != x.shape[d]}
    return unequal - {dim}


def _drop_dims(axis_labels: AxisLabels, dims: set[int]) -> AxisLabels:
    """Labels that do not vary along some dimensions, with size 1 along them."""
    shape = tuple(drop_lengths(axis_labels.shape, dims))
    return _fix_lengths(replace(axis_labels, shape=shape), dims)


def _write_elements(
    w: Follower, x: Tensor, dims: set[int], others: Iterable[AxisLabels], reason: str
) -> AxisLabels:
    """Write elements of others into x, or add them, along these dimensions; elementwise along all others."""
    operands = []
    for own in (w.labels_of(x), *others):
        held = w.algebra.hold_all(own, dims & set(range(len(own.shape))), reason)
        operands.append(_drop_dims(replace(held, flexible=own.flexible), dims))
    shape = drop_lengths(x.shape, dims)
    made = w.algebra.join_elementwise(shape, operands)
    return replace(made, shape=tuple(x.shape))


def _scatter(w: Follower, op: Op) -> AxisLabels:
    """out[index[i, j], j] = source[i, j] for dim 0, or that added, or the larger of both."""
    x, index = op.args[0], op.args[2]
    dim = wrap_dim(op.args[1], x)
    sources = [v for v in op.args[3:4] if isinstance(v, Tensor)]
    places = [t for t in (index, *sources) if t.dim()]
    dims = {dim} | _unequal_dims(dim, x, *places)
    return _write_elements(w, x, dims, [w.labels_of(t) for t in (index, *sources)], WRITTEN)


def _index_add(w: Follower, op: Op) -> AxisLabels:
    """out[index[i], j] = source[i, j] for dim 0, or that added, or a number in its place."""
    x, index = op.args[0], op.args[2]
    dim = wrap_dim(op.args[1], x)
    _hold_whole(w, index, SAYS_WHERE)
    sources = [v for v in op.args[3:4] if isinstance(v, Tensor) and v.dim() == x.dim()]
    return _write_elements(w, x, {dim}, [w.labels_of(t) for t in sources], WRITTEN)


def _index_put(w: Follower, op: Op) -> AxisLabels:
    x, indices, values = op.args[:3]
    if any(index is not None and _is_mask(index) and not index.dim() for index in indices):
        return _as_a_whole(w, op)
    if values.numel() == 1 and all(index is None or _is_mask(index) for index in indices):
        return _masked_fill(w, x, indices)
    picked = _pick_elements(w, indices, _count_chosen(indices))
    for aspect in picked.made.aspects:
        w.algebra.hold(aspect, varying_dims(aspect), SAYS_WHERE)
    own = w.labels_of(x)
    held = replace(
        w.algebra.hold_all(own, set(picked.dims), WRITTEN), flexible=_fix_lengths(own, picked.dims).flexible
    )
    part = w.algebra.move_labels(held, lambda t: torch.ops.aten.index.Tensor(t, picked.zeros))
    rank, middle = len(part.shape), range(picked.start, picked.start + len(picked.made.shape))
    given = w.labels_of(values)
    missing = rank - len(given.shape)
    ones = (1,) * missing
    lifted_aspects = tuple(aspect.view(ones + tuple(aspect.shape)) for aspect in given.aspects)
    flexible = frozenset((d + missing, cell) for d, cell in given.flexible)
    lifted = AxisLabels(ones + given.shape, lifted_aspects, given.parameter, flexible)
    source = replace(
        w.algebra.hold_all(lifted, set(middle), "it is written to places that are given by number"),
        flexible=lifted.flexible,
    )
    made = w.algebra.join_elementwise(
        drop_lengths(part.shape, middle),
        [_drop_dims(part, set(middle)), _drop_dims(source, set(middle))],
    )
    # Back to the dimensions of x: those that are not indexed have the same order in the written part.
    rest = [e for e in range(rank) if e not in middle]
    free = [d for d in range(x.dim()) if d not in picked.dims]
    back = dict(zip(rest, free, strict=True))
    aspects = []
    for aspect in made.aspects:
        shape = [1] * x.dim()
        for e, d in back.items():
            shape[d] = aspect.shape[e]
        aspects.append(aspect.reshape(shape))
    soft = frozenset((back[e], cell) for e, cell in made.flexible if e in back)
    return AxisLabels(tuple(x.shape), tuple(aspects), own.parameter and given.parameter, soft)


def _masked_fill(w: Follower, x: Tensor, indices: Sequence[Tensor | None]) -> AxisLabels:
    """One number wherever a mask is true."""
    at, operands = 0, [w.labels_of(x)]
    for index in indices:
        if index is None:
            at += 1
            continue
        mask, behind = w.labels_of(index), x.dim() - at - index.dim()
        shape = (1,) * at + mask.shape + (1,) * behind
        aspects = tuple(
            aspect.view((1,) * at + tuple(aspect.shape) + (1,) * behind) for aspect in mask.aspects
        )
        operands.append(
            AxisLabels(shape, aspects, mask.parameter, frozenset((d + at, cell) for d, cell in mask.flexible))
        )
        at += index.dim()
    return w.algebra.join_elementwise(x.shape, operands)


def _masked_scatter(w: Follower, op: Op) -> AxisLabels:
    """Write the source's elements in order wherever a mask is true.

    If the mask does not vary along the last dimension, and the source has that dimension, whole rows are
    written.
    """
    x, mask, source = op.args[:3]
    last = x.dim() - 1
    whole = w.labels_of(mask)
    rows = last >= 0 and source.dim() > 0 and source.shape[-1] == x.shape[-1]
    if (
        not rows
        or mask.dim() < x.dim()
        or whole.has_fixed_length(last)
        or any(last in varying_dims(a) for a in whole.aspects)
    ):
        return _as_a_whole(w, op)
    _hold_whole(w, mask, CHOOSES)
    given = w.algebra.hold_all(
        w.labels_of(source), set(range(source.dim() - 1)), "its rows are written in their order"
    )
    lead = (1,) * last
    aspects = tuple(a.view((*lead, -1)) for a in given.aspects)
    row = AxisLabels((*lead, x.shape[-1]), aspects, given.parameter)
    return _write_elements(w, x, set(range(last)), [row], WRITTEN)


def _write_part(w: Follower, op: Op, dim: int, part: AxisLabels) -> AxisLabels:
    dims = set() if part.shape[dim] == op.out.shape[dim] else {dim}
    return _write_elements(w, op.args[0], dims, [part], "a part of it is replaced at a fixed place")


def _slice_scatter(w: Follower, op: Op) -> AxisLabels:
    return _write_part(
        w, op, wrap_dim(read_argument(op.args, op.kwargs, 2, "dim", 0), op.out), w.labels_of(op.args[1])
    )


def _select_scatter(w: Follower, op: Op) -> AxisLabels:
    dim = wrap_dim(op.args[2], op.out)
    return _write_part(w, op, dim, w.algebra.move_labels(w.labels_of(op.args[1]), lambda t: t.unsqueeze(dim)))


def _segment_reduce(w: Follower, op: Op) -> AxisLabels:
    """Sums, means or maxima over runs of one dimension."""
    dim = wrap_dim(read_argument(op.args, op.kwargs, 5, "axis", 0), op.args[0])
    for name in ("lengths", "indices", "offsets"):
        if isinstance(op.kwargs.get(name), Tensor):
            _hold_whole(w, op.kwargs[name], "it says where segments end")
    held = w.algebra.hold_all(w.labels_of(op.args[0]), {dim}, "it is reduced in segments")
    return replace(held, shape=tuple(op.out.shape))


def _embedding(w: Follower, op: Op) -> AxisLabels:
    table = w.algebra.hold_all(w.labels_of(op.args[0]), {0}, LOOKED_UP)
    for aspect in table.aspects:
        w.algebra.note_side(aspect, w.labels.looked_up)
    index = w.labels_of(op.args[1])
    lead = len(index.shape)
    rows = tuple(aspect.view((1,) * lead + (-1,)) for aspect in table.aspects)
    brought = tuple(aspect.view((*aspect.shape, 1)) for aspect in index.aspects)
    return AxisLabels(tuple(op.out.shape), (*brought, *rows), flexible=index.flexible)


def _embedding_bag(w: Follower, op: Op) -> list[AxisLabels]:
    table = w.algebra.hold_all(w.labels_of(op.args[0]), {0}, LOOKED_UP)
    for aspect in table.aspects:
        w.algebra.note_side(aspect, w.labels.looked_up)
    for value in (*op.args[1:], *op.kwargs.values()):
        if isinstance(value, Tensor):
            _hold_whole(w, value, "rows of a table are summed by it")
    return [AxisLabels(tuple(op.out[0].shape), table.aspects)]


def _embedding_renorm(w: Follower, op: Op) -> AxisLabels:
    """Rows of a table are scaled to a largest norm, in place."""
    return w.algebra.hold_all(w.labels_of(op.args[0]), {0, 1}, "its rows are scaled by their norm")


def _as_a_whole(w: Follower, op: Op) -> AxisLabels:
    """Elements move in an order that depends on values: all labels that take part must stay."""
    for value in (*op.args, *op.kwargs.values()):
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, Tensor):
                _hold_whole(w, tensor, f"its elements are moved one by one ('{op.name}')")
    return AxisLabels(tuple(op.out.shape))


INDEX_RULES: dict[str, Rule] = {
    "_embedding_bag": _embedding_bag,
    "_embedding_bag_forward_only": _embedding_bag,
    "as_strided_scatter": _as_a_whole,
    "diagonal_scatter": _as_a_whole,
    "embedding": _embedding,
    "embedding_renorm": _embedding_renorm,
    "gather": _gather,
    "index": _index,
    "index_add": _index_add,
    "index_copy": _index_add,
    "index_fill": _index_add,
    "index_put": _index_put,
    "_unsafe_index": _index,
    "_unsafe_index_put": _index_put,
    "index_reduce": _index_add,
    "index_select": _index_select,
    "masked_scatter": _masked_scatter,
    "masked_select": _as_a_whole,
    "put": _as_a_whole,
    "scatter": _scatter,
    "scatter_add": _scatter,
    "scatter_reduce": _scatter,
    "segment_reduce": _segment_reduce,
    "select_scatter": _select_scatter,
    "slice_scatter": _slice_scatter,
    "take": _take,
}
"""operators that read or write elements by their number"""

_WRITE = ("put", "scatter", "index_add", "index_copy", "index_fill", "index_reduce")
WRITES_IN_PLACE = frozenset(name for word in _WRITE for name in INDEX_RULES if word in name)
"""those that write into their first argument when called in place"""
