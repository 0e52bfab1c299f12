"""Crop a convolution whose kernel has dead positions to a smaller kernel.

Along each spatial dimension the live positions lie on a grid first, first + step, ...: the kernel shrinks
to the grid with dilation `step`, and the padding shrinks by what was cut off.

    y[o] = sum_k W[k] x[o * stride + k * dilation - padding]

is the same sum without its zero terms, so this is exact. If more is cut off on one side than was padded,
the input is cropped.
"""

from collections.abc import Iterator
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Grid = tuple[int, int, int]
"""(first, step, count) of kernel positions along one dimension"""


class _Cropped:
    """A convolution that pads, crops, then convolves without padding. `pads` and `crops` are in F.pad's
    order."""

    pads: tuple[int, ...]
    mode: str
    crops: tuple[int, ...]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cropped = pad_and_crop(input, self.pads, self.mode, self.crops)
        made: Tensor = super()._conv_forward(cropped, weight, bias)  # type: ignore[misc]
        return made

    def extra_repr(self) -> str:
        convolution = super().extra_repr()  # type: ignore[misc]
        return f"{convolution}, pads={self.pads}, mode={self.mode}, crops={self.crops}"


class CroppedConv1d(_Cropped, nn.Conv1d):
    pass


class CroppedConv2d(_Cropped, nn.Conv2d):
    pass


class CroppedConv3d(_Cropped, nn.Conv3d):
    pass


CROPPED: dict[type[Any], type[Any]] = {
    nn.Conv1d: CroppedConv1d,
    nn.Conv2d: CroppedConv2d,
    nn.Conv3d: CroppedConv3d,
}
PLAIN: dict[type[Any], type[Any]] = {cropped: plain for plain, cropped in CROPPED.items()}


def pad_and_crop(x: Tensor, pads: tuple[int, ...], mode: str, crops: tuple[int, ...]) -> Tensor:
    """Pad as the layer did, then cut off what the kernel no longer covers.

    In two steps, since a feature map may be smaller than what is cut off.
    """
    if any(pads):
        x = F.pad(x, pads, "constant" if mode == "zeros" else mode)
    return F.pad(x, crops) if any(crops) else x


def can_crop(module: nn.Module) -> bool:
    """Whether a module is a convolution of torch.nn itself: one of the user's may do more than convolve."""
    return type(module) in CROPPED or type(module) in PLAIN


def find_grids(weight: Tensor) -> tuple[Grid, ...]:
    """The coarsest grid along each spatial dimension that holds every live position; one position if all
    are dead."""
    live = (weight.detach() != 0).flatten(0, 1).any(0)
    return tuple(_find_grid(_find_live_positions(live, dim)) for dim in range(live.dim()))


def _find_live_positions(live: Tensor, dim: int) -> list[int]:
    """Indices along a dimension at which any element is true."""
    along = live.movedim(dim, 0).reshape(live.shape[dim], -1).any(1)
    return along.nonzero().flatten().tolist()


def _find_grid(places: list[int]) -> Grid:
    if len(places) < 2:
        return (places[0] if places else 0, 1, 1)
    step = gcd(*(place - places[0] for place in places))
    return places[0], step, (places[-1] - places[0]) // step + 1


def full_grids(kernel: tuple[int, ...]) -> tuple[Grid, ...]:
    """The grids of a kernel that keeps every position."""
    return tuple((0, 1, size) for size in kernel)


def select_positions(tensor: Tensor, kept: tuple[Grid, ...]) -> Tensor:
    """The positions of a weight, or of a tensor of its shape, that are kept."""
    for dim, (first, step, count) in enumerate(kept, start=2):
        tensor = tensor.index_select(
            dim, torch.arange(first, first + step * count, step, device=tensor.device)
        )
    return tensor


def crop_convolution(conv: Conv, kept: tuple[Grid, ...]) -> None:
    """Set the attributes of a convolution whose weight has been cropped to `kept`."""
    lost = tuple(_count_lost_reach(conv, kept))
    pads, mode, crops = read_padding(conv)
    dilation = []
    for d, (_, step, count) in zip(conv.dilation, kept, strict=True):
        dilation.append(d * step if count > 1 else 1)
    conv.dilation = tuple(dilation)
    conv.kernel_size = tuple(count for *_, count in kept)
    if not any(lost):
        return
    crops = tuple(c + cut for c, cut in zip(crops, lost, strict=True))
    if mode == "zeros" or not any(pads):
        net = [p + c for p, c in zip(pads, crops, strict=True)]
        pads, mode = tuple(max(n, 0) for n in net), "zeros"
        crops = tuple(min(n, 0) for n in net)
    even = mode == "zeros" and not any(crops) and pads[::2] == pads[1::2]
    _set_padding(conv, pads if even else (0,) * len(pads))
    if even:
        conv.__class__ = PLAIN.get(type(conv), type(conv))
    else:
        conv.__class__ = CROPPED.get(type(conv), type(conv))
        vars(conv).update(pads=pads, mode=mode, crops=crops)


def _set_padding(conv: Conv, pads: tuple[int, ...]) -> None:
    conv.padding = tuple(reversed(pads[::2]))
    conv.padding_mode = "zeros"
    conv._reversed_padding_repeated_twice = list(pads)


def read_padding(conv: Conv) -> tuple[tuple[int, ...], str, tuple[int, ...]]:
    """(pads, mode, crops) of a convolution, in F.pad's order: last dimension first, before and after."""
    if isinstance(conv, _Cropped):
        return conv.pads, conv.mode, conv.crops
    if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        pads = tuple(p for p in reversed(conv.padding) for _ in range(2))
    else:
        pads = tuple(conv._reversed_padding_repeated_twice)
    return pads, conv.padding_mode, (0,) * len(pads)


def _count_lost_reach(conv: Conv, kept: tuple[Grid, ...]) -> Iterator[int]:
    """How much the kernel's reach shrinks, as negative pads: last dimension first, before and after."""
    for size, dilation, (first, step, count) in reversed(
        list(zip(conv.kernel_size, conv.dilation, kept, strict=True))
    ):
        yield -first * dilation
        yield -(size - 1 - first - step * (count - 1)) * dilation
