"""Run a layer whose weight matrix has dead columns on its live columns only.

A convolution's weight as the matrix [outputs, channels * kernel positions] has one column per filter
shape. The live columns of each kernel position are gathered from the input and stacked, and one dense 1x1
convolution does the rest. Source: the lowered form of Wen et al., arXiv:1608.03665, with stock operators
only.
"""

from itertools import groupby, product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify.nn.cropped import PLAIN, Conv, pad_and_crop, read_padding

CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)


class _GatheredConv:
    """weight: [outputs, live columns], ordered by kernel position, then channel."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = pad_and_crop(x, self.pads, self.mode, self.crops)
        sizes = [
            (n - reach) // s + 1 for n, reach, s in zip(x.shape[2:], self.reach, self.stride, strict=True)
        ]
        parts = []
        for i, offsets in enumerate(self.offsets):
            part = x
            for d, (start, size, stride) in enumerate(zip(offsets, sizes, self.stride, strict=True), start=2):
                part = part.narrow(d, start, (size - 1) * stride + 1)
                part = part if stride == 1 else part[(slice(None),) * d + (slice(None, None, stride),)]
            index = self.get_buffer(f"channels{i}")
            parts.append(part if len(index) == self.in_channels else part.index_select(1, index))
        rows = torch.cat(parts, 1)
        made: Tensor = CONVOLVE[len(sizes) - 1](
            rows, self.weight.view(*self.weight.shape, *(1 for _ in sizes)), self.bias
        )
        return made

    def extra_repr(self: Any) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, columns={self.weight.shape[1]}, stride={self.stride}"
        )


class GatheredConv1d(_GatheredConv, nn.Conv1d):
    pass


class GatheredConv2d(_GatheredConv, nn.Conv2d):
    pass


class GatheredConv3d(_GatheredConv, nn.Conv3d):
    pass


class GatheredLinear(nn.Linear):
    """weight: [outputs, live columns]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.index_select(-1, self.get_buffer("columns")), self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, columns={self.weight.shape[1]}"


GATHERED: dict[type[Any], type[Any]] = {
    nn.Linear: GatheredLinear,
    nn.Conv1d: GatheredConv1d,
    nn.Conv2d: GatheredConv2d,
    nn.Conv3d: GatheredConv3d,
}


def can_gather(module: nn.Module) -> bool:
    """Whether a module is a Linear layer or a convolution without groups, of torch.nn itself."""
    plain = PLAIN.get(type(module), type(module))
    return plain in GATHERED and getattr(module, "groups", 1) == 1


def find_live_columns(weight: Tensor) -> list[int]:
    """Columns of the weight, as the matrix [outputs, the rest], that are not all zero; the first if all
    are."""
    return torch.nonzero((weight.detach() != 0).flatten(1).any(0)).flatten().tolist() or [0]


def order_columns(columns: list[int], kernel: int) -> list[int]:
    """Order columns by kernel position, then channel, as in a gathered weight."""
    return sorted(columns, key=lambda column: (column % kernel, column))


def select_columns(tensor: Tensor, columns: list[int]) -> Tensor:
    """The columns of a weight, or of a tensor of its shape, that are kept."""
    order = order_columns(columns, prod(tensor.shape[2:]))
    return tensor.flatten(1).index_select(1, torch.tensor(order, device=tensor.device))


def gather_inputs(module: nn.Linear | Conv, columns: list[int]) -> None:
    """Turn a layer whose weight has been gathered into one that gathers its input in the same way."""
    device = module.weight.device
    if isinstance(module, nn.Linear):
        module.__class__ = GatheredLinear
        module.register_buffer("columns", torch.tensor(columns, device=device), persistent=False)
        return
    pads, mode, crops = read_padding(module)
    kernel = module.kernel_size
    positions = [
        range(0, size * dilation, dilation) for size, dilation in zip(kernel, module.dilation, strict=True)
    ]
    places = list(product(*positions))
    reach = tuple((size - 1) * dilation + 1 for size, dilation in zip(kernel, module.dilation, strict=True))
    taps = []
    for tap, own in groupby(order_columns(columns, len(places)), lambda column: column % len(places)):
        taps.append((tap, [column // len(places) for column in own]))
    module.__class__ = GATHERED[PLAIN.get(type(module), type(module))]
    vars(module).update(
        pads=pads, mode=mode, crops=crops, reach=reach, offsets=tuple(places[tap] for tap, _ in taps)
    )
    for i, (_, channels) in enumerate(taps):
        module.register_buffer(f"channels{i}", torch.tensor(channels, device=device), persistent=False)
