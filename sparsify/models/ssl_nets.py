"""Small networks of Wen et al., Learning Structured Sparsity in Deep Neural Networks (arXiv:1608.03665)."""

import torch
from torch import Tensor, nn


class SslMlp(nn.Module):
    """784-500-300-classes with ReLU; images are flattened."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 500)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(500, 300)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(300, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) or (N, 784) -> (N, classes)."""
        x = self.relu1(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc3(self.relu2(self.fc2(x)))
        return logits


class SslConvNet(nn.Module):
    """Caffe's cifar10_full without its two normalisations (local response, within a channel).

    Torch has no such layer, and torch's own, across channels, depends on the number of channels that are
    left.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5, padding=2)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.AvgPool2d(3, stride=2, ceil_mode=True)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.relu3 = nn.ReLU()
        self.pool3 = nn.AvgPool2d(3, stride=2, ceil_mode=True)
        self.fc1 = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, classes)."""
        x = self.relu1(self.pool1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.pool3(self.relu3(self.conv3(x)))
        logits: Tensor = self.fc1(x.flatten(1))
        return logits


def ssl_mlp(classes: int = 10) -> SslMlp:
    """The MLP of the SSL paper, 784-500-300-10: 545,810 parameters with 10 classes.

    Source: arXiv:1608.03665, table 2.
    """
    return SslMlp(classes)


def ssl_convnet(classes: int = 10, channels_last: bool = False) -> SslConvNet:
    """The ConvNet of the SSL paper, convolutions 32-32-64 for 32x32 images.

    89,578 parameters with 10 classes.

    channels_last: weights in that order of memory; with `precision: bf16` a CPU trains about twice as fast.
    Source: arXiv:1608.03665, section 4.2; caffe/examples/cifar10/cifar10_full_train_test.prototxt. The two
    local response normalisations are left out (see the class).
    """
    model = SslConvNet(classes)
    order = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=order)  # type: ignore[call-overload]
    return model
