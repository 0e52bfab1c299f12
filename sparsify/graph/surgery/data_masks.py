"""Masks that say which elements of a tensor data reach, and how they combine."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sparsify.graph.broadcast_shapes import keep_lengths


def mask_of_base(part: Tensor, mask: Tensor, base: Tensor, before: Tensor | None) -> Tensor:
    """The mask of a tensor after a part of it was written.

    If the part is cut out of it along whole dimensions, the mask along the others stays as it was.
    """
    if part.dim() != base.dim() or part.stride() != base.stride():
        return mask_everywhere(base)
    resized = [d for d in range(base.dim()) if part.shape[d] != base.shape[d]]
    written = any_along(mask, resized)
    return written if before is None else written | before


def mask_everywhere(tensor: Tensor) -> Tensor:
    """The mask of a tensor that data reach everywhere."""
    return torch.ones([1] * tensor.dim(), dtype=torch.bool, device=tensor.device)


def mask_nowhere(tensor: Tensor) -> Tensor:
    """The mask of a tensor that data reach nowhere."""
    return torch.zeros([1] * tensor.dim(), dtype=torch.bool, device=tensor.device)


def any_along(mask: Tensor, dims: Iterable[int]) -> Tensor:
    """Mark all elements along these dimensions if one is marked; the dimensions then have size 1."""
    wide = [d for d in dims if mask.shape[d] > 1]
    return mask.any(dim=wide, keepdim=True) if wide else mask


def multiply_masks(mask: Tensor, live: Tensor) -> Tensor:
    """[..., n, k] x [..., k, m] of booleans: whether some k is reached in the row and live in the column."""
    reached = mask.expand(*mask.shape[:-1], live.shape[-2])
    while live.dim() < reached.dim():
        live = live.unsqueeze(0)
    if reached.shape[-1] != live.shape[-2] or mask.numel() == 1:
        every = live.any(-2, keepdim=True)
        return every & mask
    return torch.matmul(reached.float(), live.float()) > 0


def match_rank(mask: Tensor | None, out: Tensor) -> Tensor | None:
    """The mask with as many dimensions as the result."""
    if mask is None or mask.dim() == out.dim():
        return mask
    return mask.view([1] * (out.dim() - mask.dim()) + list(mask.shape))


def scale_mask(mask: Tensor, weight: Any, dims: range, out: Tensor) -> Tensor:
    """No data pass where the weight that multiplies is an exact zero."""
    if not isinstance(weight, Tensor):
        return mask
    return mask & (weight != 0).view(keep_lengths(out.shape, dims))
