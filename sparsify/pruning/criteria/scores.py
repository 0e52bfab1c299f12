"""Criteria: one importance score per unit."""

from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

import torch
from torch import Tensor

from sparsify.errors import ModelError
from sparsify.graph.group_index import Layout, is_scale, wide
from sparsify.pruning.criteria.filter_distance import measure_distances
from sparsify_schemas.criterion import (
    Activation,
    BnScale,
    Criterion,
    Fisher,
    Fpgm,
    Lamp,
    Magnitude,
    Normalize,
    Random,
    Reconstruction,
    Sensitivity,
    Taylor,
    TorchPruning,
    Wanda,
)

Tensors = Mapping[str, Tensor]
Statistics = Callable[[], Iterable[None]]
"""each step of the iteration leaves in the weights' `grad` what a criterion looks at:
the gradient of the loss on one batch (fisher: on one example), or the root mean square of the inputs that the
weights multiply (activation, wanda)"""


def group_scores(
    spec: Criterion, layout: Layout, weights: Tensors, statistics: Statistics | None, seed: int
) -> Tensor:
    """The score of every slot of a layout: [count]. `statistics` is needed by criteria that look at data."""
    match spec:
        case Magnitude():
            powers = layout.reduce(lambda name: wide(weights[name].detach()).abs().pow(spec.norm))[:-1]
            return _normalize(spec.normalize, powers, layout, weights)
        case Taylor():
            changes = _over_batches(
                spec,
                statistics,
                lambda: layout.reduce(lambda name: _multiply_by_gradient(weights[name]))[:-1].abs(),
            )
            return _normalize(spec.normalize, changes, layout, weights)
        case Fisher():
            return _over_batches(
                spec,
                statistics,
                lambda: layout.reduce(lambda name: _multiply_by_gradient(weights[name]))[:-1].square() / 2,
            )
        case Sensitivity() | Wanda():
            products = _over_batches(
                spec, statistics, lambda: layout.reduce(lambda name: _size_of_product(weights[name]))[:-1]
            )
            how = spec.normalize if isinstance(spec, Wanda) else "none"
            return _normalize(how, products, layout, weights)
        case Activation():
            sizes = layout.sizes(weights).clamp(min=1)
            arriving = _over_batches(
                spec, statistics, lambda: (layout.reduce(lambda name: weights[name].grad) / sizes)[:-1]
            )
            return _normalize(spec.normalize, arriving, layout, weights)
        case Lamp():
            squares = layout.reduce(lambda name: wide(weights[name].detach()).square())[:-1]
            return torch.cat([_score_lamp(own) for own in layout.split(squares).values()])
        case BnScale():
            return _sum_scales(layout, weights)
        case Fpgm():
            apart = measure_distances(layout, weights)
            return torch.cat([own / _clamp_mean(own) for own in layout.split(apart).values()]).float()
        case Reconstruction():
            raise ModelError("criterion 'reconstruction' scores the units of whole coupled groups of a model")
        case TorchPruning():
            raise ModelError("criterion 'torch_pruning' scores the channels of layers, not slots of a layout")
        case Random():
            return torch.rand(layout.count, generator=torch.Generator().manual_seed(seed))
        case _:
            assert_never(spec)


