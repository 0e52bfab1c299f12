"""A small detector of the YOLO type: C2f blocks, SPPF, two-way neck, decoupled heads without anchor boxes.

Source of the parts: Jocher et al., Ultralytics YOLOv8, 2023; SPP: He et al., arXiv:1406.4729; distributions
over distances: Li et al., arXiv:2006.04388. Written anew from these descriptions.
"""

import math

import torch
from torch import Tensor, nn

STRIDES = (4, 8, 16)
"""pixels between the cells of each map that the detector returns"""
BINS = 8
"""numbers that the distance from a cell to one side of its box is spread over: 0 to 7 strides"""
_PRIOR = 0.01
"""probability of a class in a cell before training. Source: Lin et al., arXiv:1708.02002"""


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class Bottleneck(nn.Module):
    """Two convolutions, with the input added where `adds` says so."""

    def __init__(self, width: int, adds: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(width, width, 3), ConvNorm(width, width, 3)
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same shape."""
        y: Tensor = self.conv2(self.conv1(x))
        return x + y if self.adds else y


class C2f(nn.Module):
    """The input is halved by channel; one half goes on through bottlenecks, and all that arises is
    concatenated."""

    def __init__(self, inputs: int, outputs: int, blocks: int = 1, adds: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.split = ConvNorm(inputs, 2 * half)
        self.blocks = nn.ModuleList(Bottleneck(half, adds) for _ in range(blocks))
        self.join = ConvNorm((2 + blocks) * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        parts = list(self.split(x).chunk(2, dim=1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        y: Tensor = self.join(torch.cat(parts, dim=1))
        return y


class Sppf(nn.Module):
    """The largest values of windows of 5, 9 and 13 cells beside the values themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.reduce = ConvNorm(width, half)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.join = ConvNorm(4 * half, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same shape."""
        x = self.reduce(x)
        near = self.pool(x)
        farther = self.pool(near)
        y: Tensor = self.join(torch.cat([x, near, farther, self.pool(farther)], dim=1))
        return y


class Head(nn.Module):
    """Distances to the sides of a box, and a score for each class, by two branches of their own."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.box = nn.Sequential(
            ConvNorm(inputs, width, 3), ConvNorm(width, width, 3), nn.Conv2d(width, 4 * BINS, 1)
        )
        self.score = nn.Sequential(
            ConvNorm(inputs, width, 3), ConvNorm(width, width, 3), nn.Conv2d(width, classes, 1)
        )
        last = self.score[-1]
        nn.init.constant_(last.bias, math.log(_PRIOR / (1 - _PRIOR)))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, 4 * BINS + classes, H, W)."""
        return torch.cat([self.box(x), self.score(x)], dim=1)


class Detector(nn.Module):
    """Backbone with strides 2 to 16, a neck that passes maps up and down again, a head at each of three
    strides."""

    def __init__(self, classes: int = 10, width: int = 12) -> None:
        super().__init__()
        fine, middle, coarse = 2 * width, 3 * width, 4 * width
        self.stem = nn.Sequential(ConvNorm(3, width, 3, 2), ConvNorm(width, fine, 3, 2), C2f(fine, fine))
        self.stage2 = nn.Sequential(ConvNorm(fine, middle, 3, 2), C2f(middle, middle))
        self.stage3 = nn.Sequential(ConvNorm(middle, coarse, 3, 2), C2f(coarse, coarse), Sppf(coarse))
        self.up = nn.Upsample(scale_factor=2)
        self.up_middle = C2f(coarse + middle, middle, adds=False)
        self.up_fine = C2f(middle + fine, fine, adds=False)
        self.down_fine = ConvNorm(fine, fine, 3, 2)
        self.down_middle = C2f(fine + middle, middle, adds=False)
        self.shrink_middle = ConvNorm(middle, middle, 3, 2)
        self.down_coarse = C2f(middle + coarse, coarse, adds=False)
        self.heads = nn.ModuleList(Head(inputs, fine, classes) for inputs in (fine, middle, coarse))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, H, W) -> a map for each of the strides 4, 8, 16: (N, 4 * BINS + classes, H / 4, W / 4) and
        so on.

        The first 4 * BINS channels are logits of the distances to the left, upper, right and lower side, the
        others logits of the classes.
        """
        fine = self.stem(x)
        middle = self.stage2(fine)
        coarse = self.stage3(middle)
        middle = self.up_middle(torch.cat([self.up(coarse), middle], dim=1))
        fine = self.up_fine(torch.cat([self.up(middle), fine], dim=1))
        middle = self.down_middle(torch.cat([self.down_fine(fine), middle], dim=1))
        coarse = self.down_coarse(torch.cat([self.shrink_middle(middle), coarse], dim=1))
        at_fine, at_middle, at_coarse = self.heads
        return at_fine(fine), at_middle(middle), at_coarse(coarse)


def detector(classes: int = 10, width: int = 12) -> Detector:
    """A detector of the YOLO type for images 3xHxW whose sides are multiples of 16: 205,074 parameters with
    10 classes.

    width: channels of the first convolution; every other layer has a multiple of it. Train it with
    `sparsify.objective.detection.loss:detection_loss`, judge it by
    `sparsify.objective.detection.mean_precision:MeanAveragePrecision`.
    """
    return Detector(classes, width)
