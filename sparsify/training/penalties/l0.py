"""l0: gates on groups, drawn open or closed for every step and learnt with the weights."""

import math

import torch
from torch import Tensor

from sparsify.graph.group_index import Layout, scale, wide
from sparsify.training.penalties.step_action import Action, Tensors
from sparsify.training.penalties.stochastic_weights import (
    make_generator,
    make_penalty_parameters,
    make_trained_weights,
)
from sparsify_schemas.penalty import L0

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
LEAST = 1e-6
"""u is drawn from here to as far below 1"""


def make_action(spec: L0, layout: Layout, sizes: Tensor, parameters: Tensors) -> Action:
    """The model computes with w * z_g, the optimizer moves w,
    Adam the a_g of the gates. sizes: |g| of every slot.

    Source: Louizos et al., arXiv:1712.01312, equations 10 to 13.
    """
    names = tuple(part.name for part in layout.parts)
    weights_of = make_trained_weights(names, parameters)
    start, device = spec.closed.fraction, weights_of.flat.device
    own = make_penalty_parameters(torch.full((layout.count,), math.log((1 - start) / start), device=device))
    gates, slopes = torch.ones(layout.count + 1, device=device), torch.zeros(layout.count, device=device)

    def restore(weights: Tensors, gradients: Tensors, factor: float) -> None:
        if not bool(weights_of.away):
            return
        weights_of.give_back(weights)
        by_gate = layout.reduce(
            lambda name: wide(weights[name]) * gradients[name] if name in gradients else None
        )[:-1]
        own.pull.add_(by_gate.to(slopes) * slopes / factor)
        _apply_gates(layout, {name: gradients[name] for name in names if name in gradients}, gates)

    def learn(_weights: Tensors, strength: float) -> None:
        opened = torch.sigmoid(own.values - BETA * math.log(-GAMMA / ZETA))
        own.step(strength * sizes[:-1].to(opened) * opened * (1 - opened), spec.rate)

    def show(weights: Tensors, noisy: bool) -> None:
        weights_of.keep(weights)
        found, slope = (
            sample_gates(own.values, make_generator(names[0], int(own.steps)))
            if noisy
            else expected_gates(own.values)
        )
        gates[:-1].copy_(found)
        slopes.copy_(slope)
        _apply_gates(layout, {name: weights[name] for name in names}, gates)

    state = {
        "dense": weights_of.flat,
        "away": weights_of.away,
        "gates": gates,
        "slopes": slopes,
        **own.state("open"),
    }
    return Action(
        after=learn,
        restore=restore,
        show=show,
        state=state,
        per={"dense": "weight", **dict.fromkeys(("gates", "slopes", *own.per("open")), "group")},
    )


def sample_gates(values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(z, dz/da) for a fresh u: z = min(1, max(0, s (zeta - gamma) + gamma)),
    s = sigmoid((log u - log(1 - u) + a) / beta)."""
    u = torch.rand(len(values), generator=generator).clamp_(LEAST, 1 - LEAST).to(values)
    return _clip_gates(torch.sigmoid((u.log() - (1 - u).log() + values) / BETA), BETA)


def expected_gates(values: Tensor) -> tuple[Tensor, Tensor]:
    """(z, dz/da) without a draw: s = sigmoid(a)."""
    return _clip_gates(torch.sigmoid(values), 1.0)


def _clip_gates(s: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    stretched = s * (ZETA - GAMMA) + GAMMA
    inside = (stretched > 0) & (stretched < 1)
    return stretched.clamp(0, 1), inside * s * (1 - s) * (ZETA - GAMMA) / beta


def _apply_gates(layout: Layout, tensors: Tensors, gates: Tensor) -> None:
    for part in layout.parts:
        if part.name in tensors:
            scale(tensors[part.name], part.axes, gates)
