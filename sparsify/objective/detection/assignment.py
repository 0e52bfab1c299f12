"""Which cell of a detector answers for which object: those that already agree best with it.

Source: task alignment, Feng et al., arXiv:2108.07755.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.objective.detection.boxes import Predictions, overlap

CELLS = 10
"""cells that answer for an object at most"""
SCORE_POWER, OVERLAP_POWER = 0.5, 6.0
"""agreement = score ** 0.5 * overlap ** 6, the values of YOLOv8"""


@dataclass(frozen=True)
class Assignment:
    """What each of the A cells should say of its image."""

    boxes: Tensor
    """[N, A, 4]; that of the first object where the cell answers for none"""
    labels: Tensor
    """[N, A]"""
    scores: Tensor
    """[N, A], what the score of the label should be; 0 where the cell answers for no object"""


def assign(predictions: Predictions, objects: Sequence[tuple[Tensor, Tensor]]) -> Assignment:
    """Give each object the cells inside its box that agree with it best; a cell that is asked for twice goes
    to the object that it overlaps more. No gradient.

    The score that is wanted of a cell is its agreement, scaled so that the best cell of an object gets the
    largest overlap that any of its cells has.
    """
    with torch.no_grad():
        wanted, labels, exists = _stack_objects(objects, predictions.scores)
        boxes, scores = predictions.boxes, predictions.scores.sigmoid()
        shared = overlap(wanted[:, :, None], boxes[:, None])
        may = exists[:, :, None] & _are_inside(predictions.centres, wanted)
        of_label = scores.transpose(1, 2).gather(1, labels[:, :, None].expand(-1, -1, scores.shape[1]))
        agreement = of_label**SCORE_POWER * shared**OVERLAP_POWER * may
        chosen = _largest(agreement, CELLS) & may
        rank = torch.where(chosen, shared, -1.0)
        owner = rank.argmax(dim=1)
        chosen &= torch.nn.functional.one_hot(owner, wanted.shape[1]).transpose(1, 2).bool()
        agreement, shared = agreement * chosen, shared * chosen
        best = agreement.amax(dim=2, keepdim=True).clamp(min=1e-9)
        targets = (agreement / best * shared.amax(dim=2, keepdim=True)).amax(dim=1)
        owned = wanted.gather(1, owner[:, :, None].expand(-1, -1, 4))
        return Assignment(owned, labels.gather(1, owner), targets)


def _stack_objects(objects: Sequence[tuple[Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(boxes [N, M, 4], labels [N, M], whether there is such an object [N, M]), M the largest number of
    objects, at least 1."""
    count = max([1, *(len(labels) for _, labels in objects)])
    boxes = like.new_zeros(len(objects), count, 4)
    labels = torch.zeros(len(objects), count, dtype=torch.int64, device=like.device)
    exists = torch.zeros(len(objects), count, dtype=torch.bool, device=like.device)
    for place, (own, classes) in enumerate(objects):
        boxes[place, : len(own)] = own.to(like)
        labels[place, : len(own)] = classes.to(like.device)
        exists[place, : len(own)] = True
    return boxes, labels, exists


def _are_inside(centres: Tensor, boxes: Tensor) -> Tensor:
    """Whether each of the centres [A, 2] lies in each of the boxes [N, M, 4]: [N, M, A]."""
    low = centres - boxes[:, :, None, :2]
    high = boxes[:, :, None, 2:] - centres
    return torch.cat([low, high], dim=-1).amin(dim=-1) > 0


def _largest(values: Tensor, count: int) -> Tensor:
    """Whether each value is among the `count` largest of the last dimension."""
    places = values.topk(min(count, values.shape[-1]), dim=-1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, places, True)
