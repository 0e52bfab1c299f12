"""What removing inputs of a layer costs after the best refit of the others, and the layer that is left."""

import torch
from torch import Tensor

SHRINK = 0.75
"""share of the columns below which matrices are made smaller"""


class Surgeon:
    """One layer that reads the group: as units go, its weight W, the inverse of H, and each unit's cost.

    The cost of unit u with the columns a of the input is tr(B^-1 P), B = H^-1[a, a], P = W[a] G W[a]'. When
    unit v leaves, W[a] loses K W[v] with K = H^-1[a, v] H^-1[v, v]^-1, so that with C = W[a] G W[v]' and
    D = W[v] G W[v]'

        P <- P - K C' - C K' + K D K'
    """

    def __init__(
        self, weight: Tensor, inputs: Tensor, curvature: Tensor, columns: tuple[Tensor, ...], ridge: float
    ) -> None:
        diagonal = inputs.diagonal()
        strength = ridge * float(diagonal.mean()) or ridge
        damped = inputs + strength * torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
        self.inverse = torch.linalg.inv(damped)
        self.weight = weight.clone()
        self.curvature = curvature
        # Units with fewer columns than others are filled up by a row of zeros, which costs nothing.
        taps = max((len(own) for own in columns), default=0)
        padded = [torch.cat([own, own.new_full((taps - len(own),), len(weight))]) for own in columns]
        self.index = torch.stack(padded).to(weight.device)
        self.living = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        self.products = self._rows(weight @ curvature) @ self._rows(weight).transpose(1, 2)

    def costs(self, left: Tensor) -> Tensor:
        """What removing each of the units alone would cost now: [units]."""
        blocks = self._blocks(left)
        products = self.products[left]
        solved = products / blocks if blocks.shape[1] == 1 else torch.linalg.solve(blocks, products)
        costs: Tensor = solved.diagonal(dim1=1, dim2=2).sum(1)
        return costs

    def remove(self, units: Tensor) -> float:
        """Leave the units' columns out, all at once, and refit the others; returns what that costs."""
        at = self.index[units.to(self.index.device)].flatten()
        at = at[at < len(self.weight)]
        if not len(at):
            return 0.0
        own = self.weight[at]
        block = self.inverse[at][:, at]
        gain = torch.linalg.solve(block, self.inverse[at]).T  # K, of all columns
        weighed = self.curvature @ own.T
        cost = float((torch.linalg.solve(block, own) * weighed.T).sum())
        gains, crossed = self._rows(gain), self._rows(self.weight @ weighed)
        mixed = gains @ crossed.transpose(1, 2)
        self.products += gains @ (own @ weighed) @ gains.transpose(1, 2) - mixed - mixed.transpose(1, 2)
        self.weight -= gain @ own
        self.weight[at] = 0
        self.inverse -= gain @ self.inverse[at]
        self.inverse[at] = 0
        self.inverse[:, at] = 0
        self.living[at] = False
        if int(self.living.sum()) < SHRINK * len(self.living):
            self._drop_columns()
        return cost

    def _drop_columns(self) -> None:
        """Leave out the columns that are zero: every step costs as much as the matrices are large."""
        stay = self.living.nonzero().flatten()
        number = torch.full((len(self.living) + 1,), len(stay), device=stay.device)  # others fill up
        number[stay] = torch.arange(len(stay), device=stay.device)
        self.index = number[self.index]
        self.weight = self.weight[stay]
        self.inverse = self.inverse[stay][:, stay]
        self.living = self.living[stay]

    def _rows(self, matrix: Tensor) -> Tensor:
        """The rows of each unit: [units, columns of a unit, columns of the matrix]."""
        return torch.cat([matrix, matrix.new_zeros(1, matrix.shape[1])])[self.index]

    def _blocks(self, units: Tensor) -> Tensor:
        """B of each unit; ones on the diagonal where a unit has fewer columns than others."""
        index = self.index[units]
        there = index < len(self.weight)
        safe = index.where(there, 0)
        blocks = self.inverse[safe[:, :, None], safe[:, None, :]]
        both = there[:, :, None] & there[:, None, :]
        filled: Tensor = blocks.where(
            both, torch.eye(index.shape[1], dtype=blocks.dtype, device=blocks.device)
        )
        return filled
