"""Which results of matrix products and convolutions depend on the data."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from sparsify.graph.broadcast_shapes import vector_shape
from sparsify.graph.surgery.data_masks import (
    any_along,
    mask_nowhere,
    match_rank,
    multiply_masks,
)


class Masks(Protocol):
    """What these functions need of the masks of a forward call."""

    def mask_of(self, tensor: Tensor) -> Tensor | None:
        """The mask of a tensor; None if it is computed from weights only."""

    def mask_or_nowhere(self, tensor: Tensor) -> Tensor:
        """The mask of a tensor; if it has none, a mask that marks nothing."""

    def join_masks(self, operands: Iterable[Any], out: Tensor) -> Tensor:
        """Elementwise with broadcasting: data reach a result if they reach any operand."""

    def is_averaging(self, tensor: Tensor) -> bool:
        """Whether the tensor's rows along the last dimension sum to one."""


def _mask_convolution(masks: Masks, args: Any, _kwargs: Mapping[str, Any], out: Tensor) -> Tensor | None:
    x, weight, bias, *_, transposed, _, groups = args
    if masks.mask_of(weight) is not None or (bias is not None and masks.mask_of(bias) is not None):
        return None
    mask = any_along(masks.mask_or_nowhere(x), set(range(x.dim())) - {1})
    reached = mask.flatten().expand(x.shape[1])
    live = (weight != 0).flatten(2).any(2)
    if transposed:  # [C, O / groups]
        live = live.view(groups, x.shape[1] // groups, -1)
        passed = (live & reached.view(groups, -1, 1)).any(1)
    else:  # [O, C / groups]
        live = live.view(groups, -1, x.shape[1] // groups)
        passed = (live & reached.view(groups, 1, -1)).any(2)
    laid: Tensor = passed.reshape(vector_shape(out.dim(), 1))
    return laid


def _mask_matrix_product(masks: Masks, a: Tensor, b: Tensor) -> Tensor | None:
    """[..., n, k] x [..., k, m]: data pass where a row or column with data meets a nonzero element."""
    mask_a, mask_b = masks.mask_of(a), masks.mask_of(b)
    if mask_a is not None and masks.is_averaging(a):
        # A weighted mean of numbers that are all the same is this number, whatever the weights are.
        even = (b == b.narrow(-2, 0, 1)).all(-2, keepdim=True)
        reached = mask_nowhere(b) if mask_b is None else any_along(mask_b, {b.dim() - 2})
        return reached | ~even
    if mask_a is not None and mask_b is not None:
        return any_along(mask_a, {a.dim() - 1}) | any_along(mask_b, {b.dim() - 2})
    if mask_a is not None:
        return multiply_masks(mask_a, b != 0)
    assert mask_b is not None
    return multiply_masks(mask_b.mT, (a != 0).mT).mT


def _mask_mm(masks: Masks, args: Any, _kwargs: Mapping[str, Any], out: Tensor) -> Tensor | None:
    return match_rank(_mask_matrix_product(masks, args[0], args[1]), out)


def _mask_addmm(masks: Masks, args: Any, _kwargs: Mapping[str, Any], out: Tensor) -> Tensor | None:
    if masks.mask_of(args[1]) is None and masks.mask_of(args[2]) is None:
        return masks.join_masks(args[:1], out)
    made = _mask_matrix_product(masks, args[1], args[2])
    return None if made is None else masks.join_masks(args[:1], out) | made


def _mask_linear(masks: Masks, args: Any, _kwargs: Mapping[str, Any], out: Tensor) -> Tensor | None:
    if any(isinstance(v, Tensor) and masks.mask_of(v) is not None for v in args[1:3]):
        return None
    return match_rank(multiply_masks(masks.mask_or_nowhere(args[0]), (args[1] != 0).t()), out)


CONTRACTIONS: dict[str, Callable[[Masks, Any, Mapping[str, Any], Tensor], Tensor | None]] = {
    "convolution": _mask_convolution,
    "mm": _mask_mm,
    "bmm": _mask_mm,
    "addmm": _mask_addmm,
    "baddbmm": _mask_addmm,
    "linear": _mask_linear,
}
