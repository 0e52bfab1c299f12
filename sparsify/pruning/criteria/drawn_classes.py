"""How much predictions of classes depend on what a layer gives at a place, without labels.

    surprise = - sum over the places of the predictions of log p(y),    y drawn from p
    s = |g|,    g = d surprise / d output of the layer at a place
    w = (FLOOR + s / mean of s over the example) / (FLOOR + 1)

The mean of g g' over such draws is the Fisher information. |g| in place of its square makes less of the luck
of one draw.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import ModelError
from sparsify.pruning.layer_matrix import move_channels_last
from sparsify_schemas.task import Task

FLOOR = 0.1
"""of the mean: what a place counts that the predictions do not depend on"""


def sum_surprise(scores: Any, task: Task, generator: torch.Generator, where: str = "") -> Tensor:
    """- log p(y) summed over all places, y drawn from p.

    Args:
        scores: of classes, along dimension 1 of a segmentation and the last one of other tasks.
        where: what messages begin with.

    Raises ModelError where they are none.
    """
    axis = 1 if task.kind == "segmentation" else -1
    if axis == 1 and isinstance(scores, Tensor) and scores.dim() > 1 and scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], 1)  # whose softmax is the sigmoid
    if not isinstance(scores, Tensor) or scores.dim() < 2 or scores.shape[axis] < 2:
        raise ModelError(
            f"{where}'weigh': places are weighed by predictions that score two classes or more, and the "
            "model returns none; leave it out"
        )
    log = scores.movedim(axis, -1).flatten(0, -2).float().log_softmax(-1)
    drawn = torch.multinomial(log.detach().exp().cpu(), 1, generator=generator).to(log.device)
    return -log.gather(-1, drawn).sum()


def measure_lengths(module: nn.Module, gradient: Tensor) -> Tensor:
    """|g| at each place of a layer's output, [batch, *places]."""
    rows = move_channels_last(module, gradient)
    return rows.float().square().sum(-1).sqrt().nan_to_num(0.0)


def weigh(sizes: Tensor, examples: int) -> Tensor:
    """w of |g|, with a mean of 1 over each example.

    sizes: [batch, *places], several of which in a row may belong to one example.
    """
    each = sizes.reshape(examples, -1)
    mean = each.mean(1, keepdim=True)
    # An example on which nothing depends weighs its places alike.
    relative = torch.where(mean > 0, each / mean, 1.0)
    return ((FLOOR + relative) / (FLOOR + 1)).reshape(sizes.shape)
