"""Inputs of the same kind as given ones, drawn anew."""

from collections.abc import Mapping

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...] | Mapping[str, Tensor]


def redraw(inputs: Inputs, seed: int, batch: int | None = None) -> Inputs:
    """New inputs independent of the given ones but for their shape, spread and range.

    batch: the number of examples, in every tensor whose first dimension is that of the first tensor.
    """
    generator = torch.Generator().manual_seed(seed)
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    lead = next((v.shape[0] for v in values if v.dim()), None)

    def drawn(value: Tensor) -> Tensor:
        shape = list(value.shape)
        if batch is not None and shape and shape[0] == lead:
            shape[0] = batch
        return _like(value, shape, generator)

    if isinstance(inputs, Mapping):
        return {key: drawn(value) for key, value in inputs.items()}
    return tuple(drawn(value) for value in inputs)


def _like(value: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    if value.dtype == torch.bool:
        return (torch.rand(shape, generator=generator) < 0.5).to(value.device)
    if not value.numel():
        return value.clone()
    if not value.is_floating_point():
        first, last = int(value.min()), int(value.max())
        return torch.randint(first, last + 1, shape, generator=generator).to(value)
    low, high = float(value.min()), float(value.max())
    if low >= 0:
        return (low + (high - low) * torch.rand(shape, generator=generator)).to(value)
    spread = float(value.float().std()) if value.numel() > 1 else 1.0
    return (float(value.float().mean()) + (spread or 1.0) * torch.randn(shape, generator=generator)).to(value)
