"""What vision operators do to labels: sampling at computed places, unpooling, fake quantisation."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from sparsify.graph.broadcast_shapes import replace_length
from sparsify.graph.trace.axis_labels import AxisLabels, varying_dims
from sparsify.graph.trace.contraction_labels import follow_convolution
from sparsify.graph.trace.operators import wrap_dim
from sparsify.graph.trace.rule_api import Follower, Op, Rule

SAYS_WHERE = "it says where another tensor is read"
SLIDES = "a window slides over it"


def follow_window(w: Follower, name: str, tensor: Tensor, out: Any) -> list[AxisLabels]:
    """A window or a sampling over the last dimensions; for operators that also return indices, several
    results."""
    made = out if isinstance(out, tuple | list) else (out,)
    held = _hold_places(w, name, tensor)
    changed = {d for d in range(tensor.dim()) if tensor.shape[d] != made[0].shape[d]}
    held = w.algebra.hold_all(held, changed, SLIDES)
    return [AxisLabels(tuple(result.shape), held.aspects, held.parameter) for result in made]


def _hold_places(w: Follower, name: str, tensor: Tensor) -> AxisLabels:
    rank = tensor.dim()
    count = next(int(size) for size in "123" if f"{size}d" in name)
    return w.algebra.hold_all(w.labels_of(tensor), set(range(rank - count, rank)), SLIDES)


def _grid_sampler(w: Follower, op: Op) -> AxisLabels:
    x, grid = op.args[:2]
    w.algebra.hold_all(w.labels_of(grid), set(range(grid.dim())), SAYS_WHERE)
    (made,) = follow_window(w, f"{x.dim() - 2}d", x, op.out)
    return made


def _max_unpool(w: Follower, op: Op) -> AxisLabels:
    """[N, C, places] and the number of the place that each had before: [N, C, more places]."""
    held = [_hold_places(w, op.name, tensor) for tensor in op.args[:2]]
    made = w.algebra.join_elementwise(held[0].shape, held)
    return AxisLabels(tuple(op.out.shape), made.aspects)


def _roi(w: Follower, op: Op) -> list[AxisLabels]:
    """[N, C, H, W] and boxes: [boxes, C, h, w]."""
    x, boxes = op.args[:2]
    w.algebra.hold_all(w.labels_of(boxes), {0, 1}, SAYS_WHERE)
    held = w.algebra.hold_all(w.labels_of(x), {0, 2, 3}, "boxes of it are taken")
    results = op.out if isinstance(op.out, tuple | list) else [op.out]
    return [AxisLabels(tuple(result.shape), held.aspects) for result in results]


def _deform_conv2d(w: Follower, op: Op) -> AxisLabels:
    """A convolution that reads where its offsets say: offsets keep their widths, channels act as in a
    convolution."""
    x, weight, offset, mask, bias = op.args[:5]
    groups, offset_groups = op.args[11:13]
    for tensor in (offset, mask):
        w.algebra.hold_all(w.labels_of(tensor), set(range(tensor.dim())), SAYS_WHERE)
    w.algebra.hold_blocks(
        w.labels_of(x), 1, x.shape[1] // offset_groups, "it falls into unequal groups of offsets"
    )
    return follow_convolution(
        w.algebra, w.labels_of(x), w.labels_of(weight), w.labels_of(bias), False, groups, op.out.shape
    )


def _fake_quantize(w: Follower, op: Op) -> list[AxisLabels]:
    """One scale for all, or one for each index of a dimension."""
    x, scale, zero = op.args[:3]
    operands = [w.labels_of(x)]
    if "per_channel" in op.name:
        dim = wrap_dim(op.args[3], x)
        for tensor in (scale, zero):
            own = w.labels_of(tensor)
            whole = tuple(replace_length([1] * x.dim(), dim, tensor.shape[0]))
            soft = frozenset((dim, cell) for _, cell in own.flexible)
            operands.append(
                AxisLabels(
                    whole, tuple(v.view(whole) for v in own.aspects if varying_dims(v)), own.parameter, soft
                )
            )
    made = w.algebra.join_elementwise(x.shape, operands)
    made = replace(made, parameter=operands[0].parameter)  # whatever its scale is made from
    return [made, made]


VISION_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "_fake_quantize_learnable_per_channel_affine",
            "_fake_quantize_learnable_per_tensor_affine",
            "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
            "fake_quantize_per_channel_affine",
            "fake_quantize_per_channel_affine_cachemask",
            "fake_quantize_per_tensor_affine",
            "fake_quantize_per_tensor_affine_cachemask",
        ),
        _fake_quantize,
    ),
    "deform_conv2d": _deform_conv2d,
    "grid_sampler_2d": _grid_sampler,
    "grid_sampler_3d": _grid_sampler,
    "max_unpool2d": _max_unpool,
    "max_unpool3d": _max_unpool,
    "roi_align": _roi,
    "roi_pool": _roi,
}
"""operators of vision"""
