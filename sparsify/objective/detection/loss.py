"""The loss of a detector: classes, boxes and the distributions of their sides."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.models.detectors import BINS
from sparsify.objective.detection.assignment import assign
from sparsify.objective.detection.boxes import (
    complete_overlap,
    distance_losses,
    objects_of,
    read_maps,
)

BOX, CLASS, DISTANCE = 7.5, 0.5, 1.5
"""weights of the three parts, those of YOLOv8"""


def detection_loss(outputs: Sequence[Tensor], targets: Any) -> Tensor:
    """The loss of each image: [N].

        7.5 * (1 - CIoU) + 0.5 * binary cross-entropy + 1.5 * distribution focal loss

    Boxes and distances are averaged over the cells that answer for an object, by the score that is wanted of
    each; cross-entropy is summed over all cells and classes, and divided by the sum of these scores, at
    least 1, of the image.

    Args:
        outputs: Maps of `sparsify.models.detector`.
        targets: For each image, `boxes` [objects, 4] in pixels and `labels` [objects].

    Raises:
        ValueError: Outputs or targets are something else.

    Source: Ultralytics YOLOv8, which divides by the sum over the batch; here a batch in parts adds up to the
    same.
    """
    predictions = read_maps(outputs)
    asked = assign(predictions, objects_of(targets))
    total = asked.scores.sum(dim=1).clamp(min=1)
    classes = predictions.scores.shape[2]
    wanted = functional.one_hot(asked.labels, classes) * asked.scores[..., None]
    score = functional.binary_cross_entropy_with_logits(predictions.scores, wanted, reduction="none")
    by_image = CLASS * score.sum(dim=(1, 2))
    answers = asked.scores > 0
    weights = asked.scores[answers]
    box = 1 - complete_overlap(predictions.boxes[answers], asked.boxes[answers])
    centres = predictions.centres.expand(len(answers), -1, -1)[answers]
    strides = predictions.strides.expand(len(answers), -1)[answers]
    low, high = centres - asked.boxes[answers][:, :2], asked.boxes[answers][:, 2:] - centres
    sides = torch.cat([low, high], dim=1) / strides[:, None]
    side = distance_losses(predictions.distances[answers].view(-1, 4, BINS), sides).mean(dim=1)
    images = answers.nonzero()[:, 0]
    by_image = by_image.index_add(0, images, (BOX * box + DISTANCE * side) * weights)
    return by_image / total
