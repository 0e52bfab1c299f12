"""Criteria: one importance score per unit."""

from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

import torch
from torch import Tensor

from sparsify.groups import Layout, wide
from sparsify_schemas.criterion import Criterion, Magnitude, Random, Taylor

Tensors = Mapping[str, Tensor]
Backward = Callable[[], Iterable[None]]
"""each step of the iteration leaves the gradients of one batch in the parameters"""


def group_scores(spec: Criterion, layout: Layout, weights: Mapping[str, Tensor], backward: Backward | None, seed: int) -> Tensor:
    """The score of every slot of a layout: [count]. `backward` is needed by taylor alone."""
    match spec:
        case Magnitude():
            return _normalized(spec, layout.reduce(lambda name: wide(weights[name].detach()).abs().pow(spec.norm)), layout, weights)
        case Taylor():
            return _mean_over_batches(lambda: layout.reduce(lambda name: _first_order(weights[name]))[:-1].abs(), backward)
        case Random():
            return torch.rand(layout.count, generator=torch.Generator().manual_seed(seed))
        case _:
            assert_never(spec)


def weight_scores(spec: Criterion, weight: Tensor, backward: Backward | None, seed: int) -> Tensor:
    """The score of every element of one tensor, in its shape."""
    match spec:
        case Magnitude():
            return weight.detach().abs()
        case Taylor():
            return _mean_over_batches(lambda: (f if (f := _first_order(weight)) is not None else torch.zeros_like(weight)).abs(), backward)
        case Random():
            return torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
        case _:
            assert_never(spec)


def _normalized(spec: Magnitude, total: Tensor, layout: Layout, weights: Mapping[str, Tensor]) -> Tensor:
    match spec.normalize:
        case "none":
            return total[:-1]
        case "size":
            return (total / layout.sizes(weights).clamp(min=1))[:-1]
        case "mean":
            scores = total[:-1].clone()
            single = torch.ones_like(scores, dtype=torch.bool)
            for _, first, width in layout.names:
                if width > 1:
                    single[first : first + width] = False
                    scores[first : first + width] /= _mean(scores[first : first + width])
            scores[single] /= _mean(scores[single])  # residual branches, one unit each: the mean of all that the rule reaches
            return scores
        case _:
            assert_never(spec.normalize)


def _mean(scores: Tensor) -> Tensor:
    return scores.mean().clamp(min=torch.finfo(scores.dtype).tiny)


def _first_order(weight: Tensor) -> Tensor | None:
    return None if weight.grad is None else wide(weight.detach()) * weight.grad


def _mean_over_batches(measure: Callable[[], Tensor], backward: Backward | None) -> Tensor:
    if backward is None:
        raise ValueError("criterion 'taylor' needs training batches")
    total, count = None, 0
    for _ in backward():
        value = measure()
        total = value if total is None else total + value
        count += 1
    if total is None:
        raise ValueError("criterion 'taylor' needs at least one training batch")
    return total / count
