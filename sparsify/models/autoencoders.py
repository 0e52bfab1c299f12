"""A convolutional autoencoder of 28x28 images."""

from torch import Tensor, nn


class Autoencoder(nn.Module):
    """Two strided convolutions to a code of a few numbers, and two transposed ones back."""

    def __init__(self, code: int = 32, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.conv1 = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.to_code = nn.Linear(2 * width * 49, code)
        self.from_code = nn.Linear(code, 128)
        self.grid = nn.Linear(128, 49 * 16)
        self.up1 = nn.ConvTranspose2d(16, 2 * width, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) -> the same shape; pixels are about 0 to 1."""
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        code = self.to_code(x.flatten(1))
        y = self.relu(self.from_code(code))
        y = self.relu(self.grid(y)).view(-1, 16, 7, 7)
        y = self.relu(self.up1(y))
        image: Tensor = self.last(self.relu(self.up2(y)))
        return image


def autoencoder(code: int = 32, width: int = 16) -> Autoencoder:
    """A convolutional autoencoder for images 1x28x28: 176,945 parameters with a code of 32 numbers.

    width: channels of the first convolution.
    """
    return Autoencoder(code, width)
