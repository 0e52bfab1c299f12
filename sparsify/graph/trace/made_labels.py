"""Labels that a forward call makes, beside those of parameters and buffers, and which of them leave."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class GroupOutputs:
    """Output channels of a transposed convolution whose channels fall into groups.

    No index of its weight is one of them: they leave with whole groups, or with places in all groups.
    """

    made: Ints
    """their labels: [groups, outputs of a group]"""
    read: Ints
    """labels of its inputs: [groups, inputs of a group]"""
    places: Ints | None
    """labels of the places in a group; None if each group has one output"""

    def spread(self, marks: Tensor, none: int | bool) -> Tensor:
        """The marks of `made`: of the one unit that all inputs of a group leave with, or of the place."""
        read = marks[torch.from_numpy(self.read)]
        together = (read == read[:, :1]).all(1)
        whole = torch.where(together, read[:, 0], torch.full_like(read[:, 0], none))
        left = whole[:, None].expand(self.made.shape)
        if self.places is None:
            return left
        inside = marks[torch.from_numpy(self.places)].expand(self.made.shape)
        return torch.where(inside == none, left, inside)


@dataclass(frozen=True)
class MergedPlaces:
    """One dimension that heads and the places of all heads were flattened into."""

    made: Ints
    """its labels: [heads, places]"""
    heads: Ints
    places: Ints

    def spread(self, marks: Tensor, none: int | bool) -> Tensor:
        """The marks of `made`: of the head, or of the place."""
        of_heads = marks[torch.from_numpy(self.heads)][:, None].expand(self.made.shape)
        of_places = marks[torch.from_numpy(self.places)].expand(self.made.shape)
        return torch.where(of_places == none, of_heads, of_places)


def extend_marks(
    marks: Tensor, count: int, made: Sequence[GroupOutputs | MergedPlaces], none: int | bool
) -> Tensor:
    """Marks of labels, extended to `count` labels by those that were made since.

    marks: label -> number of the unit that leaves with it, or whether it leaves. none: the mark of what
    stays.
    """
    if len(marks) >= count:
        return marks
    before = len(marks)
    found = torch.cat([marks, marks.new_full((count - before,), none)])
    for own in made:
        if int(own.made[0, 0]) >= before:
            found[torch.from_numpy(own.made)] = own.spread(found, none)
    return found
