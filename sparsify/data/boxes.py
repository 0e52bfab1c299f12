"""Boxes of objects, which move with their images.

Targets of a detector are a mapping with `boxes`, [objects, 4] of each example as x1, y1, x2, y2 in pixels,
and further columns with a row for each object, such as `labels`: the layout of torchvision's detectors.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.data.columns import Column, Varied

BOXES = "boxes"
LEAST_SIDE = 1
"""pixels: an object of which less is left in the image, in width or height, is gone"""
_OF_THE_IMAGE = ("image_id",)
"""columns that say something of the image, whatever their length"""

Move = Callable[[Tensor, int], Tensor]
"""(boxes [objects, 4], number of the example in the batch) -> where they lie after the change"""


def holds_boxes(targets: Column) -> bool:
    """Whether targets are a mapping with boxes."""
    if not isinstance(targets, Mapping) or not isinstance(targets.get(BOXES), Tensor | Varied):
        return False
    rows = _rows_of(targets[BOXES])
    return all(isinstance(one, Tensor) and one.dim() == 2 and one.shape[1] == 4 for one in rows)


def list_boxes(targets: Mapping[str, Column]) -> list[Any]:
    """Boxes of each example, [objects, 4]."""
    return _rows_of(targets[BOXES])


def move_boxes(targets: Mapping[str, Column], move: Move, size: tuple[int, int]) -> dict[str, Any]:
    """The targets with moved boxes, cut off at the edge of the image.

    An object that is gone leaves every column with a row for each object. Where all examples have the same
    number of objects in one tensor it stays, as a box without area; so does one that had none before.

    Args:
        targets: for which `holds_boxes` holds.
        size: height and width of the images.
    """
    old = list_boxes(targets)
    moved = [_clip(move(boxes, place), size) for place, boxes in enumerate(old)]
    if isinstance(targets[BOXES], Tensor):
        kept = [torch.where(_has_area(a)[:, None], b, a) for a, b in zip(old, moved, strict=True)]
        return {**targets, BOXES: torch.stack(kept)}
    stays = [_is_seen(boxes) for boxes in moved]
    counts = [len(boxes) for boxes in moved]
    changed = dict(targets)
    for name, column in targets.items():
        if name not in _OF_THE_IMAGE and _lengths(column) == counts:
            changed[name] = _keep_rows(column, stays)
    return {**changed, BOXES: Varied(tuple(b[seen] for b, seen in zip(moved, stays, strict=True)))}


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Boxes of images that are mirrored left to right.

    >>> mirror(torch.tensor([[1, 0, 3, 2]]), 10)
    tensor([[7, 0, 9, 2]])
    """
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack((width - right, top, width - left, bottom), 1)


def shift(boxes: Tensor, right: int, down: int) -> Tensor:
    """Boxes of images whose content moves by so many pixels."""
    return boxes + boxes.new_tensor((right, down, right, down))


def _clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    limits = boxes.new_tensor((width, height, width, height))
    return torch.minimum(boxes.clamp_min(0), limits)


def _has_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _is_seen(boxes: Tensor) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides >= LEAST_SIDE).all(1)


def _rows_of(column: Tensor | Varied) -> list[Any]:
    return list(column.unbind(0)) if isinstance(column, Tensor) else list(column.items)


def _lengths(column: Column) -> list[int] | None:
    """How many rows each example has, of a column of tensors."""
    if not isinstance(column, Tensor | Varied):
        return None
    rows = _rows_of(column)
    if not all(isinstance(one, Tensor) and one.dim() > 0 for one in rows):
        return None
    return [len(one) for one in rows]


def _keep_rows(column: Tensor | Varied, stays: list[Tensor]) -> Varied:
    return Varied(tuple(one[seen] for one, seen in zip(_rows_of(column), stays, strict=True)))
