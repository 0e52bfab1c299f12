"""Channels that fall into equal groups, of a GroupNorm or of a grouped convolution: which side leaves.

Either whole groups leave, and the layer has fewer of them, or the same places of all groups, and the layer's
groups are narrower. Layers that share channels take one side together: that which leaves more units, whole
groups where both leave equally many.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Leaving = Literal["most units", "whole groups", "places"]
"""what leaves: what gives the most units, whole groups, or the same places of all groups"""
Joins = Sequence[tuple[Ints, Ints]]
"""labels at the same place of the two are removed together"""


@dataclass(frozen=True)
class ChannelGroups:
    """The channels that a layer reads, by its groups, and what is joined on either side."""

    channels: Ints
    """labels: [groups, channels of a group]"""
    whole: Joins
    """what is joined where whole groups leave"""
    places: Joins
    """what is joined where the same places of all groups leave"""
    has_statistics: bool
    """whether each group has a statistic over its channels, so that a cut inside of it changes them"""
    inside: Ints | None = None
    """labels of places in every group that belong to no group, and stay where whole groups leave"""
    stays: tuple[Ints | None, Ints | None] = (None, None)
    """labels beside them that stay where whole groups leave, and where places leave"""
    why_stays: str = ""
    is_field: bool = False
    """whether the groups are heads that share their places: a side on which neither can leave is not taken"""

    def join_fixed(self) -> tuple[Joins, Joins]:
        """What is joined on either side, with what stays joined to label 0, which no cut touches."""
        sides = []
        for joins, own in zip((self.whole, self.places), self.stays, strict=True):
            fixed = [] if own is None else [(own, np.zeros(1, np.int64))]
            sides.append([*joins, *fixed])
        return sides[0], sides[1]


@dataclass(frozen=True)
class Side:
    """The classes of all labels where every layer takes one side."""

    classes: Ints
    is_fixed: NDArray[np.bool_]
    """whether each class must stay"""

    def count_units(self, own: ChannelGroups) -> int:
        """Units that can leave among the channels."""
        found = np.unique(self.classes[own.channels])
        return int((~self.is_fixed[found]).sum())


def choose_sides(
    groups: Sequence[ChannelGroups],
    touching: Ints,
    whole: Side,
    places: Side,
    leaving: Leaving = "most units",
) -> Sequence[bool]:
    """Whether whole groups leave, for each.

    touching: label -> the set of labels that it could be joined with, on either side.
    """
    if leaving != "most units":
        return [leaving == "whole groups"] * len(groups)
    together: dict[int, list[ChannelGroups]] = defaultdict(list)
    sets = [int(touching[own.channels].max()) for own in groups]  # of what must stay it is 0
    for number, own in zip(sets, groups, strict=True):
        together[number].append(own)
    leaves_whole = {}
    for number, members in together.items():
        fields = [own for own in members if own.is_field]
        one, other = _count_open(whole, fields), _count_open(places, fields)
        more = _count(whole, members) >= _count(places, members)
        leaves_whole[number] = more if one == other else one > other
    return [leaves_whole[number] for number in sets]


def _count_open(side: Side, groups: Sequence[ChannelGroups]) -> int:
    """How many of them can lose units."""
    return sum(side.count_units(own) > 1 for own in groups)


def _count(side: Side, groups: Sequence[ChannelGroups]) -> int:
    return sum(map(side.count_units, groups))
