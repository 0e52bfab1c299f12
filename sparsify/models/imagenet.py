"""AlexNet: Krizhevsky, One weird trick for parallelizing convolutional neural networks (arXiv:1404.5997)."""

from torch import Tensor, nn


class AlexNet(nn.Module):
    """Five convolutions and three Linear layers; names and shapes as in torchvision."""

    def __init__(self, classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(256 * 36, 4096), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(4096, 4096), nn.ReLU(),
            nn.Linear(4096, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) with H and W of 63 or more, 224 as a rule -> (N, classes)."""
        x = self.avgpool(self.features(x))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def alexnet(classes: int = 1000, dropout: float = 0.5) -> AlexNet:
    """AlexNet without groups: 61,100,840 parameters and 714,188,480 MACs with 1000 classes.

    Loads torchvision's weights.

    Source: arXiv:1404.5997; torchvision.models.alexnet.
    """
    return AlexNet(classes, dropout)
