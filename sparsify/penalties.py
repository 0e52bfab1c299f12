"""Penalties as two small operations on parameters: a proximal step after the optimizer's, or a gradient before it.

Both are pure in everything but the tensors they are given to change. `amount` is lr * strength (summed over the steps
since the last proximal action) per tensor; `strength` is lambda.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import torch
from torch import Tensor

from sparsify.groups import Layout, broadcast, scale, wide
from sparsify_schemas.penalty import L1, L2, GroupLasso, Penalty

Tensors = Mapping[str, Tensor]
Proximal = Callable[[Tensors, Mapping[str, float]], None]
"""(weights, amounts): change the weights in place"""
Gradient = Callable[[Tensors, Tensors, float], None]
"""(weights, gradients, strength): add to the gradients in place"""


@dataclass(frozen=True)
class Action:
    """What a penalty does: exactly one of the two."""

    proximal: Proximal | None = None
    gradient: Gradient | None = None


def build(spec: Penalty, layout: Layout, parameters: Tensors) -> Action:
    """The action of a penalty on the groups of a layout; l1 and l2 act on every weight of the layout's tensors."""
    names = tuple(part.name for part in layout.parts)
    match spec:
        case GroupLasso():
            roots = layout.sizes(parameters).sqrt()
            if spec.solver == "proximal":
                return Action(proximal=partial(group_lasso_proximal, layout, roots))
            return Action(gradient=partial(group_lasso_gradient, layout, roots))
        case L1():
            return Action(proximal=partial(l1_proximal, names)) if spec.solver == "proximal" else Action(gradient=partial(l1_gradient, names))
        case L2():
            return Action(proximal=partial(l2_proximal, names)) if spec.solver == "proximal" else Action(gradient=partial(l2_gradient, names))
        case _:
            assert_never(spec)


def group_norms(layout: Layout, weights: Tensors) -> Tensor:
    """||w_g||_2 for every slot: [count + 1]."""
    return layout.reduce(lambda name: wide(weights[name]).square()).sqrt_()


def group_lasso_proximal(layout: Layout, roots: Tensor, weights: Tensors, amounts: Mapping[str, float]) -> None:
    """w_g <- w_g * max(0, 1 - amount * sqrt(|g|) / ||w_g||), amount = lr * strength.

    An entry of two groups takes the factors of both. Source: Parikh & Boyd, Proximal Algorithms, 6.5.4.
    """
    pull = roots / group_norms(layout, weights)
    pull[-1] = 0.0
    factors: dict[float, Tensor] = {}
    for part in layout.parts:
        amount = amounts[part.name]
        if amount == 0.0:
            continue
        if amount not in factors:
            factors[amount] = torch.addcmul(torch.ones_like(pull), pull, torch.full_like(pull, -amount)).clamp_(min=0.0)
        for axis in part.axes:
            scale(weights[part.name], axis, factors[amount])


def group_lasso_gradient(layout: Layout, roots: Tensor, weights: Tensors, gradients: Tensors, strength: float) -> None:
    """gradient += strength * sqrt(|g|) * w_g / ||w_g||, 0 at 0; an entry of two groups gets both terms.

    Source: Wen et al., arXiv:1608.03665 (without the square root there).
    """
    pull = torch.nan_to_num(strength * roots / group_norms(layout, weights), nan=0.0, posinf=0.0)
    pull[-1] = 0.0
    for part in layout.parts:
        if part.name in gradients:
            weight = weights[part.name]
            for axis in part.axes:
                gradients[part.name].addcmul_(weight, broadcast(pull, axis, weight.shape).to(weight.dtype))


def l1_proximal(names: tuple[str, ...], weights: Tensors, amounts: Mapping[str, float]) -> None:
    """w <- sign(w) * max(0, |w| - amount), amount = lr * strength."""
    for name in names:
        weights[name].copy_(torch.nn.functional.softshrink(weights[name], amounts[name]))


def l1_gradient(names: tuple[str, ...], weights: Tensors, gradients: Tensors, strength: float) -> None:
    """gradient += strength * sign(w)"""
    for name in names:
        if name in gradients:
            gradients[name].add_(weights[name].sign(), alpha=strength)


def l2_proximal(names: tuple[str, ...], weights: Tensors, amounts: Mapping[str, float]) -> None:
    """w <- w / (1 + amount), amount = lr * strength."""
    for name in names:
        weights[name].div_(1.0 + amounts[name])


def l2_gradient(names: tuple[str, ...], weights: Tensors, gradients: Tensors, strength: float) -> None:
    """gradient += strength * w"""
    for name in names:
        if name in gradients:
            gradients[name].add_(weights[name], alpha=strength)
