"""Boxes (x1, y1, x2, y2) in pixels: their overlap, and how the maps of a detector state them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparsify.models.detectors import BINS, STRIDES

_TINY = 1e-7
"""keeps a division by an area or a length of zero finite"""


@dataclass(frozen=True)
class Predictions:
    """What a detector says of N images, in all A cells of its maps."""

    distances: Tensor
    """[N, A, 4, BINS], logits of the distance to the left, upper, right and lower side, in strides"""
    scores: Tensor
    """[N, A, classes], logits"""
    centres: Tensor
    """[A, 2], x and y in pixels"""
    strides: Tensor
    """[A], pixels"""

    @property
    def boxes(self) -> Tensor:
        """[N, A, 4] in pixels: each distance is the mean of its distribution."""
        bins = torch.arange(BINS, device=self.distances.device, dtype=self.distances.dtype)
        sides = (self.distances.softmax(dim=-1) * bins).sum(dim=-1) * self.strides[:, None]
        low = self.centres - sides[..., :2]
        high = self.centres + sides[..., 2:]
        return torch.cat([low, high], dim=-1)


def read_maps(maps: Sequence[Tensor]) -> Predictions:
    """The maps of a detector, one for each of its strides, cell by cell: row by row, the finest map first.

    Raises ValueError where there are not as many maps as strides.
    """
    if not isinstance(maps, tuple | list) or len(maps) != len(STRIDES):
        raise ValueError(
            f"a detector returns a map for each of the strides {', '.join(map(str, STRIDES))}; "
            f"this one returns a {type(maps).__name__}"
        )
    cells = torch.cat([one.flatten(2) for one in maps], dim=2).transpose(1, 2)
    distances = cells[..., : 4 * BINS].reshape(*cells.shape[:2], 4, BINS)
    places = [_place_cells(one, stride) for one, stride in zip(maps, STRIDES, strict=True)]
    centres = torch.cat([centre for centre, _ in places])
    strides = torch.cat([stride for _, stride in places])
    return Predictions(distances, cells[..., 4 * BINS :], centres, strides)


def _place_cells(one: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """(centres [H * W, 2], strides [H * W]) of the cells of a map."""
    height, width = one.shape[2:]
    y = (torch.arange(height, device=one.device, dtype=one.dtype) + 0.5) * stride
    x = (torch.arange(width, device=one.device, dtype=one.dtype) + 0.5) * stride
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([columns, rows], dim=-1).view(-1, 2)
    return centres, torch.full((len(centres),), float(stride), device=one.device, dtype=one.dtype)


def objects_of(targets: Any) -> list[tuple[Tensor, Tensor]]:
    """(boxes [objects, 4], labels [objects]) of each image.

    targets: a list of mappings with `boxes` and `labels`, or a mapping of lists. Raises ValueError where
    they are neither.
    """
    if isinstance(targets, Mapping):
        parts = [targets]
        pairs = list(zip(targets.get("boxes", ()), targets.get("labels", ()), strict=True))
    else:
        parts = list(targets)
        pairs = [(part["boxes"], part["labels"]) for part in parts if _is_object(part)]
    if not all(_is_object(part) for part in parts):
        raise ValueError("targets of a detector are, for each image, a mapping with 'boxes' and 'labels'")
    return [(boxes.float().view(-1, 4), labels.long().view(-1)) for boxes, labels in pairs]


def _is_object(part: Any) -> bool:
    return isinstance(part, Mapping) and "boxes" in part and "labels" in part


def areas(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...]; zero where a side has no length."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] that broadcast against each other: [...]."""
    low = torch.maximum(one[..., :2], other[..., :2])
    high = torch.minimum(one[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    return shared / (areas(one) + areas(other) - shared + _TINY)


def complete_overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union less what separates centres and proportions (CIoU): [...], at most 1.

        IoU - d^2 / c^2 - a * v        d: between the centres, c: diagonal of the box around both
        v = 4 / pi^2 * (atan(w / h) - atan(w' / h'))^2        a = v / (1 - IoU + v), without a gradient

    Source: Zheng et al., arXiv:1911.08287.
    """
    shared = overlap(one, other)
    around = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    apart = (one[..., :2] + one[..., 2:] - other[..., :2] - other[..., 2:]) / 2
    far = apart.square().sum(dim=-1) / (around.square().sum(dim=-1) + _TINY)
    difference = _slant(one) - _slant(other)
    v = 4 / math.pi**2 * difference.square()
    with torch.no_grad():
        a = v / (1 - shared + v + _TINY)
    return shared - far - a * v


def _slant(boxes: Tensor) -> Tensor:
    size = boxes[..., 2:] - boxes[..., :2]
    return torch.atan(size[..., 0] / (size[..., 1] + _TINY))


def keep_apart(boxes: Tensor, scores: Tensor, labels: Tensor, limit: float, most: int) -> Tensor:
    """Numbers of the boxes that stay, best first: one that overlaps a better one of its class by more than
    `limit` goes.

    boxes: [K, 4]; scores, labels: [K]; most: how many stay at most.
    """
    order = scores.argsort(descending=True, stable=True)
    same = labels[order, None] == labels[order]
    rivals = ((overlap(boxes[order, None], boxes[order]) > limit) & same).cpu().numpy()
    gone = np.zeros(len(order), dtype=bool)
    kept: list[int] = []
    for place in range(len(order)):
        if gone[place]:
            continue
        kept.append(place)
        gone |= rivals[place]
        if len(kept) == most:
            break
    return order[torch.tensor(kept, dtype=torch.int64, device=boxes.device)]


def distance_losses(distances: Tensor, wanted: Tensor) -> Tensor:
    """Distribution focal loss: cross-entropy with the two whole numbers around a distance, by how near they
    are.

    distances: logits [..., BINS]; wanted: [...] in strides, from 0 to BINS - 1. Source: arXiv:2006.04388.
    """
    wanted = wanted.clamp(0, BINS - 1.01)
    below = wanted.floor()
    share = wanted - below
    likely = functional.log_softmax(distances, dim=-1)
    low = likely.gather(-1, below.long()[..., None])[..., 0]
    high = likely.gather(-1, below.long()[..., None] + 1)[..., 0]
    return -(1 - share) * low - share * high
