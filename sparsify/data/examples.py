"""Examples: inputs with their targets, as stored; and the three sets of a recipe's data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparsify.data.columns import (
    IGNORED,
    Column,
    Varied,
    add_masks,
    as_values,
    count_examples,
    map_parts,
    pad,
    select,
)

Read = Callable[[Tensor, int], "Examples"]
"""(numbers of examples, seed of what is random in them) -> the examples, in memory"""
Collate = Callable[[list[tuple[Any, Any]]], tuple[Any, Any]]
"""list of (inputs, targets) of one example each -> (inputs, targets) of a batch"""


@dataclass(frozen=True, eq=False)
class Examples:
    """N inputs and their targets. Pixels stay bytes until a batch is made, in a quarter of the memory.

    `batch` converts to what a model takes: uint8 becomes x / 255; then (x - mean) / std per channel, if
    given; sequences and images of different sizes are padded.
    """

    inputs: Column
    """(N, C, H, W), (N, F) or any (N, ...), as stored; a mapping or tuple of these for models with several
    inputs"""
    targets: Column
    """(N,) int64 for classes; whatever else the task takes"""
    mean: tuple[float, ...] = ()
    """Per channel, of pixels in 0..1; () for no normalisation."""
    std: tuple[float, ...] = ()
    collate: Collate | None = None
    """makes a batch in place of stacking and padding"""
    pads_targets: bool = True
    """whether targets of different sizes are padded with -100; else a batch holds a list of them"""
    read: Read | None = None
    """reads examples when they are needed; `inputs` and `targets` then hold their numbers"""
    workers: int = 0
    """processes that make batches"""
    pin: bool = False
    """whether batches lie in page-locked memory where there is an accelerator"""

    def __len__(self) -> int:
        return count_examples(self.targets)

    def __getitem__(self, index: Tensor | Sequence[int] | slice) -> "Examples":
        """The selected examples."""
        if not isinstance(index, Tensor | slice):
            index = torch.tensor(index, dtype=torch.int64)
        return replace(self, inputs=select(self.inputs, index), targets=select(self.targets, index))

    def loaded(self, seed: int = 0) -> "Examples":
        """The examples in memory, as stored. seed: of what is random in those that are read now."""
        if self.read is None:
            return self
        found = self.read(self.targets, seed)
        return replace(found, mean=self.mean, std=self.std, collate=self.collate)

    def ready(self) -> Any:
        """All inputs as a model takes them: real numbers as float32, except whole numbers that are not
        pixels."""
        return self.batch()[0]

    def batch(self) -> tuple[Any, Any]:
        """All examples as one batch: (inputs, targets)."""
        if self.read is not None:
            return self.loaded().batch()
        if self.collate is not None:
            inputs = self._converted(self.inputs) if self.mean else self.inputs
            return self.collate(list(zip(_items(inputs), _items(self.targets), strict=True)))
        inputs = pad(self._converted(add_masks(self.inputs)), 0)
        targets = pad(self.targets, IGNORED) if self.pads_targets else self.targets
        return as_values(inputs), as_values(targets)

    def _converted(self, x: Column) -> Column:
        if isinstance(x, Varied):
            return Varied(tuple(self._converted_item(item) for item in x.items))
        if not isinstance(x, Tensor):
            return map_parts(x, self._converted)
        if x.dtype == torch.uint8:
            x = x.float().div_(255)
        if self.mean and x.is_floating_point():
            shape = (-1,) + (1,) * (x.ndim - 2)
            x = (x - torch.tensor(self.mean).view(shape)).div_(torch.tensor(self.std).view(shape))
        return x

    def _converted_item(self, item: Any) -> Any:
        return self._converted(item[None])[0] if isinstance(item, Tensor) and item.dim() else item


def _items(column: Column) -> list[Any]:
    """The values of a column, one for each example."""
    if isinstance(column, Tensor):
        return list(column)
    if isinstance(column, Varied):
        return list(column.items)
    if isinstance(column, Mapping):
        by_name = {name: _items(part) for name, part in column.items()}
        return [dict(zip(by_name, values, strict=True)) for values in zip(*by_name.values(), strict=True)]
    return list(zip(*map(_items, column), strict=True))


@dataclass(frozen=True, eq=False)
class Datasets:
    """The data of a recipe: to train on, to make choices by, and to read once at the end."""

    train: Examples
    validation: Examples
    test: Examples
    classes: int
    """of a classification; 0 for other tasks"""
