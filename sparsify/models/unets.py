"""A small U-Net: what the way down saw is concatenated to what comes back up."""

import torch
from torch import Tensor, nn


class TwoConvs(nn.Module):
    """Convolution of 3x3, batch normalisation, ReLU, twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        x = self.relu(self.norm1(self.conv1(x)))
        y: Tensor = self.relu(self.norm2(self.conv2(x)))
        return y


class UNet(nn.Module):
    """Three levels; the middle ones are halved by pooling and doubled by transposed convolutions."""

    def __init__(self, classes: int = 2, width: int = 16, channels: int = 3) -> None:
        super().__init__()
        self.down1 = TwoConvs(channels, width)
        self.down2 = TwoConvs(width, 2 * width)
        self.bottom = TwoConvs(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.join2 = TwoConvs(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join1 = TwoConvs(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W), sides multiples of 4 -> logits (N, classes, H, W)."""
        fine = self.down1(x)
        middle = self.down2(self.pool(fine))
        bottom = self.bottom(self.pool(middle))
        middle = self.join2(torch.cat([self.up2(bottom), middle], dim=1))
        fine = self.join1(torch.cat([self.up1(middle), fine], dim=1))
        logits: Tensor = self.head(fine)
        return logits


def unet(classes: int = 2, width: int = 16, channels: int = 3) -> UNet:
    """A U-Net of three levels for images whose sides are multiples of 4: 117,378 parameters with 2 classes.

    width: channels of the finest level. Source: Ronneberger et al., arXiv:1505.04597, with batch
    normalisation and padding.
    """
    return UNet(classes, width, channels)
