"""Datasets that are read item by item, with and without chance, as a user's own module has them."""

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

READ: list[int] = []
"""numbers of the examples that this process has read"""


class Rows(Dataset[Any]):
    """Four numbers and their class, of three."""

    def __init__(self, length: int, noise: float = 0.0) -> None:
        self.length, self.noise = length, noise

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        READ.append(number)
        x = torch.randn(4, generator=torch.Generator().manual_seed(number))
        chance = torch.rand(4) + random.random() + float(np.random.rand())
        return x + self.noise * chance, int(x[:3].argmax())


class Broken(Rows):
    """Fails at one example."""

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if number == 77:
            raise ValueError("no such file")
        return super().__getitem__(number)


class Endless(IterableDataset[Any]):
    """Rows without an end, of which a number is asked for."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        rows = Rows(0)
        return (rows[number] for number in count())


class Short(Endless):
    """Ends before it says so."""

    def __iter__(self) -> Iterator[Any]:
        rows = Rows(0)
        return (rows[number] for number in range(self.length - 2))


def rows() -> Any:
    """Without chance."""
    return Rows(120), Rows(30)


def noisy() -> Any:
    """With chance from every generator that people use."""
    return Rows(120, 0.1), Rows(30, 0.1)


def broken() -> Any:
    """One example cannot be read."""
    return Broken(120), Broken(30)


def empty() -> Any:
    """No examples."""
    return Rows(0), Rows(0)


def endless() -> Any:
    """An endless set with a stated length."""
    return Endless(60), Endless(20)


def short() -> Any:
    """A set that is shorter than it says."""
    return Short(60), Short(20)


def arrays() -> Any:
    """In memory already."""
    return (torch.randn(20, 4), torch.arange(20) % 3), (torch.randn(20, 4), torch.arange(20) % 3)
