"""Group lasso: the proximal step, the gradient and the half-space step on the groups of a layout."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsify.graph.group_index import Layout, add_scaled, scale, wide
from sparsify.training.penalties.step_action import Action, Tensors


def make_strength_state(count: int, device: torch.device) -> dict[str, Tensor]:
    """The state of `strength: auto`: lambda, gain, and the least factor of each slot in one
    action, 0 where the group may die."""
    return {
        "strength": torch.zeros((), dtype=torch.float64),
        "gain": torch.ones((), dtype=torch.float64),
        "floor": torch.ones(count + 1, device=device),
    }


def group_norms(layout: Layout, weights: Tensors) -> Tensor:
    """||w_g||_2 for every slot: [count + 1]."""
    return layout.reduce_products(lambda name: (weights[name], weights[name])).sqrt_()


def group_lasso_proximal(
    layout: Layout, roots: Tensor, weights: Tensors, amounts: Mapping[str, float], floor: Tensor | None = None
) -> None:
    """w_g <- w_g * max(floor, 1 - amount * v_g / ||w_g||), v_g = roots,
    amount = lr * strength, floor 0 when left out.

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
        scale(weights[part.name], part.axes, factors[amount])


def group_lasso_gradient(
    layout: Layout,
    roots: Tensor,
    weights: Tensors,
    gradients: Tensors,
    strength: float,
    norms: Tensor | None = None,
) -> None:
    """gradient += strength * v_g * w_g / ||w_g||, v_g = roots, 0 at 0;
    an entry of two groups gets both terms.

    Source: Wen et al., arXiv:1608.03665 (without the square root there).
    """
    pull = torch.nan_to_num(
        strength * roots / (group_norms(layout, weights) if norms is None else norms), nan=0.0, posinf=0.0
    )
    pull[-1] = 0.0
    for part in layout.parts:
        if part.name in gradients:
            add_scaled(gradients[part.name], weights[part.name], part.axes, pull)


def half_space(layout: Layout, roots: Tensor, names: tuple[str, ...], epsilon: float) -> Action:
    """The gradient, and w_g <- 0 after a step from w_g to w'_g with <w'_g,
    w_g> <= epsilon * ||w_g||^2; with strength 0 neither.

    An entry of two groups becomes zero with either.
    Source: Chen et al., arXiv:2004.03639, equation 9 and algorithm 3.
    """
    # Kept from step to step: to get so much memory anew takes longer than to fill it.
    before: dict[str, Tensor] = {}
    norms = torch.zeros_like(roots)

    def look(weights: Tensors, _gradients: Tensors, _scale: float) -> None:
        for name in names:
            if name not in before:
                before[name] = torch.empty_like(wide(weights[name]))
            before[name].copy_(weights[name])
        norms.copy_(group_norms(layout, weights))

    def pull(weights: Tensors, gradients: Tensors, strength: float) -> None:
        group_lasso_gradient(layout, roots, weights, gradients, strength, norms)

    def project(weights: Tensors, strength: float) -> None:
        if strength == 0.0:
            return
        along = layout.reduce_products(lambda name: (before[name], weights[name]))
        stays = along > epsilon * norms.square()
        stays[-1] = True
        if bool(stays.all()):
            return
        for part in layout.parts:
            scale(weights[part.name], part.axes, stays)

    return Action(before=look, gradient=pull, after=project)
