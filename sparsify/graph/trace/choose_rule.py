"""Choose the rule that follows an operator: by its name, or by the family that it belongs to."""

from typing import Any

import torch
from torch import Tensor

from sparsify.graph.trace.axis_labels import AxisLabels
from sparsify.graph.trace.operator_rules import RULES, follow_along, follow_batch_norm, follow_reduction
from sparsify.graph.trace.operators import (
    ALONG,
    FRESH,
    LIKE,
    MOVES,
    NORMS,
    POINTWISE,
    REDUCTIONS,
    SPATIAL,
    apply_move,
    flatten_arguments,
    read_argument,
    wrap_dim,
)
from sparsify.graph.trace.rule_api import Follower, Op
from sparsify.graph.trace.vision_rules import follow_window


def follow_operator(
    tracer: Follower, name: str, func: Any, args: Any, kwargs: Any, out: Any
) -> AxisLabels | list[AxisLabels] | None:
    a = tracer.algebra
    tensors_in = [v for v in flatten_arguments(args, kwargs) if isinstance(v, Tensor)]
    for tensor in tensors_in:
        a.hold_numbered(tracer.labels_unread(tensor))
    if not tensors_in or name in FRESH:
        return tracer.label_created(name, out)
    if name == "copy":
        return a.join_elementwise(tuple(out.shape), [AxisLabels((1,) * out.dim()), tracer.labels_of(args[1])])
    if name in LIKE or name in ("zero", "fill"):
        return tracer.labels_of(tensors_in[0])
    if name in MOVES:
        rest = args[1:]
        if name in ("detach", "alias", "clone", "contiguous", "_to_copy", "lift_fresh"):
            return tracer.labels_of(tensors_in[0])
        if "channel_shuffle" in name:
            a.hold_blocks(
                tracer.labels_of(args[0]),
                1,
                args[0].shape[1] // args[1],
                "it is shuffled in unequal groups",
            )
        own = {k: v for k, v in kwargs.items() if k in ("dims", "dim", "implicit")}
        axis_labels = tracer.labels_of(args[0])
        if name == "roll":
            dims = read_argument(args, kwargs, 2, "dims", None) or range(args[0].dim())
            axis_labels = a.hold_all(
                axis_labels,
                {wrap_dim(d, args[0]) for d in dims},
                "it is rolled by a fixed number of places",
            )
        moved = a.move_labels(axis_labels, lambda t: apply_move(func, t, rest, own), out.shape)
        return (
            tracer.note_length(moved)
            if name in ("view", "_unsafe_view", "reshape", "_reshape_alias")
            else moved
        )
    op = Op(name, args, kwargs, out)
    if name in RULES:
        return RULES[name](tracer, op)
    if name in ("add", "sub"):
        a.note_twins([tracer.labels_unread(t) for t in tensors_in])
    if name in NORMS:
        return follow_batch_norm(tracer, op)
    if name in SPATIAL:
        return follow_window(tracer, name, args[0], out)
    if name in REDUCTIONS:
        return follow_reduction(tracer, op)
    if name in ALONG:
        return follow_along(tracer, op)
    if torch.Tag.pointwise in func.tags or name in POINTWISE or _is_pointwise_prim(func):
        results = (out,) if isinstance(out, Tensor) else out
        joined = a.join_elementwise(tuple(results[0].shape), [tracer.labels_of(t) for t in tensors_in])
        return [joined for _ in results]
    for tensor in tensors_in:
        tracer.fix(tracer.labels_of(tensor), f"it passes through '{name}', an operator without a rule")
    return None


def _is_pointwise_prim(func: Any) -> bool:
    """Whether an operator of torch's decompositions (they carry no tags) has a pointwise namesake."""
    space, _, name = func._schema.name.partition("::")
    alike = getattr(torch.ops.aten, name, None) if space == "prims" else None
    return alike is not None and any(
        torch.Tag.pointwise in getattr(alike, overload).tags for overload in alike.overloads()
    )
