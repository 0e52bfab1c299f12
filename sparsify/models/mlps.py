"""A network of fully connected layers, for rows of numbers."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, widths[0]) -> (N, widths[-1])."""
        for layer in self.layers[:-1]:
            x = self.relu(layer(x))
        y: Tensor = self.layers[-1](x)
        return y


def mlp(widths: Sequence[int] = (784, 100, 10)) -> Mlp:
    """Fully connected layers of these widths, from the inputs to the outputs, with ReLU between them.

    79,510 parameters with the widths 784, 100, 10.

    Raises ValueError with fewer than two widths.
    """
    if len(widths) < 2:
        raise ValueError(f"an mlp needs the widths of its inputs and outputs at least, not {list(widths)}")
    return Mlp(widths)
