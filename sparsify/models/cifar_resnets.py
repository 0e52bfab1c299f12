"""ResNets for CIFAR: He et al., Deep Residual Learning for Image Recognition (arXiv:1512.03385, sec. 4.2)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shortcut = Literal["A", "B"]


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zeros for the channels that are new. No parameters.

    (N, C, H, W) -> (N, C + 2 pad, H/2, W/2)
    """

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride, shortcut)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(branch + self.shortcut(x))
        return out


def _shortcut(inputs: int, outputs: int, stride: int, kind: Shortcut) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if kind == "A":
        return PadShortcut((outputs - inputs) // 2)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class CifarResNet(nn.Module):
    """Three stages of `blocks` blocks with 16, 32 and 64 channels, global average pooling, one Linear."""

    def __init__(self, blocks: int, shortcut: Shortcut, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks, 16, 16, 1, shortcut)
        self.layer2 = _stage(blocks, 16, 32, 2, shortcut)
        self.layer3 = _stage(blocks, 32, 64, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def _stage(blocks: int, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)))


def cifar_resnet(
    depth: int, shortcut: Shortcut = "A", classes: int = 10, channels_last: bool = False
) -> CifarResNet:
    """A CIFAR ResNet of depth 6n + 2.

    shortcut: A pads with zeros, B is a 1x1 convolution with batch normalisation.

    channels_last: weights in that order of memory; with `precision: bf16` a CPU trains about twice as fast.
    Raises ValueError for another depth or shortcut. Source: arXiv:1512.03385, section 4.2.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth is 6n + 2, such as 20, 32, 44, 56 or 110, not {depth}")
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut is 'A' (zero padding) or 'B' (1x1 convolution), not {shortcut!r}")
    model = CifarResNet((depth - 2) // 6, shortcut, classes)
    order = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=order)  # type: ignore[call-overload]
    return model


def cifar_resnet20(shortcut: Shortcut = "A", classes: int = 10, channels_last: bool = False) -> CifarResNet:
    """ResNet-20: 269,722 parameters with shortcut A and 10 classes (272,474 with B).

    Source: arXiv:1512.03385, table 6.
    """
    return cifar_resnet(20, shortcut, classes, channels_last)


def cifar_resnet32(shortcut: Shortcut = "A", classes: int = 10, channels_last: bool = False) -> CifarResNet:
    """ResNet-32: 464,154 parameters with shortcut A and 10 classes (466,906 with B).

    Source: arXiv:1512.03385, table 6.
    """
    return cifar_resnet(32, shortcut, classes, channels_last)


def cifar_resnet44(shortcut: Shortcut = "A", classes: int = 10, channels_last: bool = False) -> CifarResNet:
    """ResNet-44: 658,586 parameters with shortcut A and 10 classes (661,338 with B).

    Source: arXiv:1512.03385, table 6.
    """
    return cifar_resnet(44, shortcut, classes, channels_last)


def cifar_resnet56(shortcut: Shortcut = "A", classes: int = 10, channels_last: bool = False) -> CifarResNet:
    """ResNet-56: 853,018 parameters with shortcut A and 10 classes (855,770 with B).

    Source: arXiv:1512.03385, table 6.
    """
    return cifar_resnet(56, shortcut, classes, channels_last)
