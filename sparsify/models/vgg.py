"""VGG-16 with batch normalisation for images of 32x32."""

from torch import Tensor, nn

_PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""channels of the convolutions; 0 is a pooling"""


class CifarVgg(nn.Module):
    """Thirteen 3x3 convolutions, five poolings, and two Linear layers with a batch normalisation between
    them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in _PLAN:
            if width:
                convolution = nn.Conv2d(inputs, width, 3, padding=1)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(), nn.Linear(512, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def cifar_vgg16(classes: int = 10) -> CifarVgg:
    """VGG-16: 14,991,946 parameters with 10 classes.

    Names of the features as torchvision's vgg16_bn has them. Source: arXiv:1409.1556, configuration D; the
    head as usual for CIFAR-10 (Liu and Deng, ACPR 2015).
    """
    return CifarVgg(classes)
