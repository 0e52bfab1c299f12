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


def extend_marks(marks: Tensor, count: int, outputs: Sequence[GroupOutputs], none: int | bool) -> Tensor:
    """Marks of labels, extended to `count` labels by those that were made since.

    marks: label -> number of the unit that leaves with it, or whether it leaves. none: the mark of what
    stays.
    Outputs of a group leave with the one unit that all of its inputs leave with, or with their place.
    """
    if len(marks) >= count:
        return marks
    before = len(marks)
    found = torch.cat([marks, marks.new_full((count - before,), none)])
    for own in outputs:
        if int(own.made[0, 0]) < before:
            continue
        read = found[torch.from_numpy(own.read)]
        together = (read == read[:, :1]).all(1)
        whole = torch.where(together, read[:, 0], torch.full_like(read[:, 0], none))
        left = whole[:, None].expand(own.made.shape).clone()
        if own.places is not None:
            inside = found[torch.from_numpy(own.places)].expand(own.made.shape)
            left = torch.where(inside == none, left, inside)
        found[torch.from_numpy(own.made)] = left
    return found