def weight_scores(spec: Criterion, weight: Tensor, statistics: Statistics | None, seed: int) -> Tensor:
    """The score of every element of one tensor, in its shape."""

    def zeros() -> Tensor:
        return torch.zeros_like(weight, requires_grad=False)

    match spec:
        case Magnitude():
            return _divided(spec.normalize, weight.detach().abs())
        case Taylor() | Sensitivity() | Wanda():
            products = _over_batches(
                spec,
                statistics,
                lambda: zeros() if weight.grad is None else (wide(weight.detach()) * weight.grad).abs(),
            )
            return products if isinstance(spec, Sensitivity) else _divided(spec.normalize, products)
        case Fisher():
            return _over_batches(
                spec,
                statistics,
                lambda: (
                    zeros() if weight.grad is None else (wide(weight.detach()) * weight.grad).square() / 2
                ),
            )
        case Activation():
            arriving = _over_batches(
                spec,
                statistics,
                lambda: zeros() if weight.grad is None else weight.grad.expand_as(weight).clone(),
            )
            return _divided(spec.normalize, arriving)
        case Lamp():
            return _score_lamp(wide(weight.detach()).square().flatten()).view_as(weight)
        case BnScale():
            raise ModelError("criterion 'bn_scale' scores whole channels, not single weights")
        case Fpgm():
            raise ModelError("criterion 'fpgm' scores whole filters, not single weights")
        case Reconstruction():
            raise ModelError("criterion 'reconstruction' scores whole units, not single weights")
        case TorchPruning():
            raise ModelError("criterion 'torch_pruning' scores whole channels, not single weights")
        case Random():
            return torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
        case _:
            assert_never(spec)


def _normalize(how: Normalize, scores: Tensor, layout: Layout, weights: Tensors) -> Tensor:
    """The scores of all slots, made comparable between layers."""
    if how == "none":
        return scores
    if how == "size":
        return scores / layout.sizes(weights).clamp(min=1)[:-1]
    scores = scores.clone()
    single = torch.ones_like(scores, dtype=torch.bool)
    for _, first, width in layout.names:
        if width > 1:
            own = slice(first, first + width)
            single[own] = False
            scores[own] = _divided(how, scores[own])
    # Residual branches have one unit each: all that the rule reaches count as one layer.
    scores[single] = _divided(how, scores[single])
    return scores


def _divided(how: Normalize, scores: Tensor) -> Tensor:
    """The scores of one layer, divided by what `how` names; a single weight has the size 1."""
    if not scores.numel():
        return scores
    match how:
        case "none" | "size":
            return scores
        case "mean":
            divisor = scores.mean()
        case "max":
            divisor = scores.max()
        case "sum":
            divisor = scores.sum()
        case "l2":
            divisor = scores.square().sum().sqrt()
        case _:
            assert_never(how)
    return scores / divisor.clamp(min=torch.finfo(scores.dtype).tiny)


def _clamp_mean(scores: Tensor) -> Tensor:
    return scores.mean().clamp(min=torch.finfo(scores.dtype).tiny)


def _score_lamp(squares: Tensor) -> Tensor:
    """n_u / sum of all n_v >= n_u, for one layer; equal ones in the order of their places."""
    order = squares.argsort(descending=True, stable=True)
    ranked = squares[order]
    scores = torch.empty_like(squares)
    scores[order] = ranked / ranked.cumsum(0).clamp(min=torch.finfo(squares.dtype).tiny)
    return scores


def _sum_scales(layout: Layout, weights: Tensors) -> Tensor:
    scales = {part.name for part in layout.parts if is_scale(part.name, weights[part.name])}
    covered = layout.reduce(lambda name: torch.ones_like(weights[name].detach()) if name in scales else None)
    without = [name for name, own in layout.split(covered[:-1]).items() if not bool((own > 0).all())]
    if without:
        raise ModelError(
            "criterion 'bn_scale' needs a normalisation with a scale behind every channel, "
            f"and '{without[0]}' has none; use magnitude there"
        )
    return layout.reduce(lambda name: wide(weights[name].detach()).abs() if name in scales else None)[:-1]


def _multiply_by_gradient(weight: Tensor) -> Tensor | None:
    return None if weight.grad is None else wide(weight.detach()) * weight.grad


def _size_of_product(weight: Tensor) -> Tensor | None:
    return None if weight.grad is None else (wide(weight.detach()) * weight.grad).abs()


def _over_batches(spec: Criterion, statistics: Statistics | None, measure: Callable[[], Tensor]) -> Tensor:
    if statistics is None:
        raise ValueError(f"criterion '{spec.kind}' needs training batches")
    total, count = None, 0
    for _ in statistics():
        value = measure()
        total = value if total is None else total + value
        count += 1
    if total is None:
        raise ValueError(f"criterion '{spec.kind}' needs at least one training batch")
    return total / count
