"""Scores of units from the curve of errors that their removal one after another gives."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

RANK = 1e-9
"""relative step between units of one slope, so that they go in the order in which they were removed"""


def score_by_curve(order: Sequence[int], errors: Sequence[float], rest: Sequence[int] = ()) -> Tensor:
    """Score of each unit, [units] in float64: the slope of the curve's lower convex hull where it goes.

    Taking units of all groups by score per cost is then choosing by one Lagrange multiplier.

    Args:
        order: units in the order in which they were removed.
        errors: without the first 0, 1, 2, ... of them.
        rest: units that were not removed; they score as the last of the others, and leave behind it.

    >>> score_by_curve([2, 0, 1], [0.0, 1.0, 3.0, 7.0]).round(decimals=6)
    tensor([2., 4., 1.], dtype=torch.float64)
    """
    slopes = hull_slopes(errors)
    last = slopes[-1] if slopes else 0.0
    scores = torch.empty(len(order) + len(rest), dtype=torch.float64)
    every = [*zip(order, slopes, strict=True), *((unit, last) for unit in rest)]
    for rank, (unit, slope) in enumerate(every):
        scores[unit] = slope * (1 + RANK * rank)
    return scores


def hull_slopes(errors: Sequence[float]) -> list[float]:
    """Slopes of the lower convex hull of a curve, one for each step: they never fall.

    >>> hull_slopes([0.0, 3.0, 4.0, 9.0])
    [2.0, 2.0, 5.0]
    """
    corners: list[int] = []
    for index, error in enumerate(errors):
        while len(corners) > 1:
            first, second = corners[-2], corners[-1]
            before = (errors[second] - errors[first]) * (index - first)
            direct = (error - errors[first]) * (second - first)
            if before < direct:
                break
            corners.pop()
        corners.append(index)
    slopes: list[float] = []
    for first, second in pairwise(corners):
        slopes += [(errors[second] - errors[first]) / (second - first)] * (second - first)
    return slopes
