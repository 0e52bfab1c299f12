"""Examples: inputs with their targets, as stored; and the three sets of a recipe's data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Examples:
    """N inputs and their classes. Pixels stay bytes until a batch is made, in a quarter of the memory.

    `ready` converts to what a model takes: uint8 becomes x / 255; then (x - mean) / std per channel, if
    given.
    """

    inputs: Tensor
    """(N, C, H, W), (N, F) or any (N, ...), as stored"""
    targets: Tensor
    """(N,) int64"""
    mean: tuple[float, ...] = ()
    """Per channel, of pixels in 0..1; () for no normalisation."""
    std: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor | Sequence[int] | slice) -> "Examples":
        """The selected examples."""
        if not isinstance(index, Tensor | slice):
            index = torch.tensor(index, dtype=torch.int64)
        return replace(self, inputs=self.inputs[index], targets=self.targets[index])

    def ready(self) -> Tensor:
        """All inputs as a model takes them: float32, except whole numbers that are not pixels."""
        x = self.inputs
        if x.dtype == torch.uint8:
            x = x.float().div_(255)
        if self.mean:
            shape = (-1,) + (1,) * (x.ndim - 2)
            x = (x - torch.tensor(self.mean).view(shape)).div_(torch.tensor(self.std).view(shape))
        return x


@dataclass(frozen=True, eq=False)
class Datasets:
    """The data of a recipe: to train on, to make choices by, and to read once at the end."""

    train: Examples
    validation: Examples
    test: Examples
    classes: int
