"""Group lasso: the proximal step and the gradient on the groups of a layout."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsify.groups import Layout, broadcast, scale, wide
from sparsify.penalties.action import Tensors


def found_strength(count: int, device: torch.device) -> dict[str, Tensor]:
    """The state of `strength: auto`: lambda, gain, and the least factor of each slot in one action, 0 where the group may die."""
    return {
        "strength": torch.zeros((), dtype=torch.float64),
        "gain": torch.ones((), dtype=torch.float64),
        "floor": torch.ones(count + 1, device=device),
    }


def group_norms(layout: Layout, weights: Tensors) -> Tensor:
    """||w_g||_2 for every slot: [count + 1]."""
    return layout.reduce(lambda name: wide(weights[name]).square()).sqrt_()


def group_lasso_proximal(layout: Layout, roots: Tensor, weights: Tensors, amounts: Mapping[str, float], floor: Tensor | None = None) -> None:
    """w_g <- w_g * max(floor, 1 - amount * sqrt(|g|) / ||w_g||), amount = lr * strength, floor 0 when left out.

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
            factors[amount] = torch.addcmul(torch.ones_like(pull), pull, torch.full_like(pull, -amount))
            factors[amount] = factors[amount].clamp_(min=0.0 if floor is None else floor.to(pull.dtype))
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
